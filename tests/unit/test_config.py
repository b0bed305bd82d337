"""The yard's configuration: what is read, what is refused, what can never run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from batchyard.broker.config import load, parse, single_machine
from batchyard.broker.errors import InvalidConfig
from batchyard.broker.job import Job

HERE = {"here": {"vcpus": 4, "memory_mib": 4096, "gpus": 1, "disk_gib": 10}}


def config(**queue: Any) -> Any:
    return parse({"queues": {"cpu": {"environments": ["here"], **queue}}, "environments": HERE}, "test")


def job(**fields: Any) -> Job:
    return Job.parse({"image": "busybox", **fields})


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "yard.yaml"
    path.write_text(
        "queues:\n  cpu: {priority: 10, environments: [here]}\n  gpu: {environments: [here], default_priority: 5}\n"
        "environments:\n  here: {vcpus: 8, memory_mib: 16000, gpus: 1}\nlease_s: 30\n"
    )
    read = load(path)
    assert read.by_priority() == ["cpu", "gpu"]
    assert read.queues["gpu"].default_priority == 5
    assert (read.lease_s, read.environments["here"].vcpus) == (30, 8)


def test_queues_of_one_priority_are_in_order_of_their_names() -> None:
    read = parse({"queues": {n: {"environments": ["here"]} for n in "cab"}, "environments": HERE}, "test")
    assert read.by_priority() == ["a", "b", "c"]


def test_a_configuration_survives_redis() -> None:
    before = single_machine(2, 1024, 0, 5)
    assert parse(json.loads(before.model_dump_json()), "test") == before


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, ["test"]),
        ({}, ["queues", "required"]),
        ({"queues": {}, "environments": HERE}, ["queues"]),
        ({"queues": {"cpu": {}}, "environments": HERE}, ["queues.cpu.environments"]),
        ({"queues": {"cpu": {"environments": ["there"]}}, "environments": HERE}, ['"there" is not defined', "here"]),
        ({"queues": {"celery": {"environments": ["here"]}}, "environments": HERE}, ['"celery"', "used by the broker"]),
        ({"queues": {"by:x": {"environments": ["here"]}}, "environments": HERE}, ["by:x"]),
        ({"queues": {"a\x06\x163": {"environments": ["here"]}}, "environments": HERE}, ["queues"]),
        ({"queues": {"cpu": {"environments": ["here"], "prio": 1}}, "environments": HERE}, ["queues.cpu.prio"]),
        ({"queues": {"cpu": {"environments": ["here"]}}, "environments": HERE, "lease_s": 0.5}, ["lease_s"]),
        ({"queues": {"cpu": {"environments": ["here"]}}, "environments": {"here": {"vcpus": 0}}}, ["vcpus"]),
    ],
)
def test_what_breaks_a_rule_is_refused_with_its_place(data: object, words: list[str]) -> None:
    with pytest.raises(InvalidConfig) as caught:
        parse(data, "test")
    for word in words:
        assert word in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"nosuch\.yaml cannot be read"):
        load(tmp_path / "nosuch.yaml")
    (tmp_path / "bad.yaml").write_text("queues: [")
    with pytest.raises(InvalidConfig, match=r"bad\.yaml is not YAML"):
        load(tmp_path / "bad.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidConfig, match=r"binary\.yaml"):
        load(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    ("fields", "lack"),
    [
        ({"vcpus": 4.001}, "vcpus 4.001 of at most 4"),
        ({"memory_mib": 4097}, "memory_mib 4097 of at most 4096"),
        ({"gpus": 2}, "gpus 2 of at most 1"),
        ({"disk_gib": 11}, "disk_gib 11 of at most 10"),
    ],
)
def test_a_demand_that_no_node_can_ever_meet_is_refused(fields: dict[str, Any], lack: str) -> None:
    reason = config().refusal("cpu", job(**fields))
    assert reason is not None
    assert lack in reason
    assert "here" in reason


def test_the_largest_node_may_be_filled() -> None:
    assert config().refusal("cpu", job(vcpus=4, memory_mib=4096, gpus=1, disk_gib=10)) is None


def test_one_environment_that_is_large_enough_will_do() -> None:
    both = {**HERE, "big": {"vcpus": 64, "memory_mib": 4096}}
    read = parse({"queues": {"cpu": {"environments": ["here", "big"]}}, "environments": both}, "test")
    assert read.refusal("cpu", job(vcpus=50)) is None
    assert read.refusal("cpu", job(vcpus=50, gpus=1)) is not None


def test_a_disabled_queue_takes_nothing() -> None:
    assert "disabled" in (config(state="DISABLED").refusal("cpu", job()) or "")


def test_a_queue_may_force_the_strict_profile() -> None:
    forced = config(force_strict=True)
    assert "strict" in (forced.refusal("cpu", job(profile="aws")) or "")
    assert forced.refusal("cpu", job()) is None


def test_the_hosts_network_must_be_allowed() -> None:
    assert '"host"' in (config().refusal("cpu", job(network="host")) or "")
    assert config(allow_host_network=True).refusal("cpu", job(network="host")) is None


def test_a_node_serves_what_it_was_told_else_the_queues_of_its_compute_environment() -> None:
    here = HERE["here"]
    queues = {
        "a": {"environments": ["here"]},
        "b": {"environments": ["there"]},
        "c": {"environments": ["here", "there"]},
    }
    read = parse({"queues": queues, "environments": {"here": here, "there": here}}, "test")
    assert read.served("here") == ["a", "c"]
    assert read.served("there") == ["b", "c"]
    assert read.served("here", ("b",)) == ["b"]
    assert read.served("elsewhere") == ["a", "b", "c"]
