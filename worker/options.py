"""What a node is told when it is started."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

from batchyard.cache.copies.held import LEVEL
from batchyard.cache.index import held_bytes

from . import memory
from .gpu import Gpu


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """name: unique in the yard. state: the node's own folder. store: a store's spec. queues: empty for all.

    scratch: where copies and work folders are, in state if None. copies_gib, copies_memory_mib: what copies may take
    there, and below /dev/shm. near: the spec of a store of this node alone, which keeps near_gib of what it used last.
    peer_address: where other nodes may get what is in it, HOST[:PORT]; None: nowhere, and it gets nothing from theirs.

    scrub_mib_s: how much of its copies and near store a node reads again each second, to see whether they are whole; 0
    for nothing.

    fetch_gib: the most that an input from s3:// or https:// may have. url_hosts: those that https:// may name although
    their addresses are not public. new_store: the yard takes this node's store, whichever it had.

    uploads: outputs of so many attempts go to the store side by side, and as many small ones beside these. With
    most_uploads attempts whose outputs are not durable yet, the node takes no more jobs.

    grace_s: what running jobs get at a drain. stop_grace_s: from SIGTERM to SIGKILL. partition_grace_s: how long jobs
    go on without Redis. most_jobs: at once.

    gang_network: how the containers of one gang reach each other: `bridge`, `host`, or the name of a network of the
    engine; address: where this machine is reached by other nodes.
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
    uploads: int = 4
    most_uploads: int = 64
    scratch: Path | None = None
    copies_gib: float = 10.0
    copies_memory_mib: int = 0
    near: str | None = None
    near_gib: float = 20.0
    peer_address: str | None = None
    scrub_mib_s: float = 4.0
    fetch_gib: float = 100.0
    url_hosts: tuple[str, ...] = ()
    new_store: bool = False
    gang_network: str = "bridge"
    address: str = "127.0.0.1"

    @property
    def files(self) -> Path:
        """The folder with the node's copies and its jobs' work folders."""
        return self.scratch or self.state


def machine_memory_mib(copies_memory_mib: int | None = None) -> int:
    """Most of this machine's memory: a tenth stays for the node and the engine, and some for copies in memory."""
    copies = memory.default_mib() if copies_memory_mib is None else copies_memory_mib
    return max(6, int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20 * 0.9) - copies)


def machine_copies_gib(folder: Path) -> float:
    """Half of what a node uses of the disk where it keeps its files."""
    return round(_usable_gib(folder) / 2, 1)


def machine_disk_gib(folder: Path, copies_gib: float | None = None) -> float:
    """Most of what is free where the node keeps its files, less what copies may take."""
    copies = machine_copies_gib(folder) if copies_gib is None else copies_gib
    return round(max(0.0, _usable_gib(folder) - copies), 1)


def _usable_gib(folder: Path) -> float:
    """Four fifths of what is free, where copies that are there already count as free: they give way."""
    there = next(p for p in (folder, *folder.parents) if p.exists())
    free = os.statvfs(there)
    return (free.f_bavail * free.f_frsize + held_bytes(folder / "copies", LEVEL, "scratch")) / 2**30 * 0.8


def machine_name() -> str:
    """The host's name, for a host with one node."""
    return socket.gethostname().split(".")[0]
