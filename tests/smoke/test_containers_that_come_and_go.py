"""Redis, our nodes and a stock Celery worker, each in a container: killed, restarted, told to go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import chain
from celery.canvas import Signature
from celery.result import AsyncResult

from batchyard.broker.errors import BrokerUnavailable, NotFound
from batchyard.broker.record import Record
from yardtest.stack import docker
from yardtest.wait import until

from .conftest import NodeContainer, Place, Setup, StockContainer

Job = Callable[..., Signature]


@pytest.fixture
def job(celery_setup: Setup, image: str) -> Job:
    """A job of a shell script, as a stock producer would write it."""

    def make(script: str, **fields: Any) -> Signature:
        small = {"image": image, "command": ["sh", "-c", script], "vcpus": 0.25, "memory_mib": 32, "disk_gib": 0.1}
        made: Signature = celery_setup.app.signature("batchyard.run", kwargs={"job": {**small, **fields}}, queue="cpu")
        return made

    return make


def containers_of(job_id: str) -> list[str]:
    return docker("ps", "-q", "--no-trunc", "--filter", f"label=batchyard.job={job_id}").split()


def running(sent: AsyncResult[Any]) -> str:
    """The id of the job's container, once it runs."""
    return until(lambda: containers_of(str(sent.id)), "the job runs", timeout_s=30)[0]


def ended(place: Place, sent: AsyncResult[Any]) -> Record:
    """The record once it has an end; Redis may be away meanwhile."""

    def look() -> Record | None:
        try:
            record = place.yard.record(str(sent.id))
        except (BrokerUnavailable, NotFound):
            return None
        return record if record.state.ended else None

    record = until(look, f"job {sent.id} ends", timeout_s=60, every_s=0.1)
    assert record is not None
    return record


def test_our_node_and_a_stock_worker_share_one_redis_and_one_chain(
    celery_setup: Setup, job: Job, stock_worker: StockContainer
) -> None:
    theirs = celery_setup.app.signature("user.add", kwargs={"n": "one"}, queue="theirs")
    first = chain(job("echo hello >/work/t", outputs={"t": "/work/t"}), theirs).apply_async()
    result = first.get(timeout=60)
    assert result["user"] == "one"
    assert result["got"]["outputs"]["t"]["size"] == 6
    assert "user.add" not in celery_setup.node.logs()
    assert "Task user.add" in stock_worker.logs()
    assert "batchyard.run" not in stock_worker.logs()
    workers = celery_setup.app.control.inspect(timeout=3).ping() or {}
    assert {name.partition("@")[0] for name in workers} == {"a", "stock"}


@pytest.mark.full
def test_a_node_that_is_killed_takes_up_its_job_when_it_comes_back(celery_setup: Setup, job: Job, place: Place) -> None:
    sent = job("sleep 4; echo through").apply_async()
    before = running(sent)
    node = celery_setup.node
    node.kill()
    assert containers_of(str(sent.id)) == [before]
    node.restart()
    assert sent.get(timeout=60)["attempt"] == 1
    assert ended(place, sent).state.value == "SUCCEEDED"
    node.assert_log_exists(f"job {sent.id}: its container goes on here")


def test_a_node_that_is_killed_for_good_loses_its_job_to_another(
    celery_setup: Setup, job: Job, place: Place, node_b: NodeContainer
) -> None:
    sent = job("sleep 6").apply_async()
    running(sent)
    owner, other = owner_and_other(celery_setup, node_b, place, sent)
    owner.kill()
    result = sent.get(timeout=60)
    assert (result["node"], result["attempt"]) == (other, 1)
    assert ended(place, sent).state.value == "SUCCEEDED"


def test_a_node_that_is_told_to_go_gives_its_job_to_another(
    celery_setup: Setup, job: Job, place: Place, node_b: NodeContainer
) -> None:
    sent = job("sleep 6").apply_async()
    before = running(sent)
    owner, other = owner_and_other(celery_setup, node_b, place, sent)
    owner.kill("SIGTERM")
    result = sent.get(timeout=60)
    assert (result["node"], result["attempt"]) == (other, 1)
    until(lambda: not exists(before), "its first container is gone")

    def gone() -> bool:
        owner.reload()
        return bool(owner.status == "exited")

    until(gone, "the node has ended", timeout_s=20, every_s=0.2)
    assert owner.attrs["State"]["ExitCode"] == 0
    assert list(place.yard.nodes()) == [other]


@pytest.mark.full
def test_jobs_go_on_over_a_restart_of_redis(celery_setup: Setup, job: Job, place: Place) -> None:
    sent = [job("sleep 3").apply_async() for _ in range(12)]
    running(sent[0])
    celery_setup.redis.restart()
    for one in sent:
        record = ended(place, one)
        assert (record.state.value, len(record.attempts)) == ("SUCCEEDED", 1), record.reason
    later = job("true").apply_async()
    assert later.get(timeout=60)["exit_code"] == 0


def test_jobs_that_were_taken_are_there_after_redis_is_killed(celery_setup: Setup, job: Job, place: Place) -> None:
    celery_setup.node.kill()
    sent = [job("true").apply_async() for _ in range(20)]
    celery_setup.redis.kill()
    celery_setup.redis.restart()
    celery_setup.node.restart()
    assert {ended(place, one).state.value for one in sent} == {"SUCCEEDED"}


def owner_and_other(
    celery_setup: Setup, node_b: NodeContainer, place: Place, sent: AsyncResult[Any]
) -> tuple[NodeContainer, str]:
    """The container of the node that has the job, and the name of the other node."""
    a: Any = celery_setup.node.container
    return (a, "b") if place.yard.record(str(sent.id)).node == "a" else (node_b, "a")


def exists(container: str) -> bool:
    return container in docker("ps", "-aq", "--no-trunc").split()
