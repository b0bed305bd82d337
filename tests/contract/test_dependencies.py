"""Jobs that wait for other jobs: released or failed in the call that ends the last one, once, whatever dies."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest

from batchyard.broker import keys
from batchyard.broker.config import parse as configuration
from batchyard.broker.dependencies import Dependency
from batchyard.broker.ending import Outbox
from batchyard.broker.followups import Followups
from batchyard.broker.intake import Intake
from batchyard.broker.message import Document, Message
from batchyard.broker.record import Attempt, Claimed
from batchyard.broker.seal import KeyRing
from batchyard.broker.state import State
from batchyard.broker.store import Free, Incoming, Yard
from yardtest import poison

RING = KeyRing.new()
ROOM = Free(vcpus=1000, memory_mib=1 << 20, gpus=0, disk_gib=1000)
HOUR_MS = 3_600_000

pytestmark = pytest.mark.system
_claims = itertools.count()


@pytest.fixture
def yard(fresh_redis_url: str) -> Yard:
    made = Yard(fresh_redis_url, RING)
    made.prepare()
    made.tick(["cpu"], lease_s=60)
    return made


def on(*ids: str, then: str = "FAIL") -> Sequence[Dependency]:
    return [Dependency.model_validate({"job_id": i, "on_failure": then}) for i in ids]


def incoming(job_id: str, *depends_on: Dependency, **fields: Any) -> Incoming:
    message = Message(headers={"id": job_id, "task": "batchyard.run"}, properties={}, body="[[], {}, {}]")
    plain: dict[str, Any] = {"list_key": "cpu", "raw": job_id.encode(), "kind": "job", "id": job_id, "queue": "cpu"}
    sealed = RING.seal(Document(message=message, job={}).dumps(), job_id.encode())
    return Incoming(**plain, vcpus=1, memory_mib=1, document=sealed, depends_on=depends_on, **fields)


def put(yard: Yard, job_id: str, *depends_on: Dependency, **fields: Any) -> None:
    one = incoming(job_id, *depends_on, **fields)
    yard.redis.lpush("cpu", one.raw)
    assert yard.intake([one]) == 1


def claim(yard: Yard, count: int = 1000) -> dict[str, Claimed]:
    _, jobs = yard.claim("n1", f"c{next(_claims)}", ROOM, ["cpu"], lease_s=60, count=count)
    return {job.id: job for job in jobs}


def settle(yard: Yard, job: Claimed, *, well: bool = True) -> None:
    ended = Attempt(node="n1", started=1.0, ended=2.0, exit_code=0, reason="test")
    state = State.SUCCEEDED if well else State.FAILED
    for _ in range(2):  # its repeat changes nothing
        assert yard.settle(job, state, ended, {}, [], retention_s=1000)


def deliver(yard: Yard) -> None:
    outbox = Outbox(yard, Followups(yard.url, result_expires_s=100), retention_s=1000)
    while outbox.run() or yard.redis.hlen(keys.OUTBOX):  # a round passes over what comes behind its cursor
        pass


def states(yard: Yard, *ids: str) -> list[str]:
    return [yard.record(i).state.value for i in ids]


def nothing_left(yard: Yard) -> None:
    assert yard.redis.keys("by:q:*") == yard.redis.keys("by:dependants:*") == []
    assert yard.redis.zcard(keys.EXPIRING) == yard.redis.hlen(keys.OUTBOX) == 0
    fields: list[bytes] = [f for key in yard.redis.keys("by:job:*") for f in yard.redis.hkeys(key)]  # type: ignore[misc]
    assert not [f for f in fields if f == b"left" or f.startswith(b"on:")]


def test_a_job_starts_when_the_last_one_that_it_depends_on_has_succeeded(yard: Yard) -> None:
    put(yard, "a")
    put(yard, "b")
    put(yard, "c", *on("a", "b"))
    held = claim(yard)
    assert held.keys() == {"a", "b"}
    settle(yard, held["a"])
    record = yard.record("c")
    assert (record.state, [(d.job_id, d.left) for d in record.depends_on]) == ("PENDING", [("a", False), ("b", True)])
    assert (yard.depth(["cpu"])["cpu"].blocked, yard.depth(["cpu"])["cpu"].total) == (1, 1)
    settle(yard, held["b"])
    assert states(yard, "c") == ["RUNNABLE"]  # in that very call
    settle(yard, claim(yard)["c"])
    nothing_left(yard)


def test_a_failure_fails_all_that_hang_on_it(yard: Yard) -> None:
    put(yard, "a")
    put(yard, "b", *on("a"))
    put(yard, "c", *on("b"))
    put(yard, "d", *on("c"))
    settle(yard, claim(yard)["a"], well=False)
    put(yard, "late", *on("a"))  # taken in when all is over
    deliver(yard)
    assert states(yard, "b", "c", "d", "late") == ["FAILED"] * 4
    assert [yard.record(i).reason for i in ("b", "c", "late")] == [
        f"Dependent Job failed: {i}" for i in ("a", "b", "a")
    ]
    assert claim(yard) == {}
    nothing_left(yard)


def test_a_job_that_goes_on_after_a_failure_waits_for_any_end(yard: Yard) -> None:
    put(yard, "a")
    put(yard, "b")
    put(yard, "c", *on("a", then="CONTINUE"), *on("b"))
    held = claim(yard)
    settle(yard, held["a"], well=False)
    assert states(yard, "c") == ["PENDING"]
    settle(yard, held["b"])
    assert states(yard, "c") == ["RUNNABLE"]
    put(yard, "later", *on("a", then="CONTINUE"))
    assert states(yard, "later") == ["RUNNABLE"]


def test_a_job_that_is_cancelled_fails_its_dependants(yard: Yard) -> None:
    put(yard, "a")
    put(yard, "b", *on("a"))
    put(yard, "c", *on("a", then="CONTINUE"))
    assert yard.cancel("a", "not wanted", terminate=False) == "cancelled"
    assert states(yard, "b", "c") == ["PENDING", "PENDING"]
    deliver(yard)
    assert states(yard, "a", "b", "c") == ["FAILED", "FAILED", "RUNNABLE"]


def test_an_eta_holds_beside_the_dependencies(yard: Yard) -> None:
    soon_ms = int(yard.now_s() * 1000) + HOUR_MS
    put(yard, "a")
    put(yard, "b", *on("a"), eta_ms=soon_ms)
    put(yard, "due", *on("a"), eta_ms=soon_ms)
    yard.redis.hset(keys.job("due"), "eta", 1)  # its time came while it waited
    assert yard.depth(["cpu"])["cpu"].delayed == 0
    settle(yard, claim(yard)["a"])
    assert states(yard, "b", "due") == ["PENDING", "RUNNABLE"]
    assert yard.redis.zscore("by:q:cpu:delayed", "b") == soon_ms
    yard.redis.zadd("by:q:cpu:delayed", {"b": 1})
    assert claim(yard).keys() == {"b", "due"}


@pytest.mark.parametrize("how", ["cancelled", "expired"])
def test_a_job_that_waits_for_others_can_end_before_them(yard: Yard, how: str) -> None:
    put(yard, "a")
    put(yard, "b", *on("a"), expires_ms=int(yard.now_s() * 1000) + HOUR_MS)
    put(yard, "c", *on("b"))
    if how == "cancelled":
        assert yard.cancel("b", "not wanted", terminate=False) == "cancelled"
        assert yard.cancel("b", "again", terminate=True) == "ended"
    else:
        yard.redis.zadd(keys.EXPIRING, {"b": 1})
        assert yard.tick(["cpu"], lease_s=60)[2] == 1
    assert yard.redis.exists(keys.dependants("a")) == 0
    deliver(yard)
    settle(yard, claim(yard)["a"])
    assert states(yard, "a", "b", "c") == ["SUCCEEDED", "FAILED", "FAILED"]
    assert claim(yard) == {}
    nothing_left(yard)


CONFIG = configuration(
    {
        "queues": {"cpu": {"priority": 9, "environments": ["here"]}, "late": {"environments": ["here"]}},
        "environments": {"here": {"vcpus": 4, "memory_mib": 4096}},
    },
    "test",
)


def send(yard: Yard, job_id: str, *depends_on: object, queue: str = "cpu") -> None:
    """As a stock producer."""
    envelope = poison.envelope(job_id, {"image": "i", "depends_on": list(depends_on)})
    yard.redis.lpush(queue, json.dumps(envelope))


def test_a_child_that_is_seen_before_its_parent_waits_and_those_behind_it_go_on(yard: Yard) -> None:
    now_s = 0.0
    intake = Intake(yard, clock=lambda: now_s)
    for n in range(100):
        send(yard, f"orphan{n}", "nobody")
    send(yard, "child", "parent", {"job_id": "other", "on_failure": "CONTINUE"})
    send(yard, "behind")
    taken = 0
    while taken < 1:
        taken += intake.run(CONFIG)
    assert (states(yard, "behind"), yard.redis.llen("cpu")) == (["RUNNABLE"], 101)
    send(yard, "parent", queue="late")
    send(yard, "other", queue="late")
    while taken < 4:
        taken += intake.run(CONFIG)
    assert states(yard, "parent", "other", "child") == ["RUNNABLE", "RUNNABLE", "PENDING"]
    while now_s < 5:
        now_s += 1
        assert intake.run(CONFIG) == 0
    while taken < 104:
        now_s += 1
        taken += intake.run(CONFIG)
    assert now_s < 8
    assert yard.redis.llen("cpu") == 0
    deliver(yard)
    assert yard.record("orphan0").reason == "job.depends_on = 'nobody': no such job"


def test_a_list_full_of_children_without_parents_is_taken_in_in_the_end(yard: Yard) -> None:
    now_s, taken = 0.0, 0
    intake = Intake(yard, clock=lambda: now_s)
    for n in range(300):
        send(yard, f"orphan{n}", "nobody")
    send(yard, "behind")
    while taken < 301:
        now_s += 0.5
        taken += intake.run(CONFIG)
        assert now_s < 60
    assert states(yard, "behind") == ["RUNNABLE"]


def seconds_until_empty(yard: Yard, *, between: Any = None, step_s: float = 0.5) -> float:
    """By a made-up clock, until the list is empty."""
    now_s = 0.0
    intake = Intake(yard, clock=lambda: now_s)
    while yard.redis.llen("cpu"):
        if between:
            between()
        intake.run(CONFIG)
        now_s += step_s
        assert now_s < 60
    return now_s


@pytest.mark.parametrize("copies", [64, 65, 300])
def test_copies_of_one_message_wait_no_longer_than_one(yard: Yard, copies: int) -> None:
    for _ in range(copies):
        send(yard, "orphan", "nobody")
    assert seconds_until_empty(yard) < 9
    deliver(yard)
    assert yard.record("orphan").reason == "job.depends_on = 'nobody': no such job"


def test_what_waits_at_one_list_waits_a_bounded_time_while_another_is_never_empty(yard: Yard) -> None:
    numbers = itertools.count()

    def busy() -> None:
        for _ in range(65 - yard.redis.llen("late")):
            send(yard, f"more{next(numbers)}", queue="late")

    send(yard, "orphan", "nobody")
    assert seconds_until_empty(yard, between=busy, step_s=1) <= 12


def test_large_messages_do_not_wait_in_number_and_are_not_sent_again_to_ask(yard: Yard) -> None:
    for n in range(12):
        raw = poison.envelope(f"orphan{n}", {"image": "i", "depends_on": ["parent"]})
        yard.redis.lpush("cpu", json.dumps({**raw, "padding": "x" * (1 << 20)}))
    now_s = 0.0
    intake = Intake(yard, clock=lambda: now_s)
    assert intake.run(CONFIG) == 0
    assert intake.run(CONFIG) == 12 - 7  # 7 of somewhat more than 1 MiB have room to wait
    before = yard.redis.info("stats")["total_net_input_bytes"]
    for _ in range(4):
        now_s += 0.5
        assert intake.run(CONFIG) == 0
    assert yard.redis.info("stats")["total_net_input_bytes"] - before < 1 << 20
    send(yard, "parent", queue="late")
    assert [intake.run(CONFIG), intake.run(CONFIG)] == [1, 7]
    deliver(yard)
    assert states(yard, *(f"orphan{n}" for n in range(12))) == ["PENDING"] * 7 + ["FAILED"] * 5


def test_an_unknown_job_is_waited_for_in_the_list_and_not_for_ever(yard: Yard) -> None:
    child = incoming("child", *on("parent"), patient=True)
    yard.redis.lpush("cpu", child.raw)
    put(yard, "other")
    assert yard.take_in([incoming("gone"), child]) == (0, frozenset({1}))
    assert yard.redis.lrange("cpu", 0, -1) == [child.raw]
    assert not yard.exists("child")
    put(yard, "parent")
    assert yard.take_in([child]) == (1, frozenset())
    assert states(yard, "child") == ["PENDING"]
    put(yard, "orphan", *on("parent", "nobody's"))
    deliver(yard)
    assert yard.record("orphan").reason == "job.depends_on = 'nobody's': no such job"
    settle(yard, claim(yard)["parent"])
    assert states(yard, "child") == ["RUNNABLE"]


@pytest.mark.parametrize(("whose", "whose_child"), [("alice", "bob"), ("alice", ""), ("", "bob")])
def test_a_job_of_another_tenant_is_no_such_job(yard: Yard, whose: str, whose_child: str) -> None:
    clear, of_child = ({"tenant": one} if one else {} for one in (whose, whose_child))
    put(yard, "parent", clear={**clear, "array": "3"})
    for n, depends in enumerate((on("parent"), on("parent:2"), on("parent", then="CONTINUE"))):
        child = incoming(f"child{n}", *depends, patient=True, clear=of_child)
        yard.redis.lpush("cpu", child.raw)
        assert yard.take_in([child]) == (0, frozenset({0})), "it waits as for one that was never there"
        assert yard.intake([incoming(f"child{n}", *depends, clear=of_child)]) == 1
        put(yard, f"own{n}", *depends, clear=clear)
    deliver(yard)
    for n, named in enumerate(("parent", "parent:2", "parent")):
        assert yard.record(f"child{n}").reason == f"job.depends_on = '{named}': no such job"
    assert states(yard, "own0", "own1", "own2") == ["PENDING"] * 3


@pytest.mark.parametrize("how", ["cancelled", "expired"])
def test_a_message_that_waits_in_its_list_is_taken_in_when_it_has_ended(yard: Yard, how: str) -> None:
    child = incoming("child", *on("parent"), patient=True, expires_ms=1 if how == "expired" else 0)
    yard.redis.lpush("cpu", child.raw)
    if how == "cancelled":
        assert yard.cancel("child", "not wanted", terminate=False) == "stored"
    assert yard.take_in([child]) == (1, frozenset())
    assert yard.outbox()[1]["end:child"]["state"] == "REVOKED"


def test_a_job_that_depends_on_itself_or_in_a_circle_ends(yard: Yard) -> None:
    put(yard, "own", *on("own"))
    put(yard, "a", *on("b"))
    put(yard, "b", *on("a"))
    deliver(yard)
    assert yard.record("own").reason == "job.depends_on = 'own': no such job"
    assert yard.record("a").reason == "job.depends_on = 'b': no such job"
    assert yard.record("b").reason == "Dependent Job failed: a"
    nothing_left(yard)


def test_many_dependants_are_let_go_in_parts_by_whoever_is_there(yard: Yard) -> None:
    ids = [f"d{n:03}" for n in range(200)]
    put(yard, "a")
    for n, job_id in enumerate(ids):
        put(yard, job_id, *on("a"), priority=9 if n < 100 else 0)
    held = claim(yard)
    settle(yard, held["a"])
    assert states(yard, *ids).count("RUNNABLE") == 64
    assert states(yard, *ids[100:164]) == ["RUNNABLE"] * 64  # the most urgent first
    assert yard.outbox()[1] == {"deps:a": {"id": "a", "state": "SUCCEEDED"}}
    put(yard, "late", *on("a"))  # does not queue behind them
    assert states(yard, "late") == ["RUNNABLE"]
    assert yard.cancel(ids[0], "not wanted", terminate=False) == "cancelled"
    assert yard.release("a") == 200 - 1 - 128
    started = claim(yard)
    assert yard.release("a") == 200 - 1 - 192
    deliver(yard)
    assert yard.release("a") == 0
    started |= claim(yard)
    assert started.keys() == {*ids[1:], "late"}
    assert states(yard, ids[0]) == ["FAILED"]
    for job in started.values():
        settle(yard, job)
    nothing_left(yard)


def test_many_dependants_of_a_failed_job_fail(yard: Yard) -> None:
    ids = [f"d{n}" for n in range(70)]
    put(yard, "a")
    for job_id in ids:
        put(yard, job_id, *on("a"))
    settle(yard, claim(yard)["a"], well=False)
    deliver(yard)
    assert states(yard, *ids) == ["FAILED"] * 70
    nothing_left(yard)


def test_another_job_of_the_same_id_is_not_let_go_by_what_its_forerunner_waited_for(yard: Yard) -> None:
    put(yard, "a")
    put(yard, "b")
    put(yard, "c", *on("a"))
    yard.redis.delete(keys.job("c"), "by:q:cpu:blocked")  # as if it had ended, and its record expired
    put(yard, "c", *on("b"))
    held = claim(yard)
    settle(yard, held["a"])
    assert states(yard, "c") == ["PENDING"]
    settle(yard, held["b"])
    assert states(yard, "c") == ["RUNNABLE"]
