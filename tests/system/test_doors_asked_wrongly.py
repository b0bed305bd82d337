"""The command line asked wrongly, too early or too short, against a Redis and a controller; no node, no engine."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from batchyard.broker import keys
from batchyard.broker.endpoints import Endpoints
from yardtest.redis import free_port
from yardtest.wait import until

COMMAND = (sys.executable, "-P", "-m", "batchyard.broker.cli")
Run = Callable[..., tuple[int, str, str]]


def sent(batchyard: Run, *words: str) -> str:
    """A job that has been taken in; its id."""
    job_id = batchyard("submit", "--image", "busybox", *words)[1].strip()
    until(lambda: batchyard("status", job_id)[0] == 0, "it is taken in")
    return job_id


def test_following_waits_for_intake(controller: subprocess.Popen[str], batchyard: Run, fresh_redis_url: str) -> None:
    controller.send_signal(signal.SIGSTOP)
    client = redis.Redis.from_url(fresh_redis_url)

    def go_on() -> None:
        until(lambda: client.llen("cpu") == 1, "the job is sent")
        threading.Event().wait(0.5)  # intake is late: the log is asked for before the record is there
        controller.send_signal(signal.SIGCONT)

    late = threading.Thread(target=go_on)
    late.start()
    code, out, err = batchyard("submit", "--image", "busybox", "--expires-s", "1", "--follow")
    late.join()
    client.close()
    assert code == 130, err
    assert "FAILED" in out
    assert "no job" not in err


@pytest.mark.usefixtures("controller")
def test_asking_wrongly_is_2_and_what_is_not_there_is_1(batchyard: Run, tmp_path: Path) -> None:
    for words, code, said in (
        (("submit", "--image", "a", "--queue", "nosuch"), 2, "choose of cpu, gpu"),
        (("submit", "-f", str(tmp_path / "none.yaml")), 2, "cannot be read: No such file or directory; correct"),
        (("submit", "--", "true"), 2, "--image"),
        (("get", "sha256:zz", str(tmp_path / "out")), 2, "a digest is sha256: and 64 hex digits"),
        (("get", "nocolon", str(tmp_path / "out")), 2, "give DIGEST (sha256:…) or JOB:OUTPUT"),
        (("get", "nosuch:out", str(tmp_path / "out")), 1, 'no job "nosuch"'),
        (("get", "sha256:" + "0" * 64, str(tmp_path / "out")), 1, "correct the digest, --tenant or --store"),
        (("ls", "sha256:" + "0" * 64), 1, "correct the digest, --tenant or --store"),
        (("ls", "sha256:zz"), 2, "a digest is sha256:"),
        (("status", "nosuch"), 1, "the id is not whole"),
        (("logs", "nosuch"), 1, 'no job "nosuch"'),
    ):  # fmt: skip
        found = batchyard(*words)
        assert (found[0], said in found[2]) == (code, True), found


@pytest.mark.usefixtures("controller")
def test_a_short_id_stands_for_the_one_job_that_begins_so(batchyard: Run, fresh_redis_url: str) -> None:
    job_id = sent(batchyard, "--countdown-s", "1000")
    for command in ("status", "why", "ls", "logs"):
        assert batchyard(command, job_id[:8])[0] == 0
    client = redis.Redis.from_url(fresh_redis_url)
    like = job_id[:-1] + ("0" if job_id[-1] != "0" else "1")
    client.zadd(keys.JOBS, {like: 1})
    code, _, err = batchyard("cancel", job_id[:8])
    assert (code, like in err, job_id in err) == (2, True, True)
    client.zrem(keys.JOBS, like)
    client.close()
    code, _, err = batchyard("cancel", job_id, job_id[:7])
    assert (code, "at least 8 characters" in err) == (2, True)
    assert "RUNNABLE" in (said := batchyard("status", job_id)[1]) or "PENDING" in said  # none of both was cancelled
    assert batchyard("cancel", job_id[:8]) == (0, f"{job_id} is cancelled\n", "")
    assert batchyard("cancel", "ffff0000")[0] == 1 or job_id.startswith("ffff0000")


def test_a_job_that_is_not_taken_in_yet_is_cancelled_all_the_same(
    controller: subprocess.Popen[str], batchyard: Run
) -> None:
    controller.send_signal(signal.SIGSTOP)
    try:
        job_id = batchyard("submit", "--image", "busybox")[1].strip()
        code, out, _ = batchyard("cancel", job_id)
        assert (code, "not taken in yet" in out) == (0, True)
    finally:
        controller.send_signal(signal.SIGCONT)
    assert batchyard("wait", job_id)[0] == 130


@pytest.mark.usefixtures("controller")
def test_of_several_jobs_those_that_are_known_are_shown(batchyard: Run) -> None:
    job_id = sent(batchyard)
    code, out, err = batchyard("status", job_id, "nosuch")
    assert code == 1
    assert out.split()[:2] == ["id", job_id]
    assert 'error: no job "nosuch"' in err
    assert [one["id"] for one in json.loads(batchyard("status", "--json", "nosuch", job_id)[1])] == [job_id]


@pytest.mark.usefixtures("controller")
def test_a_list_in_a_pipe_has_one_line_a_job(batchyard: Run) -> None:
    job_id = sent(batchyard, "--name", "n" * 100)
    batchyard("cancel", job_id, "--reason", "long " * 200)
    batchyard("wait", job_id)
    _, line = batchyard("list")[1].splitlines()
    assert line.startswith(job_id)
    assert line.endswith("…")
    assert len(line) < 400


@pytest.mark.usefixtures("controller")
def test_who_stops_waiting_is_told_that_the_job_goes_on(batchyard: Run) -> None:
    job_id = sent(batchyard)
    hears = ["env", "--default-signal=INT"]  # also where the tests run in a shell's background, which ignores it
    process = subprocess.Popen(
        [*hears, *COMMAND, "wait", job_id], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    assert "RUNNABLE" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    said = process.stderr.read()
    assert process.wait(15) == 130
    assert f"the job goes on; `batchyard wait {job_id}`" in said


def test_a_yard_that_was_stopped_is_said_not_to_run(
    batchyard: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BATCHYARD_BROKER_URL", raising=False)
    url = f"redis://127.0.0.1:{free_port()}/0"
    gone = subprocess.Popen(["true"])
    gone.wait()
    for pid in (None, gone.pid):
        Endpoints(broker_url=url, result_backend=url, pid=pid).save(tmp_path)
        code, _, err = batchyard("list", "--state", str(tmp_path))
        assert code == 1
        assert f'the yard of "{tmp_path}" is not running; start it with `batchyard up --state {tmp_path}`' in err
    Endpoints(broker_url=url, result_backend=url, pid=os.getpid()).save(tmp_path)
    said = batchyard("list", "--state", str(tmp_path))[2]
    assert "Redis does not answer" in said
    assert ".;" not in said


@pytest.mark.parametrize("url", ["http://u:hunter2@host", "hunter2", "redis://:hunter2@host:port/0", "hunter2://x"])
def test_what_is_no_broker_is_refused_without_its_password(batchyard: Run, url: str) -> None:
    code, _, err = batchyard("list", "--broker", url)
    assert code == 2
    assert "a broker is redis://" in err
    assert "hunter2" not in err or url.startswith("hunter2:")


def test_a_list_on_a_narrow_terminal_has_one_line_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    from batchyard.broker.cli import show

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("COLUMNS", "80")
    row = ("i" * 36, "FAILED", "cpu", "busybox", "n1", "1", "3m05s", "1.0s", "it failed since " + "x " * 99)
    columns = ("ID", "STATE", "QUEUE", "JOB", "NODE", "EXIT", "AGE", "RAN", "REASON")
    show.print_table(columns, [row, row], empty="", cut=("JOB", "NODE", "REASON"))
    lines = screen.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("i" * 36)
    assert "FAILED" in lines[1]
