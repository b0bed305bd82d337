"""A waiting job's place, against a real Redis: the place that the order of claims gives it."""

from __future__ import annotations

import random

import pytest

from batchyard.broker.store import Free, Incoming, Yard

ALL = Free(vcpus=1 << 20, memory_mib=1 << 40, gpus=0, disk_gib=1 << 30)

pytestmark = pytest.mark.system


def send(
    yard: Yard, job_id: str, *, priority: int = 0, vcpus: float = 0.5, queue: str = "cpu", eta_ms: int = 0
) -> None:
    one = Incoming(list_key=queue, raw=job_id.encode(), kind="job", id=job_id, queue=queue, priority=priority,
                   vcpus=vcpus, memory_mib=64, disk_gib=1, eta_ms=eta_ms, document=b"sealed")  # fmt: skip
    yard.redis.lpush(queue, one.raw)
    assert yard.intake([one]) == 1


def test_a_place_is_how_many_jobs_are_claimed_before_it_whatever_they_ask_for(yard: Yard) -> None:
    chance = random.Random(7)
    for n in range(300):  # more demands than exact classes
        send(yard, f"j{n}", priority=chance.randrange(10), vcpus=(n + 1) / 1000)
    send(yard, "elsewhere", queue="gpu")
    places = {f"j{n}": yard.position(f"j{n}") for n in range(300)}
    assert sorted(place[0] for place in places.values() if place) == list(range(300))
    assert {place[1] for place in places.values() if place} == {300}
    # of jobs that all ask for what has an exact class, claims come in just this order
    exact = {i: place[0] for i, place in places.items() if place and int(i[1:]) < 192}
    claimed = [job.id for job in yard.claim("n1", "c1", ALL, ["cpu"], lease_s=30, count=64)[1]]
    assert [i for i in claimed if i in exact] == sorted(exact, key=exact.__getitem__)[
        : len([i for i in claimed if i in exact])
    ]
    assert yard.position(claimed[0]) is None


def test_a_job_that_does_not_stand_in_the_index_has_no_place(yard: Yard) -> None:
    send(yard, "later", eta_ms=1 << 45)
    assert yard.position("later") is None
    assert yard.position("nosuch") is None
    send(yard, "now")
    assert yard.position("now") == (0, 1)
    yard.cancel("now", "no more", terminate=True)
    assert yard.position("now") is None


def test_a_job_that_comes_back_has_its_old_place(yard: Yard) -> None:
    for job_id in ("first", "second"):
        send(yard, job_id)
    (job,) = yard.claim("n1", "c1", ALL, ["cpu"], lease_s=30)[1]
    assert (job.id, yard.position("second")) == ("first", (0, 1))
    assert yard.give_back(job, None)
    assert (yard.position("first"), yard.position("second")) == ((0, 2), (1, 2))
