"""`batchyard up` from outside: processes, signals, files, and jobs in real containers."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from batchyard.broker.client import Client
from batchyard.broker.endpoints import Endpoints
from batchyard.broker.state import State
from batchyard.worker import memory
from yardtest.up import COMMAND, Up, processes
from yardtest.wait import until


def gone(pids: dict[str, int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids.values())


def containers(mark: str, *, all_of_them: bool = True) -> list[str]:
    """Ids of the containers whose command has the mark."""
    words = ["docker", "ps", "--no-trunc", "--format", "{{.ID}} {{.Command}}", *(["-a"] if all_of_them else [])]
    ran = subprocess.run(words, capture_output=True, text=True, check=True)
    return [line.split()[0] for line in ran.stdout.splitlines() if mark in line]


def job(image: str, *command: str, **more: Any) -> dict[str, Any]:
    return {"image": image, "command": list(command), "vcpus": 0.1, "memory_mib": 32, **more}


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    made = Up(tmp_path / "state")
    yield made
    if made.process is not None and made.process.poll() is None:
        made.stop(signal.SIGTERM)


def test_a_yard_comes_up_runs_jobs_and_stops(up: Up, image: str) -> None:
    ends = up.start()
    first = up.said()
    assert first.count("ready") == 1
    assert f"ready: flower {ends.flower_url}" in first
    pids = up.children()
    assert pids.keys() == {"redis", "controller", "worker", "flower"}

    app = Celery(broker=ends.broker_url, backend=ends.result_backend, set_as_current=False)
    app.conf.broker_transport_options = ends.transport_options
    sent = app.send_task("batchyard.run", kwargs={"job": job(image, "echo", "hello")}, queue="cpu")
    result = sent.get(timeout=60)
    assert result["exit_code"] == 0
    with Client.connect(up.state) as client:
        assert [line.split(" ", 2)[2] for line in client.logs(sent.id) if " stdout " in line] == ["hello"]

    def shown() -> dict[str, Any]:
        with urllib.request.urlopen(f"{ends.flower_url}/api/tasks", timeout=10) as answer:
            task: dict[str, Any] = json.load(answer).get(sent.id, {})
        return task

    until(lambda: shown().get("result"), "Flower has heard of the end")  # an event, behind the result
    assert "image=" + image in shown()["kwargs"]
    assert "exit_code=0" in shown()["result"]

    assert up.stop() == 0
    assert gone(pids)
    assert "Traceback" not in up.said()
    assert Endpoints.load(up.state).pid is None
    assert not memory.folder_of(up.state / "node").exists()


def test_secrets_are_in_no_command_line_and_files_are_their_owners(up: Up) -> None:
    ends = up.start()
    password = (up.state / "redis" / "password").read_text()
    assert password in ends.broker_url
    assert [line for line in processes() if password in line] == []
    assert up.state.stat().st_mode & 0o077 == 0
    for name in ("endpoints.json", "keys.json", "redis/redis.conf", "redis/password"):
        assert (up.state / name).stat().st_mode & 0o077 == 0, name
    assert [p for p in (up.state / "logs").iterdir() if password in p.read_text()] == []
    settings = redis.Redis.from_url(ends.broker_url, decode_responses=True).config_get("*")
    wanted = {"bind": "127.0.0.1", "appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
    assert wanted.items() <= settings.items()
    with pytest.raises(redis.AuthenticationError):
        redis.Redis.from_url(re.sub("//.*@", "//", ends.broker_url)).ping()


def test_a_second_up_on_the_same_state_says_so_and_changes_nothing(up: Up) -> None:
    ends = up.start()
    ran = subprocess.run([*COMMAND, "up", "--state", str(up.state)], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert up.process is not None
    assert f'a yard runs already on state "{up.state}" (pid {up.process.pid})' in ran.stderr
    assert Endpoints.load(up.state) == ends
    assert len(up.children()) == 4


def test_what_runs_at_ctrl_c_goes_back_and_the_next_up_continues(up: Up, image: str) -> None:
    before = up.start()
    with Client.connect(up.state) as client:
        job_id = client.submit(job(image, "sh", "-c", "sleep 6; echo done # goes-back"))
        waiting = client.submit(job(image, "true"), countdown=1000)
        until(lambda: containers("goes-back", all_of_them=False), "the job runs", timeout_s=30)
    pids = up.children()
    assert up.process is not None
    up.process.send_signal(signal.SIGINT)
    until(lambda: "stopping" in up.said(), "it stops")
    assert up.stop(signal.SIGINT) == 0  # a second Ctrl-C changes nothing
    assert gone(pids)
    assert containers("goes-back") == []

    after = up.start()
    assert (after.broker_url, after.flower_url) == (before.broker_url, before.flower_url)
    with Client.connect(up.state) as client:
        (record,) = client.wait([job_id], timeout_s=60)
        assert record.state is State.SUCCEEDED
        assert [a.counted for a in record.attempts] == [False, True]
        assert client.status(waiting).state is State.PENDING


def test_kill_9_leaves_no_process_and_the_next_up_adopts_what_runs(up: Up, image: str) -> None:
    up.start()
    with Client.connect(up.state) as client:
        job_id = client.submit(job(image, "sh", "-c", "sleep 8; echo done # adopted"))
        (container,) = until(lambda: containers("adopted", all_of_them=False), "the job runs", timeout_s=30)
    pids = up.children()
    assert up.process is not None
    up.process.kill()
    up.process.wait()
    until(lambda: gone(pids), "its processes die with it")
    assert containers("adopted", all_of_them=False) == [container]
    up.start()
    with Client.connect(up.state) as client:
        (record,) = client.wait([job_id], timeout_s=60)
    assert record.state is State.SUCCEEDED, record
    assert len(record.attempts) == 1
    until(lambda: containers("adopted") == [], "its container is removed")


def test_a_part_that_dies_is_started_again(up: Up, image: str) -> None:
    ends = up.start()
    for part, name in (("redis", "redis"), ("controller", "controller"), ("worker", "node"), ("flower", "flower")):
        pids = up.children()
        os.kill(pids[part], signal.SIGKILL)
        until(lambda name=name: f"{name} is back" in up.said(), f"{name} is started again", timeout_s=30)  # type: ignore[misc]
        assert f"{name} ended (SIGKILL)" in up.said()
        assert up.children()[part] != pids[part]
        with Client.connect(up.state) as client:
            job_id = until(lambda client=client: _submitted(client, job(image, "true")), "it is taken", timeout_s=30)  # type: ignore[misc]
            (record,) = client.wait([job_id], timeout_s=60)
        assert record.state is State.SUCCEEDED
        with urllib.request.urlopen(f"{ends.flower_url}/api/queues/length", timeout=10) as answer:
            assert {q["name"] for q in json.load(answer)["active_queues"]} == {"cpu", "gpu"}


def _submitted(client: Client, wanted: dict[str, Any]) -> str:
    try:
        return client.submit(wanted)
    except Exception:  # Redis loads its data
        return ""


def test_terminate_in_flower_stops_a_running_job(up: Up, image: str) -> None:
    ends, loop = up.start("--stop-grace-s", "8"), "while :; do sleep 0.1; done"
    scripts = {
        "plain": "sleep 1000 # flower-plain",
        "polite": f"trap 'echo told; exit 0' TERM; echo set; {loop} # flower-polite",
        "deaf": f"trap '' TERM; echo set; {loop} # flower-deaf",
    }
    with Client.connect(up.state) as client:
        ids = {name: client.submit(job(image, "sh", "-c", script)) for name, script in scripts.items()}
        for job_id in ids.values():
            until(lambda: client.status(job_id).state == State.RUNNING, "the job runs", timeout_s=30)  # noqa: B023
        for name in ("polite", "deaf"):
            until(lambda: any("stdout set" in line for line in client.logs(ids[name])), "its trap is set")  # noqa: B023
        asked = time.time()
        for job_id in ids.values():
            request = urllib.request.Request(
                f"{ends.flower_url}/api/task/revoke/{job_id}?terminate=true", method="POST"
            )
            with urllib.request.urlopen(request, timeout=10):
                pass
        until(lambda: not containers("flower-plain", all_of_them=False), "a job without a handler is gone", timeout_s=6)
        (deaf,) = containers("flower-deaf", all_of_them=False)
        until(lambda: deaf not in containers("flower-deaf"), "one that ignores it is gone", timeout_s=30)
        assert time.time() - asked >= 8
        records = client.wait(list(ids.values()), timeout_s=10)
        assert all(client.cancelled(record) for record in records)
        (told,) = [line for line in client.logs(ids["polite"]) if line.endswith("stdout told")]
        assert datetime.fromisoformat(told.split()[0][:26] + "+00:00").timestamp() - asked < 5


def test_without_an_engine_nothing_is_started(up: Up, tmp_path: Path) -> None:
    environ = {**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/none"}
    ran = subprocess.run(
        [*COMMAND, "up", "--state", str(up.state)], capture_output=True, text=True, check=False, env=environ
    )
    assert ran.returncode == 1
    assert "start Docker, let this user talk to it, or correct DOCKER_HOST" in ran.stderr
    assert not (up.state / "redis").exists()


def test_a_second_node_finds_the_yard_of_this_machine_and_a_lost_store_is_not_made_anew(up: Up, tmp_path: Path) -> None:
    ends = up.start()
    environ = {**os.environ, "BATCHYARD_STATE": str(up.state)}
    words = ["worker", "--name", "two", "--state", str(tmp_path / "two"), "--vcpus", "1", "--copies-memory-mib", "0"]
    with (tmp_path / "two.log").open("w") as log:
        node = subprocess.Popen([*COMMAND, *words], env=environ, stdout=log, stderr=log)
    with Client.connect(up.state) as client:
        until(lambda: "two" in {n.name for n in client.nodes()}, "it is there", timeout_s=30)
    node.terminate()
    assert node.wait(30) == 0
    up.stop()

    assert ends.store is not None
    shutil.rmtree(ends.store)
    ran = subprocess.run([*COMMAND, "up", "--state", str(up.state)], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "this is not the yard's store" in ran.stderr
    assert "--new-store" in ran.stderr
    assert not Path(ends.store).exists()
    up.start("--new-store")


def test_what_cannot_start_says_why_and_leaves_nothing(up: Up, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("queues: {q: {environments: [f]}}\nenvironments: {e: {vcpus: 1, memory_mib: 900}}\n")
    for words, reason in ((["--config", str(bad)], 'environment "f" is not defined'),
                          (["--name", "no/name"], "node did not start: error: node name")):  # fmt: skip
        ran = subprocess.run(
            [*COMMAND, "up", "--state", str(up.state), *words], capture_output=True, text=True, check=False
        )
        assert ran.returncode in {1, 2}
        assert reason in ran.stderr
        assert "Traceback" not in ran.stderr
        assert "ready" not in ran.stdout
        assert [line for line in processes() if str(up.state) in line] == []


def test_a_configuration_names_the_queues_and_is_remembered(up: Up, image: str, tmp_path: Path) -> None:
    config = tmp_path / "yard.yaml"
    config.write_text("queues: {only: {environments: [big]}}\nenvironments: {big: {vcpus: 4, memory_mib: 900}}\n")
    up.start("--config", str(config))
    up.stop()
    up.start()
    assert "queues as configured before (only); --config FILE changes them" in up.said()
    with Client.connect(up.state) as client:
        assert [q.name for q in client.queues()] == ["only"]
        (record,) = client.wait([client.submit(job(image, "true"), queue="only")], timeout_s=60)
    assert record.state is State.SUCCEEDED


def test_without_the_configuration_its_schedules_stay(up: Up, tmp_path: Path) -> None:
    with_schedule = tmp_path / "yard.yaml"
    up.start()
    up.stop()
    machine = (up.state / "machine.yaml").read_text()  # queues and environments of `up` itself
    with_schedule.write_text(machine + "schedules: {nightly: {cron: '@daily', job: {image: busybox}}}\n")
    up.start("--config", str(with_schedule))
    up.stop()
    without = tmp_path / "without.yaml"
    without.write_text(machine)
    for words in ((), ("--config", str(without))):  # a file that says nothing of schedules leaves them too
        up.start(*words)
        with Client.connect(up.state) as client:
            assert [one.name for one in client.schedules.list()] == ["nightly"]
        up.stop()


def test_the_readmes_python_runs_as_it_stands(tmp_path: Path, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", readme, re.DOTALL))
    code = code.replace('"busybox"', f'"{image}"').replace(".apply_async()", ".apply_async().get(timeout=60)")
    assert code.count("apply_async") == 2
    up = Up(tmp_path / ".batchyard")
    try:
        up.start()
        ran = subprocess.run(
            [sys.executable, "-c", code + "\nprint(result)"], capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        assert "'exit_code': 0" in ran.stdout
    finally:
        up.stop(signal.SIGTERM)
