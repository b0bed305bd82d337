"""Gangs in Redis: jobs that run on several nodes at once. The controller places them; anybody may look."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from enum import IntEnum

from . import gang, keys
from .functions import Functions
from .job import Job
from .record import Record, from_hash
from .store import Yard, mib, milli


def facts(job: Job) -> dict[str, str]:
    """What Redis needs to know of a job of several nodes, for its record; nothing of any other job."""
    if job.nodes is None:
        return {}
    members = [[n, milli(one.vcpus), one.memory_mib, one.gpus, mib(one.disk_gib)] for n, one in gang.runs(job)]
    return {"gang": str(job.nodes.count), "main": str(job.nodes.main), "members": json.dumps(members)}


class Wait(IntEnum):
    """Whether jobs of several nodes wait: none; some, look again at once; some, for room."""

    NONE = 0
    AGAIN = 1
    ROOM = 2


class Gangs:
    """Of one yard."""

    def __init__(self, yard: Yard) -> None:
        self._yard, self._functions = yard, Functions(yard.redis)

    def place(self, queues: Sequence[str], *, lease_s: float, reserve_after_s: float) -> tuple[Wait, list[str]]:
        """What to do next, and the ids of the jobs that got all their nodes; may be called at any time.

        queues: most urgent first. reserve_after_s: after so long nodes are kept for the first one that has
        no room. Raises BrokerUnavailable.
        """
        times = int(lease_s * 1000), int(reserve_after_s * 1000)
        wait, *placed = self._functions.call("place", uuid.uuid4().hex, *times, *queues)
        return Wait(wait), [one.decode() for one in placed]

    def lives(self, job_id: str, placement: int) -> bool:
        """Whether nodes may still hold what was placed then. Raises BrokerUnavailable."""
        told = self._yard.guard(lambda: self._yard.redis.hmget(keys.job(job_id), ["epoch", "out"]))
        epoch, out = (int(one or 0) for one in told)
        return epoch == placement and out > 0

    def members(self, record: Record) -> list[Record]:
        """The nodes of a job, by index; none before it was placed for the first time. Raises BrokerUnavailable."""
        ids = [gang.id_of(record.id, index) for index in range(record.gang)]
        pipe = self._yard.redis.pipeline(transaction=False)
        for one in ids:
            pipe.hgetall(keys.job(one))
        found = self._yard.guard(pipe.execute) if ids else []
        return [from_hash(i, h) for i, h in zip(ids, found, strict=True) if h]
