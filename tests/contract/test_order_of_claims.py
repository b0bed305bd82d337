"""The order of claims on the real Redis functions against a plain model: queue priority, then the share that has used
least by its weight, then scheduling priority, then arrival.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchyard.broker import config as configuration
from batchyard.broker.record import Attempt, Claimed
from batchyard.broker.seal import KeyRing
from batchyard.broker.state import State
from batchyard.broker.store import Free, Incoming, Yard
from yardtest.clock import START_S, VirtualClock
from yardtest.redis import RedisServer

WINDOW_S, AHEAD_S = 60, 1
TAU_S = WINDOW_S / 3
EXACT = {"A": 1.0, "B": 3.0}
PREFIX, PREFIX_WEIGHT = "team", 0.5
SHARES = ("A", "B", "other", "team1", "team2", "team3")
ROOM = Free(vcpus=1 << 20, memory_mib=1 << 40, gpus=0, disk_gib=1 << 20)

pytestmark = pytest.mark.system


@dataclass
class Run:
    """A job's time on a node, in milliseconds; it goes on where `end` is None."""

    job_id: str
    share: str
    vcpus: float
    start: int
    end: int | None = None


class Model:
    """What is to come next, by the words of the rule: use is the sum over all runs of what is left of each moment."""

    def __init__(self) -> None:
        self.lab: dict[str, tuple[str, int, int, float]] = {}  # job → share, scheduling priority, arrival, vCPUs
        self.cpu: list[str] = []
        self.runs: list[Run] = []
        self.known: set[str] = set()

    def score(self, share: str, now: int) -> float:
        used = 0.0
        for run in self.runs:
            if run.share == share:
                end = now if run.end is None else run.end
                used += run.vcpus * TAU_S * (self._left(now, end) - self._left(now, run.start))
                used += run.vcpus * AHEAD_S if run.end is None else 0
        return used * self.weight(share)

    def weight(self, share: str) -> float:
        if not share.startswith(PREFIX):
            return EXACT.get(share, 1.0)
        return PREFIX_WEIGHT * sum(one.startswith(PREFIX) for one in self.known)

    @staticmethod
    def _left(now: int, then: int) -> float:
        return math.exp(-(now - then) / 1000 / TAU_S)

    def check_and_take(self, job_id: str, now: int) -> None:
        """This job was handed out: by the rule, no other had to come before it."""
        if not self.lab:
            assert job_id == self.cpu.pop(0), "the queue of the lower priority goes by arrival"
            return
        assert job_id in self.lab, f"{job_id} came before the jobs of the queue with the higher priority"
        share, sched, arrival, vcpus = self.lab[job_id]
        mine = [one[1:3] for one in self.lab.values() if one[0] == share]
        assert (sched, arrival) == min(mine, key=lambda one: (-one[0], one[1]))
        best = min(self.score(one[0], now) for one in self.lab.values())
        assert self.score(share, now) <= best * (1 + 1e-6) + 1e-6
        del self.lab[job_id]
        self.runs.append(Run(job_id, share, vcpus, now))


PUT = st.tuples(st.sampled_from(SHARES), st.sampled_from([0, 1, 500, 9999]), st.sampled_from([0.5, 1.0, 4.0]))
STEP = st.one_of(
    st.tuples(st.just("put"), st.lists(PUT, min_size=1, max_size=12)),
    st.tuples(st.just("fifo"), st.none()),
    st.tuples(st.just("claim"), st.integers(1, 8)),
    st.tuples(st.just("claim"), st.integers(1, 2)),
    st.tuples(st.just("end"), st.integers(0, 20)),
    st.tuples(st.just("back"), st.integers(0, 20)),
    st.tuples(st.just("later"), st.integers(1, 90_000)),
)


@pytest.fixture
def world(own_redis: RedisServer) -> Iterator[tuple[Yard, VirtualClock]]:
    yard = Yard(own_redis.url(), KeyRing.new())
    yard.prepare()
    yard.redis.config_set("appendonly", "no")
    clock = VirtualClock(yard)
    yield yard, clock
    yard.redis.close()


def begin(yard: Yard, clock: VirtualClock) -> None:
    yard.redis.flushdb()
    clock.set(START_S)
    shares = [{"share": name, "weight": weight} for name, weight in EXACT.items()]
    fair = {"share_decay_s": WINDOW_S, "shares": [*shares, {"share": f"{PREFIX}*", "weight": PREFIX_WEIGHT}]}
    lab = {"environments": ["here"], "priority": 2, "fair_share": fair}
    told = {"queues": {"lab": lab, "cpu": {"environments": ["here"]}},
            "environments": {"here": {"vcpus": 64, "memory_mib": 64000}}}  # fmt: skip
    yard.configure(configuration.parse(told, "test"))


def test_claims_come_in_the_order_of_the_rule(world: tuple[Yard, VirtualClock]) -> None:
    yard, clock = world

    @given(st.lists(STEP, min_size=10, max_size=80))
    @settings(max_examples=60)
    def history(steps: list[tuple[str, Any]]) -> None:
        begin(yard, clock)
        model, held, numbers = Model(), dict[str, Claimed](), itertools.count()

        def put(queue: str, clear: dict[str, str], vcpus: float) -> tuple[str, int]:
            n = next(numbers)
            one = Incoming(list_key=queue, raw=b"%d" % n, kind="job", id=f"j{n}", queue=queue, vcpus=vcpus,
                           memory_mib=64, document=b"", clear=clear)  # fmt: skip
            yard.redis.lpush(queue, one.raw)
            assert yard.intake([one]) == 1
            return one.id, n

        for what, told in steps:
            if what == "put":
                for share, sched, vcpus in told:
                    job_id, n = put("lab", {"share": share, "sched": str(sched)}, vcpus)
                    model.lab[job_id] = (share, sched, n, vcpus)
                    model.known.add(share)
            elif what == "fifo":
                model.cpu.append(put("cpu", {}, 1)[0])
            elif what == "later":
                clock.advance(told / 1000)
            elif what == "claim":
                _, jobs = yard.claim("n", f"c{next(numbers)}", ROOM, ["lab", "cpu"], lease_s=86400, count=told)
                assert len(jobs) == min(told, len(model.lab) + len(model.cpu))
                for job in jobs:
                    model.check_and_take(job.id, clock.now_ms)
                    held[job.id] = job
            elif held:
                job = held.pop(sorted(held)[told % len(held)])
                run = next((one for one in model.runs if one.job_id == job.id and one.end is None), None)
                if run is not None:
                    run.end = clock.now_ms
                if what == "back":
                    assert yard.give_back(job, None)
                    number = int(job.id[1:])
                    if run is None:
                        model.cpu = sorted([*model.cpu, job.id], key=lambda one: int(one[1:]))
                    else:
                        clear: Any = yard.redis.hget(f"by:job:{job.id}", "sched")
                        model.lab[job.id] = (run.share, int(clear), number, run.vcpus)
                else:
                    attempt = Attempt(node="n", started=1.0, ended=2.0, exit_code=0, reason="")
                    assert yard.settle(job, State.SUCCEEDED, attempt, {}, [], retention_s=600)

    history()
