"""What is said of a job or a configuration that breaks a rule: the rule in plain words, never the checker's own."""

from __future__ import annotations

from typing import Any

import pytest

from batchyard.broker import config
from batchyard.broker.errors import InvalidConfig, InvalidJob
from batchyard.broker.job import Job

DIGEST = "sha256:" + "a" * 64
HERE = {"here": {"vcpus": 4, "memory_mib": 4096}}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"inputs": {"t": DIGEST}}, "must be an absolute path such as /in/data"),
        ({"inputs": {"/in/t": "sha256:zz"}}, "a digest is sha256: and 64 hex digits"),
        ({"inputs": {"/in/t": {"members": [{"name": "x", "digest": "y", "size": 1}]}}}, "a digest is sha256: and 64"),
        ({"inputs": {"/in/t": {"from": "a b"}}}, "an output's name is letters"),
        ({"inputs": {"/in/t": 3}}, 'must be "sha256:…", a URI'),
        ({"outputs": {"a/b": "/work/x"}}, "an output's name is letters"),
        ({"outputs": {"o": ""}}, "must be a path below /work"),
        ({"user": "bob"}, "a user is UID or UID:GID in digits"),
        ({"environment": {"1A": "b"}}, "a variable's name is letters, digits and"),
        ({"secrets": {"1A": "b"}}, "a variable's name is letters, digits and"),
        ({"name": "a b"}, "a job's name is letters, digits"),
        ({"image": "a b"}, "an image is a name such as busybox:1.36"),
        ({"gpus": 0.5}, "must be a whole number"),
        ({"tags": {"a": 1}}, "a tag's key has 1 to 128 characters"),
        ({"command": ["a"] * 1025}, "must have at most 1024"),
    ],
)
def test_a_job_that_breaks_a_rule_is_told_the_rule(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        Job.parse({"image": "busybox", **fields})
    assert said in str(caught.value)
    assert not {"String", "Input", "pattern"} & set(str(caught.value).split())


def test_a_mistyped_field_is_said_before_the_one_that_is_missing() -> None:
    with pytest.raises(
        InvalidJob, match=r'job\.imagee = .*no such field; did you mean "image"\? The fields are definition, image,'
    ):
        Job.parse({"imagee": "busybox"})


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "the whole: must be a mapping such as {queues:"),
        ([1], "the whole: must be a mapping such as {queues:"),
        ({"queues": {"cpu": 1}, "environments": HERE}, "queues.cpu: must be a mapping such as {environments: [here]}"),
        (
            {"queues": {"cpu": {"environments": ["here"], "prio": 1}}, "environments": HERE},
            'queues.cpu.prio: no such field; did you mean "priority"? The fields are priority, environments',
        ),
        ({"queues": {"a b": {"environments": ["here"]}}, "environments": HERE}, "a name is letters, digits"),
        ({"queues": {"cpu": {"environments": "here"}}, "environments": HERE}, "must be a list"),
    ],
)
def test_a_configuration_that_breaks_a_rule_is_told_the_rule(value: object, said: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        config.parse(value, "yard.yaml")
    assert said in str(caught.value)
