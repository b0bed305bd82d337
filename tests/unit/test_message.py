"""Stock Celery messages as they lie in a kombu list, and what is kept of them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery

from batchyard.broker.message import Document, Unreadable, bare, parse
from yardtest import poison

JOB = {"image": "busybox", "command": ["true"]}


def message(**headers: Any) -> Any:
    return parse(json.dumps(poison.envelope("j1", JOB, **headers)).encode())


def test_id_task_and_arguments_are_read() -> None:
    sent = message()
    assert (sent.id, sent.task) == ("j1", "batchyard.run")
    assert sent.arguments() == ([], {"job": JOB}, {})


@pytest.mark.parametrize("name", [name for name, _ in poison.unreadable()])
def test_what_is_no_message_says_why(name: str) -> None:
    raw = dict(poison.unreadable())[name]
    with pytest.raises((Unreadable, ValueError)) as caught:
        parse(raw).arguments()
    assert str(caught.value)


@pytest.mark.parametrize(("value", "priority"), [(0, 0), (9, 9), (10, 9), (-1, 0), (None, 0), ("5", 0), (2**70, 9)])
def test_priority_is_the_propertys_within_0_to_9(value: object, priority: int) -> None:
    raw = poison.envelope("j", JOB)
    raw["properties"]["priority"] = value
    assert parse(json.dumps(raw).encode()).priority == priority


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        (None, 0),
        ("", 0),
        ("1970-01-01T00:00:01+00:00", 1000),
        ("1970-01-01T00:00:01", 1000),
        ("1970-01-01T01:00:01+01:00", 1000),
        ("1970-01-01T00:00:01Z", 1000),
        ("9999-12-31T23:59:59", 253402300799000),
    ],
)
def test_times_are_read_as_milliseconds(value: object, ms: int) -> None:
    assert message(eta=value).when_ms("eta") == ms


@pytest.mark.parametrize("value", ["tomorrow", 5, [1], {"a": 1}, True])
def test_a_time_that_is_none_is_refused_with_its_value(value: object) -> None:
    with pytest.raises(ValueError, match="eta"):
        message(eta=value).when_ms("eta")


def test_a_body_in_plain_text_is_read() -> None:
    raw = poison.envelope("j", JOB)
    raw["body"] = json.dumps([[], {"job": JOB}, None])
    del raw["properties"]["body_encoding"]
    assert parse(json.dumps(raw).encode()).arguments()[1] == {"job": JOB}


def test_datetimes_of_kombus_json_come_back() -> None:
    app = Celery(set_as_current=False)
    moment = datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=1)
    from kombu.utils.json import dumps

    raw = poison.envelope("j", JOB)
    raw["body"] = dumps([[], {"job": JOB}, {"chain": [dict(app.signature("x").set(eta=moment))]}])
    del raw["properties"]["body_encoding"]
    embed = parse(json.dumps(raw).encode()).arguments()[2]
    assert embed["chain"][0]["options"]["eta"] == moment


def test_brackets_in_text_are_no_nesting() -> None:
    job = {**JOB, "command": ["echo", "[" * 3000, '\\"' + "{" * 3000]}
    assert parse(json.dumps(poison.envelope("j", job)).encode()).arguments()[1]["job"] == job


def test_nesting_has_a_bound_well_below_pythons_own() -> None:
    def nested(depth: int) -> Any:
        raw = poison.envelope("j", JOB)
        raw["body"] = json.dumps([[], {"job": JOB}, {"chain": "X"}]).replace('"X"', "[" * depth + "]" * depth)
        del raw["properties"]["body_encoding"]
        return parse(json.dumps(raw).encode())

    assert nested(390).request()["chain"]
    with pytest.raises(ValueError, match="nested deeper"):
        nested(410).arguments()


def test_a_request_has_what_a_tracer_wants() -> None:
    request = message(group="g", root_id="r").request()
    assert (request["id"], request["group"], request["root_id"], request["kwargs"]) == ("j1", "g", "r", {"job": JOB})
    assert request["delivery_info"]["routing_key"] == "cpu"


@pytest.mark.parametrize("job", [None, JOB])
def test_a_document_survives_its_record(job: Any) -> None:
    document = Document(message=message(), job=job)
    assert Document.loads(document.dumps()) == document


def test_a_bare_message_can_be_ended() -> None:
    request = bare("j9").request()
    assert (request["id"], request["args"]) == ("j9", [])
