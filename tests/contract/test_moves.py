"""Random histories on the real Redis functions: every move is legal, and nothing is left when all jobs have ended."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from batchyard.broker import keys
from batchyard.broker.record import Attempt, Claimed
from batchyard.broker.seal import KeyRing
from batchyard.broker.state import MOVES, State
from batchyard.broker.store import Free, Incoming, Yard

RING = KeyRing.new()
NODES = ("n1", "n2")
DEMANDS = st.sampled_from([(1.0, 64), (0.5, 64), (2.0, 128), (3.0, 1024)])
_ids = itertools.count()


def _attempt(node: str, *, counted: bool = True) -> Attempt:
    return Attempt(node=node, started=1.0, ended=2.0, exit_code=1, reason="test", counted=counted)


@dataclass
class _Node:
    free_vcpus: float = 4.0
    held: dict[str, Claimed] = field(default_factory=dict)


class History(RuleBasedStateMachine):
    """Producers, two nodes, a controller and cancels, in any order."""

    url = ""

    @initialize()
    def begin(self) -> None:
        self.yard = Yard(self.url, RING)
        self.redis: Any = self.yard.redis
        self.redis.flushdb()
        self.yard.prepare()
        self.seen: dict[str, State] = {}
        self.nodes = {name: _Node() for name in NODES}
        self.demands: dict[str, float] = {}

    @rule(demand=DEMANDS, priority=st.integers(0, 9), late=st.booleans(), repeat=st.booleans(), refused=st.booleans())
    def submit(self, demand: tuple[float, int], priority: int, late: bool, repeat: bool, refused: bool) -> None:
        job_id, raw = f"job-{next(_ids)}", b"message"
        list_key = keys.priority_list("cpu", priority)
        self.redis.lpush(list_key, raw)
        message = Incoming(
            list_key=list_key,
            raw=raw,
            kind="end" if refused else "job",
            reason="refused" if refused else "",
            id=job_id,
            queue="cpu",
            priority=priority,
            vcpus=demand[0],
            memory_mib=demand[1],
            eta_ms=int((self.yard.now_s() + 3600) * 1000) if late else 0,
            document=RING.seal(b"{}", job_id.encode()),
        )
        assert self.yard.intake([message]) == 1
        self.seen[job_id], self.demands[job_id] = State.SUBMITTED, demand[0]
        if repeat:
            self.redis.lpush(list_key, raw)
            assert self.yard.intake([message]) == 1

    @rule(name=st.sampled_from(NODES), again=st.booleans(), count=st.integers(1, 3))
    def claim(self, name: str, again: bool, count: int) -> None:
        node, claim_id = self.nodes[name], f"claim-{next(_ids)}"
        free = Free(vcpus=node.free_vcpus, memory_mib=4096, gpus=0, disk_gib=10)
        _, jobs = self.yard.claim(name, claim_id, free, ["cpu"], lease_s=60, count=count)
        if again:
            assert self.yard.claim(name, claim_id, free, ["cpu"], lease_s=60, count=count)[1] == jobs
        for job in jobs:
            assert all(job.id not in other.held for other in self.nodes.values())
            node.held[job.id] = job
            node.free_vcpus -= self.demands[job.id]
        assert node.free_vcpus >= 0

    @precondition(lambda self: any(node.held for node in self.nodes.values()))
    @rule(
        data=st.data(),
        what=st.sampled_from(["start", "succeed", "fail", "retry", "drain", "lose"]),
        twice=st.booleans(),
    )
    def move(self, data: st.DataObject, what: str, twice: bool) -> None:
        name, job_id = data.draw(st.sampled_from([(n, j) for n, node in self.nodes.items() for j in node.held]))
        job = self.nodes[name].held[job_id]
        for _ in range(2 if twice and what != "lose" else 1):
            if what == "start":
                assert self.yard.start(job, started_s=1.0, celery='{"status":"STARTED"}', expires_s=60)
            elif what in {"succeed", "fail"}:
                state = State.SUCCEEDED if what == "succeed" else State.FAILED
                assert self.yard.settle(job, state, _attempt(name), {"exit_code": "0"}, [], retention_s=600)
            elif what in {"retry", "drain"}:
                assert self.yard.give_back(job, _attempt(name, counted=what == "retry"))
            else:
                self.redis.zadd(keys.LEASES, {job_id: 1})
                self.yard.tick(["cpu"], lease_s=60)
        if what != "start":
            self._let_go(name, job)

    def _let_go(self, name: str, job: Claimed) -> None:
        node = self.nodes[name]
        del node.held[job.id]
        node.free_vcpus += self.demands[job.id]
        stale = Claimed(id=job.id, token="0:nobody", attempt=1, queue="cpu", created=1.0, document=b"")
        assert not self.yard.settle(stale, State.SUCCEEDED, _attempt(name), {}, [], retention_s=600)
        assert not self.yard.give_back(stale, None)

    @precondition(lambda self: self.seen)
    @rule(data=st.data(), terminate=st.booleans())
    def cancel(self, data: st.DataObject, terminate: bool) -> None:
        self.yard.cancel(data.draw(st.sampled_from(sorted(self.seen))), "test", terminate=terminate)

    @rule()
    def controller(self) -> None:
        self.yard.tick(["cpu"], lease_s=60)
        self._deliver()

    @rule()
    def eta_comes(self) -> None:
        delayed = "by:q:cpu:delayed"
        for job_id, _ in self.redis.zrange(delayed, 0, -1, withscores=True):
            self.redis.zadd(delayed, {job_id: 1})

    def _deliver(self) -> None:
        for entry in self.yard.outbox()[1].values():
            assert self.yard.finish(entry["id"], State.FAILED, {"reason": entry["reason"]}, [], retention_s=600)
            assert not self.yard.finish(entry["id"], State.FAILED, {}, [], retention_s=600)

    @invariant()
    def every_move_is_legal(self) -> None:
        for job_id, before in self.seen.items():
            after = self.yard.record(job_id).state
            assert after in _reachable(before), f"{job_id}: {before} → {after}"
            self.seen[job_id] = after

    def teardown(self) -> None:
        if not hasattr(self, "yard"):
            return
        for name, node in self.nodes.items():
            for job in list(node.held.values()):
                self.yard.settle(job, State.SUCCEEDED, _attempt(name), {}, [], retention_s=600)
        self.eta_comes()
        self.yard.tick(["cpu"], lease_s=60)
        room = Free(vcpus=99, memory_mib=1 << 20, gpus=9, disk_gib=99)
        for _ in self.seen:
            for job in self.yard.claim("n1", f"claim-{next(_ids)}", room, ["cpu"], lease_s=60, count=8)[1]:
                self.yard.settle(job, State.SUCCEEDED, _attempt("n1"), {}, [], retention_s=600)
        self._deliver()
        assert all(self.yard.record(job_id).state.ended for job_id in self.seen)
        left = {k.decode() for k in self.redis.keys("by:*")}
        kept = {keys.SEQUENCE, keys.JOBS, keys.REAPER, keys.KEY_MARK, *map(keys.node, NODES), *map(keys.job, self.seen)}
        assert left <= kept
        self.redis.close()


def _reachable(state: State) -> set[State]:
    """One rule may make several moves, as settle after start, or a reap and the next claim."""
    found, todo = {state}, [state]
    while todo:
        for after in MOVES[todo.pop()] - found:
            found.add(after)
            todo.append(after)
    return found


def test_any_history_makes_legal_moves_and_leaves_nothing_behind(fresh_redis_url: str) -> None:
    machine: Any = type("HistoryHere", (History,), {"url": fresh_redis_url})
    case = machine.TestCase
    case.settings = settings(
        max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    case().runTest()
    assert redis.Redis.from_url(fresh_redis_url).zcard(keys.LEASES) == 0
