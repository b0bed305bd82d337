"""Jobs on several nodes, on the real Redis functions with simulated nodes: all are placed or none, main leads."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from batchyard.broker import keys
from batchyard.broker.client import Client
from batchyard.broker.config import parse
from batchyard.broker.seal import KeyRing
from batchyard.broker.store import Yard
from yardtest.gangs import KEEP_S, LEASE_S, SimYard, attempt, states, unnamed
from yardtest.redis import RedisServer

pytestmark = pytest.mark.system


@pytest.fixture
def sim(yard: Yard) -> SimYard:
    """Four nodes of 4 vCPUs."""
    return SimYard.of(yard, 4, 4, 4, 4)


def running(sim: SimYard, count: int = 3, **fields: Any) -> str:
    """A gang all of whose members run."""
    job_id = sim.submit(nodes=count, **fields)
    assert sim.place() == [job_id]
    sim.claim()
    assert sim.holder(f"{job_id}#0").start(f"{job_id}#0")
    sim.obey()
    assert states(sim, job_id, range(count)) == ["RUNNING"] * count
    return job_id


# -- booked resources


def test_redis_knows_what_a_node_has_given_away(sim: SimYard) -> None:
    sim.submit(vcpus=1.5, memory_mib=100, disk_gib=2)
    sim.submit(vcpus=1, memory_mib=50, disk_gib=1)
    node = sim.nodes[0]
    jobs = node.claim()
    assert node.booked() == {"mc": 2500, "mem": 150, "disk": 3072}
    assert node.settle(jobs[0].id)
    assert node.booked()["mc"] in (1000, 1500)
    assert node.give_back(jobs[1].id)
    assert node.booked() == {}


def test_a_repeated_claim_books_once_and_a_repeated_end_gives_back_once(sim: SimYard) -> None:
    first, second = sim.submit(), sim.submit()
    node = sim.nodes[0]
    node.claim(claim_id="same")
    node.claim(claim_id="same")
    assert node.booked()["mc"] == 4000
    job = node.held[first]
    assert node.settle(first)
    assert sim.yard.settle(job, sim.yard.record(first).state, attempt(), {}, [], retention_s=KEEP_S)
    assert node.booked()["mc"] == 2000
    node.die()
    sim.tick()
    assert node.booked() == {}
    assert sim.yard.record(second).state == "RUNNABLE"


def test_what_has_ended_and_uploads_its_outputs_holds_its_disk_only(sim: SimYard) -> None:
    first, second = sim.submit(vcpus=1.5, memory_mib=100, disk_gib=2), sim.submit(vcpus=1, memory_mib=50, disk_gib=1)
    node = sim.nodes[0]
    node.claim()
    token = node.held[first].token
    for _ in range(2):  # said again
        node.exited(first)
    sim.yard.exited(node.name, [(second, "0:nobody"), ("no such job", token)])
    sim.yard.exited("n1", [(second, node.held[second].token)])
    assert node.booked() == {"mc": 1000, "mem": 50, "disk": 3072, "exited": 1}
    assert node.settle(first)
    assert node.booked() == {"mc": 1000, "mem": 50, "disk": 1024, "exited": 0}
    sim.yard.exited(node.name, [(first, token)])  # it was on its way
    node.exited(second)
    assert node.give_back(second)
    assert node.booked() == {}
    node.claim()
    assert node.booked() == {"mc": 1000, "mem": 50, "disk": 1024}, "a new run of it holds all again"
    node.exited(second)
    node.die()
    sim.tick()
    assert node.booked() == {}
    sim.nodes[1].claim()
    assert sim.nodes[1].booked() == {"mc": 1000, "mem": 50, "disk": 1024}


def test_a_gang_is_placed_where_others_only_upload_their_outputs(sim: SimYard) -> None:
    for node in sim.nodes:
        node.most_jobs = 1
        node.beat()
        sim.submit(vcpus=4)
        assert len(node.claim(count=1)) == 1
    job_id = sim.submit(nodes=2, vcpus=4)
    assert sim.place() == []
    for node in sim.nodes[1:3]:
        node.exited(next(iter(node.held)))
    assert sim.place() == [job_id]
    assert sim.where(job_id) == ["n1", "n2"]
    assert [node.booked()["mc"] for node in sim.nodes] == [4000] * 4
    sim.claim()
    sim.nodes[1].exited(f"{job_id}#0")
    sim.nodes[2].die()
    sim.tick()
    sim.obey()
    for node in sim.nodes:
        for job in list(node.held):
            node.settle(job)
    assert [node.booked() for node in sim.nodes] == [{}] * 4


# -- placement


def test_members_are_of_their_jobs_tenant_and_so_are_their_logs(sim: SimYard) -> None:
    mine, yards = sim.submit(nodes=2), sim.submit(nodes=2)
    sim.yard.redis.hset(keys.job(mine), "tenant", "alice")
    assert sorted(sim.place()) == sorted([mine, yards])
    assert [sim.yard.record(f"{mine}#{n}").tenant for n in range(2)] == ["alice", "alice"]
    assert sim.yard.record(f"{yards}#0").tenant == ""


def test_a_gang_is_given_distinct_nodes_in_one_step(sim: SimYard) -> None:
    job_id = sim.submit(nodes=3, vcpus=1)
    assert sim.yard.record(job_id).state == "RUNNABLE"
    assert sim.yard.depth(["cpu"])["cpu"].total == 1
    assert sim.place() == [job_id]
    assert len(sim.where(job_id)) == 3
    record = sim.yard.record(job_id)
    assert (record.state, record.gang, record.main) == ("STARTING", 3, 0)
    assert sim.place() == []
    assert sim.yard.depth(["cpu"])["cpu"].total == 0


def test_no_node_can_claim_a_gang_that_waits(sim: SimYard) -> None:
    job_id = sim.submit(nodes=5)
    sim.claim()
    assert sim.place() == []
    sim.claim()
    assert sim.yard.record(job_id).state == "RUNNABLE"
    assert sim.where(job_id) == []


def test_a_node_gets_what_was_placed_on_it_before_all_else_and_again_when_the_answer_was_lost(sim: SimYard) -> None:
    gang = sim.submit(nodes=4, vcpus=3)
    sim.submit(vcpus=2)
    sim.submit(vcpus=1)
    sim.place()
    node = sim.nodes[0]
    jobs = node.claim(claim_id="same")
    assert jobs[0].member is not None
    assert (jobs[0].job_id, jobs[0].member.count, jobs[0].member.main) == (gang, 4, 0)
    assert [sim.yard.record(job.id).vcpus for job in jobs] == [3, 1], "its demand is taken off what is free"
    node.held.clear()
    assert node.claim(claim_id="same") == jobs
    node.held |= {job.id: job for job in jobs}
    assert node.claim() == []
    assert sorted(job.id for job in sim.yard.held(node.name)) == sorted(node.held)


def test_what_jobs_of_other_kinds_hold_counts(sim: SimYard) -> None:
    for node in sim.nodes[:2]:
        sim.submit(vcpus=3)
        assert len(node.claim(count=1)) == 1
    job_id = sim.submit(nodes=3)
    assert sim.place() == []
    sim.nodes[0].settle(next(iter(sim.nodes[0].held)))
    assert sim.place() == [job_id]
    assert sim.where(job_id) == ["n0", "n2", "n3"]


@pytest.mark.parametrize(
    "how",
    [{"state": "DRAINING"}, {"state": "UPLOADING"}, {"queues": "gpu"}, {"queues": ""}, {"takes": ""}, {"vcpus": 1},
     {"memory_mib": 32}, {"most_jobs": 0}, {"domain": "other"}],
)  # fmt: skip
def test_a_node_that_does_not_serve_takes_no_member(sim: SimYard, how: dict[str, object]) -> None:
    for name, value in how.items():
        setattr(sim.nodes[1], name, value)
    sim.nodes[1].beat()
    job_id = sim.submit(nodes=4)
    assert sim.place() == []
    three = sim.submit(nodes=3)
    assert sim.place() == [three], "a gang that does not fit stands in nobody's way"
    assert sim.where(three) == ["n0", "n2", "n3"]
    assert sim.yard.record(job_id).state == "RUNNABLE"


def test_a_silent_node_takes_no_member(sim: SimYard) -> None:
    sim.yard.redis.zadd(keys.NODES, {"n0": (sim.yard.now_s() - LEASE_S) * 1000})
    sim.submit(nodes=4)
    assert sim.place() == []


def test_members_of_different_sizes_go_where_each_fits(yard: Yard) -> None:
    sim = SimYard.of(yard, 8, 1, 2, 4)
    ranges = [{"targets": "0:0", "vcpus": 1}, {"targets": "1:1", "vcpus": 8}, {"targets": "3:", "vcpus": 4}]
    job_id = sim.submit(nodes={"count": 4, "main": 2, "ranges": ranges}, vcpus=2)
    assert sim.place() == [job_id]
    assert [sim.member(job_id, n).node for n in range(4)] == ["n1", "n0", "n2", "n3"]
    assert sim.yard.record(job_id).node == "n2"


def test_urgent_gangs_go_first(sim: SimYard) -> None:
    late = sim.submit(nodes=3, priority=5)
    urgent = sim.submit(nodes=3, priority=1)
    assert sim.place() == [urgent, late]
    third = sim.submit(nodes=3)
    assert sim.place() == []
    for index in range(3):
        assert sim.member(third, index) if sim.yard.exists(f"{third}#{index}") else True


# -- life


def test_members_start_when_main_runs_and_are_told_its_address(sim: SimYard) -> None:
    job_id = sim.submit(nodes={"count": 3, "main": 1})
    sim.place()
    sim.claim()
    for node in sim.nodes:
        assert node.beat() == {}
    assert sim.holder(f"{job_id}#1").start(f"{job_id}#1", address="10.9.8.7")
    assert sim.yard.record(job_id).state == "RUNNING"
    assert sim.holder(f"{job_id}#0").beat() == {f"{job_id}#0": ("go", "10.9.8.7")}
    again = sim.yard.held(sim.holder(f"{job_id}#2").name)
    assert [job.member.go for job in again if job.member] == ["10.9.8.7"]
    sim.obey()
    assert states(sim, job_id, range(3)) == ["RUNNING"] * 3
    assert all(node.beat() == {} for node in sim.nodes)


def test_mains_end_is_the_jobs_end_and_the_others_are_stopped(sim: SimYard) -> None:
    job_id = running(sim)
    main = sim.holder(f"{job_id}#0")
    job = main.held[f"{job_id}#0"]
    assert main.settle(job.id)
    record = sim.yard.record(job_id)
    assert (record.state, record.exit_code, record.reason, record.node) == ("SUCCEEDED", 0, "it ended", main.name)
    assert len(record.attempts) == 1
    assert sim.holder(f"{job_id}#1").beat() == {f"{job_id}#1": ("halt", "the main node has ended")}
    sim.obey()
    assert states(sim, job_id, range(3)) == ["SUCCEEDED"] * 3
    other = sim.member(job_id, 1)
    assert (other.exit_code, other.ended, other.log) == (1, 9.0, "sha256:log")
    assert sim.yard.settle(job, record.state, attempt(), {}, [], retention_s=KEEP_S), "a repeat is known"
    assert not sim.yard.settle(unnamed(job), record.state, attempt(), {}, [], retention_s=KEEP_S)
    sim.nothing_left()
    assert all(0 < sim.yard.redis.ttl(keys.job(f"{job_id}#{n}")) <= KEEP_S for n in range(3))


def test_a_members_death_changes_nothing_else(sim: SimYard) -> None:
    job_id = running(sim)
    assert sim.holder(f"{job_id}#2").settle(f"{job_id}#2", well=False)
    sim.holder(f"{job_id}#1").die()
    sim.tick()
    assert states(sim, job_id, range(3)) == ["RUNNING", "FAILED", "FAILED"]
    assert sim.yard.record(job_id).state == "RUNNING"
    assert sim.holder(f"{job_id}#0").settle(f"{job_id}#0")
    assert sim.yard.record(job_id).state == "SUCCEEDED"
    sim.nothing_left()


def test_mains_failure_makes_a_new_attempt_of_the_whole_once_all_nodes_have_given_up_the_old_one(sim: SimYard) -> None:
    job_id = running(sim)
    assert sim.holder(f"{job_id}#0").give_back(f"{job_id}#0", counted=True)
    assert sim.place() == []
    assert sim.yard.record(job_id).state == "RUNNING"
    sim.obey()
    assert sim.yard.record(job_id).state == "RUNNABLE"
    assert sim.place() == [job_id]
    sim.claim()
    job = sim.holder(f"{job_id}#0").held[f"{job_id}#0"]
    assert (job.attempt, job.member and job.member.placement) == (2, 2)
    assert len(sim.yard.record(job_id).attempts) == 1
    assert [len(sim.member(job_id, n).attempts) for n in range(3)] == [1, 1, 1]


def test_a_retry_after_a_while_waits(sim: SimYard) -> None:
    job_id = running(sim)
    sim.holder(f"{job_id}#0").give_back(f"{job_id}#0", counted=True, delay_s=3600)
    sim.obey()
    assert sim.yard.record(job_id).state == "PENDING"
    assert sim.place() == []
    sim.yard.redis.zadd("by:q:cpu:delayed", {job_id: 1})
    sim.tick()
    assert sim.place() == [job_id]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("taken", [False, True])
def test_a_node_lost_before_main_runs_sends_the_whole_back(sim: SimYard, which: int, taken: bool) -> None:
    job_id = sim.submit(nodes=3)
    sim.place()
    if taken:
        sim.claim()
    lost = next(n for n in sim.nodes if n.name == sim.member(job_id, which).node)
    lost.die()
    sim.tick()
    sim.claim()
    sim.obey()
    record = sim.yard.record(job_id)
    assert (record.state, record.losses, record.interruptions) == ("RUNNABLE", 1, 1)
    assert not record.attempts[0].counted
    assert sim.place() == [job_id]
    assert lost.name not in sim.where(job_id)


def test_mains_lost_node_sends_the_whole_back(sim: SimYard) -> None:
    job_id = running(sim)
    sim.holder(f"{job_id}#0").die()
    sim.tick()
    assert sim.yard.record(job_id).state == "RUNNING"
    sim.obey()
    assert sim.yard.record(job_id).state == "RUNNABLE"
    assert sim.place() == [job_id]


def test_lost_nodes_end_a_gang_that_has_lost_too_many(sim: SimYard) -> None:
    job_id = running(sim, infrastructure_retries=0)
    sim.holder(f"{job_id}#0").die()
    sim.tick()
    sim.obey()
    sim.deliver()
    record = sim.yard.record(job_id)
    assert record.state == "FAILED"
    assert "infrastructure_retries is 0" in record.reason
    sim.nothing_left()


def test_a_member_given_back_before_main_runs_sends_the_whole_back(sim: SimYard) -> None:
    job_id = sim.submit(nodes=3)
    sim.place()
    sim.claim()
    assert sim.holder(f"{job_id}#2").give_back(f"{job_id}#2", interrupted=True)
    sim.obey()
    record = sim.yard.record(job_id)
    assert (record.state, record.interruptions) == ("RUNNABLE", 1)


def test_one_that_drains_when_main_runs_is_over_alone(sim: SimYard) -> None:
    job_id = running(sim)
    assert sim.holder(f"{job_id}#2").give_back(f"{job_id}#2")
    assert states(sim, job_id, range(3)) == ["RUNNING", "RUNNING", "FAILED"]
    assert sim.yard.record(job_id).state == "RUNNING"


# -- why


def why(sim: SimYard, job_id: str) -> dict[str, str]:
    """code → text, of the first of each."""
    here = {"vcpus": 9, "memory_mib": 9999}
    config = {"queues": {"cpu": {"environments": ["here"]}}, "environments": {"here": here}}
    sim.yard.configure(parse(config, "the test's"))
    with Client(sim.yard.url) as client:
        return {one.code: one.text for one in reversed(client.why(job_id))}


def test_a_gang_that_waits_says_how_many_nodes_have_room_of_how_many(sim: SimYard) -> None:
    sim.submit(vcpus=3)
    sim.nodes[0].claim()
    gang = sim.submit(nodes={"count": 4, "ranges": [{"targets": "0:0", "vcpus": 1}]})
    told = why(sim, gang)
    assert told["place"].startswith('it is the only job in queue "cpu"')
    assert told["gang_room"].startswith("it needs 4 nodes at once, 1 of its 4 with 1 vCPU, 64 MiB")
    assert sim.place() == [gang], "the first node has room for the small one"
    larger = sim.submit(nodes=5)
    told = why(sim, larger)
    assert "only 4 that are up would have when empty" in told["gang_room"]
    assert "all 5 with 2 vCPU" in told["gang_room"]


def test_a_gang_says_which_nodes_are_kept_for_it_and_others_that_they_are(sim: SimYard) -> None:
    for node in sim.nodes:
        sim.submit(vcpus=3)
        node.claim(count=1)
    gang, other = sim.submit(nodes=3), sim.submit()
    sim.place(reserve_after_s=0)
    sim.place(reserve_after_s=0)
    told = why(sim, gang)
    assert told["reserved"].endswith("s ago, and take no other job until it has room")
    assert "0 have room now" in told["gang_room"]
    assert f"is kept for job {gang}" in why(sim, other)["kept"]


# -- cancel


def test_a_cancel_while_it_waits_ends_it(sim: SimYard) -> None:
    job_id = sim.submit(nodes=5)
    assert sim.yard.cancel(job_id, "test", terminate=True) == "cancelled"
    sim.deliver()
    assert sim.yard.record(job_id).state == "FAILED"
    sim.nothing_left()


def test_a_cancel_of_one_node_of_it_is_one_of_the_job_also_before_there_is_one(sim: SimYard) -> None:
    job_id = sim.submit(nodes=2)
    assert sim.yard.cancel(f"{job_id}#2", "no such node", terminate=True) == "stored"
    assert sim.yard.cancel(f"{job_id}#1", "not wanted", terminate=True) == "cancelled"
    sim.deliver()
    assert sim.yard.record(job_id).reason == "not wanted"


def test_a_cancel_while_it_waits_for_its_time_ends_it(sim: SimYard) -> None:
    job_id = running(sim)
    sim.holder(f"{job_id}#0").give_back(f"{job_id}#0", counted=True, delay_s=3600)
    assert sim.yard.cancel(job_id, "test", terminate=True) == "stopping"
    sim.obey()
    sim.deliver()
    assert sim.yard.record(job_id).reason == "test"
    sim.nothing_left()


@pytest.mark.parametrize("step", ["placed", "taken", "main runs", "all run"])
def test_a_cancel_of_one_that_nodes_hold_ends_all_of_it(sim: SimYard, step: str) -> None:
    job_id = sim.submit(nodes=3)
    sim.place()
    if step != "placed":
        sim.claim()
    if step in {"main runs", "all run"}:
        sim.holder(f"{job_id}#0").start(f"{job_id}#0")
    if step == "all run":
        sim.obey()
    assert sim.yard.cancel(job_id, "test", terminate=True) == "stopping"
    sim.claim()
    taken = {job.id: job for node in sim.nodes for job in node.held.values()}
    if step == "placed":
        assert taken[f"{job_id}#0"].cancel == "test"
        member = taken[f"{job_id}#1"].member
        assert member is not None
        assert member.halt == "test"
    sim.obey()
    assert sim.yard.record(job_id).state == "FAILED"
    assert sim.yard.cancel(job_id, "again", terminate=True) == "ended"
    sim.nothing_left()


def test_a_cancel_is_honoured_when_mains_node_is_lost(sim: SimYard) -> None:
    job_id = running(sim)
    sim.yard.cancel(job_id, "test", terminate=True)
    sim.holder(f"{job_id}#0").die()
    sim.tick()
    sim.obey()
    sim.deliver()
    assert (sim.yard.record(job_id).state, sim.yard.record(job_id).reason) == ("FAILED", "test")
    sim.nothing_left()


def test_a_gang_that_has_expired_is_not_placed(sim: SimYard) -> None:
    job_id = sim.submit(nodes=3)
    sim.yard.redis.hset(keys.job(job_id), "expires", 1)
    assert sim.place() == []
    sim.deliver()
    assert sim.yard.record(job_id).reason == "expired"
    sim.nothing_left()


def test_no_node_is_kept_for_a_gang_that_has_expired(sim: SimYard) -> None:
    sim.submit(vcpus=4)
    sim.claim()
    job_id = sim.submit(nodes=4, vcpus=4)
    for _ in range(2):
        sim.place(reserve_after_s=0)
    assert sim.yard.redis.exists(keys.GANG_RESERVED)
    sim.yard.redis.hset(keys.job(job_id), "expires", 1)
    assert sim.place() == []
    assert not sim.yard.redis.exists(keys.GANG_RESERVED)
    assert not any(sim.yard.redis.hexists(keys.node(node.name), "reserved") for node in sim.nodes)


# -- many


def test_two_gangs_of_three_on_four_nodes_never_hold_each_other_up(sim: SimYard) -> None:
    """Submitted together, 100 times; 2 vCPUs of 4 would let both on three nodes, 3 of 4 only one."""
    rnd = random.Random(4)
    for round_ in range(100):
        vcpus = rnd.choice([2, 3])
        ids = [sim.submit(nodes=3, vcpus=vcpus) for _ in range(2)]
        left = set(ids)
        for _ in range(20):
            acts: list[Callable[[], object]] = [sim.place, *(node.claim for node in sim.nodes * 2)]
            rnd.shuffle(acts)
            for act in acts:
                act()
                for job_id in ids:
                    assert len(sim.where(job_id)) in {0, 3} or job_id not in left, "half a gang"
            left -= _ends_what_runs(sim, left, rnd)
            if not left:
                break
        assert not left, round_
    sim.nothing_left()


def _ends_what_runs(sim: SimYard, ids: set[str], rnd: random.Random) -> set[str]:
    """Each gang all of whose members were taken up runs, and ends."""
    ended = set()
    for job_id in sorted(ids, key=lambda _: rnd.random()):
        members = [f"{job_id}#{n}" for n in range(3)]
        if all(any(m in node.held for node in sim.nodes) for m in members):
            sim.holder(members[0]).start(members[0])
            sim.obey()
            assert states(sim, job_id, range(3)) == ["RUNNING"] * 3
            sim.holder(members[0]).settle(members[0])
            sim.obey()
            ended.add(job_id)
    return ended


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(n, marks=pytest.mark.full) for n in range(6, 60))])
def test_any_history_of_gangs_ends_and_leaves_nothing(sim: SimYard, seed: int) -> None:
    """Nodes die, come back and repeat themselves, jobs are cancelled: each ends once, and nothing stays booked."""
    rnd = random.Random(seed)
    ids = [sim.submit(nodes=rnd.randint(1, 4), vcpus=rnd.choice([1, 2, 3])) for _ in range(6)]
    ids += [sim.submit(vcpus=rnd.choice([1, 2])) for _ in range(6)]
    plain = set(ids[6:])
    for step in range(900):
        _one_move(sim, rnd, ids, plain, calm=step > 150)
        for job_id in ids:
            _whole(sim, job_id)
        sim.deliver()
        if all(sim.yard.record(i).state.ended for i in ids):
            break
    for _ in range(3):
        for node in sim.nodes:
            node.die() if not node.held else node.beat()
        sim.tick()
        sim.obey()
        sim.deliver()
    assert {str(sim.yard.record(i).state) for i in ids} <= {"SUCCEEDED", "FAILED"}
    sim.nothing_left()


def _one_move(sim: SimYard, rnd: random.Random, ids: list[str], plain: set[str], *, calm: bool) -> None:
    node = rnd.choice(sim.nodes)
    move = rnd.random()
    if move < 0.25:
        sim.place()
    elif move < 0.5:
        node.beat()
        node.claim()
    elif move < 0.6:
        sim.obey()
    elif move < 0.65 and not calm:
        node.die()
        sim.tick()
        node.beat()
    elif move < 0.68 and not calm:
        sim.yard.cancel(rnd.choice(ids), "test", terminate=rnd.random() < 0.7)
    elif node.held:
        job_id = rnd.choice(sorted(node.held))
        state = sim.yard.record(job_id).state
        job = node.held[job_id]
        may_start = job_id in plain or (job.member is not None and job.member.is_main)
        if state == "STARTING" and may_start:
            node.start(job_id)
        elif state == "RUNNING" and rnd.random() < 0.3:
            node.exited(job_id)
        elif rnd.random() < 0.3 and not calm:
            node.give_back(job_id, counted=rnd.random() < 0.5)
        elif state == "RUNNING":
            node.settle(job_id)
            sim.yard.settle(job, state, attempt(), {}, [], retention_s=KEEP_S)


def _whole(sim: SimYard, job_id: str) -> None:
    """Of a gang that has not begun, no node holds a part, but while one goes back."""
    record = sim.yard.record(job_id)
    if record.gang and record.state in {"RUNNABLE", "PENDING", "SUBMITTED"}:
        assert sim.where(job_id) == [], job_id


def test_a_large_gang_costs_redis_few_commands_a_node(own_redis: RedisServer) -> None:
    """Counts instead of times, which are the machine's: 64 members on 64 of 200 nodes are some 2 ms."""
    yard = Yard(own_redis.url(), KeyRing.new())
    yard.prepare()
    sim = SimYard.of(yard, *[4] * 200)
    job_id = sim.submit(nodes=64)
    client: Any = yard.redis
    client.config_resetstat()
    assert sim.place() == [job_id]
    stats = client.info("commandstats")
    assert sum(one["calls"] for one in stats.values()) < 64 * 14
