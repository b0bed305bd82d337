"""Each job runs once, whatever is killed: counted by lines that the containers write outside of the yard."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from yardtest.counter import UNTIL_LET_GO, LineCounter
from yardtest.wait import until
from yardtest.yard import LEASE_S, TestYard, running_yard

SAY = "echo $BATCHYARD_JOB_ID >/count/line"
STOCK = """
from celery import Celery
app = Celery("theirs", broker={url!r}, backend={url!r})
app.conf.broker_transport_options = {{"visibility_timeout": 1}}

@app.task(name="theirs.add", acks_late=True)
def add(a, b):
    return a + b
"""


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory, image: str) -> Iterator[TestYard]:
    with running_yard(tmp_path_factory.mktemp("yard") / "y", image, nodes=3) as running:
        yield running
        running.nothing_left()
        running.healthy()


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory, image: str) -> Iterator[TestYard]:
    """With leases that are longer than a node's restart takes on a busy machine: so what it runs, it goes on with."""
    with running_yard(tmp_path_factory.mktemp("yard") / "y", image, nodes=3, config={"lease_s": 30}) as running:
        yield running
        running.nothing_left(timeout_s=40)
        running.healthy()


@pytest.fixture
def counted(patient: TestYard, tmp_path: Path) -> Iterator[LineCounter]:
    made = LineCounter(patient.shared / tmp_path.name, tmp_path / "lines")
    yield made
    made.close()


@pytest.fixture
def counter(yard: TestYard, tmp_path: Path) -> Iterator[LineCounter]:
    made = LineCounter(yard.shared / tmp_path.name, tmp_path / "lines")
    yield made
    made.close()


def under_kills(yard: TestYard, counter: LineCounter, jobs: int, *, every_s: float, timeout_s: float) -> int:
    """Runs jobs while one node after the other is killed and started again; how many kills there were."""
    ids = [yard.send_quietly(SAY, vcpus=2, inputs=counter.inputs) for _ in range(jobs)]  # six at a time
    waiting, kills = set(ids), 0
    end, victims = time.monotonic() + timeout_s, itertools.cycle(sorted(yard.nodes))
    next_kill = time.monotonic() + every_s / 2
    while waiting:
        assert time.monotonic() < end, f"{len(waiting)} of {jobs} jobs have not ended after {timeout_s} s"
        if time.monotonic() >= next_kill:
            name = next(victims)
            yard.kill9(yard.nodes[name])
            yard.start_node(name, wait=False)
            kills, next_kill = kills + 1, time.monotonic() + every_s
        waiting = {i for i in waiting if (r := yard.peek(i)) is None or not r.state.ended}
        time.sleep(0.2)
    results = [yard.result(job_id) for job_id in ids]
    assert [r["exit_code"] for r in results] == [0] * jobs
    assert [r["job_id"] for r in results] == ids
    assert counter.counts() == dict.fromkeys(ids, 1)
    yard.wait_ready()
    return kills


def test_every_short_job_runs_once_under_kill_9_of_nodes(patient: TestYard, counted: LineCounter) -> None:
    assert under_kills(patient, counted, 100, every_s=4, timeout_s=110) >= 2


@pytest.mark.full
@pytest.mark.timeout(900)
def test_1000_short_jobs_run_once_under_kill_9_of_a_node_every_10_s(patient: TestYard, counted: LineCounter) -> None:
    assert under_kills(patient, counted, 1000, every_s=10, timeout_s=800) >= 5


@pytest.fixture(scope="module")
def sweeper(yard: TestYard, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A stock Celery worker on another queue of the same Redis, which sweeps kombu's `unacked` after 1 s."""
    folder = tmp_path_factory.mktemp("stock")
    (folder / "stock.py").write_text(STOCK.format(url=yard.url))
    command = [sys.executable, "-m", "celery", "-A", "stock", "--workdir", str(folder), "worker", "-P", "solo"]
    child = yard.start_other("stock", [*command, "-Q", "theirs", "-l", "INFO"])
    child.wait_for("ready.")
    added = yard.producer.send_task("theirs.add", args=(1, 2), queue="theirs")
    assert added.get(timeout=20) == 3


def longer_than_its_lease(yard: TestYard, counter: LineCounter, lasts_s: float) -> None:
    job_id = yard.send_quietly(f"{SAY}; sleep {lasts_s}", inputs=counter.inputs)
    record = yard.ended(job_id, timeout_s=lasts_s + 30)
    assert (record.state, record.losses, len(record.attempts)) == ("SUCCEEDED", 0, 1)
    assert counter.lines() == [job_id]


def test_a_job_longer_than_its_lease_runs_once_beside_a_stock_worker(
    yard: TestYard, counter: LineCounter, sweeper: None
) -> None:
    longer_than_its_lease(yard, counter, 6 * LEASE_S)


@pytest.mark.full
@pytest.mark.timeout(200)
def test_a_job_of_60_s_runs_once_under_a_lease_of_5_s_beside_a_stock_worker(
    yard: TestYard, sweeper: None, counter: LineCounter, five_seconds: float
) -> None:
    longer_than_its_lease(yard, counter, 60)


@pytest.fixture
def five_seconds(yard: TestYard) -> Iterator[float]:
    """The yard's lease, so long that starting a container on a busy machine is short beside it."""
    yard.store.configure(yard.config.model_copy(update={"lease_s": 5.0}))
    yield 5.0
    yard.store.configure(yard.config)


def test_a_job_whose_node_is_killed_goes_on_elsewhere_within_two_leases(
    yard: TestYard, counter: LineCounter, five_seconds: float
) -> None:
    job_id = yard.send_quietly(f"{SAY}; {UNTIL_LET_GO}", inputs=counter.inputs)
    first = yard.running(job_id).node
    until(lambda: counter.times(job_id), "it has said that it runs")
    until(lambda: yard.lease_left_s(job_id) > five_seconds / 2 + 0.5, "its lease is one of five seconds")
    assert first is not None
    killed_at = time.monotonic()
    yard.kill9(yard.nodes[first])
    try:
        until(lambda: len(counter.times(job_id)) == 2, "it starts again", timeout_s=20)
        counter.let_go()
        record = yard.ended(job_id)
    finally:
        yard.start_node(first)  # it removes what it left
    assert counter.times(job_id)[1] - killed_at < 2 * five_seconds
    assert (record.state, record.losses) == ("SUCCEEDED", 1)
    assert record.node != first
    assert [(a.node == first, a.counted) for a in record.attempts] == [(True, False), (False, True)]
    yard.nothing_left()
    assert len(counter.lines()) == 2


def test_a_restarted_node_goes_on_with_its_container_and_all_of_its_log(
    patient: TestYard, counted: LineCounter
) -> None:
    script = f"{SAY}; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do echo line $i; sleep 0.2; done; exit 3"
    job_id = patient.send_quietly(script, inputs=counted.inputs)
    node = patient.running(job_id).node
    assert node is not None
    patient.kill9(patient.nodes[node])
    patient.start_node(node)
    record = patient.ended(job_id)
    assert (record.state, record.exit_code, record.node, record.losses) == ("FAILED", 3, node, 0)
    assert len(record.attempts) == 1
    assert counted.lines() == [job_id]
    told = patient.producer.AsyncResult(job_id)
    tail = told.result.args[1]["log_tail"]
    assert tail.splitlines() == [f"line {i}" for i in range(1, 16)]


def test_a_node_told_to_go_gives_its_jobs_back_and_uses_up_no_attempt(yard: TestYard, counter: LineCounter) -> None:
    job_id = yard.send_quietly(f"{SAY}; exec sleep 4", inputs=counter.inputs)
    node = yard.running(job_id).node
    assert node is not None
    assert yard.nodes[node].end() == 0
    record = yard.ended(job_id)
    assert (record.state, record.losses) == ("SUCCEEDED", 0)
    assert (record.attempts[0].counted, record.attempts[0].reason) == (False, "the node drained")
    assert record.node != node
    assert counter.counts() == {job_id: 2}
    yard.start_node(node)


def test_nodes_stand_in_while_the_controller_is_down(yard: TestYard, counter: LineCounter) -> None:
    assert yard.controller is not None
    yard.kill9(yard.controller)
    ids = [yard.send_quietly(SAY, inputs=counter.inputs) for _ in range(5)]
    for job_id in ids:
        assert yard.ended(job_id).state == "SUCCEEDED"
    yard.start_controller()
    assert counter.counts() == dict.fromkeys(ids, 1)
