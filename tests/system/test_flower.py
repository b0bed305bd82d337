"""Flower on a real Redis: true depth with no node up, readable jobs, nothing for strangers."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from batchyard.broker.config import single_machine
from batchyard.broker.intake import Intake
from batchyard.broker.seal import KeyRing
from batchyard.broker.store import Yard
from yardtest.redis import RedisServer
from yardtest.wait import until

PASSWORD = "correct-horse-battery"
CONFIG = single_machine(2, 4000, 0, 10)
JOB = {"image": "busybox", "command": ["echo", "hello"], "vcpus": 0.5, "environment": {"TOKEN": "hunter2"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A Flower process. `log` holds all that it said."""

    url: str
    log: Path
    pid: int

    def ask(self, path: str, *, method: str = "GET", **headers: str) -> tuple[int, str]:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        asked = urllib.request.Request(self.url + path, method=method, headers=fields)
        try:
            with urllib.request.urlopen(asked, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def depth(self) -> dict[str, dict[str, Any]]:
        status, text = self.ask("/api/queues/length")
        assert status == 200, text
        return {queue["name"]: queue for queue in json.loads(text)["active_queues"]}


@pytest.fixture
def url(own_redis: RedisServer) -> str:
    """A Redis that wants a password."""
    plain = own_redis.url()
    yard = Yard(plain, KeyRing.new())
    yard.redis.config_set("requirepass", PASSWORD)
    return plain.replace("//", f"//:{PASSWORD}@")


@pytest.fixture
def page(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    monkeypatch.setenv("BATCHYARD_BROKER_URL", url)
    monkeypatch.delenv("BATCHYARD_STATE", raising=False)
    (tmp_path / "flowerconfig.py").write_text("raise SystemExit('this file was read')\n")
    log = tmp_path / "flower.log"
    with log.open("w") as err:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "batchyard.broker.cli", "flower", "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
            cwd=tmp_path,
        )
    assert process.stdout is not None
    try:
        ready = process.stdout.readline()
        assert ready.startswith("ready: flower http://127.0.0.1:"), log.read_text()
        yield Page(url=ready.split()[-1], log=log, pid=process.pid)
    finally:
        process.terminate()
        assert process.wait(15) == 0


@pytest.fixture
def yard(url: str) -> Yard:
    made = Yard(url, KeyRing.new())
    made.prepare()
    made.configure(CONFIG)
    return made


def producer(url: str, **settings: Any) -> Celery:
    app = Celery(broker=url, set_as_current=False)
    app.conf.update(task_ignore_result=True, **settings)
    return app


def test_depth_is_lists_index_and_delayed_with_no_node_up(yard: Yard, url: str, page: Page) -> None:
    app = producer(url)
    for n in range(500):
        app.send_task("batchyard.run", kwargs={"job": JOB}, queue="cpu", priority=n % 10)
    for _ in range(7):
        app.send_task("batchyard.run", kwargs={"job": JOB}, queue="cpu", countdown=1000)
    shown = page.depth()
    assert shown.keys() == {"cpu", "gpu"}
    assert (shown["cpu"]["messages"], shown["gpu"]["messages"]) == (507, 0)
    intake = Intake(yard)
    intake.run(CONFIG)
    some = yard.depth(["cpu"])["cpu"]
    assert some.lists
    assert some.index
    assert page.depth()["cpu"]["messages"] == some.lists + some.index + some.delayed == 507
    while intake.run(CONFIG):
        pass
    assert page.depth()["cpu"] == {"name": "cpu", "messages": 507, "messages_ready": 500, "consumers": 0}
    status, html = page.ask("/broker")
    assert status == 200
    assert "507" in html


def test_a_node_counts_as_a_consumer_of_its_queues(yard: Yard, page: Page) -> None:
    yard.renew("n1", {"queues": "cpu"}, {}, lease_s=30)
    assert {name: queue["consumers"] for name, queue in page.depth().items()} == {"cpu": 1, "gpu": 0}


def test_a_job_shows_image_and_command_and_no_values(yard: Yard, url: str, page: Page) -> None:
    app = producer(url, task_send_sent_event=True)
    until(lambda: yard.redis.pubsub_numpat() > 0, "Flower listens to events")  # nobody keeps them
    job_id = app.send_task("batchyard.run", args=[{"row": "hunter2"}], kwargs={"job": JOB}, queue="cpu").id
    until(lambda: job_id in page.ask("/api/tasks")[1], "Flower has seen the job")
    text = page.ask("/api/tasks")[1]
    assert json.loads(text)[job_id]["kwargs"] == "image=busybox command=echo hello"
    assert "hunter2" not in text + page.ask(f"/task/{job_id}")[1]


def test_the_tasks_page_leads_with_what_a_job_is(page: Page) -> None:
    status, html = page.ask("/tasks")
    assert status == 200
    assert '<th data-column="kwargs">Job</th>' in html


def test_strangers_are_refused(page: Page) -> None:
    assert page.ask("/api/tasks", Host="evil.example")[0] == 403
    assert page.ask("/api/task/revoke/x", method="POST", Origin="http://evil.example")[0] == 403
    assert page.ask("/api/task/send-task/batchyard.run", method="POST")[0] == 403
    with urllib.request.urlopen(page.url + "/api/tasks", timeout=10) as answer:
        assert answer.headers["Access-Control-Allow-Origin"] is None


def test_the_brokers_password_is_neither_shown_nor_logged(yard: Yard, page: Page) -> None:
    shown = "".join(
        page.ask(path)[1] for path in ("/", "/broker", "/tasks", "/api/workers?refresh=1", "/metrics", "/no")
    )
    assert PASSWORD not in shown
    assert PASSWORD not in page.log.read_text()
    assert PASSWORD.encode() not in Path(f"/proc/{page.pid}/cmdline").read_bytes()


def test_a_port_in_use_is_said(page: Page, url: str) -> None:
    port = page.url.rsplit(":", 1)[1]
    words = [sys.executable, "-P", "-m", "batchyard.broker.cli", "flower", "--port", port]
    ran = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
    assert ran.returncode == 2
    assert f"error: Flower cannot listen on 127.0.0.1:{port}" in ran.stderr
    assert "Traceback" not in ran.stderr
