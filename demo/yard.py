"""A yard for the demo: `batchyard up` with one node, and a second node beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from batchyard.broker.client import Client
from batchyard.broker.endpoints import Endpoints
from batchyard.worker import binaries
from batchyard.worker.supervise import tie_to
from packages import Tell

READY_S, STOP_S = 60.0, 120.0


class NoYard(Exception):
    """The message says what to do."""


@contextmanager
def yard(folder: Path, nodes: Sequence[str], tell: Tell) -> Iterator[Endpoints]:
    """Redis, controller, Flower and two nodes that share this machine; all stopped at the end. Raises NoYard.

    folder: where everything is kept, so that the next one goes on with it. Each node is a compute environment with a
    queue of its own, both called by its name.
    """
    left, right = nodes
    folder.mkdir(parents=True, exist_ok=True)
    vcpus, memory_mib = max(1.0, (os.cpu_count() or 1) / 2), max(1024, _memory_mib() * 2 // 5)
    config = folder / "yard.yaml"
    config.write_text(json.dumps(_config(nodes, vcpus, memory_mib), indent=1))  # JSON is YAML
    size = ["--vcpus", f"{vcpus:g}", "--memory-mib", str(memory_mib), "--grace-s", "1"]
    size += ["--copies-memory-mib", "0"]  # what is on disk is there when the demo is run again
    with ExitStack() as stack:
        tell("batchyard up")
        words = ["--state", str(folder / "state"), "--config", str(config), "--name", left, *size, store_word()]
        first = stack.enter_context(_process(["up", *words], folder / "up.log", os.environ))
        assert first.stdout is not None
        if not first.stdout.readline().startswith("ready"):
            raise NoYard(f"the yard did not come up: {_last(folder / 'up.log')}")
        ends = Endpoints.load(folder / "state")
        tell(f"node {right}")
        words = ["--name", right, "--state", str(folder / right), "--labels", f"environment={right}", *size]
        places = {"BROKER_URL": ends.broker_url, "KEY_FILE": ends.key_file or "", "STORE": ends.store or ""}
        environ = {**os.environ, **{f"BATCHYARD_{name}": value for name, value in places.items()}}
        log = folder / f"{right}.log"
        second = stack.enter_context(_process(["worker", *words], log, environ))
        _await(ends, nodes, second, log)
        yield ends


def store_word() -> str:
    """What tells `up` where blobs are kept: in a MinIO that is installed or that `up --minio` has built before, else in
    a folder. The switch is here and nowhere else.
    """
    return "--no-minio" if binaries.find("minio") is None else "--minio"


def store_name(ends: Endpoints) -> str:
    """The blob store in words."""
    if (ends.store or "").startswith("s3://"):
        return "MinIO"
    return "a folder (in MinIO, once `batchyard up --minio` has built it)"


def _config(nodes: Sequence[str], vcpus: float, memory_mib: int) -> dict[str, object]:
    return {
        "queues": {node: {"environments": [node]} for node in nodes},
        "environments": {node: {"vcpus": vcpus, "memory_mib": memory_mib, "disk_gib": 1000} for node in nodes},
    }


@contextmanager
def _process(words: Sequence[str], log: Path, environ: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A `batchyard` command, told to end at the end. What it says goes into the log; its stdout can be read."""
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "batchyard.broker.cli", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            env=environ,
            start_new_session=True,  # a Ctrl-C comes to the demo first
            preexec_fn=tie_to(os.getpid(), signal.SIGTERM),  # noqa: PLW1509 (it takes no lock)
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await(ends: Endpoints, nodes: Sequence[str], process: subprocess.Popen[str], log: Path) -> None:
    """Returns when all nodes are up."""
    end = time.monotonic() + READY_S
    with Client.of(ends) as client:
        while not set(nodes) <= {node.name for node in client.nodes() if node.up}:
            if process.poll() is not None or time.monotonic() > end:
                raise NoYard(f"node {nodes[-1]} did not come up: {_last(log)}")
            time.sleep(0.1)


def _last(log: Path) -> str:
    lines = log.read_text().strip().splitlines() or ["it did not say why"]
    return f"{lines[-1]} (see {log})"


def _memory_mib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
