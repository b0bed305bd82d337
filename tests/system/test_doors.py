"""Client and command line against a real Redis and a controller in a process of its own; no node, no engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from batchyard.broker import cli
from batchyard.broker.client import Client
from batchyard.broker.endpoints import Endpoints
from batchyard.broker.errors import InvalidJob, NotEnded, NotFound
from batchyard.broker.followups import Followups
from batchyard.broker.record import Attempt, Claimed
from batchyard.broker.seal import KeyRing
from batchyard.broker.state import State
from batchyard.broker.store import Free, Yard
from yardtest.wait import until

JOB = {"image": "busybox", "command": ["true"], "vcpus": 0.5, "memory_mib": 64}
COMMAND = (sys.executable, "-P", "-m", "batchyard.broker.cli")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """A controller at work, and what a node would do by hand."""

    state: Path
    url: str
    controller: subprocess.Popen[str]
    node: Yard

    def end(self, state: State, exit_code: int, **result: Any) -> str:
        """Claims the next job and ends it; its id."""
        free = Free(vcpus=2, memory_mib=2000, gpus=0, disk_gib=10)
        job: Claimed = until(
            lambda: next(iter(self.node.claim("n1", os.urandom(8).hex(), free, ["cpu"], lease_s=30)[1]), None),
            "a job can be claimed",
        )  # type: ignore[assignment]
        message = self.node.open(job.id, job.document).message
        now = time.time()
        follow = Followups(self.url, result_expires_s=100)
        effects = follow.succeeded(message, {"job_id": job.id, **result})
        attempt = Attempt(node="n1", started=now, ended=now, exit_code=exit_code, reason="done")
        fields = {"exit_code": str(exit_code), "node": "n1", "reason": "done", "ended": str(int(now * 1000))}
        assert self.node.settle(job, state, attempt, fields, effects, retention_s=100)
        return job.id


@pytest.fixture
def ground(fresh_redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    for name in ("BATCHYARD_BROKER_URL", "BATCHYARD_KEY_FILE", "BATCHYARD_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BATCHYARD_STATE", str(tmp_path))
    url, keys = fresh_redis_url, tmp_path / "keys.json"
    Endpoints(broker_url=url, result_backend=url, key_file=str(keys), store=str(tmp_path / "store")).save(tmp_path)
    with (tmp_path / "controller.log").open("w") as log:
        process = subprocess.Popen([*COMMAND, "controller"], stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready: controller\n", (tmp_path / "controller.log").read_text()
        yield Ground(state=tmp_path, url=url, controller=process, node=Yard(url, KeyRing.load(keys)))
    finally:
        process.terminate()
        assert process.wait(15) == 0


@pytest.fixture
def client(ground: Ground) -> Iterator[Client]:
    with Client.connect(ground.state) as opened:
        yield opened


@pytest.fixture
def batchyard(ground: Ground, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line: exit code, stdout, stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.run(words)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_a_job_is_submitted_seen_waited_for_and_listed(ground: Ground, client: Client) -> None:
    job_id = client.submit(JOB, priority=3)
    until(lambda: client.list(5), "it is taken in")
    assert client.status(job_id).state is State.RUNNABLE
    assert client.status(job_id).priority == 3
    with pytest.raises(NotEnded, match=f'job "{job_id}" is RUNNABLE'):
        client.wait([job_id], timeout_s=0.1)
    seen: list[State] = []
    ending = threading.Timer(0.2, lambda: ground.end(State.SUCCEEDED, 0))
    ending.start()
    began = time.monotonic()
    records = client.wait([job_id], timeout_s=20, on_change=lambda r: seen.append(r.state))
    assert time.monotonic() - began < 10
    assert [r.state for r in records] == [State.SUCCEEDED]
    assert seen[0] is State.RUNNABLE
    assert seen[-1] is State.SUCCEEDED
    assert [r.id for r in client.list(states={State.SUCCEEDED})] == [job_id]
    assert client.list(states={State.FAILED}) == []
    ending.join()


@pytest.mark.parametrize(
    ("job", "queue", "error", "words"),
    [
        ({**JOB, "vcpus": -1}, "cpu", InvalidJob, "job.vcpus = -1"),
        ({**JOB, "vcpus": 4000}, "cpu", InvalidJob, "can meet the demand"),
        ({**JOB, "inputs": {"/in/a": {"from": "x"}}}, "cpu", InvalidJob, "needs a previous step"),
        (JOB, "nosuch", NotFound, 'queue "nosuch" is not known; choose of cpu, gpu'),
    ],
)
def test_a_job_that_can_never_run_is_refused_at_the_door(
    client: Client, job: dict[str, Any], queue: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words.replace(".", r"\.")):
        client.submit(job, queue=queue)
    assert client.yard.depth(["cpu"])["cpu"].total == 0


def test_values_of_a_job_are_only_in_the_message_itself_until_intake(ground: Ground, client: Client) -> None:
    ground.controller.send_signal(signal.SIGSTOP)
    try:
        client.submit({**JOB, "environment": {"PASSWORD": "hunter2"}})
        (raw,) = ground.node.redis.lrange("cpu", 0, -1)
        assert "hunter2" not in json.dumps(json.loads(raw)["headers"])
    finally:
        ground.controller.send_signal(signal.SIGCONT)
    until(lambda: ground.node.redis.llen("cpu") == 0, "it is taken in")
    found = [k for k in ground.node.redis.keys("*") if b"hunter2" in (ground.node.redis.dump(k) or b"")]
    assert found == []


def test_wait_exits_with_the_first_code_that_is_not_0(ground: Ground, batchyard: Any) -> None:
    ids = [batchyard("submit", "--image", "busybox", "--", "true")[1].strip() for _ in range(2)]
    codes = dict.fromkeys(ids, 0)
    codes[ground.end(State.SUCCEEDED, 0)] = 0
    codes[ground.end(State.FAILED, 7)] = 7
    assert batchyard("wait", *ids)[0] == 7
    code, out, _ = batchyard("wait", "--json", *ids)
    assert code == 7
    assert [r["exit_code"] for r in json.loads(out)] == [codes[i] for i in ids]


def test_a_cancelled_job_ends_at_once_and_wait_exits_with_130(batchyard: Any) -> None:
    job_id = batchyard("submit", "--image", "busybox", "--countdown-s", "1000")[1].strip()
    until(lambda: batchyard("status", job_id)[0] == 0, "it is taken in")
    assert batchyard("cancel", job_id, "--reason", "not needed") == (0, f"{job_id} is cancelled\n", "")
    code, out, _ = batchyard("wait", job_id)
    assert (code, out) == (130, f"{job_id} FAILED: not needed\n")
    assert batchyard("cancel", job_id)[1] == f"{job_id} has ended already\n"
    code, _, err = batchyard("logs", job_id)
    assert code == 1
    assert "has no log: not needed" in err


def test_an_expired_job_exits_with_130(batchyard: Any) -> None:
    assert batchyard("submit", "--image", "busybox", "--expires-s", "0.2", "--wait")[0] == 130


def test_waiting_has_an_end_when_one_was_given(batchyard: Any) -> None:
    code, _, err = batchyard("wait", "--timeout-s", "0.2", "nosuch")
    assert code == 124
    assert "is not known to the yard yet" in err


def test_queues_show_what_waits_wherever_it_stands(batchyard: Any) -> None:
    for more in ([], [], ["--countdown-s", "1000"]):
        batchyard("submit", "--image", "busybox", *more)
    shown = until(
        lambda: [q for q in json.loads(batchyard("queues", "--json")[1]) if q["depth"]["lists"] == 0], "intake"
    )
    assert shown[0]["name"] == "cpu"
    assert shown[0]["depth"] == {"lists": 0, "index": 2, "delayed": 1, "total": 3}
    assert batchyard("queues")[1].splitlines()[1].split()[:5] == ["cpu", "ENABLED", "1", "3", "1"]


def test_a_node_is_up_while_it_beats(ground: Ground, client: Client, batchyard: Any) -> None:
    ground.node.renew("n1", {"vcpus": "2", "queues": "cpu"}, {}, lease_s=30)
    (node,) = client.nodes()
    assert (node.name, node.up, node.jobs, node.queues) == ("n1", True, 0, ("cpu",))
    assert {q.name: q.nodes for q in client.queues()} == {"cpu": ("n1",), "gpu": ()}
    assert batchyard("nodes")[1].splitlines()[1].split()[:3] == ["n1", "up", "0"]


def test_dead_letters_are_listed_shown_and_dropped(ground: Ground, batchyard: Any) -> None:
    ground.node.redis.lpush("cpu", b"\xff not a message")
    until(lambda: json.loads(batchyard("deadletters", "list", "--json")[1]), "it is a dead letter")
    (letter,) = json.loads(batchyard("deadletters", "list", "--json")[1])
    assert "not a Celery message" in letter["reason"]
    code, out, _ = batchyard("deadletters", "show", letter["number"])
    assert code == 0
    assert "not a message" in out
    assert batchyard("deadletters", "show", "99")[0] == 1
    assert batchyard("deadletters", "drop", letter["number"])[1] == "dropped 1\n"
    assert batchyard("deadletters", "list")[1] == "no dead letters\n"


def test_files_and_directories_go_in_and_come_back(batchyard: Any, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_text("hello\n")
    tree = batchyard("put", str(folder))[1].strip()
    blob = json.loads(batchyard("put", "--json", str(folder / "a"))[1])
    assert (blob["size"], blob["kind"]) == (6, "file")
    assert batchyard("get", tree, str(tmp_path / "back"))[0] == 0
    assert (tmp_path / "back" / "a").read_text() == "hello\n"
    assert batchyard("get", blob["digest"], str(tmp_path / "file"))[0] == 0
    assert (tmp_path / "file").read_text() == "hello\n"
    code, _, err = batchyard("get", blob["digest"], str(tmp_path / "file"))
    assert (code, "exists already" in err) == (1, True)
    assert batchyard("get", "sha256:" + "0" * 64, str(tmp_path / "none"))[0] == 1
    assert not (tmp_path / "none").exists()


def test_a_local_file_is_put_and_named_as_an_input(client: Client, batchyard: Any, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("hello\n")
    (tmp_path / "job.yaml").write_text("image: busybox\ncommand: [cat, /in/a]\nvcpus: 0.5\n")
    code, out, err = batchyard(
        "submit", "-f", str(tmp_path / "job.yaml"), "--input", f"/in/a=@{tmp_path / 'a'}", "--json"
    )
    assert code == 0, err
    until(lambda: client.list(), "it is taken in")
    record = client.status(json.loads(out)["id"])
    assert (record.image, record.vcpus, record.state) == ("busybox", 0.5, State.RUNNABLE)


def test_a_second_controller_stands_by_and_takes_over(ground: Ground, batchyard: Any) -> None:
    process = subprocess.Popen([*COMMAND, "controller"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("ready: controller, standing by")
        ground.controller.send_signal(signal.SIGTERM)
        ground.controller.wait(10)
        job_id = batchyard("submit", "--image", "busybox")[1].strip()
        until(lambda: batchyard("status", job_id)[0] == 0, "the other took it in")
    finally:
        process.terminate()
        assert process.wait(15) == 0


def test_a_configuration_is_kept_for_the_next_start(ground: Ground, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "yard.yaml"
    file.write_text("queues: {q: {environments: [e]}}\nenvironments: {e: {vcpus: 1, memory_mib: 900}}\n")
    ground.controller.terminate()
    assert ground.controller.wait(15) == 0
    for words in (["--config", str(file)], []):
        process = subprocess.Popen([*COMMAND, "controller", *words], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready: controller\n"
        process.terminate()
        assert process.wait(15) == 0
        assert list(client.yard.config().queues) == ["q"]
    file.write_text("queues: {q: {environments: [f]}}\nenvironments: {e: {vcpus: 1, memory_mib: 900}}\n")
    ran = subprocess.run([*COMMAND, "controller", "--config", str(file)], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert 'environment "f" is not defined' in ran.stderr
