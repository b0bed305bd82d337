"""A terminate ends a job in whatever state it is, with real containers; each ends once, and nothing is left of it."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator

import pytest

from batchyard.broker.client import Client
from yardtest.wait import until
from yardtest.yard import TestYard, running_yard


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory, image: str) -> Iterator[TestYard]:
    with running_yard(tmp_path_factory.mktemp("terminate"), image) as made:
        yield made


@pytest.fixture
def silent_registry() -> Iterator[str]:
    """An image whose registry takes the question and never answers it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}/never/there:1"


def _state(yard: TestYard, job_id: str) -> str | None:
    record = yard.peek(job_id)
    return None if record is None else str(record.state)


def test_a_terminate_ends_a_job_in_each_state(yard: TestYard, silent_registry: str) -> None:
    running = yard.shell("sleep 600", vcpus=3).id
    yard.running(running)
    starting = yard.send("true", image=silent_registry, vcpus=0.1).id
    until(lambda: _state(yard, starting) == "STARTING", "its image is pulled")
    runnable = yard.shell("true", vcpus=3).id
    dependent = yard.shell("true", depends_on=[running], vcpus=0.1).id
    delayed = yard.signature("true", vcpus=0.1).apply_async(countdown=600).id
    array = yard.shell("sleep 600", array_size=50, vcpus=2).id
    states = {running: "RUNNING", starting: "STARTING", runnable: "RUNNABLE", dependent: "PENDING", delayed: "PENDING",
              array: "PENDING"}  # fmt: skip
    until(lambda: {i: _state(yard, i) for i in states} == states, "each is in its state")
    with Client(yard.url) as client:
        for job_id in reversed(states):  # who is waited for is the last to go
            client.cancel(job_id, reason="enough of it")
        early = str(uuid.uuid4())
        assert client.cancel(early, reason="enough of it") == "stored"
    yard.signature("true").apply_async(task_id=early)
    for job_id in (*states, early):
        record = yard.ended(job_id)
        assert (record.state, record.reason) == ("FAILED", "enough of it"), states.get(job_id)
    yard.nothing_left()
