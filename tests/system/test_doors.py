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

from batchyard.broker import arrival
from batchyard.broker.client import Client
from batchyard.broker.errors import InvalidJob, NotEnded, NotFound
from batchyard.broker.followups import Followups
from batchyard.broker.record import Attempt, Claimed, Record
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
        whole = {"job_id": job.id, **result}
        effects = follow.succeeded(message, whole)
        attempt = Attempt(node="n1", started=now, ended=now, exit_code=exit_code, reason="done")
        fields = {"exit_code": str(exit_code), "node": "n1", "reason": "done", "ended": str(int(now * 1000))}
        fields["result"] = json.dumps(whole)
        assert self.node.settle(job, state, attempt, fields, effects, retention_s=100)
        return job.id


@pytest.fixture
def ground(controller: subprocess.Popen[str], fresh_redis_url: str, tmp_path: Path) -> Ground:
    ring = KeyRing.load(tmp_path / "keys.json")
    return Ground(state=tmp_path, url=fresh_redis_url, controller=controller, node=Yard(fresh_redis_url, ring))


@pytest.fixture
def client(ground: Ground) -> Iterator[Client]:
    with Client.connect(ground.state) as opened:
        yield opened


@pytest.fixture
def batchyard(ground: Ground, batchyard: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    return batchyard


def test_a_job_is_submitted_seen_waited_for_and_listed(ground: Ground, client: Client) -> None:
    job_id = client.submit(JOB, priority=3)
    until(lambda: client.list(5), "it is taken in")
    assert client.status(job_id).state is State.RUNNABLE
    assert client.status(job_id).priority == 3
    with pytest.raises(NotEnded, match=f'job "{job_id}" is RUNNABLE'):
        client.wait([job_id], timeout_s=0.1)
    seen: list[State] = []
    waits = threading.Event()

    def note(record: Record) -> None:
        seen.append(record.state)
        waits.set()

    ending = threading.Thread(target=lambda: (waits.wait(20), ground.end(State.SUCCEEDED, 0)))
    ending.start()
    began = time.monotonic()
    records = client.wait([job_id], timeout_s=20, on_change=note)
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
        lambda: [
            q for q in json.loads(batchyard("queues", "--json")[1]) if q["name"] == "cpu" and q["depth"]["lists"] == 0
        ],
        "intake",
    )
    assert shown[0]["depth"] == {"lists": 0, "index": 2, "delayed": 1, "blocked": 0, "total": 3}
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


def held(ground: Ground, batchyard: Any, *words: str) -> str:
    """A job that was sent and has been taken in; its id."""
    job_id = str(batchyard("submit", "--image", "busybox", *words)[1].strip())
    until(lambda: batchyard("status", job_id)[0] == 0, "it is taken in")
    return job_id


def reasons(batchyard: Any, job_id: str) -> list[dict[str, Any]]:
    """What `why` says of a job, by code."""
    return list(json.loads(batchyard("why", "--json", job_id)[1])["reasons"])


def test_why_says_a_waiting_jobs_place_and_what_nodes_lack(ground: Ground, batchyard: Any) -> None:
    small = held(ground, batchyard, "--vcpus", "0.5")
    last = held(ground, batchyard, "--vcpus", "1")
    urgent = held(ground, batchyard, "--vcpus", "0.25", "--priority", "0")
    assert [r["code"] for r in reasons(batchyard, small)] == ["place", "no_node"]
    has = {"vcpus": "1.2", "memory_mib": "4096", "gpus": "0", "disk_gib": "10", "queues": "cpu", "most_jobs": "64"}
    ground.node.renew("n1", has, {}, lease_s=30)
    assert [(r["ahead"], r["waiting"]) for r in (reasons(batchyard, i)[0] for i in (small, last, urgent))] == [
        (0, 3), (1, 3), (2, 3),
    ]  # fmt: skip
    assert reasons(batchyard, last)[1]["code"] == "has_room"
    free = Free(vcpus=1.2, memory_mib=4096, gpus=0, disk_gib=10)
    (job,) = ground.node.claim("n1", "c1", free, ["cpu"], lease_s=30)[1]
    assert job.id == small
    place, lack = reasons(batchyard, last)
    assert (place["ahead"], place["waiting"]) == (0, 2)
    assert (lack["code"], lack["lacks"]) == ("lacks_now", {"vcpus": 0.3})
    assert lack["text"] == "it fits n1 when empty; n1 now lacks 0.3 vCPU of 1.2 (1 job there)"
    assert reasons(batchyard, small)[0]["code"] == "starting"


def test_why_knows_delayed_cancelled_ended_and_unknown_jobs(ground: Ground, batchyard: Any) -> None:
    delayed = held(ground, batchyard, "--countdown-s", "1000", "--expires-s", "2000")
    assert [r["code"] for r in reasons(batchyard, delayed)] == ["delayed", "expires"]
    batchyard("cancel", delayed, "--reason", "not needed")
    batchyard("wait", delayed)
    code, out, _ = batchyard("why", delayed)
    assert (code, out) == (0, "it was ended before it ran: not needed\n")
    done = held(ground, batchyard)
    ground.end(State.FAILED, 7)
    assert reasons(batchyard, done)[0]["code"] == "failed"
    code, out, _ = batchyard("why", "nosuch")
    assert code == 1
    assert out.startswith("no such job")
    code, out, err = batchyard("cancel", "nosuch")
    assert (code, out) == (1, "")
    assert 'no job "nosuch" is known' in err
    assert [r["code"] for r in reasons(batchyard, "nosuch")] == ["unknown"]
    assert batchyard("cancel", "nosuch", "--ahead", "--reason", "never")[0] == 0
    assert [r["code"] for r in reasons(batchyard, "nosuch")] == ["cancel_stored"]


def test_why_finds_a_message_that_nobody_takes_in(
    ground: Ground, batchyard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground.controller.send_signal(signal.SIGSTOP)
    try:
        ids = [batchyard("submit", "--image", "busybox")[1].strip() for _ in range(3)]
        found = reasons(batchyard, ids[2])
        assert [(r["code"], r["queue"], r["before"]) for r in found] == [("waits_for_intake", "cpu", 2)]
        waited: list[float] = []
        real = arrival.missing

        def look(*asked: Any, patience_s: float) -> tuple[list[str], bool]:
            waited.append(patience_s)
            return real(*asked, patience_s=min(patience_s, 0.05))

        monkeypatch.setattr(arrival, "missing", look)
        code, _, err = batchyard("status", *ids)
        assert (code, err.count(" yet: messages still wait to be taken in")) == (1, 3)
        assert batchyard("ls", f"{ids[0]}:o")[0] == 1
        once = arrival.PATIENCE_S
        assert waited == [once, 0, 0, 0, once], "once for all jobs, and not for one with the name of an output"
    finally:
        ground.controller.send_signal(signal.SIGCONT)


def test_ls_lists_jobs_outputs_and_trees(ground: Ground, batchyard: Any, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "a").write_text("hello\n")
    (folder / "large").write_bytes(bytes(300_000))
    (folder / "sub" / "esc\x1b[31m").write_text("x")
    tree = json.loads(batchyard("put", "--json", str(folder))[1])
    kept = {"digest": tree["digest"], "size": tree["size"], "kind": "tree"}
    job_id = held(ground, batchyard)
    assert batchyard("ls", job_id)[1].startswith("no outputs: the job is RUNNABLE, they are there at its end")
    assert ground.end(State.SUCCEEDED, 0, outputs={"t": kept}) == job_id
    assert [r["id"] for r in json.loads(batchyard("ls", "--json")[1])] == [job_id]
    assert batchyard("ls", "--status", "FAILED")[1] == "no jobs\n"
    assert batchyard("ls", job_id)[1].splitlines()[1].split()[:2] == ["t", "tree"]
    assert json.loads(batchyard("ls", "--json", job_id)[1]) == [{"name": "t", **kept}]
    expected = ["-0444      6 a", "-0444 300000 large", "d0755        sub/", "-0444      1 sub/esc\\x1b[31m"]
    for name in (f"{job_id}:t", tree["digest"]):
        assert batchyard("ls", name)[1].splitlines() == expected
    long_ = batchyard("ls", "-l", tree["digest"])[1].splitlines()
    small, large = (next(word for word in line.split() if word.startswith("sha256:")) for line in long_[:2])
    assert batchyard("ls", large)[1] == f"a file of 300000 bytes: {large}\n"
    code, _, err = batchyard("ls", small)
    assert (code, "a small file of a directory is no blob of its own: get DIRECTORY/PATH" in err) == (1, True)
    assert batchyard("get", f"{job_id}:t/a", "-")[:2] == (0, "hello\n")
    part = {"digest": tree["digest"], "part": "sub", "path": str(tmp_path / "part"), "kind": "tree"}
    assert json.loads(batchyard("get", "--json", f"{tree['digest']}/sub/", str(tmp_path / "part"))[1]) == part
    assert [path.read_text() for path in (tmp_path / "part").iterdir()] == ["x"]
    code, _, err = batchyard("get", f"{job_id}:t/b", "-")
    assert (code, f"tree {tree['digest']} has no 'b'; `batchyard ls" in err) == (1, True)
    assert "this is a directory" in batchyard("get", f"{job_id}:t/sub", "-")[2]
    assert batchyard("get", f"{job_id}:t", str(tmp_path / "back"))[0] == 0
    assert (tmp_path / "back" / "a").read_text() == "hello\n"
    code, _, err = batchyard("ls", f"{job_id}:nosuch")
    assert (code, f'job "{job_id}" has no output "nosuch"; it has t' in err) == (1, True)
    assert batchyard("ls", "nosuch")[0] == 1


def test_a_file_of_several_jobs_is_checked_first_and_sent_in_order(
    ground: Ground, client: Client, batchyard: Any, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_text("hello\n")
    file = tmp_path / "in" / "jobs.yaml"
    file.write_text(
        "image: a\ninputs: {/in/a: '@a'}\n---\n- {image: b, queue: gpu, priority: 5}\n- {image: c, vcpus: -1}\n"
    )
    code, out, err = batchyard("submit", "-f", str(file))
    assert (code, out) == (2, "")
    assert f"{file}, line 5: job.vcpus = -1" in err
    file.write_text(file.read_text().replace("vcpus: -1", "vcpus: 1"))
    shown = json.loads(batchyard("submit", "-f", str(file), "--dry-run")[1])
    assert [(s["image"], s["queue"]) for s in shown] == [("a", "cpu"), ("b", "gpu"), ("c", "cpu")]
    assert client.yard.depth(["cpu", "gpu"])["cpu"].total == 0
    code, out, _ = batchyard("submit", "-f", str(file))
    ids = out.split()
    assert (code, len(ids)) == (0, 3)
    until(lambda: len(client.records(ids)) == 3, "all are taken in")
    found = client.records(ids)
    assert [(found[i].image, found[i].queue, found[i].priority) for i in ids] == [
        ("a", "cpu", 0), ("b", "gpu", 5), ("c", "cpu", 0),
    ]  # fmt: skip
    code, out, _ = batchyard("submit", "-f", str(file), "--json", "--queue", "gpu", "--priority", "7")
    ids = [one["id"] for one in json.loads(out)]
    until(lambda: len(client.records(ids)) == 3, "all are taken in")
    assert {(r.queue, r.priority) for r in client.records(ids).values()} == {("gpu", 7)}
    assert batchyard("submit", "-f", str(file), "--follow")[0] == 2


def test_several_jobs_of_a_file_are_waited_for(ground: Ground, batchyard: Any, tmp_path: Path) -> None:
    file = tmp_path / "jobs.yaml"
    file.write_text("- {image: a}\n- {image: b, expires_s: 0.2, countdown_s: 100}\n")
    ending = threading.Thread(target=lambda: ground.end(State.FAILED, 7))
    ending.start()
    code, out, err = batchyard("submit", "-f", str(file), "--wait")
    ending.join()
    assert code == 7
    assert [line.split()[1] for line in out.splitlines()] == ["FAILED:", "FAILED"] or len(out.splitlines()) == 2
    assert len(err.splitlines()) >= 2


def test_a_shell_completes_queues_and_job_ids(ground: Ground, batchyard: Any) -> None:
    job_id = held(ground, batchyard)

    def completed(words: str, count: int) -> list[str]:
        told = {"_BATCHYARD_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(count)}
        ran = subprocess.run([*COMMAND], env={**os.environ, **told}, capture_output=True, text=True, check=False)
        return ran.stdout.split()

    def offers(words: str, count: int, *wanted: str) -> None:
        """It gives up after half a second, so that nobody waits for it: then it is asked again."""
        until(lambda: completed(words, count) == [f"plain,{one}" for one in wanted], words)

    offers("batchyard submit --queue ", 3, "cpu", "gpu")
    offers("batchyard submit --queue g", 3, "gpu")
    for command in ("status", "why", "wait", "cancel", "logs", "ls"):
        offers(f"batchyard {command} {job_id[:3]}", 2, job_id)
    assert completed(f"batchyard why --state {ground.state} ", 4) == [f"plain,{job_id}"]


def test_the_doctor_finds_a_sound_yard_sound_and_a_broken_one_broken(ground: Ground, batchyard: Any) -> None:
    only = [word for name in ("redis", "clock", "store", "keys", "scratch") for word in ("--only", name)]
    code, out, err = batchyard("doctor", "--json", *only)
    found = {one["name"]: one["status"] for one in json.loads(out)}
    assert code == 0, (out, err)
    expected = ("redis", "redis on disk", "redis eviction", "redis events", "redis functions", "controller", "clock",
                "store", "store conditions", "keys")  # fmt: skip
    assert {name: found[name] for name in expected} == dict.fromkeys(expected, "ok")
    assert "store conditions  ok" in batchyard("doctor", *only)[1]
    KeyRing.create(ground.state / "other.json")
    code, out, _ = batchyard("doctor", "--only", "keys", "--key-file", str(ground.state / "other.json"))
    assert code == 1
    assert "is not this yard's; use the keys that its controller uses" in out
    assert batchyard("doctor", "--only", "store", "--store", str(ground.state / "nosuch"))[0] == 1
    assert batchyard("doctor", "--state", str(ground.state / "nosuch"), "--only", "gpus")[0] == 1
