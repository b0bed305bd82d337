"""Several jobs of a node in one call: each is answered by itself, and none stands in another's way."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest

from batchyard.broker import keys
from batchyard.broker.batch import MOST, End, Start
from batchyard.broker.deadletters import DeadLetters
from batchyard.broker.dependencies import Dependency
from batchyard.broker.record import Attempt, Claimed
from batchyard.broker.recorder import Effect
from batchyard.broker.state import State
from batchyard.broker.store import Free, Incoming, Yard

ROOM = Free(vcpus=1000, memory_mib=1 << 20, gpus=0, disk_gib=1000)

pytestmark = pytest.mark.system
_claims = itertools.count()


def put(yard: Yard, job_id: str, *on: str) -> None:
    depends = [Dependency.model_validate({"job_id": i}) for i in on]
    one = Incoming(list_key="cpu", raw=job_id.encode(), kind="job", id=job_id, queue="cpu", vcpus=1, depends_on=depends)
    yard.redis.lpush("cpu", one.raw)
    assert yard.intake([one]) == 1


def claim(yard: Yard, node: str = "n1") -> dict[str, Claimed]:
    jobs = yard.claim(node, f"c{next(_claims)}", ROOM, ["cpu"], lease_s=30, count=MOST)[1]
    return {job.id: job for job in jobs}


def end(job: Claimed, *effects: Effect, well: bool = True) -> End:
    attempt = Attempt(node="n1", started=1.0, ended=2.0, exit_code=0, reason=f"ran as {job.id}")
    state = State.SUCCEEDED if well else State.FAILED
    return End(job=job, state=state, attempt=attempt, fields={"reason": f"end of {job.id}"}, effects=effects)


def settle(yard: Yard, ends: Iterable[End]) -> list[bool | Exception]:
    return yard.settle_many(list(ends), retention_s=1000)


def test_many_ends_are_written_in_one_call_each_with_its_own(yard: Yard) -> None:
    for n in range(MOST):
        put(yard, f"j{n}")
    jobs = list(claim(yard).values())
    ends = [end(job, ("LPUSH", (f"next-{job.id}", b"\x00\xff", job.id)), well=n % 3 > 0) for n, job in enumerate(jobs)]
    for _ in range(2):  # its repeat changes nothing
        assert settle(yard, ends) == [True] * MOST
    for n, job in enumerate(jobs):
        record = yard.record(job.id)
        assert (record.state, record.reason) == ("SUCCEEDED" if n % 3 else "FAILED", f"end of {job.id}")
        assert [a.reason for a in record.attempts] == [f"ran as {job.id}"]
        assert yard.redis.lrange(f"next-{job.id}", 0, -1) == [job.id.encode(), b"\x00\xff"]
    assert yard.redis.exists(keys.LEASES, keys.node_jobs("n1"), keys.OUTBOX, keys.DEAD) == 0


def test_a_stale_end_a_failing_effect_and_a_broken_one_stop_no_other(yard: Yard) -> None:
    for name in ("stale", "bad effect", "broken", "first", "last"):
        put(yard, name)
    jobs = claim(yard)
    assert yard.give_back(jobs["stale"], None)
    again = claim(yard, "n2")["stale"]
    yard.redis.set(keys.dependants("broken"), "not what stands there")
    effects: dict[str, Effect] = {"stale": ("SET", ("stale", "1")), "bad effect": ("LPUSH", ("text", "x"))}
    yard.redis.set("text", "x")
    ends = [end(jobs[i], *([effects[i]] if i in effects else [])) for i in ("first", *effects, "broken", "last")]
    first, stale, bad, broken, last = settle(yard, ends)
    assert (first, stale, bad, last) == (True, False, True, True)
    assert isinstance(broken, Exception)
    assert "WRONGTYPE" in str(broken)
    assert yard.redis.exists("stale") == 0
    assert [letter["reason"].split(":")[0] for letter in DeadLetters(yard, lambda: yard.ring).list().values()] == [
        "LPUSH failed"
    ]
    assert [yard.record(i).state for i in ("first", "last", "stale")] == ["SUCCEEDED", "SUCCEEDED", "STARTING"]
    assert settle(yard, [end(again)]) == [True]


def test_many_starts_are_told_in_one_call(yard: Yard) -> None:
    for name in ("a", "b", "c"):
        put(yard, name)
    jobs = claim(yard)
    assert yard.give_back(jobs["b"], None)
    starts = [Start(job=jobs[i], started_s=n, celery=f"started {i}", expires_s=100) for n, i in enumerate("abc", 1)]
    for _ in range(2):
        assert yard.start_many(starts) == [True, False, True]
    assert [(yard.record(i).state, yard.record(i).started) for i in "abc"] == [
        ("RUNNING", 1.0),
        ("RUNNABLE", None),
        ("RUNNING", 3.0),
    ]
    assert [yard.redis.get(keys.result(i)) for i in "abc"] == [b"started a", None, b"started c"]


def test_many_ends_let_go_no_more_dependants_than_one_may(yard: Yard) -> None:
    parents = [f"p{n}" for n in range(8)]
    for parent in parents:
        put(yard, parent)
    children = [f"{parent}-{n}" for parent in parents for n in range(10)]
    for child in children:
        put(yard, child, child.partition("-")[0])
    assert settle(yard, map(end, claim(yard).values())) == [True] * 8
    assert [yard.record(child).state for child in children].count(State.RUNNABLE) == 64
    assert {yard.release(parent) for parent in parents} == {0}
    assert {yard.record(child).state for child in children} == {State.RUNNABLE}
