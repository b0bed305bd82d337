"""Random histories of arrays that wait for each other, on the real Redis functions.

At every read the counters are those of the children's records and sum up to the size, no child starts before what it
waits for has ended, each ends once; and when all have, the parents have, and nothing is left.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from batchyard.broker import functions, keys
from batchyard.broker.arrays import Array
from batchyard.broker.children import Children
from batchyard.broker.dependencies import Dependency
from batchyard.broker.record import Attempt, Claimed
from batchyard.broker.seal import KeyRing
from batchyard.broker.state import MOVES, State
from batchyard.broker.store import Free, Incoming, Yard
from yardtest.redis import RedisServer

RING = KeyRing.new()
ROOM = Free(vcpus=99, memory_mib=1 << 20, gpus=9, disk_gib=99)
ENDED = Attempt(node="n1", started=1.0, ended=2.0, exit_code=1, reason="test")
_ids = itertools.count()
On = dict[str, str]  # what a job waits for → on_failure


class History(RuleBasedStateMachine):
    """Producers of arrays and plain jobs, one node, a controller that may stop after any chunk, and cancels."""

    url = ""

    @initialize()
    def begin(self) -> None:
        self.yard = Yard(self.url, RING)
        self.redis: Any = self.yard.redis
        self.redis.flushdb()
        self.yard.prepare()
        self.children = Children(self.yard)
        self.sizes: dict[str, int] = {}
        self.own: dict[str, On] = {}  # of each job and child: what it waits for itself
        self.seen: dict[str, State] = {}
        self.held: dict[str, Claimed] = {}

    @rule(data=st.data(), size=st.sampled_from([0, 2, 3, 3, 3, 5]), sequential=st.booleans(), late=st.integers(0, 4))
    def submit(self, data: st.DataObject, size: int, sequential: bool, late: int) -> None:
        job_id, how = f"job-{next(_ids)}", st.sampled_from(["FAIL", "CONTINUE"])
        names = sorted(self.sizes)
        whole = data.draw(st.lists(st.sampled_from(names), max_size=1)) if names else []
        alike = [name for name in names if size and self.sizes[name] == size and name not in whole]
        n_to_n = data.draw(st.lists(st.sampled_from(alike), max_size=2, unique=True)) if alike else []
        of_whole = {name: data.draw(how) for name in whole}
        of_each = {name: data.draw(how) for name in n_to_n}
        in_row = data.draw(how) if sequential and size else ""
        given = [{"job_id": i, "on_failure": then} for i, then in of_whole.items()]
        given += [{"job_id": i, "on_failure": then, "type": "N_TO_N"} for i, then in of_each.items()]
        given += [{"type": "SEQUENTIAL", "on_failure": in_row}] if in_row else []
        self.redis.lpush("cpu", b"message")
        message = Incoming(
            list_key="cpu", raw=b"message", kind="job", id=job_id, queue="cpu", vcpus=1, memory_mib=1,
            eta_ms=int((self.yard.now_s() + 3600) * 1000) if not late else 0,
            clear={"image": "i", **({"array": str(size)} if size else {})},
            depends_on=[Dependency.model_validate(one) for one in given],
            document=RING.seal(b"{}", job_id.encode()),
        )  # fmt: skip
        assert self.yard.intake([message]) == 1
        self.sizes[job_id], self.own[job_id] = size, of_whole
        for n in range(size):
            before = {f"{job_id}:{n - 1}": in_row} if in_row and n else {}
            self.own[f"{job_id}:{n}"] = {**of_whole, **{f"{i}:{n}": then for i, then in of_each.items()}, **before}

    @rule(count=st.integers(1, 4))
    def claim(self, count: int) -> None:
        for job in self.yard.claim("n1", f"claim-{next(_ids)}", ROOM, ["cpu"], lease_s=60, count=count)[1]:
            assert job.id not in self.held
            self.held[job.id] = job

    @precondition(lambda self: self.held)
    @rule(data=st.data(), what=st.sampled_from(["start", "succeed", "succeed", "fail", "retry", "later", "lose"]))
    def move(self, data: st.DataObject, what: str) -> None:
        job = self.held[data.draw(st.sampled_from(sorted(self.held)))]
        for _ in range(1 if what == "lose" else 2):
            if what == "start":
                assert self.yard.start(job, started_s=1.0, celery="", expires_s=60)
            elif what in {"succeed", "fail"}:
                state = State.SUCCEEDED if what == "succeed" else State.FAILED
                assert self.yard.settle(job, state, ENDED, {"exit_code": "0"}, [], retention_s=600)
            elif what in {"retry", "later"}:
                assert self.yard.give_back(job, ENDED, delay_s=3600 if what == "later" else 0)
            else:
                self.redis.zadd(keys.LEASES, {job.id: 1})
                self.yard.tick(["cpu"], lease_s=60)
        if what != "start":
            del self.held[job.id]

    @precondition(lambda self: self.own)
    @rule(data=st.data(), terminate=st.booleans(), whole=st.booleans())
    def cancel(self, data: st.DataObject, terminate: bool, whole: bool) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.sizes if whole else self.own)))
        self.yard.cancel(job_id, "test", terminate=terminate)

    @precondition(lambda self: self.sizes)
    @rule(data=st.data())
    def a_chunk(self, data: st.DataObject) -> None:
        self.children.step(data.draw(st.sampled_from(sorted(self.sizes))))

    @rule(most=st.integers(1, 3))
    def some_children_end(self, most: int) -> None:
        self.children.end(most)

    @rule()
    def controller(self) -> None:
        self.yard.tick(["cpu"], lease_s=60)
        self._deliver()

    @rule()
    def eta_comes(self) -> None:
        for job_id, _ in self.redis.zrange("by:q:cpu:delayed", 0, -1, withscores=True):
            self.redis.zadd("by:q:cpu:delayed", {job_id: 1})
        self.yard.tick(["cpu"], lease_s=60)

    def _deliver(self) -> None:
        for name, entry in self.yard.outbox()[1].items():
            if name.startswith("deps:"):
                while self.yard.release(entry["id"]):
                    pass
            elif name.startswith("array:"):
                while self.children.step(entry["id"]):
                    pass
            elif name == "children":
                while self.children.end(3):
                    pass
            else:
                state = State.SUCCEEDED if entry["state"] == "SUCCESS" else State.FAILED
                assert self.yard.finish(entry["id"], state, {"reason": entry["reason"]}, [], retention_s=600)
                assert not self.yard.finish(entry["id"], state, {}, [], retention_s=600)

    def _states(self) -> dict[str, State | None]:
        """Of all jobs and children, None where there is no record."""
        pipe = self.redis.pipeline(transaction=False)
        for job_id in self.own:
            pipe.hget(keys.job(job_id), "state")
        found = zip(self.own, pipe.execute(), strict=True)
        return {job_id: State(state.decode()) if state else None for job_id, state in found}

    @invariant()
    def counters_are_right_and_nothing_goes_before_what_it_waits_for(self) -> None:
        states = self._states()
        for job_id, (h, _) in self.yard.hashes(list(self.sizes)).items():
            array, size = Array.of(h), self.sizes[job_id]
            if size and array is not None:
                own, parent = [states[f"{job_id}:{n}"] for n in range(size)], states[job_id]
                assert parent is not None
                to_come = parent if parent.ended or parent is State.SUBMITTED else State.PENDING
                assert Counter({s: n for s, n in array.counts.items() if n}) == Counter(s or to_come for s in own)
                ended = [s is not None and s.ended for s in own]
                assert not parent.ended or all(ended) or not any(own), (job_id, own)
        for job_id, before in self.own.items():
            state = states[job_id]
            if state is not None:
                assert state in _reachable(self.seen.get(job_id, State.SUBMITTED)), (job_id, self.seen[job_id], state)
                self.seen[job_id] = state
            if state in {State.RUNNABLE, State.STARTING, State.RUNNING, State.SUCCEEDED}:
                for other, then in before.items():
                    end = states[other] or self._without_children(other, states)
                    assert end is State.SUCCEEDED or (then == "CONTINUE" and end is State.FAILED), (job_id, other)

    def _without_children(self, child: str, states: dict[str, State | None]) -> State | None:
        """FAILED: its array was refused at the door, and never gets any."""
        array = child.rpartition(":")[0]
        refused = states[array] is State.FAILED or self.redis.hexists(keys.job(array), "ending")
        return State.FAILED if refused else None

    def teardown(self) -> None:
        if not hasattr(self, "yard"):
            return
        for job in self.held.values():
            self.yard.settle(job, State.SUCCEEDED, ENDED, {}, [], retention_s=600)
        while True:
            self._deliver()
            self.eta_comes()
            jobs = self.yard.claim("n1", f"claim-{next(_ids)}", ROOM, ["cpu"], lease_s=60, count=8)[1]
            for job in jobs:
                self.yard.settle(job, State.SUCCEEDED, ENDED, {}, [], retention_s=600)
            if not jobs and not self.redis.hlen(keys.OUTBOX):
                break
        self.counters_are_right_and_nothing_goes_before_what_it_waits_for()
        open_ = [i for i in self.sizes if not self.yard.record(i).state.ended]
        assert open_ == []
        kept = {keys.SEQUENCE, keys.JOBS, keys.REAPER, keys.KEY_MARK, keys.node("n1"), *map(keys.job, self.own)}
        left = {k.decode() for k in self.redis.keys("by:*")} - kept
        assert {key for key in left if not key.startswith("by:cancel:")} == set()
        assert [i for i in self.own if self.redis.ttl(keys.job(i)) == -1] == []
        self.redis.close()


def _reachable(state: State) -> set[State]:
    found, todo = {state}, [state]
    while todo:
        for after in MOVES[todo.pop()] - found:
            found.add(after)
            todo.append(after)
    return found


@pytest.mark.parametrize("histories", [30, pytest.param(400, marks=[pytest.mark.full, pytest.mark.timeout(900)])])
def test_any_history_of_arrays_counts_right_and_leaves_nothing_behind(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, histories: int
) -> None:
    """In chunks of two, so that most histories stop in the middle of something."""
    text = functions.library().replace("AT_ONCE = 64", "AT_ONCE = 1")
    text, changed = re.subn(r"SPAWNED, TOLD, KEPT = \d+, \d+, \d+", "SPAWNED, TOLD, KEPT = 2, 2, 2", text)
    assert changed == 1
    monkeypatch.setattr(functions, "library", lambda: text)
    machine: Any = type("HistoryHere", (History,), {"url": own_redis.url()})
    case = machine.TestCase
    case.settings = settings(
        max_examples=histories, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    case().runTest()
    assert redis.Redis.from_url(own_redis.url()).zcard(keys.LEASES) == 0
