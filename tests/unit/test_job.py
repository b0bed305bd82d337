"""The job model: what is accepted, what is refused and in which words, and what the previous step's result becomes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from batchyard.broker.errors import InvalidJob
from batchyard.broker.job import Input, Job, resolve, schema

DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64


def parse(**fields: Any) -> Job:
    return Job.parse({"image": "busybox", **fields})


def refused(**fields: Any) -> InvalidJob:
    with pytest.raises(InvalidJob) as caught:
        parse(**fields)
    return caught.value


def result(**outputs: Any) -> dict[str, Any]:
    return {"job_id": "before", "exit_code": 0, "outputs": outputs}


TO = {"path": "/work/x", "to": "s3://bucket/x", "credentials": "s3"}
ONE = {"digest": DIGEST, "size": 3, "kind": "file"}


def test_an_image_is_all_that_a_job_needs() -> None:
    job = Job.parse({"image": "busybox"})
    assert (job.command, job.vcpus, job.memory_mib, job.gpus, job.attempts) == ((), 1.0, 512, 0, 1)
    assert (job.profile, job.networking, job.timeout_s, job.priority) == ("strict", "none", None, None)


def test_a_job_survives_json() -> None:
    job = parse(
        command=["sh", "-c", "true"],
        environment={"A": "b"},
        secrets={"TOKEN": "token"},
        inputs={
            "/in/a": DIGEST,
            "/in/b": "file:///data/b",
            "/in/c": {"from": "table", "index": 2},
            "/in/d": {"uri": "s3://bucket/dir/", "credentials": "s3"},
            "/in/e": {"uri": "https://host/e?sig=x", "digest": DIGEST, "size": 3},
        },
        outputs={
            "table": "/work/t",
            "more": {**TO, "to": "s3://bucket/dir/"},
            "some": "/work/out/**/*.csv",
            "core": {"path": "/work/core.*", "on_failure": True, "max_mib": 0.5},
        },
        reuse=True,
        vcpus=0.5,
        tags={"who": "me"},
        timeout_s=60,
        priority=0,
    )
    assert Job.parse(json.loads(json.dumps(job.dump()))) == job
    assert "memory_mib" not in job.dump()
    assert job.dump()["outputs"]["table"] == "/work/t"  # as records had it before there were destinations


def test_numbers_and_booleans_are_welcome_where_text_is_wanted() -> None:
    job = parse(command=["seq", 1, 2.5, True], environment={"N": 3}, parameters={"n": 4})
    assert job.command == ("seq", "1", "2.5", "true")
    assert job.environment == {"N": "3"}


def test_parameters_are_put_in_and_unknown_ones_stay() -> None:
    job = parse(command=["cp", "Ref::from", "to-Ref::name.txt", "Ref::nosuch"], parameters={"from": "a b", "name": "x"})
    assert job.command == ("cp", "a b", "to-x.txt", "Ref::nosuch")


def test_a_parameter_is_put_in_once() -> None:
    assert parse(command=["Ref::a"], parameters={"a": "Ref::b", "b": "no"}).command == ("Ref::b",)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image": ""}, ["job.image", "''"]),
        ({"image": "-v"}, ["job.image"]),
        ({"image": "a b"}, ["job.image"]),
        ({"image": None}, ["job.image", "None"]),
        ({"command": "echo hello"}, ["job.command", "'echo hello'", "a list of strings"]),
        ({"command": [["a"]]}, ["job.command.0"]),
        ({"command": ["a\0b"]}, ["job.command", "NUL"]),
        ({"vcpus": 0}, ["job.vcpus", "0", "greater"]),
        ({"vcpus": float("nan")}, ["job.vcpus"]),
        ({"vcpus": "many"}, ["job.vcpus", "'many'"]),
        ({"memory_mib": 5}, ["job.memory_mib", "5", "6"]),
        ({"gpus": -1}, ["job.gpus", "-1"]),
        ({"gpus": 0.5}, ["job.gpus", "0.5"]),
        ({"attempts": 11}, ["job.attempts", "11", "10"]),
        ({"evaluate_on_exit": [{"action": "EXIT"}]}, ["job.evaluate_on_exit", "needs attempts"]),
        ({"attempts": 2, "evaluate_on_exit": "x"}, ["job.evaluate_on_exit", "'x'", "a list of rules"]),
        ({"attempts": 2, "evaluate_on_exit": [{}]}, ["job.evaluate_on_exit.0.action", "is required"]),
        ({"attempts": 2, "evaluate_on_exit": [{"action": "STOP"}]}, ["job.evaluate_on_exit.0.action", "'STOP'"]),
        ({"attempts": 2, "evaluate_on_exit": [{"action": "EXIT"}] * 6}, ["job.evaluate_on_exit", "at most 5"]),
        (
            {"attempts": 2, "evaluate_on_exit": [{"action": "EXIT", "on_exit_code": "1*7"}]},
            ["job.evaluate_on_exit.0.on_exit_code", "'1*7'", "digits only", "at its end"],
        ),
        (
            {"attempts": 2, "evaluate_on_exit": [{"action": "EXIT", "on_reason": "a(b"}]},
            ["job.evaluate_on_exit.0.on_reason", "'a(b'", "letters, digits"],
        ),
        ({"attempts": 2, "evaluate_on_exit": [{"action": "EXIT", "on_reason": "a" * 513}]}, ["on_reason", "512"]),
        ({"attempts": 2, "evaluate_on_exit": [{"action": "EXIT", "nosuch": "a"}]}, ["no such field", "on_exit_code"]),
        ({"backoff_s": 0}, ["job.backoff_s", "0"]),
        ({"depends_on": "a"}, ["job.depends_on", "'a'", "a list of job ids"]),
        ({"depends_on": ["a", {"job_id": "a", "on_failure": "CONTINUE"}]}, ["job.depends_on = 'a'", "twice"]),
        ({"depends_on": [{"job_id": "a", "on_failure": "STOP"}]}, ["job.depends_on.0.on_failure", "'STOP'"]),
        ({"depends_on": [{"job_id": "a", "kind": "ANY"}]}, ["no such field", "job_id, type, on_failure"]),
        ({"depends_on": [{"job_id": "a", "type": "SEQUENTIAL"}]}, ["leave out job_id, or say N_TO_N"]),
        ({"depends_on": [{"type": "N_TO_N"}], "array_size": 2}, ["job_id is missing"]),
        ({"depends_on": [{}]}, ["job_id is missing"]),
        ({"depends_on": [{"job_id": ""}]}, ["job.depends_on.0.job_id"]),
        ({"depends_on": [{"type": "SEQUENTIAL"}]}, ["'SEQUENTIAL'", "say array_size"]),
        ({"depends_on": [{"job_id": "a", "type": "N_TO_N"}]}, ["'N_TO_N'", "say array_size"]),
        ({"depends_on": [{"type": "SEQUENTIAL"}] * 2, "array_size": 2}, ["'SEQUENTIAL'", "there twice"]),
        ({"array_size": 1}, ["job.array_size = 1", "2"]),
        ({"array_size": 100_001}, ["job.array_size", "100000"]),
        ({"array_size": 2, "outputs": {"o": TO}}, ["job.outputs.o.to", "every child", "<index>/"]),
        ({"depends_on": ["a b"]}, ["job.depends_on.0.job_id", "'a b'"]),
        ({"depends_on": [f"j{n}" for n in range(21)]}, ["job.depends_on", "20"]),
        ({"backoff_s": 3601}, ["job.backoff_s", "3600"]),
        ({"infrastructure_retries": 101}, ["job.infrastructure_retries", "101", "100"]),
        ({"timeout_s": 0}, ["job.timeout_s"]),
        ({"profile": "privileged"}, ["job.profile", "'strict'", "'aws'"]),
        ({"network": "container:x"}, ["job.network"]),
        ({"user": "root"}, ["job.user", "'root'"]),
        ({"user": "0"}, ["job.user", "root is not allowed"]),
        ({"user": "00:5"}, ["job.user", "root is not allowed"]),
        ({"priority": 10}, ["job.priority", "10"]),
        ({"nosuch": 1}, ["job.nosuch", "no such field", "memory_mib"]),
        ({"name": "a b"}, ["job.name"]),
        ({"tags": {"": "x"}}, ["job.tags"]),
        ({"environment": {"A=B": "x"}}, ["job.environment"]),
        ({"environment": {"AWS_BATCH_JOB_ID": "x"}}, ["job.environment", "reserved"]),
        ({"secrets": {"BATCHYARD_X": "x"}}, ["job.secrets", "reserved"]),
        ({"secrets": {"A": "../up"}}, ["job.secrets.A", "'…'", "never its value"]),
        ({"secrets": {"A": "s"}, "environment": {"A": "x"}}, ["job.secrets", "keep one"]),
        ({"inputs": {"/in/a": "sha256:short"}}, ["job.inputs"]),
        ({"inputs": {"/in/a": "ftp://x/y"}}, ["job.inputs", "file:///", "s3://", "https://"]),
        ({"inputs": {"/in/a": "http://x/y"}}, ["job.inputs./in/a", "'http://x/y'", "use https://"]),
        ({"inputs": {"/in/a": {"uri": "https://x/y", "credentials": "s"}}}, ["job.inputs", "goes with an s3:// URI"]),
        ({"inputs": {"/in/a": {"digest": DIGEST, "credentials": "s"}}}, ["job.inputs", "goes with an s3:// URI"]),
        (
            {"inputs": {"/in/a": {"uri": "s3://bucket/y", "credentials": "../s"}}},
            ["job.inputs./in/a.credentials = '…'", "never its value"],
        ),
        ({"inputs": {"/in/a": {"uri": "s3://bucket/y/", "size": 1}}}, ["job.inputs", "is a directory"]),
        ({"inputs": {"/in/a": {"uri": "s3://bucket/y", "from": "o"}}}, ["job.inputs", "exactly one"]),
        ({"inputs": {"/in/a": {"uri": "s3://bucket/y", "key": "x"}}}, ["no such field", "credentials", "from"]),
        ({"inputs": {"/in/a": "file://host/y"}}, ["job.inputs"]),
        ({"inputs": {"/in/a": "file:relative"}}, ["job.inputs"]),
        ({"inputs": {"/in/a": {}}}, ["job.inputs", "exactly one"]),
        ({"inputs": {"/in/a": {"digest": DIGEST, "from": "x"}}}, ["job.inputs", "exactly one"]),
        ({"inputs": {"/in/a": {"digest": DIGEST, "index": 1}}}, ["job.inputs", "index"]),
        ({"inputs": {"in/a": DIGEST}}, ["job.inputs", "'in/a'", "absolute"]),
        ({"inputs": {"/in/../etc": DIGEST}}, ["job.inputs", '".."']),
        ({"inputs": {"//in": DIGEST}}, ["job.inputs"]),
        ({"inputs": {"/": DIGEST}}, ["job.inputs"]),
        ({"inputs": {"/work": DIGEST}}, ["job.inputs", "platform's"]),
        ({"inputs": {"/proc/1": DIGEST}}, ["job.inputs", "platform's"]),
        ({"inputs": {"/in": DIGEST, "/in/a": OTHER}}, ["job.inputs", "above or on another"]),
        ({"inputs": {"/in/a": DIGEST, "/in/./a": OTHER}}, ["job.inputs", "above or on another"]),
        ({"outputs": {"o": "/etc/passwd"}}, ["job.outputs.o", "'/etc/passwd'", "below /work"]),
        ({"outputs": {"o": "/work/../etc/passwd"}}, ["job.outputs.o", '".."']),
        ({"outputs": {"o": "/work"}}, ["job.outputs.o", "below /work"]),
        ({"outputs": {"o": "work/x"}}, ["job.outputs.o", "absolute"]),
        ({"outputs": {"../o": "/work/x"}}, ["job.outputs"]),
        ({"outputs": {"o": 5}}, ["job.outputs.o", "5", "must be a path below /work"]),
        ({"outputs": {"o": {"to": "s3://bucket/x"}}}, ["job.outputs.o.path", "is required"]),
        ({"outputs": {"o": {"path": "/etc/x"}}}, ["job.outputs.o", "'/etc/x'", "below /work"]),
        ({"outputs": {"o": {"path": "/work/x", "to": "s3://bucket/x"}}}, ["job.outputs.o", "go together"]),
        ({"outputs": {"o": {"path": "/work/x", "credentials": "s"}}}, ["job.outputs.o", "go together"]),
        ({"outputs": {"o": {**TO, "to": "https://host/x"}}}, ["job.outputs.o", "s3://BUCKET/KEY"]),
        ({"outputs": {"o": {**TO, "to": "s3://bucket/../x"}}}, ["job.outputs.o", '".."']),
        ({"outputs": {"a": TO, "b": TO}}, ["job.outputs.b.to", "'s3://bucket/x'", "output a goes there too"]),
        ({"outputs": {"o": {**TO, "nosuch": 1}}}, ["no such field", "path, to, credentials, on_failure, max_mib"]),
        ({"outputs": {"o": {**TO, "path": "/work/*.csv"}}}, ["job.outputs.o", "pattern", "s3://bucket/x/"]),
        ({"outputs": {"o": "/work/**.csv"}}, ["job.outputs.o", '"**" stands for directories', "/work/**/*.csv"]),
        ({"outputs": {"o": "/*/x"}}, ["job.outputs.o", "below /work"]),
        ({"outputs": {"o": "/work/*/../../x"}}, ["job.outputs.o", '".."']),
        ({"outputs": {"o": {"path": "/work/x", "max_mib": 0}}}, ["job.outputs.o.max_mib", "greater than 0"]),
        ({"outputs": {"o": {"path": "/work/x", "on_failure": "often"}}}, ["outputs.o.on_failure", "true or false"]),
        ({"reuse": "maybe"}, ["job.reuse", "must be true or false"]),
        ({"reuse": True, "nodes": 2}, ["job.reuse", "several nodes", "leave reuse or nodes out"]),
    ],
)
def test_what_breaks_a_rule_is_refused_with_field_value_and_rule(fields: dict[str, Any], words: list[str]) -> None:
    text = str(refused(**fields))
    for word in words:
        assert word in text


@pytest.mark.parametrize("value", [None, 1, "job", [], [{"image": "x"}]])
def test_what_is_no_object_is_no_job(value: object) -> None:
    with pytest.raises(InvalidJob, match="must be an object"):
        Job.parse(value)


def test_a_missing_image_is_said_to_be_required() -> None:
    with pytest.raises(InvalidJob, match=r"job\.image = None: is required"):
        Job.parse({})


def test_values_of_the_environment_are_never_shown() -> None:
    error = refused(environment={"PASSWORD": ["hunter2"]})
    assert "hunter2" not in str(error)
    assert "PASSWORD" in str(error)


@pytest.mark.parametrize(
    "spec",
    [
        "https://host:99999/x?sig=hunter2",
        "https://user:hunter2@host/x",
        "https://user:hunt/er2@host/x",
        "ftp://user:hunter2@host/x",
        "s3://bucket/x?sig=hunter2",
        {"uri": "https://host/x?sig=hunter2", "credentials": "s3"},
        {"uri": "https://host/x?sig=hunter2", "nosuch": 1},
        {"uri": ["https://host/x?sig=hunter2"]},
    ],
)
def test_what_signs_a_uri_is_never_shown(spec: Any) -> None:
    text = str(refused(inputs={"/in/a": spec}))
    assert "hunter2" not in text
    assert "er2" not in text
    assert "hunter2" not in str(refused(outputs={"o": {"path": "/work/x", "to": spec}}))


def test_a_long_value_is_cut() -> None:
    assert len(str(refused(user="x" * 10_000))) < 300


def test_how_many_more_rules_are_broken_is_told() -> None:
    assert "(and 2 more)" in str(refused(vcpus=-1, gpus=-1, attempts=0))


def test_root_is_allowed_in_profile_aws() -> None:
    assert parse(user="0", profile="aws").networking == "bridge"


def test_the_previous_result_becomes_a_digest() -> None:
    job = resolve(parse(inputs={"/in/a": {"from": "o"}, "/in/b": OTHER}), result(o=ONE))
    assert job.inputs["/in/a"] == Input(digest=DIGEST, size=3)
    assert job.inputs["/in/b"].digest == OTHER


def test_a_result_that_went_to_a_bucket_too_becomes_its_digest() -> None:
    job = resolve(parse(inputs={"/in/a": {"from": "o"}}), result(o={**ONE, "uri": "s3://bucket/x"}))
    assert job.inputs["/in/a"] == Input(digest=DIGEST, size=3)


def test_a_groups_results_become_members_in_order() -> None:
    two = {**ONE, "digest": OTHER, "kind": "tree"}
    job = resolve(parse(inputs={"/in/a": {"from": "o"}}), [result(o=ONE), result(o=two)])
    members = job.inputs["/in/a"].members
    assert members is not None
    assert [(m.name, m.digest, m.kind) for m in members] == [("o", DIGEST, "file"), ("o", OTHER, "tree")]
    assert Job.parse(job.dump()) == job


def test_an_index_takes_one_of_a_groups_results() -> None:
    job = resolve(parse(inputs={"/in/a": {"from": "o", "index": 1}}), [result(), result(o=ONE)])
    assert job.inputs["/in/a"].digest == DIGEST


def test_without_from_any_previous_result_will_do() -> None:
    job = parse(inputs={"/in/a": DIGEST})
    anything: tuple[object, ...] = (None, 42, [], {"a": 1})
    for previous in anything:
        assert resolve(job, previous) is job


@pytest.mark.parametrize(
    ("spec", "previous", "words"),
    [
        ({"from": "o"}, None, "there is no previous result"),
        ({"from": "o"}, 42, "not that of a Batchyard job"),
        ({"from": "o"}, "text", "not that of a Batchyard job"),
        ({"from": "o"}, {"outputs": {"o": ONE}}, "not that of a Batchyard job"),
        ({"from": "o"}, {"job_id": "x", "outputs": [1]}, "not that of a Batchyard job"),
        ({"from": "o"}, result(), "it has none"),
        ({"from": "o"}, result(a=ONE, b=ONE), "it has a, b"),
        ({"from": "o"}, result(o=42), "does not describe a digest"),
        ({"from": "o"}, result(o={"digest": "x", "size": 1}), "does not describe a digest"),
        ({"from": "o"}, [result(o=ONE), None], "not that of a Batchyard job"),
        ({"from": "o", "index": 2}, [result(o=ONE)], "has 1 results"),
        ({"from": "o", "index": 0}, result(o=ONE), '"index" needs the results of a group'),
    ],
)
def test_a_previous_result_that_lacks_what_is_asked_for_is_refused(spec: Any, previous: object, words: str) -> None:
    with pytest.raises(InvalidJob, match=words):
        resolve(parse(inputs={"/in/a": spec}), previous)


def test_the_schema_names_fields_as_producers_write_them() -> None:
    text = json.dumps(schema())
    assert '"from"' in text
    assert '"from_"' not in text
    assert set(schema()["properties"]) == set(Job.model_fields)


def test_rules_for_retries_stay_when_a_job_is_written_and_read_again() -> None:
    rules = [{"action": "Retry", "on_status_reason": "Host EC2*"}, {"action": "exit", "on_exit_code": 137}]
    job = parse(attempts=1, evaluate_on_exit=rules)  # 1 is the default, and must be said all the same
    assert Job.parse(job.dump()) == job
    assert job.dump()["evaluate_on_exit"] == [
        {"action": "RETRY", "on_status_reason": "Host EC2*"},
        {"action": "EXIT", "on_exit_code": "137"},
    ]


def test_a_dependency_is_an_id_or_says_what_a_failure_does() -> None:
    told = ["a", {"job_id": "b"}, {"job_id": "c", "on_failure": "CONTINUE"}]
    job = parse(depends_on=told)
    assert [(one.job_id, one.on_failure) for one in job.depends_on] == [("a", "FAIL"), ("b", "FAIL"), ("c", "CONTINUE")]
    assert job.dump()["depends_on"] == ["a", "b", {"job_id": "c", "on_failure": "CONTINUE"}]
    assert Job.parse(job.dump()) == job


# -- unpacked, writable, images as blobs
@pytest.mark.parametrize("source", [DIGEST, "s3://bucket/a.zip", "https://host/a", "file:///a.tar", {"from": "o"}])
def test_any_file_may_be_unpacked_and_any_input_writable(source: Any) -> None:
    written = source if isinstance(source, dict) else {"digest" if source == DIGEST else "uri": source}
    job = parse(inputs={"/in/a": {**written, "unpack": True, "writable": True}})
    assert (job.inputs["/in/a"].unpack, job.inputs["/in/a"].writable) == (True, True)
    assert Job.parse(json.loads(json.dumps(job.dump()))) == job
    assert "unpack" not in json.dumps(parse(inputs={"/in/a": source}).dump())


@pytest.mark.parametrize("source", [{"digest": DIGEST, "kind": "tree"}, {"uri": "s3://bucket/dir/"}])
def test_a_directory_is_not_unpacked(source: dict[str, Any]) -> None:
    assert "this is a directory" in str(refused(inputs={"/in/a": {**source, "unpack": True}}))


def test_an_output_of_the_step_before_is_given_as_the_job_asks() -> None:
    job = parse(inputs={"/in/a": {"from": "o", "unpack": True, "writable": True}})
    found = resolve(job, result(o=ONE)).inputs["/in/a"]
    assert (found.digest, found.unpack, found.writable) == (DIGEST, True, True)
    several = resolve(job, [result(o=ONE), result(o=ONE)]).inputs["/in/a"]
    assert several.members is not None
    assert (several.unpack, several.writable) == (True, True)
    for before in (result(o={**ONE, "kind": "tree"}), [result(o=ONE), result(o={**ONE, "kind": "tree"})]):
        with pytest.raises(InvalidJob, match="is a directory already; leave it out"):
            resolve(job, before)


def test_an_image_may_be_the_digest_of_a_blob_and_no_half_of_one() -> None:
    assert parse(image=DIGEST).image == DIGEST
    assert "64 hex digits" in str(refused(image="sha256:abc"))
    halves = {"count": 2, "ranges": [{"targets": "0:", "image": "sha256:abc"}]}
    assert "nodes.ranges.0.image" in str(refused(image="busybox", nodes=halves))


@pytest.mark.parametrize("prefix", ["", "docker.io/", "index.docker.io/"])
@pytest.mark.parametrize("tail", ["", ":" + 64 * "a", "@sha256:" + 64 * "a"])
def test_what_nodes_call_a_blob_that_they_loaded_is_no_image_to_name(prefix: str, tail: str) -> None:
    assert "by its digest" in str(refused(image=f"{prefix}batchyard/blob{tail}"))
    assert Job.parse({"image": f"example.org/batchyard/blob{tail}", "command": ["true"]}).image
