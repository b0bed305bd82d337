"""Array jobs: one parent, and children `<parent>:<index>` that the controller makes from it in chunks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .state import State

LARGEST = 100_000
CHILD = re.compile(r"(.+):(0|[1-9][0-9]*)", re.DOTALL)
RESERVED = re.compile(r".*[:#][0-9]+", re.DOTALL)
"""Ids of children of arrays and of members of gangs: no producer may give one."""


def parent_of(job_id: str) -> str | None:
    """The array whose child has this id, None where it is no child's."""
    match = CHILD.fullmatch(job_id)
    return match[1] if match else None


def index_of(job_id: str) -> int:
    """Of a child."""
    return int(job_id.rpartition(":")[2])


_SHARED = (b"image", b"name", b"definition", b"depends")
_ALIKE = (b"queue", b"priority", b"mc", b"mem", b"gpu", b"disk", b"created")
OF_PARENT = (*_SHARED, *_ALIKE, b"array", b"state", b"reason", b"ended")
"""What is to be known of a parent to show its children."""


def shared(parent: Mapping[bytes, bytes | None]) -> dict[bytes, bytes]:
    """Fields of a child that stand in its parent's record. parent: its OF_PARENT."""
    return {field: value for field in _SHARED if (value := parent.get(field)) is not None}


def to_come(job_id: str, parent: Mapping[bytes, bytes | None]) -> dict[bytes, bytes]:
    """The record of a child that has none (yet), {} where there will never be one; of an array that was refused, none
    comes. parent: its OF_PARENT.
    """
    size, state = parent.get(b"array"), State((parent.get(b"state") or b"SUBMITTED").decode())
    if size is None or index_of(job_id) >= int(size) or state is State.SUCCEEDED:
        return {}
    alike = (*_ALIKE, *((b"state", b"reason", b"ended") if state is State.FAILED else ()))
    own = {field: value for field in alike if (value := parent.get(field)) is not None}
    of_array = {b"parent": (parent_of(job_id) or "").encode(), b"index": str(index_of(job_id)).encode()}
    return {b"state": b"PENDING", **own, **of_array}


@dataclass(frozen=True, slots=True, kw_only=True)
class Array:
    """The children of a parent. counts: how many are in each state; their sum is the size at every read."""

    size: int
    counts: dict[State, int]

    @property
    def ended(self) -> int:
        return self.counts[State.SUCCEEDED] + self.counts[State.FAILED]

    @property
    def running(self) -> int:
        """On a node."""
        return self.counts[State.STARTING] + self.counts[State.RUNNING]

    def told(self) -> str:
        """`1000 children: 3 succeeded, 1 failed, 20 running, 976 waiting`."""
        parts = {
            "succeeded": self.counts[State.SUCCEEDED],
            "failed": self.counts[State.FAILED],
            "running": self.running,
            "waiting": self.size - self.ended - self.running,
        }
        return f"{self.size} children: " + ", ".join(f"{n} {word}" for word, n in parts.items() if n)

    @classmethod
    def of(cls, h: Mapping[bytes, bytes]) -> Array | None:
        """From the hash of a record; None: it is no parent's. Those that are still to come count as PENDING; of a job
        that was refused at the door none came, and they count as it ended.
        """
        if b"array" not in h:
            return None
        size, state = int(h[b"array"]), State(h.get(b"state", b"SUBMITTED").decode())
        counts = {one: int(h.get(f"n:{one}".encode(), 0)) for one in State}
        counts[state if state.ended or state is State.SUBMITTED else State.PENDING] += size - sum(counts.values())
        return cls(size=size, counts=counts)


def result(job_id: str, h: Mapping[bytes, bytes], ended_s: float) -> dict[str, Any]:
    """What the producer of an array gets when all its children have ended, in the shape of any job's result."""
    array = Array.of(h)
    assert array is not None

    def at(field: bytes) -> float | None:
        return int(h[field]) / 1000 if field in h else None

    told = {"size": array.size, "succeeded": array.counts[State.SUCCEEDED], "failed": array.counts[State.FAILED]}
    return {
        "job_id": job_id, "array": told, "exit_code": None, "outputs": {}, "log": None, "node": None, "attempt": 1,
        "created": at(b"created"), "started": at(b"started"), "ended": ended_s,
    }  # fmt: skip
