"""What `batchyard doctor` looks at on this machine: engine, scratch folder, GPUs.

Each check asks one thing of the world and says what it found, and what to do about it.
"""

from __future__ import annotations

import os
import platform
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from batchyard.broker.errors import BatchyardError, EngineUnavailable, StartError

from .engine import Bind, ContainerSpec, pause
from .engine.docker import DockerEngine
from .gpu import ask_driver
from .ground import ground

_DRIVERS = {"overlay2", "overlayfs", "btrfs", "zfs", "stargz"}
_GIB = 1 << 30
START_ENGINE = "start Docker, let this user talk to it, or correct DOCKER_HOST"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the report. todo: what to do next, where something is to be done."""

    name: str
    status: Literal["ok", "warn", "fail"]
    said: str
    todo: str = ""

    def as_json(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self)


Checks = Iterator[Check]
Probe = Callable[[], Checks]


def ok(name: str, said: str) -> Check:
    return Check(name=name, status="ok", said=said)


def warn(name: str, said: str, todo: str) -> Check:
    return Check(name=name, status="warn", said=said, todo=todo)


def fail(name: str, said: str, todo: str) -> Check:
    return Check(name=name, status="fail", said=said, todo=todo)


# -- engine
def engine(scratch: Path) -> Checks:
    """The container engine: whether it answers, what it is, whether it sees this machine's folders."""
    docker = DockerEngine()
    try:
        facts = docker.about()
    except EngineUnavailable as error:
        yield fail("engine", str(error), START_ENGINE)
        return
    yield ok("engine", f"Docker {facts.get('ServerVersion', '?')} answers")
    yield from engine_facts(facts)
    yield _sees(docker, scratch)


def engine_facts(facts: Mapping[str, Any]) -> Checks:
    """What `docker info` tells: facts as the Engine API names them."""
    version = str(facts.get("CgroupVersion") or "?")
    if version == "2":
        yield ok("engine cgroup", "version 2")
    else:
        yield warn(
            "engine cgroup", f"version {version}; it works, but kernels and engines give it up", "boot with cgroup 2"
        )
    if not facts.get("MemoryLimit", True):
        yield fail("engine limits", "the kernel does not limit memory: a job may take all", "enable the memory cgroup")
    elif not (facts.get("CpuCfsQuota", True) and facts.get("SwapLimit", True)):
        missing = "vCPU" if not facts.get("CpuCfsQuota", True) else "swap"
        yield warn("engine limits", f"the kernel does not limit {missing}", "boot with swapaccount=1, or cgroup 2")
    driver = str(facts.get("Driver") or "?")
    if driver in _DRIVERS:
        yield ok("engine storage", driver)
    else:
        yield warn("engine storage", f"{driver} is slow to start containers", "use overlay2 in /etc/docker/daemon.json")


def _sees(docker: DockerEngine, scratch: Path) -> Check:
    """Asks for a container with a new folder of scratch in it, which is not started: the engine refuses what it does
    not see.
    """
    name, machine = "engine scratch", platform.machine()
    if machine not in pause.machines():
        return warn(name, f"cannot be tried on {machine}", "start a job with an input")
    probe = _existing(scratch) / f".doctor-{secrets.token_hex(8)}"
    made: list[str] = []
    try:
        probe.mkdir(mode=0o700)
        docker.import_image(pause.TAG, pause.image(machine))
        bind = Bind(source=str(probe), target="/probe", read_only=True)
        spec = ContainerSpec(
            image=pause.TAG, vcpus=0.1, memory_mib=8, command=pause.COMMAND, binds=(bind,),
            labels={"batchyard.doctor": "1"},
        )  # fmt: skip
        made.append(docker.create(spec))
    except OSError as error:
        return fail(name, f"{probe.parent} cannot be written: {error.strerror}", "give another --scratch")
    except StartError as error:
        return fail(
            name, f"the engine does not see {probe.parent}: {error}", "mount it at the same path where the engine is"
        )
    except BatchyardError as error:
        return fail(name, str(error), "see what the engine's log says")
    finally:
        for container in made:
            with suppress(BatchyardError):
                docker.remove(container)
        with suppress(OSError):
            probe.rmdir()
    return ok(name, f"the engine sees {probe.parent}")


def _existing(folder: Path) -> Path:
    return next(p for p in (folder, *folder.parents) if p.is_dir())


# -- scratch
def scratch_folder(folder: Path) -> Checks:
    """Where work folders and decrypted copies are: room, file system, whether it is clear on a disk."""
    there = _existing(folder)
    stats = os.statvfs(there)
    free, whole = stats.f_bavail * stats.f_frsize, stats.f_blocks * stats.f_frsize
    said = f"{free / _GIB:.1f} of {whole / _GIB:.1f} GiB free at {there}"
    if not os.access(there, os.W_OK | os.X_OK):
        yield fail("scratch", f"{there} cannot be written", "give another --scratch")
    elif free < _GIB:
        yield fail("scratch", said, "free some, or give another --scratch")
    elif free < 10 * _GIB or free < whole / 20 or (stats.f_files and stats.f_favail < 10_000):
        files = f", room for {stats.f_favail} files" if stats.f_files else ""
        yield warn("scratch", said + files, "free some, or give another --scratch")
    else:
        yield ok("scratch", said)
    on = ground(there)
    if on.memory:
        yield ok("scratch privacy", f"{on.file_system}: in memory (and in swap, if there is one)")
    elif on.encrypted:
        yield ok("scratch privacy", f"{on.file_system} on {on.source}, encrypted")
    else:
        what = "clear on disk" if on.encrypted is False else "nobody can say whether it is clear on a disk"
        yield warn("scratch privacy", f"{on.file_system} on {on.source}: {what}", "put scratch on dm-crypt or tmpfs")


# -- GPUs
def gpus() -> Checks:
    """What the driver lists, and whether the engine can hand it to containers."""
    found = ask_driver()
    if not found:
        devices = sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
        if devices:
            yield warn(
                "gpus", f"{', '.join(devices)} are there, but the driver's library lists none", "install libnvidia-ml"
            )
        else:
            yield ok("gpus", "none")
        return
    names = ", ".join(f"{gpu.name} ({gpu.memory_mib} MiB)" for gpu in found)
    try:
        facts: Mapping[str, Any] = DockerEngine().about()
    except EngineUnavailable:
        facts = {}
    if facts and "nvidia" not in (facts.get("Runtimes") or {}) and not facts.get("CDISpecDirs"):
        yield warn("gpus", f"{names}; the engine cannot give them to jobs", "install nvidia-container-toolkit")
    else:
        yield ok("gpus", names)
