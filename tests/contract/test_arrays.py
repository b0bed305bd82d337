"""Arrays on a real Redis: children in chunks, counters that are right at every read, one end, whatever comes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from batchyard.broker import keys
from batchyard.broker.children import Children
from batchyard.broker.config import Config, Queue
from batchyard.broker.deadletters import DeadLetters
from batchyard.broker.dependencies import Dependency
from batchyard.broker.ending import Outbox
from batchyard.broker.environment import Environment
from batchyard.broker.followups import Followups
from batchyard.broker.intake import Intake
from batchyard.broker.job import Job
from batchyard.broker.message import Document, Message
from batchyard.broker.record import Attempt, Claimed
from batchyard.broker.seal import KeyRing
from batchyard.broker.state import State
from batchyard.broker.store import Free, Incoming, Yard
from yardtest.redis import RedisServer

RING = KeyRing.new()
ROOM = Free(vcpus=100000, memory_mib=1 << 30, gpus=0, disk_gib=1000)
HOUR_MS = 3_600_000

pytestmark = pytest.mark.system
_claims = itertools.count()


@pytest.fixture
def yard(fresh_redis_url: str) -> Yard:
    made = Yard(fresh_redis_url, RING)
    made.prepare()
    made.tick(["cpu"], lease_s=60)
    return made


def on(job_id: str = "", *, type: str | None = None, then: str = "FAIL") -> Dependency:
    given = {"job_id": job_id, "type": type, "on_failure": then}
    return Dependency.model_validate({name: value for name, value in given.items() if value})


def put(yard: Yard, job_id: str, size: int | None, *depends_on: Dependency, **fields: Any) -> None:
    message = Message(headers={"id": job_id, "task": "batchyard.run"}, properties={}, body="[[], {}, {}]")
    job = Job.parse({"image": "i", **({"array_size": size} if size else {})}).dump()
    sealed = RING.seal(Document(message=message, job=job).dumps(), job_id.encode())
    plain: dict[str, Any] = {"list_key": "cpu", "raw": job_id.encode(), "kind": "job", "id": job_id, "queue": "cpu"}
    plain["clear"] = {"image": "i", "name": "n", **({"array": str(size)} if size else {})}
    one = Incoming(**{**plain, **fields}, vcpus=1, memory_mib=1, document=sealed, depends_on=depends_on)
    yard.redis.lpush("cpu", one.raw)
    assert yard.intake([one]) == 1


def claim(yard: Yard, count: int = 1000) -> dict[str, Claimed]:
    _, jobs = yard.claim("n1", f"c{next(_claims)}", ROOM, ["cpu"], lease_s=60, count=count)
    return {job.id: job for job in jobs}


def settle(yard: Yard, job: Claimed, *, well: bool = True) -> None:
    ended = Attempt(node="n1", started=1.0, ended=2.0, exit_code=0, reason="test")
    state = State.SUCCEEDED if well else State.FAILED
    for _ in range(2):  # its repeat changes nothing
        assert yard.settle(job, state, ended, {"reason": "test"}, [], retention_s=1000)


def settle_all(yard: Yard) -> None:
    while held := claim(yard):
        for job in held.values():
            settle(yard, job)


def deliver(yard: Yard) -> None:
    outbox = Outbox(yard, Followups(yard.url, result_expires_s=100), retention_s=1000)
    while outbox.run() or yard.redis.hlen(keys.OUTBOX):  # a round passes over what comes behind its cursor
        pass


def step(yard: Yard, job_id: str) -> bool:
    return Children(yard).step(job_id)


def counts(yard: Yard, job_id: str) -> dict[str, int]:
    """By state, without zeros; and all of them are there."""
    array = yard.record(job_id).array
    assert array is not None
    assert sum(array.counts.values()) == array.size
    assert min(array.counts.values()) >= 0
    return {str(state): n for state, n in array.counts.items() if n}


def states(yard: Yard, *ids: str) -> list[str]:
    return [yard.record(i).state.value for i in ids]


def children(job_id: str, size: int) -> list[str]:
    return [f"{job_id}:{n}" for n in range(size)]


def nothing_left(yard: Yard) -> None:
    assert yard.redis.keys("by:q:*") == yard.redis.keys("by:dependants:*") == yard.redis.keys("by:cancel:*") == []
    assert yard.redis.zcard(keys.EXPIRING) == yard.redis.hlen(keys.OUTBOX) == yard.redis.llen(keys.CHILD_ENDS) == 0
    for key in yard.redis.keys("by:job:*"):
        assert 0 < yard.redis.ttl(key) <= 1000, key
        fields: list[bytes] = yard.redis.hkeys(key)  # type: ignore[assignment]
        assert not [f for f in fields if f in {b"left", b"ending", b"token", b"class"} or f.startswith(b"on:")], key


def told(yard: Yard, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(yard.redis.get(keys.result(job_id)) or "{}")
    return found


def test_an_array_is_one_record_until_its_children_are_spawned(yard: Yard) -> None:
    put(yard, "a", 160)
    assert states(yard, "a", "a:7") == ["PENDING", "PENDING"]
    assert counts(yard, "a") == {"PENDING": 160}
    assert yard.depth(["cpu"])["cpu"].total == 160
    assert yard.redis.keys("by:job:*") == [b"by:job:a"]
    assert step(yard, "a")
    assert counts(yard, "a") == {"RUNNABLE": 64, "PENDING": 96}
    assert yard.depth(["cpu"])["cpu"].total == 160
    assert step(yard, "a")
    assert not step(yard, "a")
    assert not step(yard, "a")  # nothing is left to be done
    assert counts(yard, "a") == {"RUNNABLE": 160}
    assert yard.depth(["cpu"])["cpu"].total == 160
    assert [r.id for r in yard.recent(10)] == ["a"]


def test_children_run_in_the_order_of_their_indices_before_what_came_later(yard: Yard) -> None:
    put(yard, "a", 150)
    put(yard, "later", None)
    deliver(yard)
    order = [job_id for _ in range(19) for job_id in claim(yard, 8)]
    assert order == [*children("a", 150), "later"]


def test_the_children_of_an_array_have_its_document(yard: Yard) -> None:
    put(yard, "a", 2)
    deliver(yard)
    held = claim(yard)
    assert [yard.open(job.id, job.document).message.id for job in held.values()] == ["a", "a"]
    assert [job.index for job in held.values()] == [0, 1]
    assert {c.id: c.document for c in yard.held("n1")} == {c.id: c.document for c in held.values()}
    record = yard.record("a:1")
    assert (record.parent, record.index, record.image, record.name, record.vcpus) == ("a", 1, "i", "n", 1)


def test_the_parent_succeeds_when_its_last_child_has(yard: Yard) -> None:
    put(yard, "a", 3)
    deliver(yard)
    held = claim(yard)
    assert counts(yard, "a") == {"STARTING": 3}
    assert yard.start(held["a:0"], started_s=1, celery="", expires_s=0)
    assert counts(yard, "a") == {"STARTING": 2, "RUNNING": 1}
    settle(yard, held["a:0"])
    settle(yard, held["a:2"])
    deliver(yard)
    assert counts(yard, "a") == {"SUCCEEDED": 2, "STARTING": 1}
    assert states(yard, "a") == ["PENDING"]
    settle(yard, held["a:1"])
    deliver(yard)
    assert states(yard, "a") == ["SUCCEEDED"]
    result = yard.record("a").result
    assert told(yard, "a")["status"] == "SUCCESS"
    assert result == told(yard, "a")["result"]
    assert result is not None
    assert (result["job_id"], result["array"]) == ("a", {"size": 3, "succeeded": 3, "failed": 0})
    nothing_left(yard)


def test_a_failing_child_fails_the_parent_after_all_have_ended(yard: Yard) -> None:
    put(yard, "a", 3)
    deliver(yard)
    held = claim(yard)
    settle(yard, held["a:0"], well=False)
    deliver(yard)
    assert states(yard, "a") == ["PENDING"]
    settle(yard, held["a:1"])
    settle(yard, held["a:2"])
    deliver(yard)
    record = yard.record("a")
    assert (record.state, record.reason) == ("FAILED", "Array Child Job failed")
    assert counts(yard, "a") == {"FAILED": 1, "SUCCEEDED": 2}
    assert told(yard, "a")["status"] == "FAILURE"
    assert told(yard, "a:0") == told(yard, "a:1") == {}
    nothing_left(yard)


def test_a_retry_a_lost_node_and_a_drain_are_a_childs_own(yard: Yard) -> None:
    put(yard, "a", 2)
    deliver(yard)
    held = claim(yard)
    again = Attempt(node="n1", started=1.0, ended=2.0, exit_code=1, reason="again", counted=True)
    assert yard.give_back(held["a:0"], again)
    assert yard.give_back(held["a:1"], None, delay_s=100)
    assert counts(yard, "a") == {"RUNNABLE": 1, "PENDING": 1}
    assert claim(yard)["a:0"].attempt == 2
    assert counts(yard, "a") == {"STARTING": 1, "PENDING": 1}
    yard.redis.zadd(keys.LEASES, {"a:0": 1})
    yard.tick(["cpu"], lease_s=60)
    assert counts(yard, "a") == {"RUNNABLE": 1, "PENDING": 1}
    assert yard.record("a:0").losses == 1


def test_a_job_that_depends_on_an_array_waits_for_all_of_it(yard: Yard) -> None:
    put(yard, "a", 3)
    put(yard, "b", None, on("a"))
    put(yard, "c", 2, on("a"))
    deliver(yard)
    held = claim(yard)
    assert held.keys() == {*children("a", 3)}
    assert counts(yard, "c") == {"PENDING": 2}
    for job in held.values():
        assert states(yard, "b", "c") == ["PENDING", "PENDING"]
        settle(yard, job)
    deliver(yard)
    assert states(yard, "b") == ["RUNNABLE"]
    assert counts(yard, "c") == {"RUNNABLE": 2}
    settle_all(yard)
    deliver(yard)
    assert states(yard, "a", "b", "c") == ["SUCCEEDED"] * 3
    nothing_left(yard)


def test_a_job_may_depend_on_one_child_also_before_it_is_spawned(yard: Yard) -> None:
    put(yard, "a", 3)
    put(yard, "b", None, on("a:1"))
    put(yard, "none", None, on("a:3"))
    deliver(yard)
    assert yard.record("none").reason == "job.depends_on = 'a:3': no such job"
    held = claim(yard)
    settle(yard, held["a:1"])
    assert states(yard, "b", "a") == ["RUNNABLE", "PENDING"]


def test_an_array_waits_for_its_time_and_for_others(yard: Yard) -> None:
    put(yard, "first", None)
    put(yard, "a", 2, on("first"), eta_ms=int(yard.now_s() * 1000) + HOUR_MS)
    deliver(yard)
    settle(yard, claim(yard)["first"])
    assert counts(yard, "a") == {"PENDING": 2}
    yard.redis.zadd("by:q:cpu:delayed", {"a": 1})
    yard.tick(["cpu"], lease_s=60)
    deliver(yard)
    assert counts(yard, "a") == {"RUNNABLE": 2}


def _never(yard: Yard) -> None: ...


def _first_chunk(yard: Yard) -> None:
    step(yard, "a")


def _all(yard: Yard) -> None:
    deliver(yard)


def _some_run(yard: Yard) -> None:
    deliver(yard)
    held = claim(yard, 5)
    for job in list(held.values())[:3]:
        yard.start(job, started_s=1, celery="", expires_s=0)
    settle(yard, held["a:0"])


@pytest.mark.parametrize("terminate", [True, False])
@pytest.mark.parametrize("before", [_never, _first_chunk, _all, _some_run])
def test_a_cancelled_array_ends_in_each_phase(yard: Yard, before: Callable[[Yard], None], terminate: bool) -> None:
    put(yard, "a", 200)
    put(yard, "b", None, on("a"))
    before(yard)
    running = before is _some_run
    answer = yard.cancel("a", "not wanted", terminate=terminate)
    assert answer == (("stopping" if terminate else "running") if running else "cancelled")
    yard.cancel("a", "not wanted", terminate=terminate)
    if not running:
        assert claim(yard) == {}  # not one starts any more
    deliver(yard)
    spared = 0
    for job in yard.held("n1"):  # the node is told, and stops it; or it goes on to its end
        assert job.cancel in ({"not wanted"} if terminate else {"not wanted", ""})
        spared += not job.cancel
        settle(yard, job, well=not job.cancel)
    deliver(yard)
    assert spared == (2 if running and not terminate else 0)
    assert states(yard, "a", "b") == ["FAILED", "FAILED"]
    assert yard.record("a").reason == "not wanted"
    well = 1 + spared if running else 0
    assert counts(yard, "a") == {"FAILED": 200 - well, **({"SUCCEEDED": well} if well else {})}
    assert told(yard, "a")["status"] == "REVOKED"
    assert yard.record("a:199").reason == "not wanted"
    assert yard.cancel("a", "again", terminate=True) == "ended"
    nothing_left(yard)


def test_one_child_is_cancelled_also_before_it_is_spawned(yard: Yard) -> None:
    put(yard, "a", 3)
    assert yard.cancel("a:1", "not this", terminate=True) == "cancelled"
    assert yard.cancel("a:3", "none", terminate=True) == "stored"
    deliver(yard)
    assert counts(yard, "a") == {"RUNNABLE": 2, "FAILED": 1}
    assert yard.cancel("a:2", "nor this", terminate=True) == "cancelled"
    deliver(yard)
    assert [yard.record(i).reason for i in children("a", 3)[1:]] == ["not this", "nor this"]
    assert yard.cancel("a:2", "nor this", terminate=True) == "ended"
    settle_all(yard)
    deliver(yard)
    assert yard.record("a").reason == "Array Child Job failed"
    yard.redis.delete(keys.cancelled("a:3"), keys.cancelled("a:*"))
    nothing_left(yard)


def test_a_child_is_cancelled_before_its_array_is_taken_in(yard: Yard) -> None:
    assert yard.cancel("a:1", "not this", terminate=True) == "stored"
    put(yard, "a", 2)
    deliver(yard)
    assert yard.record("a:1").reason == "not this"


def test_an_array_expires_as_far_as_it_has_not_started(yard: Yard) -> None:
    put(yard, "a", 3, expires_ms=int(yard.now_s() * 1000) + HOUR_MS)
    deliver(yard)
    held = claim(yard, 1)
    yard.start(held["a:0"], started_s=1, celery="", expires_s=0)
    yard.redis.zadd(keys.EXPIRING, {"a": 1})
    yard.tick(["cpu"], lease_s=60)
    deliver(yard)
    settle(yard, held["a:0"])
    deliver(yard)
    assert (yard.record("a").reason, counts(yard, "a")) == ("expired", {"SUCCEEDED": 1, "FAILED": 2})
    nothing_left(yard)


def test_an_array_whose_dependency_fails_ends_with_all_its_children(yard: Yard) -> None:
    put(yard, "first", None)
    put(yard, "a", 200, on("first"))
    put(yard, "b", None, on("a"))
    settle(yard, claim(yard)["first"], well=False)
    deliver(yard)
    assert yard.record("a").reason == yard.record("a:199").reason == "Dependent Job failed: first"
    assert yard.record("b").reason == "Dependent Job failed: a"
    assert counts(yard, "a") == {"FAILED": 200}
    nothing_left(yard)


def test_an_array_that_is_refused_at_the_door_has_no_children(yard: Yard) -> None:
    put(yard, "a", 3, on("nobody"))
    put(yard, "late", 3, on("a", type="N_TO_N"))
    deliver(yard)
    assert yard.record("a").reason == "job.depends_on = 'nobody': no such job"
    assert counts(yard, "a") == counts(yard, "late") == {"FAILED": 3}
    assert yard.record("late:2").reason == "Dependent Job failed: a:2"
    nothing_left(yard)


def test_each_child_waits_for_that_of_the_other_array(yard: Yard) -> None:
    put(yard, "a", 200)
    put(yard, "b", 200, on("a", type="N_TO_N"))
    step(yard, "b")  # before there is a child of a
    deliver(yard)
    assert counts(yard, "b") == {"PENDING": 200}
    assert [(d.job_id, d.left) for d in yard.record("b:7").depends_on] == [("a:7", True)]
    held = claim(yard)
    assert len(held) == 200
    for n in (7, 150):
        settle(yard, held[f"a:{n}"])
    settle(yard, held["a:8"], well=False)
    deliver(yard)
    assert [(d.job_id, d.left) for d in yard.record("b:7").depends_on] == [("a:7", False)]
    assert claim(yard).keys() == {"b:7", "b:150"}
    assert yard.record("b:8").reason == "Dependent Job failed: a:8"
    assert counts(yard, "b") == {"PENDING": 197, "STARTING": 2, "FAILED": 1}
    for n in set(range(200)) - {7, 8, 150}:
        settle(yard, held[f"a:{n}"])
    settle_all(yard)
    for job in yard.held("n1"):
        settle(yard, job)
    deliver(yard)
    assert counts(yard, "b") == {"SUCCEEDED": 199, "FAILED": 1}
    assert states(yard, "a", "b") == ["FAILED", "FAILED"]
    nothing_left(yard)


def test_children_of_a_late_array_see_how_those_of_the_other_one_ended(yard: Yard) -> None:
    put(yard, "a", 3)
    deliver(yard)
    held = claim(yard)
    settle(yard, held["a:0"])
    settle(yard, held["a:1"], well=False)
    put(yard, "b", 3, on("a", type="N_TO_N"))
    put(yard, "c", 3, on("a", type="N_TO_N", then="CONTINUE"))
    deliver(yard)
    assert states(yard, *children("b", 3)) == ["RUNNABLE", "FAILED", "PENDING"]
    assert states(yard, *children("c", 3)) == ["RUNNABLE", "RUNNABLE", "PENDING"]


@pytest.mark.parametrize(("size", "said"), [(None, "no array job"), (2, "one of 2")])
def test_n_to_n_needs_an_array_of_the_same_size(yard: Yard, size: int | None, said: str) -> None:
    put(yard, "a", size)
    put(yard, "b", 3, on("a", type="N_TO_N"))
    deliver(yard)
    expected = f"job.depends_on = 'a': N_TO_N needs an array of the same size, 3; that is {said}"
    assert (yard.record("b").state, yard.record("b").reason) == ("FAILED", expected)
    assert counts(yard, "b") == {"FAILED": 3}
    assert not yard.redis.exists(keys.job("b:0"))


def test_a_cancelled_array_fails_those_that_wait_for_its_children_also_for_unspawned_ones(yard: Yard) -> None:
    put(yard, "first", None)
    put(yard, "a", 300, on("first"))
    put(yard, "b", 300, on("a", type="N_TO_N"))
    put(yard, "c", 300, on("b", type="N_TO_N", then="CONTINUE"))
    deliver(yard)
    assert (counts(yard, "a"), counts(yard, "c")) == ({"PENDING": 300}, {"PENDING": 300})
    assert yard.cancel("a", "not wanted", terminate=False) == "cancelled"
    deliver(yard)
    assert (counts(yard, "a"), counts(yard, "b")) == ({"FAILED": 300}, {"FAILED": 300})
    assert (yard.record("b").reason, yard.record("b:299").reason) == (
        "Array Child Job failed",
        "Dependent Job failed: a:299",
    )
    assert counts(yard, "c") == {"RUNNABLE": 300}
    settle_all(yard)
    deliver(yard)
    assert states(yard, "c") == ["SUCCEEDED"]


def test_sequential_children_run_one_after_the_other(yard: Yard) -> None:
    put(yard, "a", 4, on(type="SEQUENTIAL"))
    deliver(yard)
    assert counts(yard, "a") == {"RUNNABLE": 1, "PENDING": 3}
    assert yard.record("a:0").depends_on == ()
    assert [(d.job_id, d.left) for d in yard.record("a:3").depends_on] == [("a:2", True)]
    for n in range(4):
        held = claim(yard)
        assert held.keys() == {f"a:{n}"}
        settle(yard, held[f"a:{n}"])
    deliver(yard)
    assert states(yard, "a") == ["SUCCEEDED"]
    nothing_left(yard)


def test_a_failure_ends_the_rest_of_a_sequence_in_bounded_calls(yard: Yard) -> None:
    put(yard, "a", 2000, on(type="SEQUENTIAL"))
    put(yard, "b", 2000, on(type="SEQUENTIAL", then="CONTINUE"))
    for _ in range(3):
        step(yard, "a")  # some stand there, some are still to come
    settle(yard, claim(yard)["a:0"], well=False)
    assert counts(yard, "a") == {"FAILED": 1, "PENDING": 1999}
    Children(yard).end(64)
    assert counts(yard, "a") == {"FAILED": 65, "PENDING": 1935}
    deliver(yard)
    assert counts(yard, "a") == {"FAILED": 2000}
    assert yard.record("a:1999").reason == "Dependent Job failed: a:1998"
    assert told(yard, "a")["status"] == "FAILURE"
    for n in range(3):
        settle(yard, claim(yard)[f"b:{n}"], well=n != 1)  # which goes on all the same
    assert counts(yard, "b") == {"SUCCEEDED": 2, "FAILED": 1, "RUNNABLE": 1, "PENDING": 1996}


def test_an_array_may_depend_on_its_own_children_another_one_and_a_job(yard: Yard) -> None:
    put(yard, "first", None)
    put(yard, "a", 3)
    put(yard, "b", 3, on("first"), on("a", type="N_TO_N"), on(type="SEQUENTIAL"))
    deliver(yard)
    assert [(d.job_id, d.left, d.type) for d in yard.record("b").depends_on] == [
        ("first", True, ""), ("a", False, "N_TO_N"), ("", False, "SEQUENTIAL"),
    ]  # fmt: skip
    held = claim(yard)
    settle(yard, held["first"])
    deliver(yard)
    settle(yard, held["a:1"])
    assert claim(yard) == {}
    settle(yard, held["a:0"])
    b0 = claim(yard)
    assert b0.keys() == {"b:0"}
    settle(yard, b0["b:0"])
    assert claim(yard).keys() == {"b:1"}


def test_an_array_that_ended_long_ago_is_unknown_to_one_that_comes_then(yard: Yard) -> None:
    """Its records are gone while the other one waited for something else."""
    put(yard, "first", None)
    put(yard, "a", 2)
    put(yard, "b", 2, on("first"), on("a", type="N_TO_N"))
    deliver(yard)
    first = {}
    while held := claim(yard):
        for job in held.values():
            if job.id == "first":
                first[job.id] = job
            else:
                settle(yard, job)
    deliver(yard)
    yard.redis.delete(*(keys.job(i) for i in ("a", "a:0", "a:1")))
    settle(yard, first["first"])
    deliver(yard)
    assert counts(yard, "b") == {"FAILED": 2}


def test_moves_of_an_array_may_be_made_by_anybody_at_any_time(yard: Yard) -> None:
    """Several controllers, or one that was killed between two chunks."""
    put(yard, "a", 300, on(type="SEQUENTIAL"))
    put(yard, "b", 300, on("a", type="N_TO_N"))
    for _ in range(6):
        step(yard, "b")
        step(yard, "a")
        step(yard, "nobody")
        Children(yard).end(1)
    assert (counts(yard, "a"), counts(yard, "b")) == ({"RUNNABLE": 1, "PENDING": 299}, {"PENDING": 300})
    settle(yard, claim(yard)["a:0"])
    held = claim(yard)
    assert held.keys() == {"a:1", "b:0"}
    settle(yard, held["b:0"])
    yard.cancel("a", "not wanted", terminate=True)
    for _ in range(3):
        step(yard, "a")
        Children(yard).end(3)
        counts(yard, "a")
        counts(yard, "b")
    deliver(yard)
    assert counts(yard, "a") == {"SUCCEEDED": 1, "STARTING": 1, "FAILED": 298}
    for job in yard.held("n1"):
        settle(yard, job, well=False)
    settle_all(yard)
    deliver(yard)
    assert (counts(yard, "b"), states(yard, "b")) == ({"SUCCEEDED": 1, "FAILED": 299}, ["FAILED"])
    nothing_left(yard)


def test_a_producer_may_not_give_the_id_of_a_child_or_of_a_member(yard: Yard) -> None:
    app = Celery("producer", broker=yard.url, set_as_current=False)
    yard.configure(
        Config(queues={"cpu": Queue(environments=("e",))}, environments={"e": Environment(vcpus=1, memory_mib=9)})
    )
    for job_id in ("a:7", "a#7"):
        app.send_task("batchyard.run", kwargs={"job": {"image": "i"}}, task_id=job_id, queue="cpu")
    app.close()
    while Intake(yard).run(yard.config()):
        pass
    reasons = [letter["reason"] for letter in DeadLetters(yard, lambda: yard.ring).list().values()]
    assert len(reasons) == 2
    assert all("ends as those of an array's children do (:7) or a gang's members (#7)" in reason for reason in reasons)
    assert yard.recent(10) == []


def test_a_redis_without_memory_makes_no_children_and_ends_all_the_same(own_redis: RedisServer) -> None:
    yard = Yard(own_redis.url(), RING)
    yard.prepare()
    yard.tick(["cpu"], lease_s=60)
    put(yard, "a", 100)
    put(yard, "b", None)
    step(yard, "a")
    yard.redis.config_set("maxmemory", 1)
    outbox = Outbox(yard, Followups(yard.url, result_expires_s=100), retention_s=1000)
    yard.cancel("b", "not wanted", terminate=True)
    outbox.run()
    assert counts(yard, "a") == {"RUNNABLE": 64, "PENDING": 36}
    assert states(yard, "b") == ["FAILED"]  # the others have their turn
    yard.cancel("a", "not wanted", terminate=True)
    deliver(yard)
    assert counts(yard, "a") == {"FAILED": 100}
    assert states(yard, "a") == ["FAILED"]
    nothing_left(yard)
