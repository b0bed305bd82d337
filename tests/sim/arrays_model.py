"""Arrays in plain Python: a parent, and children that come, are told and end in chunks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from .model import Job, Scheduler, Sent

CHUNKS, ENDINGS = 16, 16  # calls in one run of the outbox: for all arrays, and to end children
ENDS = 64  # children that one call ends
FEW = 4  # dependants of a child that its end lets go
_CHILD = re.compile(r"(.+):(\d+)")


class ArrayScheduler(Scheduler):
    """chunk: children that one call makes, tells or lets go."""

    def __init__(self, *, chunk: int, **about: Any) -> None:
        super().__init__(**about)
        self.chunk = chunk
        self.child_ends: list[Job] = []
        self.duties: dict[
            str, int | None
        ] = {}  # arrays that something is to be done with; of ended ones, how far it is
        self.ahead: set[str] = set()  # children that were cancelled before they were there

    # -- the door
    def state_of(self, job_id: str) -> str | None:
        match = _CHILD.fullmatch(job_id)
        array = self.jobs.get(match[1]) if match else None
        if match is None or array is None or job_id in self.jobs:
            return super().state_of(job_id)
        if int(match[2]) >= array.sent.array:
            return None
        return "FAILED" if array.ending else array.state if array.ended else "SUBMITTED"

    def _wait_or_go(self, job: Job) -> None:
        if any(self.jobs[i].sent.array != job.sent.array for i in job.sent.n_to_n):
            job.ending = "FAILURE"
        else:
            super()._wait_or_go(job)

    def _accept(self, job: Job) -> None:
        if job.sent.array:
            job.spawned = 0
            job.ahead = any(i.startswith(f"{job.sent.id}:") for i in self.ahead)

    def _ready(self, job: Job) -> None:
        if job.spawned is None:
            super()._ready(job)
        else:
            job.state, job.opened = "PENDING", True
            self.duties[job.sent.id] = None

    # -- chunks
    def work_on(self, job_id: str) -> bool:
        """One chunk of what is to be done with an array. -> whether there is more"""
        if job_id not in self.duties:
            return False
        job, done = self.jobs.get(job_id), self.duties[job_id]
        if done is not None:
            assert job is not None
            assert job.spawned is not None
            self.duties[job_id] = to = min(job.spawned, done + self.chunk)
            more = to < job.spawned
        else:
            more = job is not None and self._step(job)
        if not more:
            del self.duties[job_id]
        return more

    def _step(self, job: Job) -> bool:
        if job.spawned is None or job.ending:
            return False
        size = job.sent.array
        if job.close and job.told < job.spawned:
            to = min(job.spawned, job.told + self.chunk)
            for index in range(job.told, to):
                self.cancel(f"{job.sent.id}:{index}", terminate=job.hard)
            job.told = to
            return to < job.spawned or job.spawned < size
        if job.spawned == size:
            return False
        to = min(size, job.spawned + self.chunk)
        for index in range(job.spawned, to):
            self._spawn(job, index)
        job.spawned = to
        return to < size

    def _spawn(self, array: Job, index: int) -> None:
        sent, depends = array.sent, {f"{i}:{index}": any_end for i, any_end in array.sent.n_to_n.items()}
        if sent.sequential is not None and index:
            depends[f"{sent.id}:{index - 1}"] = sent.sequential
        own = Sent(
            id=f"{sent.id}:{index}",
            queue=sent.queue,
            priority=sent.priority,
            demand=sent.demand,
            interruptions=sent.interruptions,
            depends=depends,
        )
        child = self.jobs[own.id] = Job(sent=own, order=array.order + index, parent=array)
        if array.close:
            self._end(child, array.close, 0)
        elif array.ahead and own.id in self.ahead:
            self.ahead.discard(own.id)
            self._end(child, "REVOKED", 0)
        elif not self._depend(child):
            self._end(child, "FAILURE", 0)
        elif child.waits:
            child.state = "PENDING"
        else:
            self._ready(child)

    # -- ends
    def _hand_over(self, job: Job, celery_state: str) -> None:
        if job.parent:
            job.ending = celery_state
            self.child_ends.append(job)
        elif job.spawned is not None:
            self._close(job, celery_state, hard=False)
        else:
            super()._hand_over(job, celery_state)

    def _close(self, job: Job, celery_state: str, *, hard: bool) -> bool:
        """All children end, those that run only when it is hard. -> False when that was known"""
        if job.close and (job.hard or not hard):
            return False
        job.close, job.hard, job.told = job.close or celery_state, job.hard or hard, 0
        self.duties[job.sent.id] = None
        return True

    def _end(self, job: Job, result: str, releases: int) -> None:
        super()._end(job, result, min(FEW, self.at_once) if job.parent else releases)
        if job.parent:
            job.result = None
            self._child_ended(job.parent)
        elif job.spawned is not None:
            self.duties[job.sent.id] = 0

    def _child_ended(self, array: Job) -> None:
        states = [job.state for job in self.jobs.values() if job.parent is array and job.ended]
        if not array.ending and len(states) == array.sent.array:
            array.ending = (array.close or "FAILURE") if "FAILED" in states else "SUCCESS"

    def end_children(self, most: int) -> int:
        """Those whose end was decided while no node held them. -> how many are still to end"""
        for _ in range(most):
            if not self.child_ends:
                break
            job = self.child_ends[0]  # whose end may decide that of others
            assert job.ending
            self._end(job, job.ending, 0)
            self.child_ends.pop(0)
        return len(self.child_ends)

    def deliver(self, entries: Iterable[str]) -> None:
        read = list(entries)
        calls = max(1, CHUNKS // max(1, sum(entry.startswith("array:") for entry in read)))
        for entry in read:
            if entry.startswith("array:"):
                for _ in range(calls):
                    if not self.work_on(entry.removeprefix("array:")):
                        break
            elif entry == "children":
                for _ in range(ENDINGS):
                    if not self.end_children(ENDS):
                        break
            else:
                super().deliver([entry])

    @property
    def outbox(self) -> set[str]:
        return super().outbox | {f"array:{i}" for i in self.duties} | ({"children"} if self.child_ends else set())

    def cancel(self, job_id: str, *, terminate: bool) -> str:
        job = self.jobs.get(job_id)
        if job is None and (match := _CHILD.fullmatch(job_id)):
            return self._cancel_ahead(job_id, match[1])
        if job is None or job.ended or job.ending or job.spawned is None:
            return super().cancel(job_id, terminate=terminate)
        new = self._close(job, "REVOKED", hard=terminate)
        job.due_ms, job.expiring, job.waits = None, False, set()
        held = any(one.parent is job and one.state in {"STARTING", "RUNNING"} for one in self.jobs.values())
        if not held:
            return "cancelled" if new else "ended"
        return "stopping" if terminate else "running"

    def _cancel_ahead(self, job_id: str, parent: str) -> str:
        state = self.state_of(job_id)
        if state in {"SUCCEEDED", "FAILED"}:
            return "ended"
        self.ahead.add(job_id)
        if state:
            self.jobs[parent].ahead = True
        return "cancelled" if state else "stored"

    def may_vanish(self, job: Job) -> bool:
        return job.ended and not job.parent and job.sent.id not in self.duties

    def forget(self, job_id: str) -> None:
        for child in [i for i, job in self.jobs.items() if job.parent and job.parent.sent.id == job_id]:
            super().forget(child)
        super().forget(job_id)

    # -- looking
    def counts(self, job: Job) -> dict[str, int]:
        states = Counter(child.state for child in self.jobs.values() if child.parent is job)
        to_come = job.state if job.ended or job.state == "SUBMITTED" else "PENDING"
        states[to_come] += job.sent.array - states.total()
        return {state: n for state, n in states.items() if n}

    def waiting(self, queue: str) -> int:
        arrays = [job for job in self.jobs.values() if job.opened and job.sent.queue == queue and not job.close]
        return super().waiting(queue) + sum(job.sent.array - (job.spawned or 0) for job in arrays)

    def _too_late(self, job: Job) -> bool:
        return super()._too_late(job) or (job.parent is not None and job.parent.close is not None)
