"""The scheduler in plain Python: what the Redis functions are to do, written for the reader and for nobody's speed.

Lists are looked through from end to end, and there is no index: so it has none of the mistakes that one may have.
Times are ms since the epoch, demands (milli-vCPU, MiB, GPUs, MiB of disk).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Demand = tuple[int, int, int, int]
REAPED_BY_A_CLAIM = DUE_BY_A_CLAIM = 8
SKIPPED_BY_A_CLAIM = 32
RELEASES = 16  # of one parent in one run of the outbox


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A job as it lies in a producer's list. depends: id -> whether any end will do. refused: it fails at the door.

    array: its size, 0 for a job that is none; n_to_n, sequential: what its children wait for, as depends.
    """

    id: str
    queue: str
    priority: int
    demand: Demand
    eta_ms: int = 0
    expires_ms: int = 0
    depends: Mapping[str, bool] = field(default_factory=dict)
    interruptions: int = 10
    refused: bool = False
    array: int = 0
    n_to_n: Mapping[str, bool] = field(default_factory=dict)
    sequential: bool | None = None

    @property
    def named(self) -> set[str]:
        """Ids of all jobs that it or its children wait for."""
        return {*self.depends, *self.n_to_n}


@dataclass(slots=True, kw_only=True)
class Job:
    """waits: ids that it still waits for. ending: the Celery state of an end that is decided and not written.

    Of an array that was accepted at the door: spawned, how many of its children there are; opened, they may come;
    close, the Celery state that it is to end with; hard, also those that run; told, how many children have heard of
    that; ahead, some were cancelled before they were there. Of a child: its parent.
    """

    sent: Sent
    order: int
    state: str = "SUBMITTED"
    waits: set[str] = field(default_factory=set)
    ready: bool = False
    due_ms: int | None = None
    expiring: bool = False
    ending: str | None = None
    node: str | None = None
    token: str | None = None
    lease_ms: int | None = None
    epoch: int = 0
    used: int = 0
    interruptions: int = 0
    losses: int = 0
    cancel: bool = False
    revoked: bool = False
    settled: str | None = None
    returned: str | None = None
    result: str | None = None
    parent: Job | None = None
    spawned: int | None = None
    close: str | None = None
    hard: bool = False
    opened: bool = False
    told: int = 0
    ahead: bool = False

    @property
    def score(self) -> tuple[int, int]:
        return self.sent.priority, self.order

    @property
    def ended(self) -> bool:
        return self.state in {"SUCCEEDED", "FAILED"}


class Scheduler:
    """One yard. at_once: dependants that one call lets go. queues: the most urgent first."""

    def __init__(self, *, queues: Sequence[str], lease_ms: int, at_once: int) -> None:
        self.queues, self.lease_ms, self.at_once = queues, lease_ms, at_once
        self.now_ms = self._order = self._reaper_ms = 0
        self.lists: list[Sent] = []
        self.jobs: dict[str, Job] = {}
        self.cancels: set[str] = set()
        self.partly: dict[str, bool] = {}  # parents some of whose dependants are not let go yet -> whether it went well
        self._claims: dict[str, tuple[str, list[str]]] = {}

    # -- the door
    def take_in(self) -> None:
        """All that does not wait for a message that is not taken in.

        Those that had to stay are tried again when what they wait for was there at the beginning of a round.
        """
        trying = list(self.lists)
        while trying:
            for queue in self.queues:
                for sent in sorted((s for s in trying if s.queue == queue), key=lambda s: s.priority):
                    if not self._stays(sent):
                        self.lists.remove(sent)
                        self._take(sent)
            trying = [sent for sent in self.lists if not self._stays(sent)]

    def _stays(self, sent: Sent) -> bool:
        over = 0 < sent.expires_ms <= self.now_ms or sent.id in self.jobs or sent.id in self.cancels
        return not over and not sent.refused and not self._all_known(sent)

    def _all_known(self, sent: Sent) -> bool:
        return all(self.state_of(i) for i in sent.named)

    def state_of(self, job_id: str) -> str | None:
        """None: there is no such job."""
        job = self.jobs.get(job_id)
        return job.state if job else None

    def _take(self, sent: Sent) -> None:
        if sent.id in self.jobs:
            return
        known = self._all_known(sent)
        job = self.jobs[sent.id] = Job(sent=sent, order=self._order + 1)
        self._order += max(1, sent.array)
        if sent.id in self.cancels:
            self.cancels.discard(sent.id)
            job.ending = "REVOKED"
        elif sent.refused:
            job.ending = "FAILURE"
        elif 0 < sent.expires_ms <= self.now_ms:
            job.ending = "REVOKED"
        elif not known:
            job.ending = "FAILURE"
        else:
            self._wait_or_go(job)

    def _wait_or_go(self, job: Job) -> None:
        if not self._depend(job):
            job.ending = "FAILURE"
            return
        self._accept(job)
        job.expiring = job.sent.expires_ms > 0
        if job.waits:
            job.state = "PENDING"
        else:
            self._go(job, job.sent.eta_ms)

    def _accept(self, job: Job) -> None:
        """It is no job that ends at the door."""

    def _depend(self, job: Job) -> bool:
        """False: one that it depends on has failed."""
        states = {parent: self.state_of(parent) for parent in job.sent.depends}
        if any(state in {"FAILED", None} and not job.sent.depends[parent] for parent, state in states.items()):
            return False
        job.waits = {parent for parent, state in states.items() if state not in {"SUCCEEDED", "FAILED", None}}
        return True

    def _go(self, job: Job, when_ms: int) -> None:
        if when_ms > self.now_ms:
            job.state, job.due_ms = "PENDING", when_ms
        else:
            job.due_ms = None
            self._ready(job)

    def _ready(self, job: Job) -> None:
        job.state, job.ready = "RUNNABLE", True

    # -- ends
    def _decide(self, job: Job, celery_state: str) -> None:
        """For a job that no node holds: from here on it waits for nothing."""
        self._hand_over(job, celery_state)
        job.ready, job.due_ms, job.expiring, job.waits = False, None, False, set()

    def _hand_over(self, job: Job, celery_state: str) -> None:
        """Its end is decided; what follows it is still to be recorded."""
        job.ending = celery_state

    def _end(self, job: Job, result: str, releases: int) -> None:
        job.state, job.result = "SUCCEEDED" if result == "SUCCESS" else "FAILED", result
        job.ending = job.token = None
        job.expiring = False
        well = result == "SUCCESS"
        if self._release(job.sent.id, well, releases):
            self.partly[job.sent.id] = well

    def _release(self, parent: str, well: bool, most: int) -> int:
        waiting = sorted((job for job in self.jobs.values() if parent in job.waits), key=lambda job: job.score)
        for job in waiting[:most]:
            if not well and not job.sent.depends[parent]:
                expiring = job.expiring
                self._decide(job, "FAILURE")
                job.expiring = expiring  # until its end is written
            else:
                job.waits.discard(parent)
                if not job.waits:
                    self._go(job, job.sent.eta_ms)
        return len(waiting[most:])

    def deliver(self, entries: Iterable[str]) -> None:
        """The outbox's entries, as somebody once read them: some may have been dealt with since."""
        for kind, _, job_id in (entry.partition(":") for entry in entries):
            job = self.jobs.get(job_id)
            if kind == "end" and job is not None and job.ending and not job.ended:
                self._end(job, job.ending, self.at_once)
            elif kind == "deps" and job_id in self.partly:
                left = self._release(job_id, self.partly[job_id], RELEASES * self.at_once)
                if not left:
                    del self.partly[job_id]

    @property
    def outbox(self) -> set[str]:
        """Its entries."""
        ends = {f"end:{i}" for i, job in self.jobs.items() if job.ending and not job.parent}
        return ends | {f"deps:{i}" for i in self.partly}

    def cancel(self, job_id: str, *, terminate: bool) -> str:
        job = self.jobs.get(job_id)
        if job is None:
            self.cancels.add(job_id)
            return "stored"
        if job.ended or job.ending:
            return "ended"
        if job.node is None:
            self._decide(job, "REVOKED")
            return "cancelled"
        if job.state == "RUNNING" and not terminate:
            job.revoked = True
            return "running"
        job.cancel = True
        return "stopping"

    def forget(self, job_id: str) -> None:
        """Its record expires."""
        del self.jobs[job_id]

    def may_vanish(self, job: Job) -> bool:
        """Whether its record may expire as far as the scheduler is concerned."""
        return job.ended

    # -- nodes
    def claim(self, node: str, claim_id: str, free: Demand, queues: Sequence[str], count: int) -> list[str]:
        """The ids that a node gets, in order."""
        last, ids = self._claims.get(node, ("", []))
        if last == claim_id:
            return [i for i in ids if (job := self.jobs.get(i)) and (job.token or "").partition(":")[2] == claim_id]
        self.reap(REAPED_BY_A_CLAIM)
        got: list[str] = []
        for queue in queues:
            self._due(queue, DUE_BY_A_CLAIM)
            skipped = 0
            while len(got) < count and skipped < SKIPPED_BY_A_CLAIM:
                job = self._first(queue, free)
                if job is None:
                    break
                if self._too_late(job):
                    skipped, job.ready = skipped + 1, False
                    self._hand_over(job, "REVOKED")
                    continue
                self._lease(job, node, claim_id)
                got.append(job.sent.id)
                free = less(free, job.sent.demand)
        if got:
            self._claims[node] = (claim_id, got)
        return got

    def _first(self, queue: str, free: Demand) -> Job | None:
        """The first by priority and arrival among those that fit."""
        ready = [job for job in self.jobs.values() if job.ready and job.sent.queue == queue]
        return min((job for job in ready if fits(job.sent.demand, free)), key=lambda job: job.score, default=None)

    def _too_late(self, job: Job) -> bool:
        return 0 < job.sent.expires_ms <= self.now_ms

    def _lease(self, job: Job, node: str, claim_id: str) -> None:
        job.epoch += 1
        job.token, job.node, job.lease_ms = f"{job.epoch}:{claim_id}", node, self.now_ms + self.lease_ms
        job.state, job.ready = "STARTING", False

    def _holds(self, job_id: str, token: str) -> Job | None:
        job = self.jobs.get(job_id)
        return job if job is not None and job.token == token else None

    def start(self, job_id: str, token: str) -> bool:
        job = self._holds(job_id, token)
        if job is not None:
            job.state = "RUNNING"
            job.result = None if job.parent else "STARTED"
        return job is not None

    def renew(self, held: Mapping[str, str]) -> dict[str, str]:
        """id -> lost or cancel, where there is something to be told."""
        told = {}
        for job_id, token in held.items():
            job = self._holds(job_id, token)
            if job is None:
                told[job_id] = "lost"
            else:
                job.lease_ms = self.now_ms + self.lease_ms
                if job.cancel:
                    told[job_id] = "cancel"
        return told

    def settle(self, ends: Sequence[tuple[str, str, str]]) -> list[bool]:
        """Ends of one call: (id, token, Celery's state); which of them were written, now or before."""
        releases = max(1, self.at_once // len(ends))
        return [self._settle(*one, releases) for one in ends]

    def _settle(self, job_id: str, token: str, result: str, releases: int) -> bool:
        job = self._holds(job_id, token)
        if job is None:
            known = self.jobs.get(job_id)
            return known is not None and known.settled == token
        job.settled = token
        self._end(job, result, releases)
        job.lease_ms = None
        return True

    def give_back(self, job_id: str, token: str, *, counted: bool, interrupted: bool, delay_ms: int) -> bool:
        job = self._holds(job_id, token)
        if job is None:
            known = self.jobs.get(job_id)
            return known is not None and known.returned == token
        job.used += counted
        job.interruptions += interrupted and not counted
        job.returned = token
        self._restore(job, fatal=False, wait_ms=delay_ms)
        return True

    def _restore(self, job: Job, *, fatal: bool, wait_ms: int = 0) -> None:
        job.token = job.node = job.lease_ms = job.result = None
        if job.cancel or job.revoked:
            self._hand_over(job, "REVOKED")
        elif fatal:
            self._hand_over(job, "FAILURE")
        else:
            job.expiring = job.sent.expires_ms > 0
            self._go(job, self.now_ms + wait_ms)

    def waiting(self, queue: str) -> int:
        """How many jobs of a queue may run now, as far as room goes."""
        return sum(job.ready for job in self.jobs.values() if job.sent.queue == queue)

    def counts(self, job: Job) -> dict[str, int]:
        """Of an array's children, by state."""
        raise NotImplementedError

    def leases(self, node: str) -> set[str]:
        """Ids of the jobs that a node holds."""
        return {i for i, job in self.jobs.items() if job.node == node and job.lease_ms is not None}

    def position(self, job: Job) -> tuple[int, int] | None:
        """(jobs of its queue that stand before it, all that are ready there), None where it is not ready."""
        ready = [one for one in self.jobs.values() if one.ready and one.sent.queue == job.sent.queue]
        return (sum(one.score < job.score for one in ready), len(ready)) if job.ready else None

    # -- time
    def tick(self, limit: int) -> list[int]:
        """[reaped, due, expired]."""
        reaped = self.reap(limit)
        due = sum(self._due(queue, limit) for queue in self.queues)
        return [reaped, due, self._expire(limit)]

    def reap(self, limit: int) -> int:
        leased = [job for job in self.jobs.values() if job.lease_ms is not None]
        before, self._reaper_ms = self._reaper_ms, self.now_ms
        if self.now_ms - before > self.lease_ms / 2 or self.now_ms < before:
            for job in leased:
                job.lease_ms = self.now_ms + self.lease_ms
            return 0
        lapsed = sorted((job.lease_ms or 0, job.sent.id) for job in leased if (job.lease_ms or 0) <= self.now_ms)
        for _, job_id in lapsed[:limit]:
            job = self.jobs[job_id]
            job.losses += 1
            job.interruptions += 1
            self._restore(job, fatal=job.interruptions > job.sent.interruptions)
        return len(lapsed[:limit])

    def _due(self, queue: str, limit: int) -> int:
        waiting = [job for job in self.jobs.values() if job.due_ms is not None and job.sent.queue == queue]
        due = sorted((job.due_ms or 0, job.sent.id) for job in waiting if (job.due_ms or 0) <= self.now_ms)[:limit]
        for _, job_id in due:
            self._go(self.jobs[job_id], 0)
        return len(due)

    def _expire(self, limit: int) -> int:
        expiring = [job for job in self.jobs.values() if job.expiring and job.sent.expires_ms <= self.now_ms]
        expired = 0
        for job in sorted(expiring, key=lambda job: (job.sent.expires_ms, job.sent.id))[:limit]:
            if job.state in {"RUNNABLE", "PENDING"} and not job.ending:
                self._decide(job, "REVOKED")
                expired += 1
            job.expiring = False
        return expired


def fits(demand: Demand, free: Demand) -> bool:
    return all(need <= there for need, there in zip(demand, free, strict=True))


def less(free: Demand, demand: Demand) -> Demand:
    a, b, c, d = (there - need for need, there in zip(demand, free, strict=True))
    return a, b, c, d
