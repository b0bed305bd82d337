"""What one message becomes: a job, a failure at the door, or a dead letter. Pure."""

from __future__ import annotations

import json
from typing import Any

import pytest

from batchyard.broker.config import parse as configuration
from batchyard.broker.errors import IntegrityError
from batchyard.broker.intake import read
from batchyard.broker.job import Job
from batchyard.broker.message import Document
from batchyard.broker.seal import KeyRing
from batchyard.broker.store import Incoming
from yardtest import poison

JOB: dict[str, Any] = {"image": "busybox", "command": ["true"]}
RING = KeyRing.new()
CONFIG = configuration(
    {
        "queues": {"cpu": {"environments": ["here"]}, "five": {"environments": ["here"], "default_priority": 5}},
        "environments": {"here": {"vcpus": 4, "memory_mib": 4096, "gpus": 0, "disk_gib": 10}},
    },
    "test",
)


def take(whole: dict[str, Any] | None = None, *, queue: str = "cpu", job: object = JOB, **headers: Any) -> Incoming:
    raw = json.dumps(whole or poison.envelope("j1", job, **headers)).encode()
    return read("the list", queue, raw, config=CONFIG, ring=RING)


def document(one: Incoming) -> Document:
    return Document.loads(RING.open(one.document, one.id.encode()))


def test_a_good_message_becomes_a_job() -> None:
    one = take(job={**JOB, "vcpus": 0.1, "disk_gib": 0.0001, "name": "mine"})
    assert (one.kind, one.id, one.queue, one.list_key, one.reason) == ("job", "j1", "cpu", "the list", "")
    assert one.clear == {"image": "busybox", "name": "mine"}
    arguments = one.arguments()
    assert arguments[6:10] == [100, 512, 0, 1]  # thousandths, MiB, GPUs, MiB rounded up


def test_what_is_kept_is_sealed_and_whole() -> None:
    one = take(job={**JOB, "environment": {"A": "pl41n"}})
    assert b"pl41n" not in b"".join(a if isinstance(a, bytes) else str(a).encode() for a in one.arguments()[2:])
    kept = document(one)
    assert kept.message.id == "j1"
    assert Job.parse(kept.job).environment == {"A": "pl41n"}


def test_what_is_sealed_for_one_job_does_not_open_for_another() -> None:
    one = take()
    with pytest.raises(IntegrityError):
        RING.open(one.document, b"j2")


@pytest.mark.parametrize(
    ("job", "headers", "words"),
    [
        ({"image": "x", "vcpus": -1}, {}, ["job.vcpus", "-1"]),
        ({**JOB, "outputs": {"o": "/work/../etc"}}, {}, ["job.outputs.o", '".."']),
        ({**JOB, "vcpus": 5}, {}, ["no node", "vcpus 5 of at most 4"]),
        ({**JOB, "gpus": 1}, {}, ["no node", "gpus 1 of at most 0"]),
        ({**JOB, "inputs": {"/in/a": {"from": "o"}}}, {}, ["there is no previous result"]),
        ("text", {}, ["must be an object"]),
        (JOB, {"task": "theirs.add"}, ['task "theirs.add" is not known here', "batchyard.run"]),
        (JOB, {"eta": "soon"}, ["eta", "'soon'"]),
        (JOB, {"expires": 17}, ["expires", "17"]),
    ],
)
def test_a_job_that_can_never_run_fails_at_the_door(job: object, headers: Any, words: list[str]) -> None:
    one = take(job=job, **headers)
    assert (one.kind, one.id) == ("end", "j1")
    for word in words:
        assert word in one.reason
    assert document(one).message.id == "j1"  # what follows it is told


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ([], {}, 'argument "job" is missing'),
        ([1, 2], {"job": JOB}, "one positional argument"),
        ([1], {"job": JOB, "previous": 2}, "one positional argument"),
        ([], {"job": JOB, "jobb": 1}, 'argument "jobb" is not known'),
    ],
)
def test_arguments_that_the_task_does_not_take_fail_at_the_door(args: Any, kwargs: Any, words: str) -> None:
    whole = poison.envelope("j1", JOB)
    whole["body"] = json.dumps([args, kwargs, None])
    del whole["properties"]["body_encoding"]
    one = take(whole)
    assert one.kind == "end"
    assert words in one.reason


def test_the_previous_result_comes_by_position_or_by_name() -> None:
    digest = "sha256:" + "a" * 64
    previous = {"job_id": "b", "outputs": {"o": {"digest": digest, "size": 1, "kind": "file"}}}
    job = {**JOB, "inputs": {"/in/a": {"from": "o"}}}
    by_position = take(poison.envelope("j1", job, args=[previous]))
    by_name = poison.envelope("j1", job)
    by_name["body"] = json.dumps([[], {"job": job, "previous": previous}, None])
    del by_name["properties"]["body_encoding"]
    for one in (by_position, take(by_name)):
        assert one.kind == "job"
        assert Job.parse(document(one).job).inputs["/in/a"].digest == digest


def test_priority_is_the_jobs_then_the_messages_then_the_queues() -> None:
    def sent(priority: int | None) -> dict[str, Any]:
        whole = poison.envelope("j1", JOB)
        whole["properties"]["priority"] = priority
        return whole

    assert take(sent(7)).priority == 7
    assert take(sent(7), queue="five").priority == 7
    assert [take(sent(unset), queue="five").priority for unset in (0, None)] == [5, 5]
    whole = poison.envelope("j1", {**JOB, "priority": 0})
    assert take(whole, queue="five").priority == 0


def test_times_are_milliseconds() -> None:
    one = take(eta="2030-01-01T00:00:00+00:00", expires="2030-01-01T00:00:01+00:00")
    assert (one.eta_ms, one.expires_ms) == (1893456000000, 1893456001000)


def test_a_chord_member_names_the_counter_that_must_outlive_it() -> None:
    assert take(poison.envelope("j1", JOB, embed={"chord": {"task": "x"}}, group="g")).chord_key == (
        "celery-taskset-meta-g.s"
    )
    assert take(poison.envelope("j1", JOB, group="g")).chord_key == ""


@pytest.mark.parametrize("name", [name for name, _ in poison.unreadable()])
def test_what_is_no_message_becomes_a_dead_letter_with_its_reason(name: str) -> None:
    raw = dict(poison.unreadable())[name]
    one = read("the list", "cpu", raw, config=CONFIG, ring=RING)
    assert (one.kind, one.raw) == ("dead", raw)
    assert one.reason
    one.arguments()


def test_no_odd_value_anywhere_raises() -> None:
    kinds = set()
    for name, raw in poison.askew(JOB):
        one = read("the list", "cpu", raw, config=CONFIG, ring=RING)
        kinds.add(one.kind)
        one.arguments()
        assert one.kind == "job" or one.reason, name
        if one.kind != "dead":
            assert document(one).message.request()["id"] == one.id
    assert kinds == {"job", "end", "dead"}
