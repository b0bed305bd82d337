"""The compose stack of this repository, brought up beside whatever else runs on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from batchyard.broker.endpoints import Endpoints

from .redis import free_port

FOLDER = Path(__file__).resolve().parents[2] / "compose"
IMAGES_S = 600
YARD_IMAGE, REDIS_IMAGE = "batchyard/batchyard:local", "batchyard/redis:local"


def make_images() -> None:
    """Images of the stack, from OS packages; seconds when nothing has changed. AssertionError with what was said."""
    _run([str(FOLDER / "images.sh")], {}, timeout_s=IMAGES_S)


class Stack:
    """A project of its own, with its data, secrets and ports. `prepare()`, `up()`, and in the end `down()`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.project = f"yardtest{os.getpid()}"
        self.root, self.secrets = directory / "root", directory / "secrets"
        self.settings = directory / "settings"
        self.environment = {
            "BATCHYARD_ROOT": str(self.root),
            "BATCHYARD_SECRETS": str(self.secrets),
            "BATCHYARD_ENV_FILE": str(self.settings),
            "BATCHYARD_NODE": "smith",
            "BATCHYARD_HEALTH_INTERVAL": "1s",
            "BATCHYARD_COPIES_MEMORY_MIB": "64",
            "BATCHYARD_NEAR_GIB": "1",
            **{f"BATCHYARD_{what}_PORT": str(free_port()) for what in ("REDIS", "MINIO", "FLOWER")},
        }

    def prepare(self) -> None:
        """As an operator does. May be called again."""
        _run([str(FOLDER / "prepare.sh")], self.environment, timeout_s=IMAGES_S)

    def ends(self) -> Endpoints:
        """What a producer on this host uses."""
        return Endpoints.load(self.secrets / "host")

    def compose(self, *words: str, timeout_s: float = 120) -> str:
        """`docker compose …` on this project; what it wrote."""
        where = ["-p", self.project, "-f", str(FOLDER / "compose.yaml"), "--env-file", str(self.settings)]
        return _run([*command(), *where, *words], self.environment, timeout_s=timeout_s)

    def up(self) -> None:
        """Returns when what has health checks is healthy and the rest has been started."""
        self.compose("up", "-d")

    def down(self) -> None:
        """Ends and removes all of it but the data. May be called twice."""
        self.compose("down", "-v", "--remove-orphans")

    def container(self, service: str) -> str:
        """The id of a service's container."""
        return self.compose("ps", "-q", service).strip()

    def left(self) -> dict[str, list[str]]:
        """What the engine still has of this project."""
        of_project = f"label=com.docker.compose.project={self.project}"
        asked = {
            "containers": ["ps", "-aq"],
            "networks": ["network", "ls", "-q"],
            "volumes": ["volume", "ls", "-q"],
        }
        found = {what: docker(*words, "--filter", of_project).split() for what, words in asked.items()}
        return {what: ids for what, ids in found.items() if ids}


@contextmanager
def running_stack(directory: Path) -> Iterator[Stack]:
    """A stack that is up; at the end it is down, and what it said is in `build/compose.log`."""
    stack = Stack(directory)
    stack.prepare()
    try:
        stack.up()
        yield stack
    finally:
        log = FOLDER.parent / "build" / "compose.log"
        log.parent.mkdir(exist_ok=True)
        log.write_text(stack.compose("logs", "--no-color"))
        stack.down()


def command() -> list[str]:
    """Compose v2, else v1. AssertionError: neither."""
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0:
        return ["docker", "compose"]
    found = shutil.which("docker-compose")
    assert found, "there is no docker compose here: run .ci/setup test, or install docker-compose"
    return [found]


def docker(*words: str) -> str:
    """`docker …`; what it wrote."""
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=True, timeout=60).stdout


def inspected(*containers: str) -> str:
    """All that the engine tells of them, as JSON."""
    return json.dumps(json.loads(docker("inspect", *containers)))


def remove_jobs(yard_id: str) -> list[str]:
    """Removes what a yard's nodes left in the engine; their ids."""
    left = docker("ps", "-aq", "--filter", f"label=batchyard.yard={yard_id}").split()
    if left:
        subprocess.run(["docker", "rm", "-f", "-v", *left], capture_output=True, check=False, timeout=60)
    return left


def _run(words: list[str], environment: Mapping[str, str], *, timeout_s: float) -> str:
    ran = subprocess.run(
        words,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    assert ran.returncode == 0, f"{' '.join(words)} gave {ran.returncode}:\n{(ran.stdout + ran.stderr)[-4000:]}"
    return ran.stdout
