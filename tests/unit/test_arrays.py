"""What is decided of arrays without a Redis."""

from __future__ import annotations

from typing import Any

import pytest

from batchyard.broker.arrays import OF_PARENT, Array, parent_of, shared, to_come
from batchyard.broker.errors import InvalidJob
from batchyard.broker.facts import Facts
from batchyard.broker.job import Input, Job, check_sources, resolve
from batchyard.broker.record import from_hash
from batchyard.broker.why import explain

DIGEST = "sha256:" + "0" * 64


def fields(**told: object) -> dict[bytes, bytes]:
    return {name.replace("__", ":").encode(): str(value).encode() for name, value in told.items()}


def parse(**more: Any) -> Job:
    return Job.parse({"image": "i", **more})


def test_ids_of_children() -> None:
    assert [parent_of(i) for i in ("a:0", "a:12", "a:b:3", "a", "a:", ":1", "a:01", "a#1", "a:-1")] == [
        "a", "a", "a:b", None, None, None, None, None, None,
    ]  # fmt: skip


def test_children_that_are_still_to_come_are_counted() -> None:
    array = Array.of(fields(array=5, state="PENDING", n__RUNNING=1, n__FAILED=1, spawned=2))
    assert array is not None
    assert {str(s): n for s, n in array.counts.items() if n} == {"PENDING": 3, "RUNNING": 1, "FAILED": 1}
    assert array.told() == "5 children: 1 failed, 1 running, 3 waiting"
    refused = Array.of(fields(array=5, state="FAILED"))
    assert refused is not None
    assert refused.told() == "5 children: 5 failed"
    assert Array.of(fields(state="PENDING")) is None


def test_a_child_that_is_still_to_come_is_shown_as_it_will_be() -> None:
    parent: dict[bytes, bytes | None] = dict.fromkeys(OF_PARENT)
    parent |= fields(array=2, state="PENDING", image="i", mc=500, queue="cpu", created=1000)
    record = from_hash("a:1", to_come("a:1", parent), shared(parent))
    assert (record.state, record.image, record.vcpus, record.parent, record.index) == ("PENDING", "i", 0.5, "a", 1)
    assert to_come("a:2", parent) == to_come("a:0", {**parent, b"array": None}) == {}
    refused = from_hash("a:0", to_come("a:0", {**parent, b"state": b"FAILED", b"reason": b"why"}))
    assert (refused.state, refused.reason) == ("FAILED", "why")


def test_a_childs_destination_is_a_folder_of_its_own() -> None:
    to = {"path": "/work/o", "to": "s3://bucket/p/", "credentials": "c"}
    job = parse(array_size=2, outputs={"o": to, "p": "/work/p"}).child(1)
    assert (job.outputs["o"].to, job.outputs["p"].to) == ("s3://bucket/p/1/", None)


def test_outputs_of_an_array_before_it_are_looked_up_by_the_node() -> None:
    previous = {"job_id": "a", "array": {"size": 10_000, "succeeded": 10_000, "failed": 0}, "outputs": {}}
    job = resolve(parse(inputs={"/in/a": {"from": "o"}, "/in/b": {"from": "o", "index": 7}}), previous)
    assert job.inputs["/in/a"] == Input.model_validate({"job": "a", "from": "o"})
    assert job.inputs["/in/b"] == Input.model_validate({"job": "a", "from": "o", "index": 7})
    assert Job.parse(job.dump()) == job
    of_group = resolve(parse(inputs={"/in/a": {"from": "o", "index": 1}}), [{"job_id": "x", "outputs": {}}, previous])
    assert of_group.inputs["/in/a"] == job.inputs["/in/a"]
    for spec, before, words in (
        ({"from": "o", "index": 10_000}, previous, "has 10000 children"),
        ({"from": "o"}, [previous], '"index"'),
        ({"from": "o"}, {**previous, "job_id": None}, "not that of a Batchyard job"),
    ):
        with pytest.raises(InvalidJob, match=words):
            resolve(parse(inputs={"/in/a": spec}), before)


def test_an_input_of_another_job_needs_that_job_to_have_ended() -> None:
    spec = {"job": "a", "from": "o"}
    check_sources(parse(inputs={"/in/a": spec, "/in/b": DIGEST}, depends_on=["a"]))
    assert parse(inputs={"/in/a": "job:a:7:o"}).inputs["/in/a"] == Input.model_validate({"job": "a:7", "from": "o"})
    with pytest.raises(InvalidJob, match=r"job\.inputs\./in/a\.job = 'a': is not in depends_on"):
        check_sources(parse(inputs={"/in/a": spec}))
    with pytest.raises(InvalidJob, match='"job" goes with "from"'):
        parse(inputs={"/in/a": {"job": "a", "digest": DIGEST}})


def test_why_an_array_goes_on() -> None:
    told = {"state": "PENDING", "queue": "cpu", "array": 1000, "n__SUCCEEDED": 2, "n__FAILED": 1, "n__RUNNING": 20}
    record = from_hash("a", fields(**told))
    facts = Facts(job_id="a", now_s=1, record=record, controller=True, array_goes=True)
    (reason,) = explain(facts)
    assert reason.text == "3 of 1000 children have ended; 20 run; 977 wait"
    assert reason.details["counts"]["PENDING"] == 977
    child = Facts(
        job_id="a:3", now_s=1, record=from_hash("a:3", fields(state="RUNNABLE", queue="cpu")), controller=True
    )
    waiting = from_hash("a", fields(**{**told, "n__RUNNING": 0, "n__RUNNABLE": 997}))
    found = explain(Facts(job_id="a", now_s=1, record=waiting, controller=True, array_goes=True, child=child))
    assert found[0].text == "3 of 1000 children have ended; 997 wait"
    assert found[1].code == "child_no_node"
    assert found[1].text.startswith("child a:3, RUNNABLE: no node is up")
