"""Arrays on a real Redis: children in chunks, counters that are right at every read, one end, whatever comes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from batchyard.broker import keys
from batchyard.broker.dependencies import Dependency
from batchyard.broker.ending import Outbox
from batchyard.broker.followups import Followups
from batchyard.broker.job import Job
from batchyard.broker.message import Document, Message
from batchyard.broker.record import Attempt, Claimed
from batchyard.broker.seal import KeyRing
from batchyard.broker.state import State
from batchyard.broker.store import Free, Incoming, Yard

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
    put(yard, "a", 300)
    assert states(yard, "a") == ["PENDING"]
    assert counts(yard, "a") == {"PENDING": 300}
    assert yard.depth(["cpu"])["cpu"].total == 300
    assert yard.redis.keys("by:job:*") == [b"by:job:a"]
    assert yard.array("a")
    assert counts(yard, "a") == {"RUNNABLE": 128, "PENDING": 172}
    assert yard.depth(["cpu"])["cpu"].total == 300
    assert yard.array("a")
    assert not yard.array("a")
    assert not yard.array("a")  # nothing is left to be done
    assert counts(yard, "a") == {"RUNNABLE": 300}
    assert yard.depth(["cpu"])["cpu"].total == 300
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
    yard.array("a")


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
