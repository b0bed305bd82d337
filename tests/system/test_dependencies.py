"""Jobs that depend on others with real containers: through the client, the command line and plain Celery."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest
from celery import chain

from batchyard.broker.client import Client
from batchyard.broker.errors import InvalidJob
from yardtest.wait import until
from yardtest.yard import TestYard, running_yard


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory, image: str) -> Iterator[TestYard]:
    with running_yard(tmp_path_factory.mktemp("dependencies"), image) as made:
        yield made


@pytest.fixture
def client(yard: TestYard) -> Iterator[Client]:
    with Client(yard.url) as made:
        yield made


def job(yard: TestYard, script: str, *depends_on: object) -> dict[str, object]:
    small = {"image": yard.image, "vcpus": 0.25, "memory_mib": 32, "disk_gib": 0.1}
    return {**small, "command": ["sh", "-c", script], "depends_on": list(depends_on)}


def test_a_job_starts_after_those_that_it_depends_on(yard: TestYard, client: Client) -> None:
    first = client.submit(job(yard, "sleep 1"))
    second = client.submit(job(yard, "sleep 0.2; exit 3"), queue="other")
    tolerant = client.submit(job(yard, "true", first, {"job_id": second, "on_failure": "CONTINUE"}))
    strict = client.submit(job(yard, "true", first, second))
    hanging = client.submit(job(yard, "true", strict))
    ended = {record.id: record for record in client.wait([first, second, tolerant, strict, hanging], timeout_s=60)}
    assert [ended[i].state for i in (first, second, tolerant)] == ["SUCCEEDED", "FAILED", "SUCCEEDED"]
    assert (ended[tolerant].started or 0) >= (ended[first].ended or 0)
    assert [ended[i].reason for i in (strict, hanging)] == [
        f"Dependent Job failed: {second}",
        f"Dependent Job failed: {strict}",
    ]
    assert ended[strict].attempts == ()
    yard.nothing_left()


def test_a_dependency_on_an_unknown_job_is_refused(yard: TestYard, client: Client) -> None:
    with pytest.raises(InvalidJob, match="depends on an unknown job"):
        client.submit(job(yard, "true", "nobody's"))
    reason = yard.reason(yard.shell("true", depends_on=["nobody's"]))  # by a stock producer, intake has to say so
    assert reason == "job.depends_on = 'nobody's': no such job"
    yard.nothing_left()


def test_a_chain_and_a_dependency_go_together(yard: TestYard) -> None:
    """The chain's second step waits for the first one's result, and for another job."""
    other = yard.shell("sleep 1")
    first = yard.signature("sh", "-c", "echo x >/work/o", outputs={"o": "/work/o"})
    second = yard.signature(
        "sh", "-c", "cat /in/o >/work/p", inputs={"/in/o": {"from": "o"}}, outputs={"p": "/work/p"},
        depends_on=[other.id],
    )  # fmt: skip
    result = chain(first, second).apply_async()
    assert result.get(timeout=60)["outputs"]["p"]["size"] == 2
    assert (yard.ended(result.id).started or 0) >= (yard.ended(other.id).ended or 0)
    yard.nothing_left()


def test_the_command_line_says_what_a_job_waits_for(yard: TestYard) -> None:
    def run(*words: str) -> str:
        command = [sys.executable, "-P", "-m", "batchyard.broker.cli", *words]
        environ = {**os.environ, "BATCHYARD_BROKER_URL": yard.url}
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environ)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.strip()

    def submit(script: str, *options: str) -> str:
        small: Sequence[str] = ("--image", yard.image, "--vcpus", "0.25", "--memory-mib", "32", "--disk-gib", "0.1")
        return run("submit", *small, *options, "--", "sh", "-c", script)

    first, second = submit("sleep 60"), submit("sleep 60")
    child = submit("true", "--depends-on", first, "--depends-on", second)
    for job_id in (first, second):
        yard.running(job_id)
    reasons = until(lambda: json.loads(run("why", "--json", child)), "why answers")
    told = reasons["reasons"] if isinstance(reasons, dict) else reasons
    assert [(r["code"], r["depends_on"], r["state"]) for r in told] == [
        ("depends_on", first, "RUNNING"),
        ("depends_on", second, "RUNNING"),
    ]
    assert f"it waits for job {first} to succeed; that is RUNNING" in run("why", child)
    shown = run("status", child)
    assert "PENDING" in shown
    assert f"depends on {first}" in shown
    for job_id in (child, first, second):
        run("cancel", job_id)
        yard.ended(job_id)
    yard.nothing_left()
