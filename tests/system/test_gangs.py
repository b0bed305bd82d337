"""Jobs on several nodes with real containers: they talk over a network of their own, and main's end is everybody's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from celery import chain

from batchyard.broker.client import Client
from batchyard.broker.gangs import Gangs
from yardtest.wait import until
from yardtest.yard import TestYard, running_yard

_PRELUDE = """
index=$AWS_BATCH_JOB_NODE_INDEX main=$AWS_BATCH_JOB_MAIN_NODE_INDEX count=$AWS_BATCH_JOB_NUM_NODES
at=$AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS
tell() { until echo "$1" | nc -w 2 "$at" $((7000+index)) 2>/dev/null; do sleep 0.1; done; }
hear() { n=0; while [ $n -lt $count ]; do [ $n = $main ] || nc -l -p $((7000+n)); n=$((n+1)); done; }
"""
NODES = ("a", "b", "c")


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory, image: str) -> Iterator[TestYard]:
    """Three nodes on one engine."""
    with running_yard(tmp_path_factory.mktemp("gangs"), image, nodes=len(NODES)) as made:
        yield made


@pytest.fixture
def client(yard: TestYard) -> Iterator[Client]:
    with Client(yard.url) as made:
        yield made


def gang(yard: TestYard, main: str, others: str, **fields: Any) -> dict[str, Any]:
    script = f"{_PRELUDE} if [ $index = $main ]; then {main}; else {others}; fi"
    small = {"image": yard.image, "vcpus": 0.25, "memory_mib": 32, "disk_gib": 0.1, "nodes": 3}
    return {**small, "command": ["sh", "-c", script], **fields}


def nothing_left(yard: TestYard) -> None:
    yard.nothing_left()
    until(lambda: not yard.networks(), "no network is left", timeout_s=40)


def test_three_nodes_exchange_data_and_mains_end_stops_the_others(yard: TestYard, client: Client) -> None:
    job = gang(
        yard,
        "hear | sort >/work/t",
        'tell "node $index of $count"; sleep 600',
        outputs={"t": "/work/t"},
        timeout_s=60,
    )
    (record,) = client.wait([client.submit(job)], timeout_s=90)
    assert record.state == "SUCCEEDED", record
    result = yard.result(record.id)
    assert result["job_id"] == record.id
    assert result["outputs"]["t"]["size"] == len("node 1 of 3\nnode 2 of 3\n")
    nothing_left(yard)
    members = Gangs(yard.store).members(client.status(record.id))
    assert {m.node for m in members} == set(NODES)
    assert [str(m.state) for m in members] == ["SUCCEEDED"] * 3
    assert members[1].reason == "the main node has ended"


def test_the_next_step_of_a_chain_has_mains_outputs(yard: TestYard) -> None:
    first = gang(yard, "echo main >/work/t", "echo other >/work/t; sleep 600", outputs={"t": "/work/t"})
    sent = yard.producer.signature("batchyard.run", kwargs={"job": first}, queue="cpu")
    second = yard.signature("cp", "/in/t", "/work/t", inputs={"/in/t": {"from": "t"}}, outputs={"t": "/work/t"})
    assert chain(sent, second).apply_async().get(timeout=60)["outputs"]["t"]["size"] == len("main\n")
    nothing_left(yard)


def test_a_drained_node_takes_no_part_and_the_whole_starts_elsewhere(yard: TestYard, client: Client) -> None:
    job_id = client.submit(gang(yard, "sleep 600", "sleep 600", nodes=2))
    node = yard.running(job_id).node
    assert node is not None
    yard.nodes[node].end()
    until(lambda: yard.running(job_id).node != node, "it runs again, elsewhere", timeout_s=60)
    assert client.status(job_id).interruptions == 0
    yard.start_node(node)
    client.cancel(job_id)
    yard.ended(job_id)
    nothing_left(yard)


def test_the_command_line_submits_shows_and_logs_every_node(yard: TestYard, client: Client) -> None:
    at = ["--broker", yard.url, "--store", str(yard.blobs), "--key-file", str(yard.key_file)]
    script = f"{_PRELUDE} if [ $index = $main ]; then hear; else tell x; fi; echo node $index ends"

    def batchyard(*words: str) -> str:
        command = [sys.executable, "-m", "batchyard.broker.cli", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=90).stdout

    small = ["--image", yard.image, "--vcpus", "0.25", "--memory-mib", "32", "--disk-gib", "0.1"]
    job_id = batchyard("submit", *at, *small, "--nodes", "3", "--", "sh", "-c", script).strip()
    assert batchyard("wait", *at, job_id)
    nothing_left(yard)
    assert "node 0 (main)  SUCCEEDED on " in batchyard("status", *at, job_id)
    told = json.loads(batchyard("status", "--json", *at, job_id))
    assert [one["id"] for one in told["members"]] == [f"{job_id}#{n}" for n in range(3)]
    assert batchyard("logs", *at, f"{job_id}#0").splitlines()[-1] == "node 0 ends"
    assert "node 1 ends" in batchyard("logs", *at, f"{job_id[:12]}#1")


def test_mains_failure_runs_the_whole_again(yard: TestYard, client: Client) -> None:
    main = 'hear; echo "attempt $AWS_BATCH_JOB_ATTEMPT"; [ $AWS_BATCH_JOB_ATTEMPT = 2 ]'
    job = gang(yard, main, "tell $AWS_BATCH_JOB_ID; sleep 600", attempts=3, timeout_s=60)
    (record,) = client.wait([client.submit(job)], timeout_s=90)
    assert record.state == "SUCCEEDED", record
    assert len(record.attempts) == 2
    nothing_left(yard)
    members = Gangs(yard.store).members(client.status(record.id))
    assert [len(m.attempts) for m in members] == [2, 2, 2]


def test_another_members_failure_is_its_own(yard: TestYard, client: Client) -> None:
    job = gang(yard, "hear >/dev/null", "tell x; exit 3", timeout_s=60)
    (record,) = client.wait([client.submit(job)], timeout_s=90)
    assert (record.state, record.exit_code) == ("SUCCEEDED", 0)
    nothing_left(yard)


def test_a_terminate_ends_all_members(yard: TestYard, client: Client) -> None:
    job_id = client.submit(gang(yard, "sleep 600", "sleep 600"))
    yard.running(job_id)
    until(
        lambda: [str(m.state) for m in Gangs(yard.store).members(client.status(job_id))] == ["RUNNING"] * 3,
        "all members run",
    )
    assert client.cancel(job_id, "enough") == "stopping"
    record = yard.ended(job_id)
    assert (record.state, record.reason) == ("FAILED", "enough")
    nothing_left(yard)


def test_time_is_over_for_the_whole(yard: TestYard, client: Client) -> None:
    record = yard.ended(client.submit(gang(yard, "sleep 600", "sleep 600", timeout_s=1)))
    assert (record.state, record.reason) == ("FAILED", "Job attempt duration exceeded timeout")
    nothing_left(yard)


def test_when_mains_node_is_killed_the_whole_runs_again(yard: TestYard, client: Client) -> None:
    job_id = client.submit(gang(yard, "sleep 600", "sleep 600", nodes=2))
    node = yard.running(job_id).node
    assert node is not None
    yard.kill9(yard.nodes[node])
    until(lambda: yard.running(job_id).node != node, "it runs again, elsewhere", timeout_s=60)
    assert client.status(job_id).losses == 1
    yard.start_node(node)
    client.cancel(job_id)
    yard.ended(job_id)
    nothing_left(yard)
