"""What a node is told when it is started."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

from .gpu import Gpu


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """name: unique in the yard. state: the node's own folder. store: a store's spec. queues: empty for all.

    grace_s: what running jobs get at a drain. stop_grace_s: from SIGTERM to SIGKILL. partition_grace_s: how long jobs
    go on without Redis. most_jobs: at once.
    """

    name: str
    state: Path
    store: str
    queues: tuple[str, ...]
    vcpus: float
    memory_mib: int
    disk_gib: float
    gpus: tuple[Gpu, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    secrets: Path | None = None
    allowed_roots: tuple[Path, ...] = ()
    environment: str = "here"
    grace_s: float = 10.0
    stop_grace_s: float = 30.0
    partition_grace_s: float = 600.0
    most_jobs: int = 64


def machine_memory_mib() -> int:
    """Most of this machine's memory: a tenth stays for the node and the engine."""
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20 * 0.9)


def machine_disk_gib(folder: Path) -> float:
    """Most of what is free where the node keeps its files."""
    there = next(p for p in (folder, *folder.parents) if p.exists())
    free = os.statvfs(there)
    return round(free.f_bavail * free.f_frsize / 2**30 * 0.8, 1)


def machine_name() -> str:
    """The host's name, for a host with one node."""
    return socket.gethostname().split(".")[0]
