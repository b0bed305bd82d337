"""Job definitions: what one may say, and what a job's own fields do to it. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard.broker.config import parse as configuration
from batchyard.broker.definition import MAPS, check_name, check_template, merge, split
from batchyard.broker.definitions import expand
from batchyard.broker.errors import IntegrityError, InvalidJob
from batchyard.broker.intake import read
from batchyard.broker.job import Job, schema
from batchyard.broker.message import Document
from batchyard.broker.seal import KeyRing
from batchyard.broker.store import Incoming
from yardtest import poison

RING = KeyRing.new()
CONFIG = configuration(
    {
        "queues": {"cpu": {"environments": ["here"]}},
        "environments": {"here": {"vcpus": 4, "memory_mib": 4096, "gpus": 0, "disk_gib": 10}},
    },
    "test",
)
NIGHTLY: dict[str, Any] = {
    "image": "busybox",
    "command": ["sh", "-c", "echo Ref::day Ref::where"],
    "parameters": {"day": "today", "where": "here"},
    "environment": {"A": "1", "B": "2"},
    "vcpus": 2,
    "timeout_s": 60,
}


def find(reference: object) -> tuple[str, Mapping[str, Any]]:
    name, revision = split(reference)
    if name == "broken":
        raise IntegrityError("it does not open")
    if (name, revision) not in {("nightly", None), ("nightly", 3)}:
        raise InvalidJob("definition", reference, "is not known")
    return "nightly:3", NIGHTLY


def made(**job: Any) -> Job:
    return Job.parse(expand({"definition": "nightly", **job}, find))


def take(job: object) -> Incoming:
    raw = json.dumps(poison.envelope("j1", job)).encode()
    return read("the list", "cpu", raw, config=CONFIG, ring=RING, find=find)


def test_a_job_takes_what_it_does_not_say_from_its_definition() -> None:
    job = made()
    assert job.command[-1] == "echo today here"
    assert (job.image, job.vcpus, job.timeout_s, job.definition) == ("busybox", 2, 60, "nightly:3")


def test_single_values_and_lists_replace_and_maps_merge_key_by_key() -> None:
    job = made(parameters={"day": "monday"}, environment={"B": "3", "C": "4"}, vcpus=1, timeout_s=None)
    assert job.command[-1] == "echo monday here"
    assert job.environment == {"A": "1", "B": "3", "C": "4"}
    assert (job.vcpus, job.timeout_s) == (1, None)  # 1 is the default, and yet it was said
    assert made(command=["true"]).command == ("true",)


def test_a_job_without_a_definition_is_left_alone() -> None:
    for job in ({"image": "busybox"}, {"image": "busybox", "definition": None}, "text", None, [1]):
        assert expand(job, find) is job


@pytest.mark.parametrize("reference", ["", "a b", "a:0", "a:x", "a:", ":1", "a:1:2", "a" * 129, 7, None, ["a"], {}])
def test_what_names_no_definition_is_refused(reference: object) -> None:
    with pytest.raises(InvalidJob, match=r"job\.definition = .*NAME"):
        split(reference)


def test_names_have_up_to_128_letters_digits_and_dashes() -> None:
    assert split("a") == ("a", None)
    assert split("-_9:12") == ("-_9", 12)
    assert check_name("a" * 128)
    for name in ("a:1", "", None, "a" * 129, "ä"):
        with pytest.raises(InvalidJob, match="is no name"):
            check_name(name)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ({"command": ["true"]}, "job.image"),
        ({"image": "x", "vcpus": 0}, "job.vcpus"),
        ({"image": "x", "definition": "other"}, "job.definition"),
        ({"image": "x", "vcpu": 1}, "no such field"),
        ({"image": "x", "environment": {"AWS_BATCH_X": "1"}}, "reserved"),
    ],
)
def test_a_definition_that_could_be_no_job_is_refused(template: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidJob, match=words):
        check_template(template)


def test_a_template_keeps_its_references_to_parameters_and_nothing_that_it_does_not_say() -> None:
    assert check_template(NIGHTLY) == {**NIGHTLY, "vcpus": 2.0}
    template = check_template({"image": "x", "inputs": {"/in/a": "sha256:" + "0" * 64, "/in/b": {"from": "o"}}})
    assert template["inputs"] == {"/in/a": {"digest": "sha256:" + "0" * 64}, "/in/b": {"from": "o"}}
    assert check_template(template) == template


def test_intake_puts_the_job_over_its_definition_and_keeps_which_one_it_was() -> None:
    one = take({"definition": "nightly", "environment": {"B": "pr1vate"}})
    assert (one.kind, one.vcpus, one.clear) == (
        "job", 2.0, {"image": "busybox", "name": "", "definition": "nightly:3"},
    )  # fmt: skip
    kept = Document.loads(RING.open(one.document, b"j1"))
    assert kept.job is not None
    again = Job.parse(kept.job)
    assert again.dump() == kept.job
    assert again.environment == {"A": "1", "B": "pr1vate"}
    assert again.definition == "nightly:3"


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ({"definition": "nosuch"}, "'nosuch': is not known"),
        ({"definition": "nightly:2"}, "is not known"),
        ({"definition": {"a": 1}}, "must be NAME"),
        ({"definition": "nightly", "vcpus": "many"}, "job.vcpus"),
        ({"definition": "nightly", "vcpus": 100}, "no node"),
        ({"definition": "nightly", "environment": ["A"]}, "job.environment"),
        ({"definition": "nightly", "secrets": {"A": "s"}}, "is in environment too"),
        ({"definition": "broken"}, "does not open"),
    ],
)
def test_a_job_that_its_definition_does_not_carry_fails_at_the_door(job: object, words: str) -> None:
    one = take(job)
    assert one.kind == "end"
    assert words in one.reason


def test_the_schema_wants_an_image_or_a_definition() -> None:
    told = schema()
    assert told["anyOf"] == [{"required": ["image"]}, {"required": ["definition"]}]
    assert "required" not in told


KEYS = st.sampled_from(["A", "B", "C"])
JOBS = st.fixed_dictionaries(
    {},
    optional={
        **{field: st.dictionaries(KEYS, st.sampled_from("123"), max_size=3) for field in sorted(MAPS)},
        "command": st.lists(st.sampled_from(["a", "Ref::A"]), max_size=2),
        "vcpus": st.sampled_from([1.0, 2.0]),
        "timeout_s": st.sampled_from([None, 5]),
        "image": st.sampled_from(["x", "y"]),
    },
)


@given(JOBS, JOBS)
def test_a_field_comes_from_the_job_if_it_says_it_and_else_from_the_definition(
    template: dict[str, Any], job: dict[str, Any]
) -> None:
    before = json.dumps([template, job])
    whole = merge(template, job)
    assert json.dumps([template, job]) == before
    assert whole.keys() == template.keys() | job.keys()
    for field, value in whole.items():
        if field in MAPS:
            parts = [part.get(field, {}) for part in (template, job)]
            assert value.keys() == parts[0].keys() | parts[1].keys()
            assert all(value[key] == parts[1].get(key, parts[0].get(key)) for key in value)
        else:
            assert value == (job[field] if field in job else template[field])


@given(JOBS, JOBS, JOBS)
def test_overrides_in_two_steps_are_overrides_in_one(a: dict[str, Any], b: dict[str, Any], c: dict[str, Any]) -> None:
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
    assert merge(a, {}) == a == merge({}, a)
    assert merge(a, a) == a
