"""Fair share over 20 minutes of virtual time, on the real Redis functions."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from batchyard.broker import config as configuration
from batchyard.broker.record import Attempt, Claimed
from batchyard.broker.seal import KeyRing
from batchyard.broker.state import State
from batchyard.broker.store import Free, Incoming, Yard
from yardtest.clock import VirtualClock
from yardtest.redis import RedisServer

VCPUS, NODES = 64, 4
WARM_UP_S, MEASURED_S = 400, 800
BACKLOG = 128  # jobs of a share that wait at least
START_MS = 1_800_000_000_000

pytestmark = pytest.mark.system


class Yardful:
    """Nodes that run what they claim for as long as it takes, and producers who always have more work."""

    def __init__(self, yard: Yard, clock: VirtualClock, chance: random.Random) -> None:
        self.yard, self.clock, self.chance = yard, clock, chance
        self.free = dict.fromkeys((f"n{n}" for n in range(NODES)), VCPUS / NODES)
        self.running: list[tuple[int, int, str, Claimed]] = []
        self.vcpus: dict[str, float] = {}
        self.waiting: Counter[str] = Counter()
        self.used: Counter[str] = Counter()
        self._numbers = itertools.count()

    def put(self, share: str, vcpus: float) -> None:
        made = []
        for _ in range(64):
            job_id = f"{share}-{next(self._numbers)}"
            self.vcpus[job_id] = vcpus
            made.append(
                Incoming(list_key="lab", raw=job_id.encode(), kind="job", id=job_id, queue="lab", vcpus=vcpus,
                         memory_mib=1, document=b"", clear={"share": share, "sched": "0"})
            )  # fmt: skip
        self.yard.redis.lpush("lab", *(one.raw for one in made))
        assert self.yard.intake(made) == 64
        self.waiting[share] += 64

    def claim(self) -> None:
        for node, vcpus in self.free.items():
            if vcpus < 1:
                continue
            room = Free(vcpus=vcpus, memory_mib=1 << 20, gpus=0, disk_gib=1 << 20)
            _, jobs = self.yard.claim(node, f"c{next(self._numbers)}", room, ["lab"], lease_s=3600, count=32)
            for job in jobs:
                self.free[node] -= self.vcpus[job.id]
                self.waiting[job.id.split("-")[0]] -= 1
                ends = self.clock.now_ms + self.chance.randint(5000, 20000)
                heapq.heappush(self.running, (ends, next(self._numbers), node, job))

    def settle_next(self) -> None:
        began = self.clock.now_ms
        ends, _, node, job = heapq.heappop(self.running)
        self.clock.set(ends / 1000)
        if ends - START_MS > WARM_UP_S * 1000:
            for _, _, _, other in [*self.running, (0, 0, "", job)]:
                self.used[other.id.split("-")[0]] += int(self.vcpus[other.id] * (ends - began))
        attempt = Attempt(node=node, started=1.0, ended=2.0, exit_code=0, reason="")
        assert self.yard.settle(job, State.SUCCEEDED, attempt, {}, [], retention_s=60)
        self.free[node] += self.vcpus.pop(job.id)


@pytest.fixture
def simulate(own_redis: RedisServer) -> Callable[..., Counter[str]]:
    def go(weights: dict[str, float], vcpus: dict[str, float]) -> Counter[str]:
        yard = Yard(own_redis.url(), KeyRing.new())
        yard.prepare()
        yard.redis.config_set("appendonly", "no")
        clock = VirtualClock(yard, now_s=START_MS / 1000)
        shares = [{"share": name, "weight": weight} for name, weight in weights.items()]
        fair: dict[str, Any] = {"share_decay_s": 600, "shares": shares}
        told = {"queues": {"lab": {"environments": ["here"], "fair_share": fair}},
                "environments": {"here": {"vcpus": 64, "memory_mib": 64000}}}  # fmt: skip
        yard.configure(configuration.parse(told, "test"))
        world = Yardful(yard, clock, random.Random(1))
        while clock.now_ms < START_MS + (WARM_UP_S + MEASURED_S) * 1000:
            for share, much in vcpus.items():
                while world.waiting[share] < BACKLOG:
                    world.put(share, much)
            world.claim()
            world.settle_next()
        return world.used

    return go


def test_weights_of_one_and_three_give_three_quarters_and_one_quarter_of_the_vcpu_time(
    simulate: Callable[..., Counter[str]],
) -> None:
    used = simulate({"A": 1, "B": 3}, {"A": 1, "B": 1})
    part = used["A"] / used.total()
    assert used.total() / 1000 == pytest.approx(VCPUS * MEASURED_S, rel=0.02)
    assert part == pytest.approx(0.75, rel=0.05)
    assert 1 - part == pytest.approx(0.25, rel=0.05)


def test_it_is_vcpu_time_that_is_shared_whatever_the_size_of_jobs(simulate: Callable[..., Counter[str]]) -> None:
    used = simulate({"A": 1, "B": 1}, {"A": 1, "B": 4})
    assert used["A"] / used.total() == pytest.approx(0.5, rel=0.05)
