"""Jobs that others overtake: after a while a node is kept for one, and as few as needed."""

from __future__ import annotations

import random
from typing import Any

import pytest

from batchyard.broker import keys
from batchyard.broker.store import Yard
from yardtest.gangs import LEASE_S, SimNode, SimYard

pytestmark = pytest.mark.system


@pytest.fixture
def sim(yard: Yard) -> SimYard:
    """Two nodes of 4 vCPUs."""
    return SimYard.of(yard, 4, 4)


def reserved(sim: SimYard) -> dict[str, str]:
    """node → the job that it is kept for."""
    found: dict[str, Any] = {n.name: sim.yard.redis.hget(keys.node(n.name), "reserved") for n in sim.nodes}
    return {name: value.decode().split(" ")[0] for name, value in found.items() if value}


def waited(sim: SimYard, job_id: str, seconds: float) -> None:
    """As if others had begun to overtake it so long ago."""
    assert sim.yard.redis.hget(keys.job(job_id), "overtaken") is not None, "it was not overtaken"
    sim.yard.redis.hset(keys.job(job_id), "overtaken", int((sim.yard.now_s() - seconds) * 1000))


def busy(sim: SimYard, node: SimNode, *vcpus: float) -> list[str]:
    """Jobs of so many vCPUs that this node runs."""
    ids = [sim.submit(vcpus=v) for v in vcpus]
    assert {job.id for job in node.claim()} == set(ids)
    return ids


def overtaken(sim: SimYard, node: SimNode, *, vcpus: float = 4, **fields: Any) -> str:
    """A job that fits the node when it is empty, behind which another one has just been given out there."""
    job_id = sim.submit(vcpus=vcpus, **fields)
    other = sim.submit(vcpus=1)
    assert [job.id for job in node.claim(count=1)] == [other]
    return job_id


def test_a_node_is_kept_for_a_job_that_was_overtaken_for_too_long_until_it_fits(sim: SimYard) -> None:
    node = sim.nodes[0]
    (first,) = busy(sim, node, 2)
    large = overtaken(sim, node)
    small = sim.submit(vcpus=1)
    waited(sim, large, 30)
    assert [job.id for job in node.claim(count=1)] == [small]
    small = sim.submit(vcpus=1)
    node.settle(first)
    waited(sim, large, 61)
    assert node.claim(count=1) == []
    assert reserved(sim) == {"n0": large}
    assert node.claim() == [], "nor later"
    assert [job.id for job in sim.nodes[1].claim(count=1)] == [large], "it may go wherever there is room"
    assert [job.id for job in node.claim(count=1)] == [small], "then the node is not kept any more"
    assert reserved(sim) == {}


def test_the_kept_node_takes_the_job_once_it_fits_and_then_others(sim: SimYard) -> None:
    node = sim.nodes[0]
    ids = busy(sim, node, 1, 1)
    large = overtaken(sim, node, vcpus=3)
    small = sim.submit(vcpus=1)
    waited(sim, large, 61)
    assert node.claim() == []
    node.settle(ids[0])
    assert node.claim() == []
    node.settle(ids[1])
    assert [job.id for job in node.claim()] == [large]
    assert reserved(sim) == {}
    node.settle(large)
    assert [job.id for job in node.claim()] == [small]
    assert sim.yard.redis.hget(keys.job(large), "overtaken") is None


def test_a_node_that_lacks_much_is_kept_only_later(sim: SimYard) -> None:
    node = sim.nodes[0]
    busy(sim, node, 2.5)
    large = overtaken(sim, node)
    small = sim.submit(vcpus=0.25)
    waited(sim, large, 80)
    assert [job.id for job in node.claim(count=1)] == [small]
    sim.submit(vcpus=0.25)
    waited(sim, large, 91)
    assert node.claim(count=1) == []


def test_one_node_is_kept_for_one_job_and_few_of_all(sim: SimYard) -> None:
    for node in sim.nodes:
        busy(sim, node, 1, 1)
    first = overtaken(sim, sim.nodes[0])
    waited(sim, first, 100)
    for _ in range(8):
        sim.submit(vcpus=0.25)
    assert sim.nodes[0].claim(count=1) == []
    assert len(sim.nodes[1].claim(count=1)) == 1, "kept by one node already"
    second = sim.submit(vcpus=4, priority=0)
    sim.nodes[1].claim(count=1)
    sim.yard.redis.hset(keys.job(second), "overtaken", 1)
    assert len(sim.nodes[1].claim(count=1)) == 1, "one of two nodes is enough"
    assert reserved(sim) == {"n0": first}


def test_a_job_that_goes_away_keeps_no_node(sim: SimYard) -> None:
    node = sim.nodes[0]
    busy(sim, node, 2)
    large = overtaken(sim, node)
    small = sim.submit(vcpus=1)
    waited(sim, large, 100)
    assert node.claim() == []
    sim.yard.cancel(large, "test", terminate=True)
    assert reserved(sim) == {}
    assert [job.id for job in node.claim()] == [small]


def test_a_node_that_dies_is_not_kept_and_another_one_may_be(sim: SimYard) -> None:
    busy(sim, sim.nodes[0], 2)
    busy(sim, sim.nodes[1], 2)
    large = overtaken(sim, sim.nodes[0])
    sim.submit(vcpus=1)
    waited(sim, large, 100)
    assert sim.nodes[0].claim() == []
    sim.yard.redis.zadd(keys.NODES, {"n0": (sim.yard.now_s() - LEASE_S - 1) * 1000})
    assert sim.nodes[1].claim() == []
    assert sim.yard.redis.hget(keys.node("n1"), "reserved") is not None
    sim.nodes[0].beat()
    assert len(sim.nodes[0].claim(count=1)) == 1, "what it was kept for has another node"


def test_a_node_that_does_not_come_free_is_given_up_for_one_that_lacks_no_more(sim: SimYard) -> None:
    for node in sim.nodes:
        busy(sim, node, 1, 1)
    large = overtaken(sim, sim.nodes[0])
    waited(sim, large, 100)
    for _ in range(4):
        sim.submit(vcpus=0.25)
    assert sim.nodes[0].claim(count=1) == []
    long_ago = int((sim.yard.now_s() - 121) * 1000)
    sim.yard.redis.hset(keys.job(large), "reserved", f"{long_ago} n0")
    assert sim.nodes[1].claim(count=1) == []
    assert sim.nodes[1].claim(count=1) == []
    assert len(sim.nodes[0].claim(count=1)) == 1
    assert reserved(sim) == {"n1": large}


def test_a_job_too_large_for_a_node_never_keeps_it(sim: SimYard) -> None:
    node = sim.nodes[0]
    large = sim.submit(vcpus=5)
    sim.submit(vcpus=1)
    assert len(node.claim(count=1)) == 1
    assert sim.yard.redis.hget(keys.job(large), "overtaken") is None


# -- gangs


def test_nodes_are_kept_for_a_gang_all_that_it_needs_or_none(yard: Yard) -> None:
    sim = SimYard.of(yard, 4, 4, 4, 4)
    for node in sim.nodes:
        busy(sim, node, 2)
    job_id, second = sim.submit(nodes=3, vcpus=3), sim.submit(nodes=2, vcpus=3)
    assert sim.place(reserve_after_s=60) == []
    for one in (job_id, second):
        waited(sim, one, 61)
    assert sim.place(reserve_after_s=60) == []
    assert list(reserved(sim).values()) == [job_id] * 3, "one gang at a time"
    sim.submit(vcpus=1)
    kept = [node for node in sim.nodes if node.name in reserved(sim)]
    assert [node.claim() for node in kept] == [[], [], []]
    other = next(node for node in sim.nodes if node not in kept)
    assert len(other.claim()) == 1
    for node in kept:
        node.settle(next(iter(node.held)))
    assert sim.place(reserve_after_s=60) == [job_id]
    assert set(sim.where(job_id)) == {node.name for node in kept}
    assert list(reserved(sim).values()) == [second] * 2, "now it is the next one's turn"


def test_a_gang_that_more_nodes_are_needed_for_than_there_are_keeps_none(yard: Yard) -> None:
    sim = SimYard.of(yard, 4, 4)
    job_id = sim.submit(nodes=3)
    sim.place(reserve_after_s=60)
    waited(sim, job_id, 100)
    assert sim.place(reserve_after_s=60) == []
    assert reserved(sim) == {}


def test_when_a_kept_node_dies_others_are_kept_and_a_cancel_lets_all_go(yard: Yard) -> None:
    sim = SimYard.of(yard, 4, 4, 4)
    for node in sim.nodes:
        busy(sim, node, 3)
    job_id = sim.submit(nodes=2)
    sim.place(reserve_after_s=60)
    waited(sim, job_id, 100)
    sim.place(reserve_after_s=60)
    before = set(reserved(sim))
    assert len(before) == 2
    lost = next(node for node in sim.nodes if node.name in before)
    lost.die()
    sim.place(reserve_after_s=60)
    assert set(reserved(sim)) == {node.name for node in sim.nodes} - {lost.name}
    sim.yard.cancel(job_id, "test", terminate=True)
    assert reserved(sim) == {}
    assert not sim.yard.redis.exists(keys.GANG_RESERVED)


def test_large_jobs_and_gangs_come_to_run_in_a_stream_of_small_ones(yard: Yard) -> None:
    """Small jobs for which there is always room would starve both for ever."""
    sim, rnd = SimYard.of(yard, 4, 4, 4, 4), random.Random(1)
    for node in sim.nodes:
        node.reserve_after_s = 0
        node.beat()
    large, gang = "", ""
    for step in range(400):
        while sim.yard.depth(["cpu"])["cpu"].index < 6:
            sim.submit(vcpus=1, priority=0)
        if step == 20:
            large, gang = sim.submit(vcpus=4, priority=0), sim.submit(nodes=3, vcpus=3, priority=0)
        node = rnd.choice(sim.nodes)
        if node.held and rnd.random() < 0.6:
            job_id = rnd.choice(sorted(node.held))
            if "#" not in job_id:
                node.settle(job_id)
        node.beat()
        node.claim(count=1)
        sim.place(reserve_after_s=0)
        if large and sim.yard.record(large).state != "RUNNABLE" and sim.yard.record(gang).state != "RUNNABLE":
            break
    assert sim.yard.record(large).state in {"STARTING", "SUCCEEDED"}
    assert sim.yard.record(gang).state == "STARTING"
