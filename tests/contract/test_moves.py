"""Random histories on the real Redis functions: every move is legal, no job starts before those that it depends on
have ended, each ends once, and nothing is left when all have.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from batchyard.broker import functions, keys
from batchyard.broker.consumables import Consumables
from batchyard.broker.dependencies import Dependency
from batchyard.broker.record import Attempt, Claimed
from batchyard.broker.seal import KeyRing
from batchyard.broker.state import MOVES, State
from batchyard.broker.store import Free, Incoming, Yard
from yardtest.redis import RedisServer

RING = KeyRing.new()
NODES = ("n1", "n2")
DEMANDS = st.sampled_from([(1.0, 64), (0.5, 64), (2.0, 128), (3.0, 1024)])
TOKENED = (0.5, 64)  # jobs that ask for so much ask for a token too, and are of a definition with a limit
NONE: st.SearchStrategy[list[str]] = st.just([])
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
        Consumables(self.yard).create("lic", 2)
        self.redis.hset(keys.LIMITS, "d", 1)
        self.seen: dict[str, State] = {}
        self.nodes = {name: _Node() for name in NODES}
        self.demands: dict[str, float] = {}
        self.parents: dict[str, dict[str, str]] = {}  # job → what it depends on → on_failure

    @rule(
        data=st.data(),
        demand=DEMANDS,
        priority=st.integers(0, 9),
        late=st.booleans(),
        repeat=st.booleans(),
        refused=st.integers(0, 5),
    )
    def submit(
        self, data: st.DataObject, demand: tuple[float, int], priority: int, late: bool, repeat: bool, refused: int
    ) -> None:
        job_id, raw = f"job-{next(_ids)}", b"message"
        parents = data.draw(
            st.lists(st.sampled_from(sorted(self.seen)), max_size=3, unique=True) if self.seen else NONE
        )
        how = {parent: data.draw(st.sampled_from(["FAIL", "CONTINUE"])) for parent in parents}
        list_key = keys.priority_list("cpu", priority)
        self.redis.lpush(list_key, raw)
        message = Incoming(
            list_key=list_key,
            raw=raw,
            kind="end" if not refused else "job",
            reason="refused" if not refused else "",
            id=job_id,
            queue="cpu",
            priority=priority,
            vcpus=demand[0],
            memory_mib=demand[1],
            eta_ms=int((self.yard.now_s() + 3600) * 1000) if late else 0,
            depends_on=[Dependency.model_validate({"job_id": i, "on_failure": then}) for i, then in how.items()],
            document=RING.seal(b"{}", job_id.encode()),
            clear={"tokens": '{"lic":1}', "def": "d"} if demand == TOKENED else {},
        )
        assert self.yard.intake([message]) == 1
        self.seen[job_id], self.demands[job_id], self.parents[job_id] = State.SUBMITTED, demand[0], how
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
        what=st.sampled_from(["start", "succeed", "fail", "retry", "later", "drain", "lose"]),
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
            elif what in {"retry", "later", "drain"}:
                delay_s = 3600 if what == "later" else 0
                assert self.yard.give_back(job, _attempt(name, counted=what != "drain"), delay_s=delay_s)
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

    @rule()
    def controller_dies_after_a_part(self) -> None:
        for name, entry in self.yard.outbox()[1].items():
            if name.startswith("deps:"):
                self.yard.release(entry["id"])

    def _deliver(self) -> None:
        for name, entry in self.yard.outbox()[1].items():
            if name.startswith("deps:"):
                while self.yard.release(entry["id"]):
                    pass
                continue
            assert self.yard.finish(entry["id"], State.FAILED, {"reason": entry["reason"]}, [], retention_s=600)
            assert not self.yard.finish(entry["id"], State.FAILED, {}, [], retention_s=600)

    @invariant()
    def what_is_held_is_what_the_nodes_jobs_took(self) -> None:
        held = [self.demands[job_id] for node in self.nodes.values() for job_id in node.held]
        tokened = held.count(TOKENED[0])
        stock = Consumables(self.yard).show("lic")
        assert (stock.in_use, stock.jobs, tokened <= 1) == (tokened, tokened, True)
        counts = {b"q:cpu": len(held), b"v:cpu": int(sum(held) * 1000), b"d:d": tokened}
        assert self.redis.hgetall(keys.HOLDS) == {k: b"%d" % n for k, n in counts.items() if n}

    @invariant()
    def every_move_is_legal(self) -> None:
        for job_id, before in self.seen.items():
            after = self.yard.record(job_id).state
            assert after in _reachable(before), f"{job_id}: {before} → {after}"
            self.seen[job_id] = after

    @invariant()
    def no_job_goes_before_what_it_depends_on_or_waits_for_nothing(self) -> None:
        partly = {field.removeprefix("deps:") for field in self.yard.outbox()[1] if field.startswith("deps:")}
        for job_id, parents in self.parents.items():
            ended = {parent: self.seen[parent] for parent in parents if self.seen[parent].ended}
            wrong = [i for i, state in ended.items() if state is State.FAILED and parents[i] == "FAIL"]
            state, ending = self.seen[job_id], self.redis.hget(keys.job(job_id), "ending")
            blocked = self.redis.hget(keys.job(job_id), "left")
            if state not in {State.SUBMITTED, State.PENDING, State.FAILED}:
                assert len(ended) == len(parents), (job_id, parents)
                assert not wrong, (job_id, wrong)
            if blocked is not None:
                assert state is State.PENDING
                assert int(blocked) > 0
                assert not ending
                assert partly & set(ended) or len(ended) < len(parents), (job_id, parents)
            if wrong and not partly & set(wrong):
                assert state is State.FAILED or ending, (job_id, wrong)

    @invariant()
    def counters_say_what_the_records_say(self) -> None:
        if hasattr(self, "seen"):
            now = Counter(self.yard.record(job_id).state for job_id in self.seen)
            assert self.yard.counts(["cpu"])["cpu"] == {state: now[state] for state in State}

    def teardown(self) -> None:
        if not hasattr(self, "yard"):
            return
        for name, node in self.nodes.items():
            for job in list(node.held.values()):
                self.yard.settle(job, State.SUCCEEDED, _attempt(name), {}, [], retention_s=600)
        room = Free(vcpus=99, memory_mib=1 << 20, gpus=9, disk_gib=99)
        for _ in self.seen:
            self._deliver()
            self.eta_comes()
            self.yard.tick(["cpu"], lease_s=60)
            for job in self.yard.claim("n1", f"claim-{next(_ids)}", room, ["cpu"], lease_s=60, count=8)[1]:
                self.yard.settle(job, State.SUCCEEDED, _attempt("n1"), {}, [], retention_s=600)
        self._deliver()
        assert all(self.yard.record(job_id).state.ended for job_id in self.seen)
        left = {k.decode() for k in self.redis.keys("by:*")}
        kept = {
            keys.CONSUMABLES,
            keys.consumable("lic"),
            keys.LIMITS,
            keys.GATES,
            keys.SEQUENCE,
            keys.JOBS,
            keys.REAPER,
            keys.KEY_MARK,
            keys.EVENTS,
            keys.states("cpu"),
            *map(keys.node, NODES),
            *map(keys.job, self.seen),
        }
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


@pytest.mark.timeout(400)
def test_any_history_makes_legal_moves_and_leaves_nothing_behind(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a job's dependants, two are let go in a call, so that most ends leave some for the controller."""
    text = functions.library()
    assert "AT_ONCE = 64" in text
    monkeypatch.setattr(functions, "library", lambda: text.replace("AT_ONCE = 64", "AT_ONCE = 2"))
    redis.Redis.from_url(own_redis.url()).config_set("appendonly", "no")  # thousands of writes, none to be kept
    machine: Any = type("HistoryHere", (History,), {"url": own_redis.url()})
    case = machine.TestCase
    case.settings = settings(max_examples=60, stateful_step_count=30)
    case().runTest()
    assert redis.Redis.from_url(own_redis.url()).zcard(keys.LEASES) == 0
