"""Messages made to break things: each is a job, a job that fails at the door, or a dead letter, and never an error."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from batchyard.broker import config, intake
from batchyard.broker.message import Document
from batchyard.broker.seal import KeyRing
from batchyard.broker.store import Incoming

RING = KeyRing.new()
CONFIG = config.single_machine(4, 4096, 0, 100)
JOB = {"image": "busybox"}


def read(job: object = JOB, *, job_id: str = "x", delivery: Any = None, **headers: Any) -> Incoming:
    body = base64.b64encode(json.dumps([[], {"job": job}, {}]).encode()).decode()
    message = {
        "body": body,
        "content-type": "application/json",
        "headers": {"id": job_id, "task": "batchyard.run", **headers},
        "properties": {"body_encoding": "base64", "delivery_info": delivery or {}},
    }
    return intake.read("cpu", "cpu", json.dumps(message).encode(), config=CONFIG, ring=RING)


@pytest.mark.parametrize(
    ("kind", "value"),
    [("decimal", "abc"), ("uuid", {"hex": 5}), ("bytes", 5), ("base64", 5), ("datetime", 5), (["x"], 5), ("nosuch", 5)],
)
def test_a_value_that_is_not_what_it_says_is_a_dead_letter(kind: object, value: object) -> None:
    found = read({"image": {"__type__": kind, "__value__": value}})
    assert found.kind in {"dead", "end"}
    assert found.reason


@pytest.mark.parametrize("blank", [" ", "\t", "\n", "\v", "\f", "\0", "|"])
def test_an_id_that_redis_functions_could_split_is_a_dead_letter(blank: str) -> None:
    assert read(job_id=f"a{blank}b").kind == "dead"


def test_an_expiry_before_the_epoch_is_in_the_past() -> None:
    assert read(expires="1969-07-20T20:17:40+00:00").expires_ms == 1
    assert read().expires_ms == 0


def test_a_reason_that_is_no_text_reaches_redis_as_text() -> None:
    found = read(task="\ud800")
    assert found.kind == "end"
    clear = next(a for a in found.arguments() if isinstance(a, str) and "reason" in a)
    assert json.loads(clear)["reason"].encode()


def test_what_follows_goes_to_the_queue_and_not_by_the_routing_key_of_the_producer() -> None:
    found = read(delivery={"exchange": "jobs", "routing_key": "jobs.cpu", "x": 1})
    message = Document.loads(RING.open(found.document, b"x")).message
    assert message.request()["delivery_info"]["routing_key"] == "cpu"


@pytest.mark.parametrize("job", [{**JOB, "env": {"PASSWORD": "hunter2"}}, "hunter2", ["hunter2"]])
def test_what_may_hold_a_password_is_not_in_the_reason(job: object) -> None:
    found = read(job)
    assert found.kind == "end"
    assert "hunter2" not in found.reason
