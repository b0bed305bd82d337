"""What a job says of its nodes, and what each of them is to run."""

from __future__ import annotations

import json
from typing import Any

import pytest

from batchyard.broker import gang, gangs
from batchyard.broker.config import Config, Queue
from batchyard.broker.environment import Environment
from batchyard.broker.errors import InvalidJob
from batchyard.broker.job import Job
from batchyard.broker.record import Membership
from batchyard.worker.engine.fake import FakeEngine
from batchyard.worker.engine.protocol import ContainerSpec
from batchyard.worker.gang import GangNetwork, domain, machine_address, network_name, sweep


def job(nodes: Any, **fields: Any) -> Job:
    return Job.parse({"image": "busybox", "nodes": nodes, **fields})


def test_a_number_is_so_many_nodes_alike() -> None:
    made = job(3)
    assert made.nodes is not None
    assert (made.nodes.count, made.nodes.main, made.nodes.ranges) == (3, 0, ())
    assert made.dump() == {"image": "busybox", "nodes": 3}
    assert Job.parse({"image": "busybox"}).dump() == {"image": "busybox"}
    assert Job.parse({"image": "b", "nodes": None}).nodes is None


def test_ranges_change_what_a_node_runs_the_narrower_one_last() -> None:
    ranges = [
        {"targets": "4:5", "command": ["Ref::what"], "environment": {"A": "narrow"}},
        {"targets": "0:9", "vcpus": 2, "environment": {"A": "wide", "B": "wide"}},
        {"targets": "8:", "image": "other"},
    ]
    made = job({"count": 10, "main": 9, "ranges": ranges}, environment={"C": "job"}, parameters={"what": "said"})
    members = [gang.member(made, n) for n in range(10)]
    assert {m.vcpus for m in members} == {2}
    assert members[4].command == ("said",)
    assert members[4].environment == {"A": "narrow", "B": "wide", "C": "job"}
    assert members[3].environment == {"A": "wide", "B": "wide", "C": "job"}
    assert [m.image for m in members[7:]] == ["busybox", "other", "other"]
    assert Job.parse(made.dump()) == made


def test_only_main_has_outputs_retries_and_a_time() -> None:
    made = job(
        {"count": 2, "main": 1}, outputs={"o": "/work/o"}, attempts=3, timeout_s=9,
        evaluate_on_exit=[{"action": "EXIT", "on_exit_code": "1"}],
    )  # fmt: skip
    other, main = gang.member(made, 0), gang.member(made, 1)
    assert (other.outputs, other.attempts, other.timeout_s, other.evaluate_on_exit) == ({}, 1, None, ())
    assert (list(main.outputs), main.attempts, main.timeout_s, len(main.evaluate_on_exit)) == (["o"], 3, 9, 1)
    assert main.nodes is other.nodes is None


def test_redis_is_told_runs_of_alike_nodes() -> None:
    made = job({"count": 6, "ranges": [{"targets": "4:", "vcpus": 0.5, "disk_gib": 2}]}, memory_mib=100)
    told = gangs.facts(made)
    assert (told["gang"], told["main"]) == ("6", "0")
    assert json.loads(told["members"]) == [[1, 1000, 100, 0, 1024], [3, 1000, 100, 0, 1024], [2, 500, 100, 0, 2048]]
    assert gangs.facts(Job.parse({"image": "b"})) == {}


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        (0, "job.nodes.count = 0"),
        (1001, "job.nodes.count = 1001"),
        ("many", "must be a number of nodes, or an object"),
        (True, "must be a number of nodes, or an object"),
        ({"main": 1}, "job.nodes.count = None: is required"),
        ({"count": 2, "main": 2}, '"main" is a node of the job, 0 to 1'),
        ({"count": 2, "ranges": [{"targets": "0"}]}, 'nodes are named by index, such as "0:3"'),
        ({"count": 2, "ranges": [{"targets": "1:2"}]}, "names nodes that are none of 0 to 1"),
        ({"count": 2, "ranges": [{"targets": "1:0"}]}, "names nodes that are none of 0 to 1"),
        ({"count": 9, "ranges": [{"targets": "0:4"}, {"targets": "3:6"}]}, "overlap; let one lie in the other"),
        ({"count": 2, "ranges": [{"targets": ":1"}] * 6}, "must have at most 5"),
        ({"count": 2, "ranges": [{"targets": "0:1", "vcpu": 1}]}, 'did you mean "vcpus"'),
        ({"count": 2, "ranges": [{"targets": "0:1", "environment": {"AWS_BATCH_X": "1"}}]}, "are reserved"),
        ({"count": 2, "ranges": [{"targets": "0:1", "command": ["a\0"]}]}, "must not contain NUL"),
    ],
)
def test_what_is_wrong_with_nodes_is_said(nodes: Any, said: str) -> None:
    with pytest.raises(InvalidJob) as error:
        job(nodes)
    assert said in str(error.value)


def test_a_secret_is_no_variable_of_a_range_too() -> None:
    with pytest.raises(InvalidJob, match=r"is in nodes\.ranges\.0\.environment too"):
        job({"count": 1, "ranges": [{"targets": "0:", "environment": {"S": "x"}}]}, secrets={"S": "s"})


def test_what_no_node_can_meet_is_refused_for_each_member() -> None:
    config = Config(
        queues={"cpu": Queue(environments=("here",))}, environments={"here": Environment(vcpus=4, memory_mib=4096)}
    )
    assert config.refusal("cpu", job(100)) is None
    wrong = job({"count": 3, "ranges": [{"targets": "2:", "vcpus": 8}]})
    assert "vcpus 8 of at most 4" in (config.refusal("cpu", wrong) or "")
    assert config.refusal("cpu", job({"count": 1, "ranges": [{"targets": ":0", "vcpus": 2}]}, vcpus=8)) is None


def test_each_node_is_told_its_place_and_the_others_where_main_is() -> None:
    assert gang.variables(count=3, index=1, main=1, address="x") == {
        "AWS_BATCH_JOB_NUM_NODES": "3",
        "AWS_BATCH_JOB_NODE_INDEX": "1",
        "AWS_BATCH_JOB_MAIN_NODE_INDEX": "1",
    }
    other = gang.variables(count=3, index=0, main=1, address="10.1.2.3")
    assert other["AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS"] == "10.1.2.3"


def test_one_node_of_a_job_is_not_depended_on() -> None:
    with pytest.raises(InvalidJob, match="name the job, abc"):
        Job.parse({"image": "b", "depends_on": ["abc#1"]})


# -- networks


def member(index: int = 0, placement: int = 1) -> Membership:
    return Membership(job_id="j", index=index, count=2, main=0, placement=placement)


@pytest.fixture
def engine(tmp_path: Any) -> FakeEngine:
    return FakeEngine(tmp_path, images=["busybox"])


def network(engine: FakeEngine, index: int = 0, *, mode: str = "bridge", **fields: Any) -> GangNetwork:
    return GangNetwork(engine, job(2, **fields), member(index), yard="y" * 16, mode=mode, address="192.0.2.1")


def run(engine: FakeEngine, name: str) -> str:
    spec = ContainerSpec(image="busybox", command=("sleep", "60"), vcpus=1, memory_mib=64, network=name)
    container = engine.create(spec)
    engine.start(container)
    return container


def test_main_makes_the_network_and_the_last_to_go_removes_it(engine: FakeEngine) -> None:
    main, other = network(engine), network(engine, 1)
    assert other.remove(), "one that has not joined leaves it alone"
    main.make()
    other.make()
    containers = [run(engine, main.name), run(engine, other.name)]
    assert main.address_of(containers[0]).startswith("10.")
    engine.remove(containers[0])
    assert not main.remove()
    engine.remove(containers[1])
    assert other.remove()
    assert engine.list_networks({}) == ()


def test_what_the_job_or_the_operator_says_of_the_network_counts(engine: FakeEngine) -> None:
    assert network(engine, network="none").name == "none"
    assert network(engine, network="host").address_of("any") == "192.0.2.1"
    assert network(engine, mode="host").name == "host"
    assert network(engine, mode="overlay").name == "overlay"
    assert network(engine, mode="overlay").remove(), "it is not ours"
    assert network(engine, network="bridge").name == network_name("y" * 16, member())


def test_nodes_of_one_engine_or_of_one_network_may_have_a_gang_together(engine: FakeEngine) -> None:
    assert domain("bridge", engine.identity) == f"engine:{engine.identity()}"
    assert domain("host", engine.identity) == "network:host"


def test_networks_of_gangs_that_are_over_are_swept(engine: FakeEngine) -> None:
    yard = "y" * 16
    for placement in (1, 2):
        network_ = GangNetwork(engine, job(2), member(0, placement), yard=yard, mode="bridge", address="")
        network_.make()
    engine.create_network("somebody's", {"batchyard.yard": yard}, internal=True)
    sweep(engine, yard, lambda job_id, placement: (job_id, placement) == ("j", 2))
    assert [one.name for one in engine.list_networks({})] == [network_name(yard, member(0, 2)), "somebody's"]


def test_this_machines_address_is_the_one_on_the_way_to_the_broker() -> None:
    assert machine_address("redis://127.0.0.1:6379/0") == "127.0.0.1"
    assert machine_address("unix:///run/redis.sock") == "127.0.0.1"
    assert machine_address("redis://no.such.host.invalid/0") == "127.0.0.1"
