"""A producer that has only `celery[redis]`, in a virtual environment of its own, and no word of ours but the job."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from batchyard.broker import keys
from yardtest.wait import until
from yardtest.yard import Child, TestYard, running_yard

VENV = Path(__file__).parents[2] / "build" / "producer-venv"
PRELUDE = """
import json, sys, time, uuid
from datetime import datetime, timedelta, timezone
from celery import Celery, chain, chord, group, signature
app = Celery("theirs", broker=URL, backend=URL)

def job(script, queue="cpu", immutable=False, **more):
    fields = {"image": IMAGE, "command": ["sh", "-c", script], "vcpus": 0.25, "memory_mib": 32, **more}
    return app.signature("batchyard.run", kwargs={"job": fields}, queue=queue, immutable=immutable)

def theirs(name, *args, **more):
    return app.signature("theirs." + name, args=args, queue="theirs", **more)

def fate(result, timeout=60):
    try:
        return result.get(timeout=timeout)
    except Exception as error:
        return {"error": type(error).__name__, "args": error.args}

def writes(text, name="o"):
    return job("printf %s '" + text + "' >/work/" + name, outputs={name: "/work/" + name})
"""
TASKS = """
from celery import Celery
app = Celery("theirs", broker=URL, backend=URL)
app.conf.task_default_queue = "theirs"

@app.task(name="theirs.count")
def count(results):
    return {"theirs": [sorted(r["outputs"]) for r in results]}

@app.task(name="theirs.pass_on")
def pass_on(result):
    return result

@app.task(name="theirs.note")
def note(*args):
    app.backend.client.rpush("notes", repr(args))

@app.task(name="theirs.answer")
def answer():
    return 42
"""

Script = Callable[[str], Any]


@pytest.fixture(scope="session")
def python() -> Path:
    """The interpreter of the producer's virtual environment, made once."""
    VENV.parent.mkdir(exist_ok=True)
    stamp, wanted = VENV / "stamp", f"celery[redis] for {sys.version}"
    with (VENV.parent / "producer-venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (stamp.exists() and stamp.read_text() == wanted):
            subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
            subprocess.run([VENV / "bin" / "pip", "install", "-q", "celery[redis]>=5.7,<5.8"], check=True)
            stamp.write_text(wanted)
    return VENV / "bin" / "python"


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory, image: str) -> Iterator[TestYard]:
    with running_yard(tmp_path_factory.mktemp("yard") / "y", image) as running:
        yield running
        running.nothing_left()
        running.healthy()


@pytest.fixture
def script(yard: TestYard, python: Path, tmp_path: Path) -> Script:
    """Runs a script in the producer's environment; what it leaves in `out`."""

    def run(text: str) -> Any:
        whole = f"URL, IMAGE = {yard.url!r}, {yard.image!r}\n{PRELUDE}\n{textwrap.dedent(text)}\nprint(json.dumps(out))"
        ran = subprocess.run(
            [python, "-I", "-c", whole], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
        return json.loads(ran.stdout)

    return run


@pytest.fixture(scope="module")
def stock_worker(yard: TestYard, python: Path, tmp_path_factory: pytest.TempPathFactory) -> Child:
    """The user's own Celery worker, with tasks of their own."""
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "tasks.py").write_text(f"URL = {yard.url!r}\n{TASKS}")
    words = [str(python), "-m", "celery", "-A", "tasks", "--workdir", str(folder), "worker", "-P", "solo"]
    child = yard.start_other("theirs", [*words, "-Q", "theirs", "-l", "INFO", "--without-gossip", "--without-mingle"])
    child.wait_for("ready.")
    return child


def test_the_producer_has_no_package_of_ours(script: Script) -> None:
    assert script(
        """
        import importlib.util
        out = importlib.util.find_spec("batchyard") is None
        """
    )


def test_one_job_gives_a_json_result(script: Script, yard: TestYard) -> None:
    result = script("""out = fate(writes("abc").apply_async())""")
    assert (result["exit_code"], result["node"], result["attempt"]) == (0, "a", 1)
    output = result["outputs"]["o"]
    assert (output["size"], output["digest"][:7]) == (3, "sha256:")
    assert result["log"].startswith("sha256:")
    assert 1.7e9 < result["started"] <= result["ended"]
    record = yard.store.record(result["job_id"])
    assert (record.state, record.result, record.exit_code) == ("SUCCEEDED", result, 0)


def test_a_failed_job_raises_with_message_and_details(script: Script) -> None:
    told = script("""out = fate(job("echo to stdout; echo to stderr >&2; exit 3").apply_async(task_id="failing"))""")
    assert told["error"] == "JobFailed"
    message, details = told["args"]
    assert message == "job failing failed: the command ended with exit code 3"
    tail = details.pop("log_tail")
    assert sorted(tail.splitlines()) == ["to stderr", "to stdout"]
    assert details == {"exit_code": 3, "reason": "the command ended with exit code 3", "job_id": "failing"}


def test_a_chain_of_three_steps_hands_its_outputs_on(script: Script) -> None:
    first, last, content = script(
        """
        step = lambda: job("cat /in/a /in/a >/work/o", inputs={"/in/a": {"from": "o"}}, outputs={"o": "/work/o"})
        r = chain(writes("ab"), step(), step()).apply_async()
        last = fate(r)
        digest = last["outputs"]["o"]["digest"]
        shown = fate(job("test $(cat /in/a) = abababab", inputs={"/in/a": digest}).apply_async())
        out = [fate(r.parent.parent), last, shown]
        """
    )
    assert first["outputs"]["o"]["size"] == 2
    assert last["outputs"]["o"]["size"] == 8
    assert content["exit_code"] == 0


def test_a_chord_of_jobs_gives_its_body_a_folder_in_group_order(script: Script) -> None:
    body, one = script(
        """
        members = lambda: [writes(f"part{n}") for n in range(4)]
        check = '''test "$(ls /in/p | xargs)" = "0 1 2 3" && for n in 0 1 2 3; do
            test $(cat /in/p/$n/o) = part$n || exit 9; done; cat /in/p/*/o >/work/all'''
        body = job(check, inputs={"/in/p": {"from": "o"}}, outputs={"all": "/work/all"})
        one = job("test $(cat /in/x) = part2", inputs={"/in/x": {"from": "o", "index": 2}})
        out = [fate(chord(members(), body).apply_async()), fate(chord(members(), one).apply_async())]
        """
    )
    assert body["outputs"]["all"]["size"] == 20
    assert one["exit_code"] == 0


def test_a_chord_with_a_failing_member_fails_and_its_body_never_runs(script: Script, yard: TestYard) -> None:
    told, by_id, body = script(
        """
        r = chord([writes("a"), job("exit 5"), writes("b")], job("true")).apply_async()
        out = [fate(r), fate(app.AsyncResult(r.id)), r.id]
        """
    )
    assert (told["error"], told["args"][1]["exit_code"]) == ("JobFailed", 5)  # get() raises what the member raised
    assert by_id["error"] == "ChordError"
    assert "exit code 5" in by_id["args"][0]
    assert yard.peek(body) is None


def test_a_chords_body_may_be_a_task_of_the_users_own_worker(script: Script, stock_worker: Child) -> None:
    assert script("""out = fate(chord([writes("a"), writes("b")], theirs("count")).apply_async())""") == {
        "theirs": [["o"], ["o"]]
    }


def test_a_chain_may_go_from_ours_to_theirs_and_back(script: Script, stock_worker: Child) -> None:
    result = script(
        """
        last = job("test $(cat /in/a) = there-and-back", inputs={"/in/a": {"from": "o"}})
        out = fate(chain(writes("there-and-back"), theirs("pass_on"), last).apply_async())
        """
    )
    assert result["exit_code"] == 0


def test_members_of_both_kinds_meet_in_one_chord(script: Script, stock_worker: Child) -> None:
    result = script("""out = fate(chord([job("true"), theirs("answer")], theirs("pass_on")).apply_async())""")
    assert (result[0]["exit_code"], result[1]) == (0, 42)


def test_links_and_errbacks_are_sent(script: Script, stock_worker: Child, yard: TestYard) -> None:
    good, bad, linked = script(
        """
        linked = job("true").set(task_id=str(uuid.uuid4()))
        good = job("true").apply_async(link=[theirs("note"), linked], link_error=theirs("note", immutable=True))
        bad = job("exit 2").apply_async(link=theirs("note"), link_error=theirs("note"))
        fate(good), fate(bad)
        out = [good.id, bad.id, fate(app.AsyncResult(linked.options["task_id"]))]
        """
    )
    assert linked["exit_code"] == 0
    until(lambda: yard.redis.llen("notes") >= 2, "two notes were written")
    kept: list[Any] = yard.redis.lrange("notes", 0, -1)
    notes = sorted(note.decode() for note in kept)
    assert len(notes) == 2
    assert sum(good in note and "exit_code" in note for note in notes) == 1
    assert sum(note == f"('{bad}',)" for note in notes) == 1


def test_an_ignored_result_is_not_stored(script: Script, yard: TestYard) -> None:
    job_id = script("""out = job("true").apply_async(ignore_result=True).id""")
    assert yard.ended(job_id).state == "SUCCEEDED"
    assert yard.redis.get(keys.result(job_id)) is None


def test_countdown_and_eta_hold_a_job_back(script: Script, yard: TestYard) -> None:
    ids, (sent, past) = script(
        """
        now = time.time()
        a = job("true").apply_async(countdown=2)
        b = job("true").apply_async(eta=datetime.now(timezone.utc) + timedelta(seconds=2))
        past = time.time()
        c = job("true").apply_async(eta=datetime.now() - timedelta(days=1))
        fate(a), fate(b), fate(c)
        out = [[a.id, b.id, c.id], [now, past]]
        """
    )
    late, also, at_once = (yard.store.record(i).started for i in ids)
    assert late is not None
    assert also is not None
    assert at_once is not None
    assert 2.0 <= late - sent < 8
    assert 1.9 <= also - sent < 8
    assert at_once - past < 6


def test_a_running_job_is_revoked(script: Script, yard: TestYard) -> None:
    told, took = script(
        """
        r = job("exec sleep 60").apply_async()
        while r.state != "STARTED":
            time.sleep(0.05)
        t = time.time()
        app.control.revoke(r.id, terminate=True)
        out = [fate(r), time.time() - t]
        """
    )
    assert told["error"] == "TaskRevokedError"
    assert took < 3


def test_priorities_order_what_waits_whatever_list_it_lies_in(yard: TestYard, script: Script) -> None:
    """A stock producer with stock `priority_steps` puts 4 and 5 in one list; 0 is the most urgent."""
    yard.nodes["a"].end()
    ids = script(
        """
        out = [[p, job("true").apply_async(priority=p).id] for p in (5, 9, 0, 4, 7, 3, 8, 6, 1, 2)]
        out += [[0, job("true").apply_async().id]]
        """
    )
    until(lambda: yard.store.depth(["cpu"])["cpu"].index == len(ids), "all were taken in")
    yard.start_node("a", vcpus=0.25)  # one at a time
    started = {job_id: yard.ended(job_id).started or 0 for _, job_id in ids}
    order = [priority for priority, _ in sorted(ids, key=lambda pair: started[pair[1]])]
    assert order == sorted(order)
    assert started[ids[2][1]] < started[ids[-1][1]]  # equals by arrival
    yard.nodes["a"].end()
    yard.start_node("a", vcpus=4)


def test_a_job_revoked_with_no_node_alive_never_runs(yard: TestYard, script: Script) -> None:
    yard.nodes["a"].end()
    told, job_id = script(
        """
        r = job("true").apply_async()
        app.control.revoke(r.id)
        out = [fate(r, timeout=20), r.id]
        """
    )
    assert told["error"] == "TaskRevokedError"
    yard.start_node("a")
    script("""out = fate(job("true").apply_async())""")
    record = yard.store.record(job_id)
    assert (record.state, record.started, record.attempts) == ("FAILED", None, ())


def test_a_revoke_that_comes_before_its_job_is_kept(script: Script, yard: TestYard) -> None:
    told = script(
        """
        app.control.revoke("before-its-job", reply=True, timeout=1)
        out = fate(job("true").apply_async(task_id="before-its-job"))
        """
    )
    assert told["error"] == "TaskRevokedError"
    assert yard.store.record("before-its-job").started is None


def test_a_job_that_waits_too_long_expires_and_so_does_the_rest_of_its_chain(script: Script, yard: TestYard) -> None:
    told, rest, job_id = script(
        """
        r = chain(job("true", vcpus=4).set(expires=1), job("true")).apply_async
        blocker = job("exec sleep 60", vcpus=4).apply_async()
        while blocker.state != "STARTED":
            time.sleep(0.05)
        last = r()
        out = [fate(last.parent), fate(last), last.parent.id]
        app.control.revoke(blocker.id, terminate=True)
        fate(blocker)
        """
    )
    assert told["error"] == "TaskRevokedError"
    assert "expired" in str(told["args"])
    assert rest["error"] == "TaskRevokedError"
    assert yard.store.record(job_id).started is None


def test_an_immutable_step_has_no_previous_result(script: Script) -> None:
    good, bad = script(
        """
        plain = chain(writes("a"), job("true", immutable=True))
        asks = chain(writes("a"), job("true", immutable=True, inputs={"/in/a": {"from": "o"}}))
        out = [fate(plain.apply_async()), fate(asks.apply_async())]
        """
    )
    assert good["exit_code"] == 0
    assert bad["error"] == "JobFailed"
    assert "there is no previous result" in bad["args"][0]


def test_a_previous_result_that_is_not_ours_fails_the_job_at_the_door(
    script: Script, stock_worker: Child, yard: TestYard
) -> None:
    told = script(
        """
        out = fate(chain(theirs("answer"), job("true", inputs={"/in/a": {"from": "o"}})).apply_async())
        """
    )
    assert told["error"] == "JobFailed"
    message, details = told["args"]
    assert "the previous result is not that of a Batchyard job" in message
    assert details["exit_code"] is None
    assert yard.store.record(details["job_id"]).attempts == ()


def test_a_name_that_the_previous_job_did_not_publish_fails_at_the_door(script: Script) -> None:
    told = script(
        """
        out = fate(chain(writes("a"), job("true", inputs={"/in/a": {"from": "nosuch"}})).apply_async())
        """
    )
    assert "no output of this name; it has o" in told["args"][0]


def test_what_stands_in_a_message_is_gone_from_redis_after_intake(script: Script, yard: TestYard) -> None:
    """Clear until intake, sealed after it: the value is in no key once the job has ended."""
    script("""out = fate(job("test $A = pl41n-v4lue", environment={"A": "pl41n-v4lue"}).apply_async())""")
    for key in yard.redis.scan_iter():
        assert b"pl41n-v4lue" not in (yard.redis.dump(key) or b""), key
