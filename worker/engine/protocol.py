"""What a node asks of a container engine: a handful of calls, and the records that go in and come out.

Whoever runs containers (Docker today, anything else later) implements `Engine` and passes
`tests/contract/test_engine.py`. Nothing outside this package may know which engine it is.

The life of one container, and who answers for it:

    create ── start ── wait ── remove
       │        └ StartError: the created container is still there, the caller removes it (`launch` does)
       └ ImageError: nothing was created

Containers are never removed by the engine itself, so a node that was killed finds them again by label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from batchyard.broker.errors import StartError

from .logs import LogSource
from .networks import Networks


@dataclass(frozen=True, slots=True, kw_only=True)
class Bind:
    """A file or directory of the node at a path in the container. `source` must exist.

    changes: of a directory, what `overlay.prepare` made for it: what the container writes goes there, and `source`
    stays as it is. Nothing of the mount is left once the container was removed.
    """

    source: str
    target: str
    read_only: bool = False
    changes: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """All that an engine has to know to create a container.

    `image` is a name, or the digest that `image_present` gave. `vcpus` and `memory_mib` are hard limits, and swap is
    off. `network` is `none`, `bridge`, `host`, `container:ID` to join the network of another container, or the name of
    one. `command` and `entrypoint` of None, `user` and `working_dir` of None mean the image's own. `tmpfs` maps a path
    to mount options. `gpus` are device ids of the driver (UUIDs), `devices` are device nodes of the host.
    """

    image: str
    vcpus: float
    memory_mib: int
    command: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    user: str | None = None
    working_dir: str | None = None
    binds: tuple[Bind, ...] = ()
    tmpfs: Mapping[str, str] = field(default_factory=dict[str, str])
    network: str = "none"
    read_only_root: bool = False
    cap_drop_all: bool = False
    no_new_privileges: bool = True
    pids_limit: int | None = None
    devices: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    init: bool = True
    name: str | None = None
    stop_signal: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a container ended. `code` is 128 + signal when a signal ended it; `oom` when the kernel did for memory.

    Times are epoch seconds. `error` is the engine's own word when the command could not be run, else "".
    `interrupted`: a signal ended it while the engine was away, so it may well be the engine's restart that did it.
    """

    code: int
    oom: bool
    started_at: float
    finished_at: float
    error: str = ""
    interrupted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One container of a listing. Neither `started` nor `running`: created, and never started."""

    id: str
    labels: Mapping[str, str]
    running: bool
    started: bool


class CreateAgain(StartError):
    """This container cannot be started, another one of the same spec can."""


class InitMissing(CreateAgain):
    """The engine has no init binary. It creates containers without one from now on: create this one again."""


class Engine(Networks, Protocol):
    """Runs containers. Every method may be called from any thread, and all but `wait`, `pull`, `load` and
    `save` answer within 60 s.

    Every method raises `EngineUnavailable` when the engine does not answer, but `wait`, which goes on waiting.
    """

    def ping(self) -> None:
        """Return when the engine answers."""

    def image_present(self, image: str) -> str | None:
        """The image's config digest (`sha256:…`), or None when the engine does not hold it."""
        ...

    def pull(self, image: str) -> None:
        """Fetch an image. ImageError: unknown, or the registry refuses. ImageUnavailable: the registry is away, or has
        no time. DiskFull: no room for it."""

    def import_image(self, image: str, layer: bytes) -> None:
        """Make an image of one layer, a tar. Nothing happens when there is one of this name."""
        ...

    def load(self, archive: Path, image: str) -> None:
        """Have the one image in an archive (docker's own, or an OCI layout) under this name, and under no other.
        ImageError: there is none, or it is not sound. DiskFull."""

    def save(self, image: str, path: Path) -> None:
        """Write an image as an archive that `load` takes: of one image always the same bytes. ImageError: it is not
        here. DiskFull, StoreUnavailable: `path` cannot be written."""

    def create(self, spec: ContainerSpec) -> str:
        """Create a container and return its id. ImageError: no such image here. StartError: the spec is refused."""
        ...

    def start(self, container_id: str) -> None:
        """Start it; nothing happens when it runs already.

        StartError: it cannot be started as asked (no such command when `init` is off, no GPU driver, a bind whose
        source is gone). The created container stays, the caller removes it. NotFound: gone.
        """

    def wait(self, container_id: str) -> Exit:
        """Block until it has ended, also across restarts of the engine. At once when it has ended already.

        NotFound: it is gone, so nobody can say how it ended. StartError: it was never started.
        EngineUnavailable: `close` was called meanwhile.
        """
        ...

    def inspect_exit(self, container_id: str) -> Exit | None:
        """How it ended, None while it runs. NotFound: gone. StartError: it was never started."""
        ...

    def signal(self, container_id: str, name: str) -> bool:
        """Send a signal (`SIGTERM`) to its command. False when there is nothing running to send it to."""
        ...

    def kill(self, container_id: str) -> bool:
        """SIGKILL to all its processes. False when there is nothing running."""
        ...

    def remove(self, container_id: str, *, force: bool = True) -> None:
        """Remove it with its files; nothing happens when it is gone.

        Without `force`, Permanent when it still runs.
        """

    def list(self, labels: Mapping[str, str]) -> Sequence[Listed]:
        """All containers, running or not, that carry every one of these labels."""
        ...

    def log_source(self, container_id: str) -> LogSource:
        """What it writes, from the first line on. Call after `start`."""
        ...

    def close(self) -> None:
        """Let every `wait` return, within half a minute. May be called twice. Containers go on."""
