"""What is counted beside nodes' resources, for jobs on several nodes: taken when they are placed, given back once."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from batchyard.broker import keys
from batchyard.broker.consumables import Consumables, Kind
from batchyard.broker.errors import InvalidJob
from batchyard.broker.job import Job
from batchyard.broker.store import Free, Yard
from yardtest.gangs import SimYard

pytestmark = pytest.mark.system


@pytest.fixture
def sim(yard: Yard) -> SimYard:
    """Four nodes of 4 vCPUs, and two licences."""
    Consumables(yard).create("lic", 2)
    return SimYard.of(yard, 4, 4, 4, 4)


def held(sim: SimYard) -> dict[str, int]:
    told: dict[Any, Any] = sim.yard.redis.hgetall(keys.HOLDS)
    found = {k.decode(): int(v) for k, v in told.items()}
    tokens = Consumables(sim.yard).show("lic").in_use
    return {**found, **({"lic": tokens} if tokens else {})}


def submit(sim: SimYard, nodes: int = 2, vcpus: float = 1.5, **clear: str) -> str:
    return sim.submit(nodes=nodes, vcpus=vcpus, clear={"tokens": json.dumps({"lic": 2}), "def": "d", **clear})


def test_a_gang_takes_tokens_once_and_not_for_each_node(sim: SimYard) -> None:
    first, second = submit(sim), submit(sim)
    assert sim.place() == [first]
    assert held(sim) == {"q:cpu": 1, "v:cpu": 3000, "d:d": 1, "lic": 2}
    assert sim.place() == []
    sim.claim()
    sim.holder(f"{first}#0").start(f"{first}#0")
    sim.holder(f"{first}#0").settle(f"{first}#0")
    assert held(sim) == {}
    assert sim.place() == [second], "what an ended one's nodes still hold is theirs alone"


def _main_retries(sim: SimYard, job_id: str) -> None:
    sim.holder(f"{job_id}#0").give_back(f"{job_id}#0", counted=True, delay_s=60)


def _cancelled(sim: SimYard, job_id: str) -> None:
    sim.yard.cancel(job_id, "test", terminate=True)


def _node_lost(sim: SimYard, job_id: str) -> None:
    sim.holder(f"{job_id}#1").die()
    sim.tick()


@pytest.mark.parametrize("way", [_main_retries, _cancelled, _node_lost])
@pytest.mark.parametrize("started", [False, True])
def test_whatever_becomes_of_a_gang_it_gives_back_what_it_took_once(
    sim: SimYard, way: Callable[[SimYard, str], None], started: bool
) -> None:
    job_id = submit(sim)
    sim.place()
    sim.claim()
    if started:
        sim.holder(f"{job_id}#0").start(f"{job_id}#0")
        sim.obey()
    way(sim, job_id)
    sim.obey()
    if way is _node_lost and started:
        sim.holder(f"{job_id}#0").settle(f"{job_id}#0")
    sim.deliver()
    assert held(sim) == {}
    for node in sim.nodes:
        assert node.booked() == {}


def test_what_a_gang_uses_up_comes_back_when_it_never_ran(sim: SimYard) -> None:
    Consumables(sim.yard).create("credit", 5, kind=Kind.NON_REPLENISHABLE)
    for started, left in ((False, 5), (True, 3)):
        job_id = sim.submit(nodes=2, vcpus=1, clear={"tokens": json.dumps({"credit": 2})})
        sim.place()
        sim.claim()
        if started:
            sim.holder(f"{job_id}#0").start(f"{job_id}#0")
        sim.holder(f"{job_id}#0").settle(f"{job_id}#0", well=False)
        sim.obey()
        assert Consumables(sim.yard).show("credit").total == left


def test_a_limit_of_jobs_at_once_counts_a_gang_as_one(sim: SimYard) -> None:
    sim.yard.redis.hset(keys.POLICIES, "cpu", json.dumps({"max_concurrent": 1}))
    first, second = sim.submit(nodes=2, vcpus=1), sim.submit(nodes=2, vcpus=1)
    assert sim.place(reserve_after_s=0) == [first]
    assert sim.place(reserve_after_s=0) == []
    assert not sim.yard.redis.exists(keys.GANG_RESERVED), "no node is kept for one that waits for something else"
    _cancelled(sim, first)
    sim.claim()
    sim.obey()
    assert sim.place() == [second]


def test_a_gang_counts_for_its_share(sim: SimYard) -> None:
    sim.yard.redis.hset(keys.POLICIES, "cpu", json.dumps({"fair": {"decay_s": 600}}))
    job_id = submit(sim, share="A")
    sim.place()
    use: Any = sim.yard.redis.hget("by:q:cpu:use", "A")
    assert use.endswith(b" 3000"), "milli-vCPU that run"
    _cancelled(sim, job_id)
    sim.claim()
    sim.obey()
    assert held(sim) == {}


def test_nodes_that_are_kept_for_one_do_not_stand_idle_while_it_waits_for_something_else(yard: Yard) -> None:
    Consumables(yard).create("lic", 2)
    sim = SimYard.of(yard, 4, 4, reserve_after_s=0)
    before = sim.submit(vcpus=4)
    sim.claim()
    submit(sim, vcpus=4)
    for _ in range(2):
        sim.place(reserve_after_s=0)
    assert yard.redis.exists(keys.GANG_RESERVED)
    yard.redis.hset(keys.consumable("lic"), "held", 2)
    sim.holder(before).settle(before)
    after = sim.submit(vcpus=4)
    sim.claim()
    assert yard.record(after).state == "RUNNABLE"
    sim.place(reserve_after_s=0)
    sim.claim()
    assert yard.record(after).state == "STARTING"
    assert not yard.redis.exists(keys.GANG_RESERVED)


def test_those_that_wait_for_what_there_is_not_do_not_hide_the_rest(sim: SimYard) -> None:
    sim.yard.redis.hset(keys.consumable("lic"), "held", 2)
    for _ in range(40):
        submit(sim)
    last = sim.submit(nodes=2, vcpus=1)
    assert [one for _ in range(8) for one in sim.place()] == [last]


def test_all_that_have_room_are_placed_at_once(sim: SimYard) -> None:
    many = [sim.submit(nodes=2, vcpus=0.1) for _ in range(30)]
    assert sorted(sim.place()) == sorted(many)


def test_gpus_of_a_type_are_those_of_nodes_that_have_it(yard: Yard) -> None:
    sim = SimYard.of(yard, 4, 4, 4, gpus=2)
    for node, types in zip(sim.nodes, ({"a100": 2}, {"t4": 2}, {"a100": 2}), strict=True):
        node.gpu_types = types
        node.beat()
    job_id = sim.submit(nodes=2, gpus=2, clear={"gpu_type": "a100"})
    assert sim.submit(nodes=3, gpus=1, clear={"gpu_type": "a100"})
    assert sim.place() == [job_id]
    assert sim.where(job_id) == ["n0", "n2"]


def test_a_claim_gives_out_no_gpus_that_a_member_placed_there_takes(yard: Yard) -> None:
    sim = SimYard.of(yard, 8, 8, gpus=4)
    for node in sim.nodes:
        node.gpu_types = {"a100": 2, "t4": 2}
        node.beat()
    job_id = sim.submit(nodes=2, gpus=2, vcpus=1, clear={"gpu_type": "a100"})
    assert sim.place() == [job_id]
    sim.submit(gpus=2, vcpus=1, clear={"gpu_type": "a100"})
    other = sim.submit(gpus=2, vcpus=1, clear={"gpu_type": "t4"})
    free = Free(vcpus=8, memory_mib=4096, gpus=4, disk_gib=100, gpu_types={"a100": 2, "t4": 2})
    _, jobs = yard.claim("n0", "one", free, ["cpu"], lease_s=30, count=8)
    assert [job.id for job in jobs] == [f"{job_id}#0", other]


def test_an_array_is_not_of_gangs() -> None:
    with pytest.raises(InvalidJob, match="leave array_size or nodes out"):
        Job.parse({"image": "b", "array_size": 2, "nodes": 2})
