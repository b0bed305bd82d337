"""An engine in memory for unit tests: programs are Python functions in threads, logs are json-files in a folder.

It passes the same contract suite as a real one. `program` adds a command; a small `sh -c` understands `;`, `echo`,
`exit`, `sleep`, `true`, `false` and `>&2`. `go_away` and `come_back` play a restart of the engine, `lose` a
container that somebody else removed.
"""

from __future__ import annotations

import json
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from batchyard.broker.errors import EngineUnavailable, ImageError, NotFound, Permanent, StartError

from .image_archive import find_image, small_archive, write_image
from .logs import FileLog, LogSource
from .networks import Network
from .protocol import ContainerSpec, Exit, Listed

SIGNALS = {"SIGTERM": 15, "SIGKILL": 9, "SIGINT": 2, "SIGQUIT": 3, "SIGHUP": 1, "SIGUSR1": 10}


class Killed(Exception):
    """Raised inside a program by a signal that it did not ask for."""

    def __init__(self, number: int, *, oom: bool = False) -> None:
        super().__init__(f"signal {number}")
        self.number, self.oom = number, oom


@dataclass(slots=True)
class Running:
    """What a program sees of its container."""

    id: str
    spec: ContainerSpec
    command: tuple[str, ...]
    _log: Path
    _clock: Callable[[], float]
    _wake: threading.Condition = field(default_factory=threading.Condition)
    _pending: list[str] = field(default_factory=list[str])
    deaf_to: set[str] = field(default_factory=set[str])

    def out(self, text: str) -> None:
        """Write to stdout, newlines and all."""
        self._write("stdout", text)

    def err(self, text: str) -> None:
        """Write to stderr."""
        self._write("stderr", text)

    def sleep(self, seconds: float) -> None:
        """Wait, and end by a signal as a process would."""
        with self._wake:
            self._wake.wait_for(lambda: bool(self._pending), timeout=seconds)
            if self._pending:
                name = self._pending.pop(0)
                raise Killed(9 if name == "OOM" else SIGNALS[name], oom=name == "OOM")

    def deliver(self, name: str) -> None:
        if name not in self.deaf_to:
            with self._wake:
                self._pending.append(name)
                self._wake.notify_all()

    def _write(self, stream: str, text: str) -> None:
        stamp = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
        with self._log.open("a", encoding="utf-8") as log:
            for line in text.splitlines(keepends=True):
                log.write(json.dumps({"log": line, "stream": stream, "time": stamp}, separators=(",", ":")) + "\n")


Program = Callable[[Running], int]


@dataclass(slots=True)
class _Container:
    spec: ContainerSpec
    running: Running | None = None
    exit: Exit | None = None


class FakeEngine:
    """`root` takes the log files. `registry` names the images that `pull` can fetch, `images` those already here."""

    def __init__(
        self,
        root: Path,
        *,
        images: Iterable[str] = (),
        registry: Iterable[str] = (),
        gpus: Iterable[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.images = {image: digest_of(image) for image in images}
        self.configs: dict[str, bytes] = {}
        self.registry = set(registry)
        self.pulls: list[str] = []
        self.calls: list[str] = []
        self._gpus = set(gpus)
        self._root, self._clock = root, clock
        self._changed = threading.Condition(threading.RLock())
        self._containers: dict[str, _Container] = {}
        self._networks: dict[str, Network] = {}
        self._away = self._closed = False
        self._count = 0
        self._programs: dict[str, Program] = {
            "true": lambda run: 0,
            "false": lambda run: 1,
            "echo": _shell,
            "sleep": _shell,
            "sh": lambda run: _script(run, run.command[2]),
        }

    def program(self, name: str, run: Program) -> None:
        """Make `command[0] == name` run this function in a thread; it returns the exit code."""
        self._programs[name] = run

    def go_away(self) -> None:
        """From now on nothing answers. Containers go on."""
        with self._changed:
            self._away = True
            self._changed.notify_all()

    def come_back(self) -> None:
        with self._changed:
            self._away = False
            self._changed.notify_all()

    def lose(self, container_id: str) -> None:
        """Somebody else removes it."""
        with self._changed:
            gone = self._containers.pop(container_id)
            if gone.running is not None:
                gone.running.deliver("SIGKILL")
            self._changed.notify_all()

    def run_out_of_memory(self, container_id: str) -> None:
        """The kernel kills it for its memory."""
        running = self._get(container_id).running
        if running is not None:
            running.deliver("OOM")

    def ping(self) -> None:
        self._call("ping")

    def image_present(self, image: str) -> str | None:
        self._call("image_present")
        return self.images.get(image)

    def pull(self, image: str) -> None:
        self._call("pull")
        self.pulls.append(image)
        if image not in self.registry:
            raise ImageError(f'image "{image}" cannot be had: no such image; check its name')
        self.images[image] = digest_of(image)

    def import_image(self, image: str, layer: bytes) -> None:
        self._call("import_image")
        self.images.setdefault(image, digest_of(image))

    def load(self, archive: Path, image: str) -> None:
        self._call("load")
        found = find_image(archive)
        for _ in write_image(found, image):
            pass
        self.images[image] = f"sha256:{sha256(found.told).hexdigest()}"
        self.configs[image] = found.told

    def save(self, image: str, path: Path) -> None:
        self._call("save")
        if image not in self.images:
            raise ImageError(f'image "{image}" is not on this machine; pull it first, or correct its name')
        manifest = [{"Config": "config.json", "RepoTags": None, "Layers": list[str]()}]
        config = self.configs.get(image, _config_of(image))
        path.write_bytes(small_archive({"manifest.json": json.dumps(manifest).encode(), "config.json": config}))

    def create(self, spec: ContainerSpec) -> str:
        self._call("create")
        if spec.image not in {*self.images, *self.images.values()}:
            raise ImageError(f'image "{spec.image}" is not on this node')
        if not self._known(spec.network):
            raise StartError(f"a container of image {spec.image!r} cannot be created: no network {spec.network}")
        paths = [path for bind in spec.binds for path in (bind.source, bind.changes) if path is not None]
        missing = [path for path in paths if not Path(path).exists()]
        if missing:
            raise StartError(f"a container of image {spec.image!r} cannot be created: no {missing[0]} to bind")
        with self._changed:
            self._count += 1
            container_id = sha256(f"{self._root}/{self._count}".encode()).hexdigest()
            self._containers[container_id] = _Container(spec)
        return container_id

    def start(self, container_id: str) -> None:
        self._call("start")
        with self._changed:
            container = self._get(container_id)
            if container.running is not None:
                return
            unknown = set(container.spec.gpus) - self._gpus
            if unknown:
                raise StartError(f"the container cannot be started: no driver for GPU {sorted(unknown)}")
            command = (container.spec.entrypoint or ()) + (container.spec.command or ("true",))
            run = self._programs.get(command[0])
            if run is None and not container.spec.init:
                raise StartError(f"the container cannot be started: exec {command[0]}: not found")
            log = self._root / f"{container_id}-json.log"
            log.touch()
            container.running = Running(container_id, container.spec, command, log, self._clock)
            threading.Thread(target=self._run, args=(container, run, self._clock()), daemon=True).start()

    def _run(self, container: _Container, run: Program | None, started_at: float) -> None:
        running = container.running
        assert running is not None
        code, oom, error = 127, False, f"exec {running.command[0]} failed: No such file or directory"
        if run is not None:
            try:
                code, error = run(running), ""
            except Killed as killed:
                code, oom, error = 128 + killed.number, killed.oom, ""
        with self._changed:
            container.exit = Exit(
                code=code, oom=oom, started_at=started_at, finished_at=max(self._clock(), started_at), error=error
            )
            self._changed.notify_all()

    def wait(self, container_id: str) -> Exit:
        with self._changed:
            away = False
            while True:
                away = away or self._away
                if self._closed:
                    raise EngineUnavailable(f"no longer waiting for container {container_id[:12]}: this node closes")
                if not self._away:
                    container = self._get(container_id)
                    if container.running is None:
                        raise StartError(f"container {container_id[:12]} was never started")
                    ended = container.exit
                    if ended is not None:
                        return replace(ended, interrupted=away and ended.code > 128 and not ended.oom)
                self._changed.wait()

    def inspect_exit(self, container_id: str) -> Exit | None:
        self._call("inspect_exit")
        container = self._get(container_id)
        if container.running is None:
            raise StartError(f"container {container_id[:12]} was never started")
        return container.exit

    def signal(self, container_id: str, name: str) -> bool:
        self._call(f"signal {name}")
        with self._changed:
            container = self._containers.get(container_id)
            if container is None or container.running is None or container.exit is not None:
                return False
            container.running.deliver(name)
            return True

    def kill(self, container_id: str) -> bool:
        return self.signal(container_id, "SIGKILL")

    def remove(self, container_id: str, *, force: bool = True) -> None:
        self._call("remove")
        with self._changed:
            container = self._containers.get(container_id)
            if container is None:
                return
            alive = container.running is not None and container.exit is None
            if alive and not force:
                raise Permanent(f"container {container_id[:12]} cannot be removed: it runs; stop it first")
            self.lose(container_id)
        (self._root / f"{container_id}-json.log").unlink(missing_ok=True)

    def list(self, labels: Mapping[str, str]) -> Sequence[Listed]:
        self._call("list")
        with self._changed:
            return tuple(
                Listed(
                    id=container_id,
                    labels=dict(one.spec.labels),
                    running=one.running is not None and one.exit is None,
                    started=one.running is not None,
                )
                for container_id, one in self._containers.items()
                if labels.items() <= dict(one.spec.labels).items()
            )

    def identity(self) -> str:
        self._call("identity")
        return f"fake:{self._root}"

    def create_network(self, name: str, labels: Mapping[str, str], *, internal: bool) -> None:
        self._call("create_network")
        with self._changed:
            self._networks.setdefault(name, Network(name=name, labels=dict(labels)))

    def remove_network(self, name: str) -> bool:
        self._call("remove_network")
        with self._changed:
            alive = [one for one in self._containers.values() if one.running is not None and one.exit is None]
            if any(one.spec.network == name for one in alive):
                return False
            self._networks.pop(name, None)
            return True

    def list_networks(self, labels: Mapping[str, str]) -> Sequence[Network]:
        self._call("list_networks")
        return tuple(one for one in self._networks.values() if labels.items() <= one.labels.items())

    def address(self, container_id: str, network: str) -> str:
        self._call("address")
        with self._changed:
            one = self._get(container_id)
            if one.spec.network != network or one.running is None or one.exit is not None:
                return ""
            return f"10.0.0.{1 + list(self._containers).index(container_id) % 250}"

    def _known(self, network: str) -> bool:
        return network in {"none", "bridge", "host"} or network.startswith("container:") or network in self._networks

    def log_source(self, container_id: str) -> LogSource:
        return FileLog(self._root / f"{container_id}-json.log")

    def spec(self, container_id: str) -> ContainerSpec:
        """What it was created from."""
        return self._get(container_id).spec

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _call(self, name: str) -> None:
        if self._away:
            raise EngineUnavailable(f"{name}: the container engine does not answer")
        self.calls.append(name)

    def _get(self, container_id: str) -> _Container:
        try:
            return self._containers[container_id]
        except KeyError:
            raise NotFound(f"container {container_id[:12]} is gone: somebody else removed it") from None


def digest_of(image: str) -> str:
    """The config digest that the fake gives an image."""
    return f"sha256:{sha256(_config_of(image)).hexdigest()}"


def _config_of(image: str) -> bytes:
    return json.dumps({"of": image}).encode()


def _script(run: Running, script: str) -> int:
    code = 0
    for part in script.split(";"):
        words = shlex.split(part)
        if not words:
            continue
        if words[0] == "exit":
            return int(words[1])
        code = _word(run, words)
    return code


def _shell(run: Running) -> int:
    return _word(run, list(run.command))


def _word(run: Running, words: list[str]) -> int:
    write = run.err if words[-1] == ">&2" else run.out
    words = [word for word in words if word != ">&2"]
    if words[0] == "echo":
        write(" ".join(words[1:]) + "\n")
    elif words[0] == "sleep":
        run.sleep(float(words[1]))
    elif words[0] not in ("true", "false"):
        run.err(f"sh: {words[0]}: not found\n")
        return 127
    return int(words[0] == "false")
