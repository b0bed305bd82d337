"""Retries in Redis: where a job waits for its next attempt, and what counts against what."""

from __future__ import annotations

from typing import Any

import pytest

from batchyard.broker import keys
from batchyard.broker.record import Attempt, Claimed
from batchyard.broker.state import State
from batchyard.broker.store import Free, Incoming, Yard

ROOM = Free(vcpus=1, memory_mib=64, gpus=0, disk_gib=1)
DELAYED = "by:q:cpu:delayed"

pytestmark = pytest.mark.system


@pytest.fixture
def yard(yard: Yard) -> Yard:
    yard.tick(["cpu"], lease_s=60)  # the reaper has looked
    return yard


def put(yard: Yard, job_id: str, **fields: Any) -> None:
    plain: dict[str, Any] = {"list_key": "cpu", "raw": job_id.encode(), "kind": "job", "id": job_id, "queue": "cpu"}
    one = Incoming(**plain, vcpus=1, memory_mib=64, document=b"sealed", **fields)
    yard.redis.lpush("cpu", one.raw)
    assert yard.intake([one]) == 1


def claim(yard: Yard, claim_id: str) -> list[Claimed]:
    return yard.claim("n1", claim_id, ROOM, ["cpu"], lease_s=60)[1]


def attempt(**more: Any) -> Attempt:
    return Attempt(**{"node": "n1", "started": 1.0, "ended": 2.0, "exit_code": 1, "reason": "it failed", **more})


def lose(yard: Yard, job_id: str) -> None:
    yard.redis.zadd(keys.LEASES, {job_id: 1})
    assert yard.tick(["cpu"], lease_s=60)[0] == 1


def test_a_job_waits_for_its_backoff_and_then_has_its_old_place(yard: Yard) -> None:
    put(yard, "first")
    put(yard, "second")
    (job,) = claim(yard, "c1")
    for _ in range(2):  # its repeat changes nothing
        assert yard.give_back(job, attempt(), delay_s=3600)
    assert (yard.record("first").state, yard.depth(["cpu"])["cpu"].delayed) == ("PENDING", 1)
    due_ms = yard.redis.zscore(DELAYED, "first") or 0
    assert 3590 < due_ms / 1000 - yard.now_s() <= 3600
    assert [j.id for j in claim(yard, "c2")] == ["second"]
    put(yard, "third")
    yard.redis.zadd(DELAYED, {"first": 1})
    (again,) = claim(yard, "c3")
    assert (again.id, again.attempt) == ("first", 2)
    assert yard.redis.hget(keys.job("first"), "retry_at") is None


@pytest.mark.parametrize("how", ["cancelled", "expired"])
def test_a_job_in_its_backoff_can_end(yard: Yard, how: str) -> None:
    put(yard, "j", expires_ms=int(yard.now_s() * 1000) + 3_600_000)
    (job,) = claim(yard, "c")
    assert yard.give_back(job, attempt(), delay_s=3600)
    if how == "cancelled":
        assert yard.cancel("j", "not wanted", terminate=False) == "cancelled"
    else:
        yard.redis.zadd(keys.EXPIRING, {"j": 1})
        assert yard.tick(["cpu"], lease_s=60)[2] == 1
    assert yard.outbox()[1]["end:j"]["state"] == "REVOKED"
    assert yard.depth(["cpu"])["cpu"].total == 0


def test_a_job_cancelled_while_it_ran_gets_no_backoff(yard: Yard) -> None:
    put(yard, "j")
    (job,) = claim(yard, "c")
    assert yard.cancel("j", "not wanted", terminate=True) == "stopping"
    assert yard.give_back(job, attempt(), delay_s=3600)
    assert yard.outbox()[1]["end:j"]["reason"] == "not wanted"
    assert yard.depth(["cpu"])["cpu"].total == 0


def test_interruptions_are_counted_apart_from_attempts_and_told_at_the_claim(yard: Yard) -> None:
    put(yard, "j")
    (job,) = claim(yard, "c1")
    for _ in range(2):
        assert yard.give_back(job, attempt(counted=False), interrupted=True)
    assert claim(yard, "c2") == claim(yard, "c2") == yard.held("n1")
    lose(yard, "j")
    (job,) = claim(yard, "c3")
    assert (job.attempt, job.interruptions) == (1, 2)
    assert yard.give_back(job, attempt(counted=False))  # a drain costs nothing
    record = yard.record("j")
    assert (record.losses, record.interruptions, [a.counted for a in record.attempts]) == (1, 2, [False] * 3)
    assert record.attempts[1].status_reason == "Host EC2 (instance n1) lost: its lease lapsed."
    (job,) = claim(yard, "c4")
    assert yard.give_back(job, attempt())
    (job,) = claim(yard, "c5")
    assert (job.attempt, job.interruptions) == (2, 2)


@pytest.mark.parametrize("retries", [0, 2])
def test_a_job_loses_its_node_as_often_as_it_may(yard: Yard, retries: int) -> None:
    put(yard, "j", loss_retries=retries)
    for n in range(retries + 1):
        assert len(claim(yard, f"c{n}")) == 1
        lose(yard, "j")
    assert claim(yard, "last") == []
    entry = yard.outbox()[1]["end:j"]
    assert entry["state"] == "FAILURE"
    assert f"interrupted {retries + 1} times, and infrastructure_retries is {retries}" in entry["reason"]
    assert yard.finish("j", State.FAILED, {}, [], retention_s=100)
    assert yard.record("j").losses == retries + 1


def test_a_failed_start_and_a_lost_node_count_together(yard: Yard) -> None:
    put(yard, "j", loss_retries=1)
    (job,) = claim(yard, "c1")
    assert yard.give_back(job, attempt(counted=False), interrupted=True)
    assert len(claim(yard, "c2")) == 1
    lose(yard, "j")
    assert "interrupted 2 times" in yard.outbox()[1]["end:j"]["reason"]


def test_a_rule_may_end_a_job_that_loses_its_node(yard: Yard) -> None:
    put(yard, "j", loss_retries=-1)
    assert len(claim(yard, "c")) == 1
    lose(yard, "j")
    assert "a rule of evaluate_on_exit ends the job" in yard.outbox()[1]["end:j"]["reason"]
