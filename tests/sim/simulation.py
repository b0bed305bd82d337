"""A large yard by a made-up clock: nodes without containers claim, run and settle jobs on the real Redis functions.

    pytest -m full tests/sim/test_simulation.py -s         shows what is measured

Nodes do as real ones do: each asks with what it has free, up to 32 jobs a call, when one of its jobs has ended, when it
hears of new jobs, and every now and then. Of the calls that a node makes because it hears of new jobs, those are left
out that are sure to be answered with nothing. What is measured: of the resource that is the narrowest for this work,
the part that is used while there is work waiting; and for how long a large job stood back while later ones were taken.
"""

from __future__ import annotations

import heapq
import itertools
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from batchyard.broker.batch import MOST, End, Start
from batchyard.broker.record import Attempt, Claimed
from batchyard.broker.seal import KeyRing
from batchyard.broker.state import State
from batchyard.broker.store import Free, Incoming, Yard
from yardtest.clock import START_S, VirtualClock

from .workload import GIB, TYPES, Vector, Work, fits, minus, plus, shapes, total, works

QUEUE = "cpu"
NAMES = ("vCPU", "memory", "GPU", "disk")
BATCH = 64
LEASE_S, RENEW_S, LOOK_S, RESERVE_AFTER_S = 3600.0, 1200, 60, 60
BACKLOG = 0.1  # of the capacity: how much must wait for a moment to count
LARGE_MC = 16_000  # the whole of the most frequent node


@dataclass(slots=True, kw_only=True)
class SimulatedNode:
    name: str
    size: Vector
    free: Vector
    held: dict[str, Claimed] = field(default_factory=dict)
    last_asked_s: int = 0
    idle: bool = True  # it has nothing to ask for, until it hears of something


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """used: of the binding resource, while enough work waited. passed_over_s: the longest of all large jobs."""

    binding: str
    used: float
    counted_s: int
    whole_s: int
    passed_over_s: int
    large_waited_s: int
    claims: int
    claims_with_nothing: int
    settles: int
    jobs: int
    shapes: int
    wall_s: float
    over_time: tuple[tuple[int, float, float], ...]  # (s, used, waiting / capacity), some 20 of them

    def __str__(self) -> str:
        large = f"passed over for {self.passed_over_s:,} s at most, waited for {self.large_waited_s:,} s at most"
        lines = [
            f"{self.jobs:,} jobs of {self.shapes} shapes; binding: {self.binding}; used {self.used:.3f} over "
            f"{self.counted_s:,} of {self.whole_s:,} s",
            f"large jobs: {large}",
            f"{self.claims:,} claims ({self.claims_with_nothing:,} with nothing), {self.settles:,} settles; "
            f"{self.wall_s:.0f} s of real time",
            *(f"  {at:>7,} s  used {used:.3f}  waiting {waiting:.2f}" for at, used, waiting in self.over_time),
        ]
        return "\n".join(lines)


class Simulation:
    """url: a Redis of its own."""

    def __init__(self, url: str, *, nodes: int, jobs: int, kinds: int = 150, seed: int = 1, loud: bool = False) -> None:
        self._rnd = random.Random(seed)
        self._yard, self._loud = Yard(url, KeyRing.new(), socket_timeout=60), loud
        self._yard.prepare()
        self._clock = VirtualClock(self._yard)
        self._nodes = list(self._make_nodes(nodes))
        self._by_name = {node.name: node for node in self._nodes}
        self._capacity = total(node.size for node in self._nodes)
        kinds_ = shapes(self._rnd, kinds)
        self._shapes = len(kinds_)
        self._works = {work.id: work for work in works(self._rnd, jobs, kinds_, self._capacity)}
        self._waiting: dict[str, Work] = {}
        self._queued, self._used = (0, 0, 0, 0), (0, 0, 0, 0)
        self._ends: list[tuple[int, int, str, str]] = []  # heap: (when, order, node, job)
        self._running: dict[str, Work] = {}
        self._claim_ids = itertools.count()
        self._claims = self._nothing = self._settles = self._passed_s = self._waited_s = self._now_s = 0
        self._moments: list[tuple[int, Vector, Vector]] = []  # (s, used, queued)

    def _make_nodes(self, count: int) -> Iterator[SimulatedNode]:
        sizes = [size for part, size in TYPES for _ in range(max(1, round(part * count)))][:count]
        self._rnd.shuffle(sizes)
        for n, size in enumerate(sizes):
            yield SimulatedNode(name=f"n{n:04}", size=size, free=size)

    def run(self) -> Measured:
        began = time.perf_counter()
        coming = sorted(self._works.values(), key=lambda work: work.arrives_s)[::-1]
        next_look = next_renewal = 0
        while coming or self._ends or self._waiting:
            self._now_s = self._next(coming, next_look)
            self._clock.set(START_S + self._now_s)
            if self._now_s >= next_renewal:
                self._renew()
                next_renewal = self._now_s + RENEW_S
            freed = self._finish()
            new = self._arrive(coming)
            for node in freed:
                self._ask(node)
            self._wake(new)
            if self._now_s >= next_look:
                self._look()
                next_look = self._now_s + LOOK_S
            self._moments.append((self._now_s, self._used, self._queued))
        return self._measured(time.perf_counter() - began)

    def _next(self, coming: list[Work], next_look: int) -> int:
        times = [*([coming[-1].arrives_s] if coming else []), *([self._ends[0][0]] if self._ends else [])]
        return max(self._now_s, min([*times, max(next_look, self._now_s + 1)]))

    # -- producers
    def _arrive(self, coming: list[Work]) -> list[Work]:
        new: list[Work] = []
        while coming and coming[-1].arrives_s <= self._now_s:
            new.append(coming.pop())
        new.sort(key=lambda work: work.order)
        for at in range(0, len(new), BATCH):
            messages = [_incoming(work) for work in new[at : at + BATCH]]
            self._yard.redis.lpush(QUEUE, *(one.raw for one in messages))
            assert self._yard.intake(messages) == len(messages)
        for work in new:
            self._waiting[work.id] = work
            self._queued = plus(self._queued, work.demand)
        return new

    # -- nodes
    def _finish(self) -> list[SimulatedNode]:
        """Jobs whose time is over, settled node by node. -> these nodes, in the order in which they became free."""
        over: dict[str, list[str]] = {}
        while self._ends and self._ends[0][0] <= self._now_s:
            _, _, name, job_id = heapq.heappop(self._ends)
            over.setdefault(name, []).append(job_id)
        for name, ids in over.items():
            node = self._by_name[name]
            for at in range(0, len(ids), MOST):
                ends = [_end(node, node.held.pop(i), self._now_s) for i in ids[at : at + MOST]]
                assert all(answer is True for answer in self._yard.settle_many(ends, retention_s=60))
                self._settles += 1
            for job_id in ids:
                demand = self._running.pop(job_id).demand
                node.free = plus(node.free, demand)
                self._used = minus(self._used, demand)
        return [self._by_name[name] for name in over]

    def _ask(self, node: SimulatedNode) -> None:
        """Until there is nothing for it."""
        while True:
            self._claims += 1
            node.last_asked_s = self._now_s
            more, jobs = self._yard.claim(
                node.name, f"c{next(self._claim_ids)}", _free(node), [QUEUE], lease_s=LEASE_S, count=MOST
            )
            if jobs:
                self._take(node, jobs)
            elif not more:
                self._nothing += 1
                node.idle = True
                return

    def _take(self, node: SimulatedNode, jobs: list[Claimed]) -> None:
        starts = [Start(job=job, started_s=START_S + self._now_s) for job in jobs]
        assert all(self._yard.start_many(starts))
        for job in jobs:
            work = self._waiting.pop(job.id)
            assert job.id not in self._running
            node.free = minus(node.free, work.demand)
            self._used, self._queued = plus(self._used, work.demand), minus(self._queued, work.demand)
            self._running[job.id], node.held[job.id] = work, job
            heapq.heappush(self._ends, (self._now_s + work.runs_s, work.order, node.name, job.id))
            self._note_order(work)
        assert min(node.free) >= 0
        node.idle = False

    def _note_order(self, taken: Work) -> None:
        """Large jobs that came before this one and still wait are passed over by it."""
        if taken.demand[0] >= LARGE_MC:
            self._waited_s = max(self._waited_s, self._now_s - taken.arrives_s)
            if taken.passed_s is not None:
                self._passed_s = max(self._passed_s, self._now_s - taken.passed_s)
        for work in self._large_before(taken):
            if work.passed_s is None:
                work.passed_s = self._now_s

    def _large_before(self, taken: Work) -> Iterator[Work]:
        for work in self._waiting.values():  # in the order of arrival
            if work.order > taken.order:
                return
            if work.demand[0] >= LARGE_MC and work.passed_s is None:
                yield work

    def _wake(self, new: list[Work]) -> None:
        """Idle nodes that hear of new jobs, in any order; but those for which none of them fits would get nothing."""
        left = [work for work in new if work.id in self._waiting]
        if not left:
            return
        idle = [node for node in self._nodes if node.idle]
        self._rnd.shuffle(idle)
        for node in idle:
            if any(fits(work.demand, node.free) for work in left):
                self._ask(node)
                left = [work for work in left if work.id in self._waiting]
                if not left:
                    return

    def _look(self) -> None:
        """As each node does now and then, without having heard of anything."""
        if self._waiting:
            for node in self._nodes:
                if self._now_s - node.last_asked_s >= LOOK_S and node.free[0] > 0:
                    self._ask(node)

    def _renew(self) -> None:
        for node in self._nodes:
            held = {job.id: job.token for job in node.held.values()}
            room = ",".join(map(str, (*node.size, RESERVE_AFTER_S * 1000)))
            assert self._yard.renew(node.name, {"room": room}, held, lease_s=LEASE_S) == []
        if self._loud:
            print(f"{self._now_s:,} s: {len(self._waiting):,} wait, {len(self._running):,} run", file=sys.stderr)

    # -- what came of it
    def _measured(self, wall_s: float) -> Measured:
        work = [sum(one.demand[i] * one.runs_s for one in self._works.values()) for i in range(4)]
        binding = max((i for i in range(4) if self._capacity[i]), key=lambda i: work[i] / self._capacity[i])
        whole, used_time, counted = self._capacity[binding], 0.0, 0
        for (at, used, queued), (then, _, _) in itertools.pairwise(self._moments):
            if queued[binding] >= BACKLOG * whole:
                counted += then - at
                used_time += used[binding] * (then - at)
        step = max(1, len(self._moments) // 20)
        over_time = tuple((at, u[binding] / whole, q[binding] / whole) for at, u, q in self._moments[::step])
        return Measured(
            binding=NAMES[binding],
            used=used_time / (counted * whole) if counted else 0.0,
            counted_s=counted,
            whole_s=self._moments[-1][0],
            passed_over_s=self._passed_s,
            large_waited_s=self._waited_s,
            claims=self._claims,
            claims_with_nothing=self._nothing,
            settles=self._settles,
            jobs=len(self._works),
            shapes=self._shapes,
            wall_s=wall_s,
            over_time=over_time,
        )

    def nothing_left(self) -> None:
        """No lease, no queue entry, no reservation."""
        client: Any = self._yard.redis
        assert client.zcard("by:leases") == client.hlen("by:outbox") == 0
        assert client.keys("by:q:*") == client.keys("by:node:*:jobs") == []


def _incoming(work: Work) -> Incoming:
    mc, mem, gpus, disk = work.demand
    return Incoming(
        list_key=QUEUE,
        raw=work.id.encode(),
        kind="job",
        id=work.id,
        queue=QUEUE,
        priority=work.priority,
        vcpus=mc / 1000,
        memory_mib=mem,
        gpus=gpus,
        disk_gib=disk / GIB,
        clear={"image": "busybox:1", "name": ""},
        document=b"x" * 256,
    )


def _end(node: SimulatedNode, job: Claimed, now_s: int) -> End:
    attempt = Attempt(node=node.name, started=None, ended=START_S + now_s, exit_code=0, reason="")
    return End(job=job, state=State.SUCCEEDED, attempt=attempt, fields={"exit_code": "0"})


def _free(node: SimulatedNode) -> Free:
    mc, mem, gpus, disk = node.free
    return Free(vcpus=mc / 1000, memory_mib=mem, gpus=gpus, disk_gib=disk / GIB)
