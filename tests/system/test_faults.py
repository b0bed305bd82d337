"""Bad input and faults: each has a clear reason on the job or at the door, loses nothing, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from batchyard.broker.deadletters import DeadLetters
from batchyard.broker.record import Record
from batchyard.broker.seal import KeyRing
from yardtest import poison
from yardtest.counter import UNTIL_LET_GO, LineCounter
from yardtest.engine import PrivateEngine
from yardtest.wait import until
from yardtest.yard import LEASE_S, TestYard, running_yard

NO_DIGEST = "sha256:" + "a" * 64
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="mounts, bridges and engines are root's")
SAY = "echo $BATCHYARD_JOB_ID >/count/line"


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory, image: str) -> Iterator[TestYard]:
    with running_yard(tmp_path_factory.mktemp("yard") / "y", image) as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_is_left(yard: TestYard) -> Iterator[None]:
    yield
    yard.nothing_left()
    yard.healthy()


@pytest.fixture
def counter(yard: TestYard, tmp_path: Path) -> Iterator[LineCounter]:
    made = LineCounter(yard.shared / tmp_path.name, tmp_path / "lines")
    yield made
    made.close()


def push(yard: TestYard, raw: bytes, queue: str = "cpu") -> None:
    yard.redis.lpush(queue, raw)


# -- what is wrong with the message


def test_poison_never_stops_intake_or_a_node(yard: TestYard) -> None:
    """Everything that is no message, and every odd value in a good one, some of which get as far as a node."""
    unreadable = [raw for _, raw in poison.unreadable()]
    job = {"image": "localhost:1/none:1", "command": ["true"], "vcpus": 0.25, "memory_mib": 32}
    odd = dict(poison.askew({**job, "infrastructure_retries": 0}))
    for raw in (*unreadable, *odd.values()):
        push(yard, raw)
    assert yard.send("true").get(timeout=120)["exit_code"] == 0  # behind them all
    until(lambda: yard.store.depth(["cpu"])["cpu"].total == 0, "all was taken", timeout_s=120)
    dead_letters = DeadLetters(yard.store, KeyRing.new)
    letters = [letter for letter in dead_letters.list().values() if letter.get("list") == "cpu"]
    assert len(letters) >= len(unreadable)
    assert all(letter["reason"] for letter in letters)
    dead = {task_id for task_id in odd if yard.peek(task_id) is None}
    assert len(letters) == len(unreadable) + len(dead)
    for task_id in odd:
        if task_id not in dead:
            record = yard.ended(task_id)
            assert (record.state, bool(record.reason)) == ("FAILED", True)
    answers: Any = yard.producer.control.ping(timeout=3)
    names = {name.split("@")[0] for answer in answers for name in answer}
    assert {"a", "controller"} <= names
    dead_letters.drop_all()


def test_a_key_that_is_no_list_holds_up_no_other_queue(yard: TestYard) -> None:
    yard.redis.set("other", "text")
    try:
        assert yard.send("true").get(timeout=30)["exit_code"] == 0
    finally:
        yard.redis.delete("other")
    assert yard.send("true", queue="other").get(timeout=30)["exit_code"] == 0


# -- what is wrong with the job


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ({"image": "localhost:1/none:1", "infrastructure_retries": 0}, ['image "localhost:1/none:1"']),
        ({"command": ["nosuch", "-x"]}, ["nosuch"]),
        ({"command": ["/etc"]}, ["/etc"]),
        ({"vcpus": 5}, ["no node", "vcpus 5 of at most 4"]),
        ({"gpus": 1}, ["no node", "gpus 1 of at most 0"]),
        ({"outputs": {"o": "/work/x"}}, ['output "o"', "/work/x was not written by the job"]),
        ({"outputs": {"o": "/work/../etc/passwd"}}, ["job.outputs.o", '".."']),
        (
            {"command": ["ln", "-s", "/etc/passwd", "/work/x"], "outputs": {"o": "/work/x"}},
            ['output "o"', "is a symlink to '/etc/passwd'"],
        ),
        (
            {"command": ["ln", "-s", "/etc", "/work/d"], "outputs": {"o": "/work/d/passwd"}},
            ['output "o"', "/work/d is a symlink"],
        ),
        ({"command": ["mkfifo", "/work/x"], "outputs": {"o": "/work/x"}}, ['output "o"', "/work/x"]),
        ({"inputs": {"/in/a": NO_DIGEST}}, ['input "/in/a"', NO_DIGEST, "put it first"]),
        ({"inputs": {"/in/a": "file:///etc/passwd"}}, ['input "/in/a"', "not under a folder that this node allows"]),
        ({"inputs": {"/in/a": "file:///nosuch"}}, ['input "/in/a"', "file:///nosuch is not there"]),
        ({"secrets": {"A": "nosuch"}}, ['secret "nosuch" cannot be read']),
        ({"command": ["sleep", "60"], "timeout_s": 1}, ["Job attempt duration exceeded timeout"]),
        (
            {"command": ["sh", "-c", "x=a; while true; do x=$x$x; done"], "memory_mib": 16},
            ["OutOfMemoryError: Container killed due to memory usage"],
        ),
        ({"command": ["sh", "-c", "kill -9 $$"]}, ["killed by SIGKILL"]),
        ({"user": "4294967296"}, ["4294967296"]),
    ],
)
def test_a_job_that_cannot_be_done_says_why(yard: TestYard, job: dict[str, Any], words: list[str]) -> None:
    fields = {"image": yard.image, "command": ["true"], "vcpus": 0.25, "memory_mib": 32, **job}
    result = yard.producer.send_task("batchyard.run", kwargs={"job": fields}, queue="cpu")
    reason = yard.reason(result)
    for word in words:
        assert word in reason


def test_a_message_to_a_queue_that_forbids_it_says_so(yard: TestYard) -> None:
    assert '"host"' in yard.reason(yard.send("true", network="host"))


def objects(yard: TestYard) -> set[Path]:
    return {p for p in (yard.blobs / "objects").rglob("*") if p.is_file()}


def test_an_input_whose_stored_bytes_were_changed_is_refused(yard: TestYard) -> None:
    before = objects(yard)
    blob = yard.shell("seq 1 1000 >/work/o", outputs={"o": "/work/o"}).get(timeout=30)["outputs"]["o"]
    place = max(objects(yard) - before, key=lambda p: p.stat().st_size)
    sealed = bytearray(place.read_bytes())
    sealed[len(sealed) // 2] ^= 1
    place.chmod(0o600)
    place.write_bytes(sealed)
    reason = yard.reason(yard.send("cat", "/in/a", inputs={"/in/a": blob["digest"]}))
    assert 'input "/in/a"' in reason
    assert blob["digest"] in reason
    assert "deleted from the store" in reason
    # once it is there again, the same job runs
    again = yard.shell("seq 1 1000 >/work/o", outputs={"o": "/work/o"}).get(timeout=30)["outputs"]["o"]
    assert again["digest"] == blob["digest"]
    assert yard.send("cat", "/in/a", inputs={"/in/a": blob["digest"]}).get(timeout=30)["exit_code"] == 0


def test_a_file_that_has_another_digest_is_refused(yard: TestYard) -> None:
    path = yard.shared / "data"
    path.write_text("not what was meant")
    reason = yard.reason(yard.send("true", inputs={"/in/a": {"uri": f"file://{path}", "digest": NO_DIGEST}}))
    assert f"not {NO_DIGEST}" in reason


def test_a_path_that_leads_out_of_the_allowed_folder_is_refused(yard: TestYard) -> None:
    (yard.shared / "link").symlink_to("/etc/passwd")
    for uri in (f"file://{yard.shared}/link", f"file://{yard.shared}/../key", f"file://{yard.shared}/%2e%2e/key"):
        assert "not under a folder that this node allows" in yard.reason(yard.send("true", inputs={"/in/a": uri}))


def test_attempts_are_used_up_and_each_is_on_the_record(yard: TestYard, counter: LineCounter) -> None:
    result = yard.shell(f"{SAY}; exit 7", attempts=3, inputs=counter.inputs)
    assert yard.reason(result) == "the command ended with exit code 7"
    assert [(a.exit_code, a.counted) for a in yard.ended(result.id).attempts] == [(7, True)] * 3
    until(lambda: counter.counts() == {result.id: 3}, "three runs")


# -- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", path], check=True)
    yield path
    subprocess.run(["umount", "-l", path], check=True)


@root_only
def test_a_job_that_fills_the_nodes_disk_harms_itself_only(yard: TestYard, small_disk: Path) -> None:
    yard.start_node("tiny", state=small_disk / "state", queues="tiny")
    try:
        full = yard.shell("dd if=/dev/zero of=/work/x bs=1M count=20", queue="tiny")
        assert yard.reason(full) == "the command ended with exit code 1"
        with suppress(Exception):
            full.get()
        assert "No space left on device" in str(full.result.args[1]["log_tail"])
        until(lambda: not list((small_disk / "state" / "jobs").iterdir()), "its files go")
        assert yard.send("true", queue="tiny").get(timeout=30)["exit_code"] == 0
        with (small_disk / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
            while True:  # until nothing is left for the node's own files
                ballast.write(b"\0" * 4096)
        # it fails, or it needed no byte and only its log could not be kept
        assert "no space left" in yard.ended(yard.send("true", queue="tiny").id).reason
        (small_disk / "ballast").unlink()
        assert yard.send("true", queue="tiny").get(timeout=30)["exit_code"] == 0
    finally:
        yard.forget_node("tiny")


@root_only
def test_outputs_that_the_store_has_no_room_for_fail_the_job(yard: TestYard, small_disk: Path) -> None:
    known = yard.store.store_id()
    assert known
    yard.store.forget_store()
    yard.start_node("tiny", store=small_disk / "store", queues="tiny")
    try:
        result = yard.shell("head -c 20000000 /dev/urandom >/work/x", queue="tiny", outputs={"o": "/work/x"})
        assert "space" in yard.reason(result)
        assert not list((small_disk / "store" / "new").iterdir())
        assert yard.shell("echo a >/work/x", queue="tiny", outputs={"o": "/work/x"}).get(timeout=30)["outputs"]["o"]
    finally:
        yard.forget_node("tiny")
        yard.store.keep_store_id(known, replace=True)


# -- Redis away


def fates(yard: TestYard, ids: list[str], *, timeout_s: float = 90.0) -> list[Record]:
    return [yard.ended(job_id, timeout_s=timeout_s) for job_id in ids]


def outage(yard: TestYard, counter: LineCounter, away_s: float) -> None:
    """Redis stops under running jobs, some of which end meanwhile, and queued ones, and comes back."""
    lasts_s = [away_s - 1, away_s - 1, away_s + 3, away_s + 3]
    running = [yard.send_quietly(f"{SAY}; sleep {s}", vcpus=1, inputs=counter.inputs) for s in lasts_s]
    for job_id in running:
        yard.running(job_id)
    queued = [yard.send_quietly(SAY, vcpus=1, inputs=counter.inputs) for _ in range(4)]
    until(lambda: yard.store.depth(["cpu"])["cpu"].index == 4, "the others wait")
    yard.redis_server.stop()
    threading.Event().wait(away_s)
    yard.redis_server.start()
    records = fates(yard, [*running, *queued])
    assert [r.state for r in records] == ["SUCCEEDED"] * 8
    assert [(r.losses, len(r.attempts)) for r in records] == [(0, 1)] * 8
    assert counter.counts() == dict.fromkeys((*running, *queued), 1)
    for job_id in (*running, *queued):
        assert yard.result(job_id)["exit_code"] == 0


def test_redis_may_be_away_for_longer_than_a_lease(yard: TestYard, counter: LineCounter) -> None:
    outage(yard, counter, 4 * LEASE_S)


@pytest.mark.full
def test_redis_may_be_away_for_30_s(yard: TestYard, counter: LineCounter) -> None:
    outage(yard, counter, 30)


def test_kill_9_of_redis_under_100_queued_and_8_running_jobs_loses_nothing(
    yard: TestYard, counter: LineCounter
) -> None:
    yard.forget_node("a")
    yard.start_node("a", vcpus=2)
    running = [yard.send_quietly(f"{SAY}; {UNTIL_LET_GO}", inputs=counter.inputs) for _ in range(8)]
    for job_id in running:
        yard.running(job_id)
    queued = [yard.send_quietly(SAY, inputs=counter.inputs) for _ in range(100)]
    yard.redis_server.kill9()
    yard.redis_server.start()
    counter.let_go()
    records = fates(yard, [*running, *queued], timeout_s=110)
    assert {r.state for r in records} == {"SUCCEEDED"}
    assert {len(r.attempts) for r in records} == {1}
    assert counter.counts() == dict.fromkeys((*running, *queued), 1)
    assert all(yard.result(job_id)["exit_code"] == 0 for job_id in (*running, *queued))
    yard.forget_node("a")
    yard.start_node("a", vcpus=4)


# -- the engine


@root_only
@pytest.mark.skipif(shutil.which("dockerd") is None, reason="an engine of the test's own is needed")
def test_a_restarted_engine_costs_no_attempt_and_leaves_nothing(
    yard: TestYard, counter: LineCounter, tmp_path_factory: pytest.TempPathFactory
) -> None:
    engine = PrivateEngine(tmp_path_factory.mktemp("engine"))
    try:
        engine.start()
        engine.take_image(yard.image)
        yard.start_node("p", queues="tiny", environment={"DOCKER_HOST": engine.host})
        script = f"{SAY}; {UNTIL_LET_GO}"
        long = [yard.send_quietly(script, queue="tiny", inputs=counter.inputs) for _ in range(3)]
        for job_id in long:
            yard.running(job_id)
        until(lambda: len(counter.lines()) == 3, "each has said that it runs")
        engine.stop()
        while_away = yard.send_quietly(SAY, queue="tiny", inputs=counter.inputs)
        until(lambda: yard.store.depth(["tiny"])["tiny"].total == 0, "the node holds it")
        counter.let_go()
        engine.start()
        records = fates(yard, [*long, while_away])
        assert [(r.state, r.reason) for r in records if r.state != "SUCCEEDED"] == []
        for record in records[:3]:
            assert [a.counted for a in record.attempts] == [False, True]
            assert "engine was restarted" in record.attempts[0].reason
        assert counter.counts() == {**dict.fromkeys(long, 2), while_away: 1}
        until(lambda: not engine.docker("ps", "-aq", "--filter", "label=batchyard.job").stdout, "no container is left")
        yard.healthy()
    finally:
        if "p" in yard.nodes:
            yard.forget_node("p")
        engine.remove()
