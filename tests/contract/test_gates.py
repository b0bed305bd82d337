"""Consumable resources and jobs at once, on a real Redis: taken at the claim, given back once, in the way of none."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from batchyard.broker import config as configuration
from batchyard.broker import keys
from batchyard.broker.consumables import Consumables, Kind
from batchyard.broker.errors import InvalidConfig, NotFound
from batchyard.broker.record import Attempt, Claimed
from batchyard.broker.state import State
from batchyard.broker.store import Free, Incoming, Yard

ALL = Free(vcpus=1 << 20, memory_mib=1 << 40, gpus=8, disk_gib=1 << 20)

pytestmark = pytest.mark.system
_numbers = itertools.count(1)


@pytest.fixture
def stock(yard: Yard) -> Consumables:
    made = Consumables(yard)
    made.create("lic", 3)
    made.create("credit", 5, kind=Kind.NON_REPLENISHABLE)
    return made


def put(yard: Yard, job_id: str, *, vcpus: float = 1, queue: str = "cpu", definition: str = "", **tokens: int) -> str:
    clear = {**({"tokens": json.dumps(tokens)} if tokens else {}), **({"def": definition} if definition else {})}
    one = Incoming(list_key=queue, raw=job_id.encode(), kind="job", id=job_id, queue=queue, vcpus=vcpus, memory_mib=64,
                   disk_gib=1, document=b"sealed", clear=clear)  # fmt: skip
    yard.redis.lpush(queue, one.raw)
    assert yard.intake([one]) == 1
    return job_id


def claim(yard: Yard, count: int = 32, queue: str = "cpu") -> list[Claimed]:
    more, jobs = yard.claim("n1", f"c{next(_numbers)}", ALL, [queue], lease_s=30, count=count)
    assert not more
    return jobs


def ids(jobs: list[Claimed]) -> list[str]:
    return [job.id for job in jobs]


def attempt(*, counted: bool = True) -> Attempt:
    return Attempt(node="n1", started=1.0, ended=2.0, exit_code=0, reason="test", counted=counted)


def settle(yard: Yard, job: Claimed) -> None:
    assert yard.settle(job, State.SUCCEEDED, attempt(), {}, [], retention_s=600)


def start(yard: Yard, job: Claimed) -> None:
    assert yard.start(job, started_s=1.0, celery="", expires_s=60)


def lose(yard: Yard, job: Claimed) -> None:
    yard.tick(["cpu"], lease_s=30)
    yard.redis.zadd(keys.LEASES, {job.id: 1}, xx=True)
    yard.tick(["cpu"], lease_s=30)


WAYS: dict[str, Callable[[Yard, Claimed], Any]] = {
    "settled": settle,
    "tried again": lambda yard, job: yard.give_back(job, attempt()),
    "later": lambda yard, job: yard.give_back(job, attempt(), delay_s=3600),
    "drained": lambda yard, job: yard.give_back(job, None),
    "its node lost": lose,
    "cancelled": lambda yard, job: (yard.cancel(job.id, "test", terminate=True), yard.give_back(job, None)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("twice", [False, True])
def test_whatever_becomes_of_a_job_it_gives_back_what_it_took_once(
    yard: Yard, stock: Consumables, way: str, twice: bool
) -> None:
    put(yard, "j", definition="d", lic=2)
    (job,) = claim(yard)
    start(yard, job)
    assert (stock.show("lic").in_use, stock.show("lic").jobs) == (2, 1)
    assert yard.redis.hgetall(keys.HOLDS) == {b"q:cpu": b"1", b"v:cpu": b"1000", b"d:d": b"1"}
    for _ in range(1 + twice):
        WAYS[way](yard, job)
    assert (stock.show("lic").in_use, stock.show("lic").jobs) == (0, 0)
    assert not yard.redis.exists(keys.HOLDS, keys.HOLDS_SINCE)


def test_all_that_a_job_asks_for_is_taken_at_once_or_nothing(yard: Yard, stock: Consumables) -> None:
    stock.create("rare", 1)
    put(yard, "first", rare=1)
    put(yard, "both", lic=1, rare=1)
    put(yard, "other", lic=3)
    assert ids(claim(yard)) == ["first", "other"]
    assert stock.show("lic").available == 0


def test_a_job_that_waits_for_tokens_does_not_hold_up_others_of_its_shape(yard: Yard, stock: Consumables) -> None:
    for n in range(6):
        put(yard, f"t{n}", lic=1)
    put(yard, "plain")
    jobs = claim(yard)
    assert ids(jobs) == ["t0", "t1", "t2", "plain"]
    settle(yard, jobs[1])
    assert ids(claim(yard)) == ["t3"]


def test_what_is_used_up_is_gone_once_the_job_has_run_and_comes_back_before(yard: Yard, stock: Consumables) -> None:
    put(yard, "j", credit=2)
    (job,) = claim(yard)
    assert yard.give_back(job, None)  # it never ran
    assert (stock.show("credit").total, stock.show("credit").available) == (5, 5)
    (job,) = claim(yard)
    settle(yard, job)  # its image was not there
    assert (stock.show("credit").total, stock.show("credit").available) == (5, 5)
    put(yard, "runs", credit=2)
    (job,) = claim(yard)
    start(yard, job)
    settle(yard, job)
    assert (stock.show("credit").total, stock.show("credit").in_use) == (3, 0)
    put(yard, "more", credit=4)
    assert claim(yard) == []
    stock.update("credit", 1, how="ADD")
    assert ids(claim(yard)) == ["more"]


def test_a_gate_that_opens_wakes_the_nodes(yard: Yard, stock: Consumables) -> None:
    heard = yard.pubsub()
    put(yard, "j", lic=3)
    put(yard, "k", lic=3)
    (job,) = claim(yard)
    heard.subscribe(keys.WAKE)
    heard.get_message(timeout=1)
    settle(yard, job)
    assert heard.get_message(timeout=5) is not None
    stock.update("lic", 4)
    assert heard.get_message(timeout=5) is not None
    heard.close()


def test_what_is_not_known_or_more_than_there_is_is_refused_at_the_door(yard: Yard, stock: Consumables) -> None:
    put(yard, "unknown", nosuch=1)
    put(yard, "toomany", lic=4)
    put(yard, "patient", credit=6)  # some may be added
    reasons = {field: entry["reason"] for field, entry in yard.outbox()[1].items()}
    assert "no such consumable resource" in reasons["end:unknown"]
    assert "there are 3 in all" in reasons["end:toomany"]
    assert len(reasons) == 2
    assert claim(yard) == []


def test_an_update_is_made_once_for_a_client_token(yard: Yard, stock: Consumables) -> None:
    assert stock.update("lic", 2, how="ADD", token="t").total == 5
    assert stock.update("lic", 2, how="ADD", token="t").total == 5
    assert stock.update("lic", 4, how="REMOVE").total == 1
    with pytest.raises(InvalidConfig, match=r"has 1 in all; 2 cannot be taken away"):
        stock.update("lic", 2, how="REMOVE")
    with pytest.raises(InvalidConfig, match="more than there may be"):
        stock.update("lic", 2**31 - 1, how="ADD")
    with pytest.raises(NotFound):
        stock.update("nosuch", 2)
    with pytest.raises(InvalidConfig, match="1 to 64"):
        stock.update("lic", 2, token="x" * 65)


def test_an_update_whose_answer_was_lost_is_made_once(
    yard: Yard, stock: Consumables, monkeypatch: pytest.MonkeyPatch
) -> None:
    say = yard.redis.execute_command
    monkeypatch.setattr(yard.redis, "execute_command", lambda *words: (say(*words), say(*words))[1])  # type: ignore[no-untyped-call]
    assert stock.update("lic", 2, how="ADD").total == 5
    assert stock.update("lic", 2, how="ADD").total == 7


def test_a_total_smaller_than_what_is_in_use_takes_nothing_away_from_jobs(yard: Yard, stock: Consumables) -> None:
    put(yard, "j", lic=3)
    put(yard, "k", lic=1)
    (job,) = claim(yard)
    stock.update("lic", 1)
    assert (stock.show("lic").available, stock.show("lic").in_use) == (0, 3)
    assert claim(yard) == []
    settle(yard, job)
    assert ids(claim(yard)) == ["k"]


def test_one_that_jobs_hold_is_not_deleted_and_one_that_is_gone_keeps_its_jobs_waiting(
    yard: Yard, stock: Consumables
) -> None:
    put(yard, "j", lic=2)
    put(yard, "k", lic=2)
    (job,) = claim(yard)
    with pytest.raises(InvalidConfig, match="in use by 1 job"):
        stock.delete("lic")
    settle(yard, job)
    stock.delete("lic")
    assert [one.name for one in stock.list()] == ["credit"]
    with pytest.raises(NotFound):
        stock.delete("lic")
    assert claim(yard) == []
    stock.create("lic", 2)
    assert ids(claim(yard)) == ["k"]
    with pytest.raises(InvalidConfig, match="already"):
        stock.create("lic", 2)


def test_a_definition_has_its_limit_of_jobs_at_once(yard: Yard) -> None:
    yard.redis.hset(keys.LIMITS, mapping={"report": 2})
    for n in range(4):
        put(yard, f"r{n}", definition="report")
    put(yard, "other", definition="unlimited")
    put(yard, "plain")
    jobs = claim(yard)
    assert ids(jobs) == ["r0", "r1", "other", "plain"]
    settle(yard, jobs[0])
    assert ids(claim(yard)) == ["r2"]


def test_a_queue_has_its_limit_of_jobs_at_once(yard: Yard) -> None:
    told: Any = {"queues": {"cpu": {"environments": ["here"], "max_concurrent": 2}},
                 "environments": {"here": {"vcpus": 4, "memory_mib": 4000}}}  # fmt: skip
    yard.configure(configuration.parse(told, "test"))
    for n in range(4):
        put(yard, f"j{n}")
    jobs = claim(yard)
    assert ids(jobs) == ["j0", "j1"]
    settle(yard, jobs[0])
    assert ids(claim(yard)) == ["j2"]
    told["queues"]["cpu"]["max_concurrent"] = 3
    yard.configure(configuration.parse(told, "test"))
    assert ids(claim(yard)) == ["j3"]


def test_gates_hold_also_where_there_are_more_demands_than_classes(yard: Yard, stock: Consumables) -> None:
    for n in range(300):
        put(yard, f"t{n}", vcpus=1 + n / 1000, lic=1)
    put(yard, "plain", vcpus=9)
    found: list[Claimed] = []
    for _ in range(20):
        found += yard.claim("n1", f"c{next(_numbers)}", ALL, ["cpu"], lease_s=30, count=8)[1]
    assert len(found) == 4
    assert "plain" in ids(found)
    assert stock.show("lic").available == 0
