"""What Celery's own tools see of a node and do to its jobs: inspect, control, events, revoke."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError

from yardtest.wait import until
from yardtest.yard import TestYard, running_yard

NODE = "a@batchyard"
DEAF = 'trap "" TERM; while true; do sleep 0.2; done'


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory, image: str) -> Iterator[TestYard]:
    with running_yard(tmp_path_factory.mktemp("yard") / "y", image) as running:
        yield running
        running.nothing_left()
        running.healthy()


@pytest.fixture
def inspect(yard: TestYard) -> Any:
    return yard.producer.control.inspect([NODE], timeout=2)


@pytest.fixture
def control(yard: TestYard) -> Any:
    return yard.producer.control


@pytest.fixture(scope="module")
def events(yard: TestYard) -> Iterator[list[dict[str, Any]]]:
    heard: list[dict[str, Any]] = []
    over = threading.Event()

    def listen() -> None:
        with yard.producer.connection_for_read() as connection:
            receiver = yard.producer.events.Receiver(connection, handlers={"*": heard.append})
            for _ in receiver.itercapture(limit=None, timeout=None, wakeup=True):
                if over.is_set():
                    return

    threading.Thread(target=listen, daemon=True).start()
    until(lambda: heard, "a heartbeat was heard", timeout_s=20)
    yield heard
    over.set()


def of(events: list[dict[str, Any]], job_id: str) -> list[str]:
    return [e["type"] for e in list(events) if e.get("uuid") == job_id]


def revoked(yard: TestYard, result: Any, asked: float) -> float:
    """How long after `asked` it had ended, of which its producer has heard then."""
    with pytest.raises(TaskRevokedError):
        result.get(timeout=30)
    ended = yard.ended(result.id).ended
    assert ended is not None
    return ended - asked


def test_a_node_answers_ping(control: Any) -> None:
    assert {NODE: {"ok": "pong"}} in control.ping(timeout=2)


def test_a_running_job_is_active_and_an_ended_one_is_not(yard: TestYard, inspect: Any) -> None:
    job = yard.send("sleep", "60", priority=4)
    yard.running(job.id)
    ((shown,),) = until(lambda: [a for a in (inspect.active() or {}).values() if a], "it is active")
    assert (shown["id"], shown["name"], shown["hostname"]) == (job.id, "batchyard.run", NODE)
    assert shown["kwargs"] == f"image={yard.image} command=sleep 60"
    assert shown["args"] == "()"
    assert shown["delivery_info"]["routing_key"] == "cpu"
    assert abs(shown["time_start"] - time.time()) < 10
    assert inspect.query_task(job.id)[NODE][job.id][0] == "active"
    yard.store.cancel(job.id, "seen", terminate=True)
    yard.ended(job.id)
    until(lambda: inspect.active() == {NODE: []}, "it is active no more")
    assert inspect.query_task(job.id)[NODE] == {}


def test_a_node_shows_the_queues_that_it_serves_and_pops_none(yard: TestYard, inspect: Any) -> None:
    assert sorted(q["name"] for q in inspect.active_queues()[NODE]) == ["cpu", "other"]
    clients = yard.redis.client_list()
    assert [c for c in clients if c["cmd"] == "brpop" and c["name"] == "a"] == []
    yard.redis.lpush("nosuch", "x")
    assert yard.redis.llen("nosuch") == 1
    yard.redis.delete("nosuch")


def test_a_node_registers_no_task(inspect: Any) -> None:
    """Celery would run a registered errback inline."""
    assert "batchyard.run" not in inspect.registered()[NODE]


def test_stats_tell_how_many_jobs_run(yard: TestYard, inspect: Any) -> None:
    job = yard.send("sleep", "60")
    yard.running(job.id)
    stats = inspect.stats()[NODE]
    assert stats["batchyard"]["running"] == 1
    assert stats["pool"]["max-concurrency"] >= 1
    yard.store.cancel(job.id, "seen", terminate=True)
    yard.ended(job.id)


def test_events_tell_a_jobs_life(yard: TestYard, events: list[dict[str, Any]]) -> None:
    good, bad, again = yard.send("true"), yard.shell("exit 3"), yard.shell("exit 4", attempts=2)
    for job in (good, bad, again):
        yard.ended(job.id)
    until(lambda: "task-failed" in of(events, again.id) and "task-failed" in of(events, bad.id), "they have ended")
    assert of(events, good.id) == ["task-received", "task-started", "task-succeeded"]
    assert of(events, bad.id) == ["task-received", "task-started", "task-failed"]
    life = ["task-received", "task-started"]
    assert of(events, again.id) == [*life, "task-retried", *life, "task-failed"]
    succeeded = next(e for e in events if e.get("uuid") == good.id and e["type"] == "task-succeeded")
    assert (succeeded["result"], succeeded["hostname"]) == ("exit_code=0", NODE)
    assert 0 <= succeeded["runtime"] < 10
    failed = next(e for e in events if e.get("uuid") == bad.id and e["type"] == "task-failed")
    assert "exit code 3" in failed["exception"]


def test_revoke_without_terminate_spares_a_running_job(yard: TestYard, control: Any) -> None:
    job = yard.send("sleep", "2")
    yard.running(job.id)
    control.revoke(job.id)
    assert job.get(timeout=20)["exit_code"] == 0


def test_terminate_delivers_sigterm_at_once(yard: TestYard, control: Any) -> None:
    job = yard.shell('trap "echo got it; exit 0" TERM; while true; do sleep 0.1; done')
    yard.running(job.id)
    asked = time.time()
    control.revoke(job.id, terminate=True)
    assert revoked(yard, job, asked) < 2
    assert yard.ended(job.id).reason in ("terminated", "revoked")


def test_a_job_without_a_handler_is_gone_within_3_s(yard: TestYard, control: Any) -> None:
    job = yard.send("sleep", "60")
    yard.running(job.id)
    asked = time.time()
    control.terminate(job.id)
    assert revoked(yard, job, asked) < 3
    yard.nothing_left(timeout_s=5)


def test_a_job_that_is_deaf_is_killed_after_its_grace(yard: TestYard, control: Any) -> None:
    job = yard.shell(DEAF)
    yard.running(job.id)
    asked = time.time()
    control.revoke(job.id, terminate=True)
    assert 1.5 < revoked(yard, job, asked) < 6  # the yard's grace is 2 s


def test_terminate_with_sigkill_kills_at_once(yard: TestYard, control: Any) -> None:
    job = yard.shell(DEAF)
    yard.running(job.id)
    asked = time.time()
    control.revoke(job.id, terminate=True, signal="SIGKILL")
    assert revoked(yard, job, asked) < 2


def test_a_queued_job_is_revoked_wherever_it_waits(yard: TestYard, control: Any) -> None:
    blocker = yard.send("sleep", "60", vcpus=4)
    yard.running(blocker.id)
    waiting = [yard.send("true") for _ in range(3)]
    delayed = yard.signature("true").apply_async(countdown=3600)
    until(lambda: (d := yard.store.depth(["cpu"])["cpu"]).index == 3 and d.delayed == 1, "they wait")
    asked = time.time()
    control.revoke([job.id for job in (*waiting, delayed)])
    for job in (*waiting, delayed):
        assert revoked(yard, job, asked) < 5
        assert yard.ended(job.id).started is None
    assert yard.store.depth(["cpu"])["cpu"].total == 0
    control.revoke(blocker.id, terminate=True)
    revoked(yard, blocker, asked)


def test_revoke_by_stamped_headers_ends_what_runs_here(yard: TestYard, control: Any) -> None:
    stamped, other = yard.signature("sleep", "60"), yard.send("sleep", "1")
    stamped.stamp(batch="b1")
    job = stamped.apply_async()
    yard.running(job.id)
    asked = time.time()
    control.revoke_by_stamped_headers({"batch": ["b1"]}, terminate=True)
    assert revoked(yard, job, asked) < 3
    assert other.get(timeout=20)["exit_code"] == 0


def test_a_revoked_job_ends_the_chain_and_the_chord_that_wait_for_it(yard: TestYard, control: Any) -> None:
    last: Any = (yard.signature("sleep", "60") | yard.signature("true").set(immutable=True)).apply_async()
    assert last.parent is not None
    yard.running(last.parent.id)
    control.revoke(last.parent.id, terminate=True)
    with pytest.raises(TaskRevokedError):
        last.parent.get(timeout=10)
    until(lambda: last.state == "REVOKED", "the rest of the chain is over")


@pytest.mark.parametrize("command", ["add_consumer", "cancel_consumer", "pool_grow", "pool_shrink", "rate_limit"])
def test_commands_that_do_not_apply_are_refused(yard: TestYard, control: Any, command: str) -> None:
    answers = control.broadcast(command, arguments={}, destination=[NODE], reply=True, timeout=2)
    ((answer,),) = [list(a.values()) for a in answers]
    assert "does not apply" in answer["error"]


def test_the_node_keeps_answering_while_jobs_run(yard: TestYard, control: Any) -> None:
    jobs = [yard.shell("seq 1 20000") for _ in range(8)]
    slowest = 0.0
    while not all(yard.peek(j.id) is not None and yard.ended(j.id) for j in jobs):
        asked = time.monotonic()
        assert control.ping([NODE], timeout=5)
        slowest = max(slowest, time.monotonic() - asked)
    assert slowest < 5.5


def test_a_shutdown_by_remote_control_drains_the_node(yard: TestYard, control: Any) -> None:
    control.shutdown([NODE])
    process = yard.nodes["a"].process
    assert process is not None
    assert process.wait(20) == 0
    assert "a" not in yard.store.nodes()
    yard.start_node("a")


def test_an_array_is_one_task_of_which_only_nodes_list_the_children(
    yard: TestYard, events: list[dict[str, Any]]
) -> None:
    array = yard.shell("exec sleep 600", array_size=2)
    names = {f"{array.id}:0", f"{array.id}:1"}
    control: Any = yard.producer.control

    def active() -> set[str]:
        return {task["id"] for tasks in (control.inspect(timeout=2).active() or {}).values() for task in tasks}

    until(lambda: names <= active(), "the children are listed", timeout_s=60)
    assert array.state == "PENDING"
    control.revoke(array.id, terminate=True)
    with pytest.raises(TaskRevokedError):
        array.get(timeout=60)
    until(lambda: not names & active(), "they are listed no more")
    assert [e for e in list(events) if str(e.get("uuid", "")).startswith(f"{array.id}:")] == []
    yard.nothing_left()
