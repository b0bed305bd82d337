"""What waits again waits with its limits, and what cannot be is passed over."""

from __future__ import annotations

import pytest

from batchyard.broker import keys
from batchyard.broker.store import Free, Incoming, Yard

ALL = Free(vcpus=100, memory_mib=1 << 20, gpus=0, disk_gib=1000)

pytestmark = pytest.mark.system


def put(yard: Yard, job_id: str, **fields: int) -> None:
    one = Incoming(
        list_key="cpu",
        raw=job_id.encode(),
        kind="job",
        id=job_id,
        queue="cpu",
        vcpus=1.0,
        memory_mib=64,
        document=b"sealed",
        **fields,  # type: ignore[arg-type]
    )
    yard.redis.lpush("cpu", one.raw)
    assert yard.intake([one]) == 1


def tick(yard: Yard) -> list[int]:
    return yard.tick(["cpu"], lease_s=30)


def test_a_job_that_waits_again_expires_with_no_node_alive(yard: Yard) -> None:
    put(yard, "j", expires_ms=int(yard.now_s() * 1000) + 3_600_000)
    _, (job,) = yard.claim("n", "c", ALL, ["cpu"], lease_s=30)
    yard.redis.zrem(keys.EXPIRING, "j")  # as the first look after its start does
    assert yard.give_back(job, None)
    assert yard.redis.zscore(keys.EXPIRING, "j") is not None
    yard.redis.zadd(keys.EXPIRING, {"j": 1})
    assert tick(yard)[2] == 1
    assert yard.outbox()[1]["end:j"]["reason"] == "expired"


def test_a_delayed_job_without_a_record_does_not_stop_the_others(yard: Yard) -> None:
    far = int(yard.now_s() * 1000) + 3_600_000
    put(yard, "gone", eta_ms=far)
    put(yard, "there", eta_ms=far)
    yard.redis.delete(keys.job("gone"))
    yard.redis.zadd("by:q:cpu:delayed", {"gone": 1, "there": 2})
    assert tick(yard)[1] == 2
    assert yard.record("there").state == "RUNNABLE"
    assert yard.depth(["cpu"])["cpu"].total == 1


def test_old_jobs_that_live_on_do_not_keep_the_lines_of_forgotten_ones(yard: Yard) -> None:
    for n in range(70):
        put(yard, f"old{n}")
    put(yard, "forgotten")
    yard.redis.zadd(keys.JOBS, {"forgotten": yard.now_s() * 2000})  # the newest of all
    yard.redis.delete(keys.job("forgotten"))
    assert sum(tick(yard)[3] for _ in range(4)) == 1
    assert yard.redis.zcard(keys.JOBS) == 70
