"""Jobs of coarse classes: a node looks at all of them in the end, and then stops asking."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from batchyard.broker import keys
from batchyard.broker.seal import KeyRing
from batchyard.broker.store import Free, Incoming, Yard

EXACT = 192  # classes of their own; those of further demands are coarse
SMALL = Free(vcpus=4, memory_mib=260, gpus=0, disk_gib=1000)

pytestmark = pytest.mark.system
_numbers = itertools.count(1)


@pytest.fixture
def yard(fresh_redis_url: str) -> Yard:
    """With as many jobs for other nodes that every further demand shares a class."""
    made = Yard(fresh_redis_url, KeyRing.new())
    made.prepare()
    for n in range(EXACT):
        put(made, f"other{n}", memory_mib=1000 + n, gpus=8)
    return made


def put(yard: Yard, job_id: str, *, memory_mib: int, gpus: int = 0, disk_gib: float = 1.0, queue: str = "cpu") -> None:
    one = Incoming(
        list_key=queue,
        raw=job_id.encode(),
        kind="job",
        id=job_id,
        queue=queue,
        vcpus=1.0,
        memory_mib=memory_mib,
        gpus=gpus,
        disk_gib=disk_gib,
        document=b"sealed",
    )
    yard.redis.lpush(queue, one.raw)
    assert yard.intake([one]) == 1


def ask(yard: Yard, free: Free = SMALL, queues: Sequence[str] = ("cpu",)) -> tuple[int, list[str]]:
    """How often a node asks until it is given a job or told that there is none, and the job."""
    for calls in range(1, 100):
        more, jobs = yard.claim("n", f"c{next(_numbers)}", free, queues, lease_s=30)
        if jobs or not more:
            return calls, [job.id for job in jobs]
    raise AssertionError("a node asks for ever")


def test_a_node_that_has_looked_at_all_jobs_waits(yard: Yard) -> None:
    for n in range(100):
        put(yard, f"big{n}", memory_mib=300 + n % 50)
    for _ in range(2):
        assert ask(yard) == (4, [])


def test_a_job_in_the_last_of_many_coarse_classes_is_found(yard: Yard) -> None:
    for disk_gib in (1.0, 5.0, 17.0, 65.0):
        for n in range(20):
            put(yard, f"big{disk_gib}-{n}", memory_mib=300 + n, disk_gib=disk_gib)
    put(yard, "fits", memory_mib=258, disk_gib=300.0)
    assert ask(yard)[1] == ["fits"]
    assert ask(yard)[1] == []


def test_a_walk_goes_on_where_it_stopped_though_its_class_is_gone(yard: Yard) -> None:
    for n in range(40):
        put(yard, f"big{n}", memory_mib=300 + n)
    put(yard, "fits", memory_mib=258, disk_gib=5.0)
    more, jobs = yard.claim("n", "first", SMALL, ["cpu"], lease_s=30)
    assert (more, jobs) == (True, [])
    for n in range(40):
        yard.cancel(f"big{n}", "test", terminate=False)
    assert ask(yard)[1] == ["fits"]


def test_a_walk_that_is_over_leaves_no_mark(yard: Yard) -> None:
    for n in range(40):
        put(yard, f"big{n}", memory_mib=300 + n)
    put(yard, "fits", memory_mib=258, disk_gib=5.0)
    assert ask(yard) == (2, ["fits"])
    assert ask(yard) == (2, [])
    assert not yard.redis.hexists(keys.node("n"), "at:cpu")


def test_a_node_of_several_queues_waits_though_its_walks_through_them_end_in_turns(yard: Yard) -> None:
    for n in range(EXACT):
        put(yard, f"another{n}", memory_mib=1000 + n, gpus=8, queue="low")
    for n in range(64):
        put(yard, f"big{n}", memory_mib=300 + n, queue="cpu")
        put(yard, f"large{n}", memory_mib=300 + n, queue="low")
    assert yard.claim("n", "alone", SMALL, ["cpu"], lease_s=30) == (True, [])  # this walk is ahead of the other
    calls, jobs = ask(yard, queues=("cpu", "low"))
    assert (calls <= 4, jobs) == (True, [])
    put(yard, "fits", memory_mib=250, queue="cpu")
    assert ask(yard, queues=("cpu", "low"))[1] == ["fits"]
