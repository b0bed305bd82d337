"""Redis time of the real claim, with few and many jobs queued, of few and many different demands.

Ahead of all jobs that fit stand 5,000 that do not. The index is filled by the real intake function. Redis writes its
append-only file between commands, so it has no part in these figures and is off while a million jobs are made.
"""

from __future__ import annotations

import random
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

from batchyard.broker.seal import KeyRing
from batchyard.broker.store import Free, Incoming, Yard
from yardtest.redis import RedisServer, free_port

from .redis_time import RedisTime
from .row import Row

QUEUE, BATCH, PIPELINED = "cpu", 64, 16
TURNS, CLAIMS = 8, 50
UNFIT, GOAL_MS, FLAT = 5000, 0.25, 2.0
FREE_VCPUS, FREE_MIB = (2, 4, 6, 8), 16384
Demand = tuple[float, int]


def rows(folder: Path, *, quick: bool) -> list[Row]:
    depths = (10, 10_000, 100_000 if quick else 1_000_000)
    found = []
    for demands in (20, 5000):
        with ExitStack() as stack:
            # All depths are there at once and take turns, so that a busy hour of the machine is everybody's.
            queued = {d: _queued(stack, folder / f"{demands}-{d}", d, demands) for d in depths}
            times: dict[int, list[float]] = {d: [] for d in depths}
            for turn in range(TURNS):
                for depth, yard in queued.items():
                    clock = RedisTime(yard.redis)
                    _claim(yard, random.Random(turn))
                    times[depth] += clock.calls_ms("by_claim")
        found += _rows({d: statistics.median(t) for d, t in times.items()}, demands)
    return found


def _queued(stack: ExitStack, folder: Path, depth: int, demands: int) -> Yard:
    """A Redis of its own with so many jobs that fit, behind those that do not; killed at the end."""
    folder.mkdir()
    server = RedisServer(free_port(), folder)
    server.start()
    stack.callback(server.kill9)
    yard, rnd = Yard(server.url(), KeyRing.new(), socket_timeout=60), random.Random(demands)
    yard.prepare()
    yard.redis.config_set("appendonly", "no")
    # Distinct demands: those that a node of 8 vCPUs has no room for first, then others that it has.
    unfit, fit = _shapes(demands, rnd, 9, 64), _shapes(demands, rnd, 0.05, 8)
    _fill(yard, UNFIT, lambda: rnd.choice(unfit), priority=0)
    _fill(yard, depth, lambda: rnd.choice(fit), priority=5)
    return yard


def _rows(medians: dict[int, float], demands: int) -> list[Row]:
    found = [_row(f"claim, {d:,} queued, {demands:,} demands", median) for d, median in medians.items()]
    few, many = min(medians), max(medians)
    flat = medians[many] / medians[few]
    flatness = Row(
        row=f"claim, {many:,} queued, {demands:,} demands",
        ours=round(medians[many], 4),
        peer=round(medians[few], 4),
        peer_name=f"ours at {few:,} queued",
        unit="ms of Redis, p50",
        goal=f"ratio <= {FLAT:g}",
        holds=flat <= FLAT,
    )
    return [*found, flatness]


def _row(name: str, median: float) -> Row:
    return Row(
        row=name,
        ours=round(median, 4),
        unit="ms of Redis, p50",
        goal=f"<= {GOAL_MS}",
        holds=median <= GOAL_MS,
    )


def _shapes(count: int, rnd: random.Random, low: float, high: float) -> list[Demand]:
    found: set[Demand] = set()
    while len(found) < count:
        found.add((round(rnd.uniform(low, high), 3), rnd.randrange(64, FREE_MIB)))
    return sorted(found)


def _claim(yard: Yard, rnd: random.Random) -> None:
    """Claims of one node with this or that free; each job goes back to its place."""
    for _ in range(CLAIMS):
        free = Free(vcpus=rnd.choice(FREE_VCPUS), memory_mib=FREE_MIB, gpus=0, disk_gib=100)
        _, jobs = yard.claim("bench", uuid4().hex, free, [QUEUE], lease_s=60)
        for job in jobs:
            assert yard.give_back(job, None)


def _fill(yard: Yard, count: int, demand: Callable[[], Demand], *, priority: int) -> None:
    made = _messages(count, demand, priority)
    done = 0
    while messages := list(islice(made, BATCH * PIPELINED)):
        pipe: Any = yard.redis.pipeline(transaction=False)
        for at in range(0, len(messages), BATCH):
            batch = messages[at : at + BATCH]
            pipe.lpush(QUEUE, *(m.raw for m in batch))
            arguments: list[Any] = [a for m in batch for a in m.arguments()]
            pipe.execute_command("FCALL", "by_intake", 0, *arguments)
        pipe.execute()
        done += len(messages)
        if done % (BATCH * PIPELINED * 100) == 0:
            print(f"  {done:,} of {count:,} queued", file=sys.stderr, flush=True)


def _messages(count: int, demand: Callable[[], Demand], priority: int) -> Iterator[Incoming]:
    for _ in range(count):
        job_id = str(uuid4())
        vcpus, memory_mib = demand()
        yield Incoming(
            list_key=QUEUE,
            raw=job_id.encode(),
            kind="job",
            id=job_id,
            queue=QUEUE,
            priority=priority,
            vcpus=vcpus,
            memory_mib=memory_mib,
            disk_gib=1,
            clear={"image": "busybox:1", "name": ""},
            document=b"x" * 256,
        )
