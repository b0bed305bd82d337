"""Histories where almost every job stands in a coarse class of the index, with jobs of other demands beside it.

There the order is a matter of classes, so the model follows what a claim gives out, and says whether it may. A node
that asks until there is nothing, and once more, has got all that fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from hypothesis import strategies as st

from batchyard.broker import keys

from .machine import JOBS, Histories
from .model import Demand, Scheduler, fits, less
from .world import AT_ONCE, LEASE_S, QUEUES, Node, World, as_free

MOST_CALLS = 200


class CoarseScheduler(Scheduler):
    def knows(self, node: str, claim_id: str) -> bool:
        """Whether a claim was answered with jobs before."""
        return self._claims.get(node, ("", []))[0] == claim_id

    def prepare(self, queues: Sequence[str]) -> None:
        """What a claim does before it looks for jobs."""
        self.reap(8)
        for queue in queues:
            self._due(queue, 8)

    def give(self, node: str, claim_id: str, free: Demand, queues: Sequence[str], ids: Sequence[str]) -> Demand:
        """What a claim has given out. -> what is free after it"""
        for job_id in ids:
            job = self.jobs[job_id]
            assert job.ready, f"{job_id} was not ready"
            assert job.sent.queue in queues
            assert not self._too_late(job)
            assert fits(job.sent.demand, free), f"{job_id} does not fit {free}"
            self._lease(job, node, claim_id)
            free = less(free, job.sent.demand)
        if ids:
            self._claims[node] = (claim_id, list(ids))
        return free

    def drop_late(self, ending: Mapping[str, bool]) -> None:
        """Those whose end this claim has decided, since their time was over."""
        for job_id, decided in ending.items():
            if decided:
                self.jobs[job_id].ready = False
                self._hand_over(self.jobs[job_id], "REVOKED")

    def late(self) -> list[str]:
        return [i for i, job in self.jobs.items() if job.ready and self._too_late(job)]

    def could_run(self, free: Demand, queues: Sequence[str]) -> list[str]:
        """Ids of the jobs that fit."""
        ready = [job for job in self.jobs.values() if job.ready and job.sent.queue in queues]
        return [job.sent.id for job in ready if fits(job.sent.demand, free) and not self._too_late(job)]


class CoarseWorld(World):
    model: CoarseScheduler

    def claim(self, node: Node, queues: Sequence[str], count: int) -> None:
        """Until there is nothing, and once more: the walk of one call begins where that of the last one stopped."""
        nothing = 0
        for _ in range(MOST_CALLS):
            node.last_claim = (f"c{next(self._claims)}", node.free(), queues, count)
            before = len(node.held)
            more = self._one(node)
            nothing = 0 if len(node.held) > before else nothing + (not more)
            if nothing == 2:
                assert self.model.could_run(node.free(), queues) == []
                return
        raise AssertionError(f"{MOST_CALLS} calls, and still more to look at")

    def ask(self, node: Node) -> None:
        self._one(node)

    def _one(self, node: Node) -> bool:
        assert node.last_claim is not None
        claim_id, free, queues, count = node.last_claim
        more, jobs = self.yard.claim(node.name, claim_id, as_free(free), queues, lease_s=LEASE_S, count=count)
        ids = [job.id for job in jobs]
        if self.model.knows(node.name, claim_id):
            assert ids == self.model.claim(node.name, claim_id, free, queues, count)
        else:
            self.model.prepare(queues)
            self.model.give(node.name, claim_id, free, queues, ids)
            self.model.drop_late({i: self.redis.hexists(keys.job(i), "ending") for i in self.model.late()})
        for job in jobs:
            assert job.token == self.model.jobs[job.id].token
            node.takes(job, self.model.jobs[job.id].sent.demand)
        self.told["claimed"] += len(jobs)
        self.told["claims that are to go on"] += more
        return more


class CoarseHistories(Histories):
    """Two exact classes and three coarse ones, and a walk of two jobs a call."""

    world_type = CoarseWorld
    replace: ClassVar[Mapping[str, str]] = {
        **Histories.replace,
        "EXACT_CLASSES, CLASSES = 192, 256": "EXACT_CLASSES, CLASSES = 2, 5",
        "local LOOKS = 32 ": "local LOOKS = 2 ",
    }

    def push_first(self, data: st.DataObject) -> None:
        for one in data.draw(st.lists(JOBS, min_size=12, max_size=24)):
            self.world.push(self.new_job(one, {}))

    def new_model(self) -> CoarseScheduler:
        return CoarseScheduler(queues=QUEUES, lease_ms=int(LEASE_S * 1000), at_once=AT_ONCE)
