"""The clock of tests is the functions' own, and theirs alone."""

from __future__ import annotations

import pytest

from batchyard.broker import functions, keys
from batchyard.broker.store import Free, Incoming, Yard
from yardtest.clock import KEY, VirtualClock
from yardtest.redis import RedisServer

pytestmark = pytest.mark.system
ROOM = Free(vcpus=4, memory_mib=1024, gpus=0, disk_gib=10)


def test_an_eta_comes_and_a_lease_lapses_when_the_clock_is_moved(own_redis: RedisServer, yard: Yard) -> None:
    mine = Yard(own_redis.url(), yard.ring)
    mine.prepare()
    clock = VirtualClock(mine)
    mine.redis.lpush("cpu", b"j")
    one = Incoming(list_key="cpu", raw=b"j", kind="job", id="j", queue="cpu", vcpus=1, eta_ms=clock.now_ms + 60_000)
    assert mine.intake([one]) == 1
    assert mine.record("j").created == clock.now_s
    clock.advance(59)
    assert mine.claim("n", "c1", ROOM, ["cpu"], lease_s=30)[1] == []
    clock.advance(1)
    (job,) = mine.claim("n", "c2", ROOM, ["cpu"], lease_s=30)[1]
    assert mine.redis.zscore(keys.LEASES, job.id) == clock.now_ms + 30_000
    reaped = 0
    for _ in range(3):
        clock.advance(10)
        reaped, *_ = mine.tick(["cpu"], lease_s=30)
    assert (reaped, mine.record("j").state) == (1, "RUNNABLE")


def test_the_product_has_no_such_door() -> None:
    assert KEY not in functions.library()
