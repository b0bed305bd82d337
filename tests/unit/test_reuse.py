"""Which jobs are identical: what counts, and what does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from batchyard.broker.job import Input, Job, resolve
from batchyard.cache.digest import Blob
from batchyard.worker.reuse import _ASIDE, identity, obstacle
from batchyard.worker.sources import Source

A, B, IMAGE = ("sha256:" + letter * 64 for letter in "abc")
WHOLE: dict[str, Any] = {
    "image": "busybox",
    "command": ["sh", "-c", "wc -l </in/a >/work/n"],
    "environment": {"LANG": "C"},
    "secrets": {"TOKEN": "token"},
    "inputs": {"/in/a": {"digest": A, "size": 3}, "/in/b": {"members": [{"name": "t", "digest": B, "size": 1}]}},
    "outputs": {"n": "/work/n", "all": "/work/d/*.csv"},
    "reuse": True,
}


def known(
    *, image: str = IMAGE, sources: Mapping[str, Source] | None = None, index: int | None = None, **fields: Any
) -> str:
    job = Job.parse({**WHOLE, **fields})
    assert obstacle(job) is None
    return identity(job, image=image, sources=sources or {}, index=index)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "n", "tags": {"a": "b"}, "priority": 3},
        {"vcpus": 3, "memory_mib": 99, "disk_gib": 4},
        {"attempts": 3, "backoff_s": 1, "timeout_s": 9, "infrastructure_retries": 0, "on_demand_after": 1},
        {"attempts": 2, "evaluate_on_exit": [{"action": "EXIT", "on_exit_code": "3"}]},
        {"depends_on": ["j"], "share": "alice", "scheduling_priority": 3, "consumables": {"licence": 1}},
        {"parameters": {"file": "/in/a"}, "command": ["sh", "-c", "wc -l <Ref::file >/work/n"]},
        {"definition": "d:3", "max_concurrent": 3},
        {"network": "none", "profile": "strict"},
        {"outputs": {"all": "/work/d/*.csv", "n": {"path": "/work/n", "on_failure": True}}},
        {"inputs": {"/in//b/": WHOLE["inputs"]["/in/b"], "/in/a": {"uri": "https://host/x", "digest": A}}},
    ],
)  # fmt: skip
def test_what_does_not_change_the_result_does_not_count(fields: dict[str, Any]) -> None:
    assert known(**fields) == known()


@pytest.mark.parametrize(
    "fields",
    [
        {"command": ["sh", "-c", "wc -c </in/a >/work/n"]},
        {"command": ["sh", "-c", "wc", "-l </in/a >/work/n"]},
        {"environment": {}},
        {"environment": {"LANG": "C", "X": ""}},
        {"environment": {"LANG": "TOKEN"}},
        {"secrets": {"TOKEN": "other"}},
        {"secrets": {}},
        {"inputs": {}},
        {"inputs": {**WHOLE["inputs"], "/in/a": {"digest": B, "size": 3}}},
        {"inputs": {**WHOLE["inputs"], "/in/a": {"digest": A, "size": 3, "kind": "tree"}}},
        {"inputs": {**WHOLE["inputs"], "/in/a": {"uri": "s3://bucket/dir/", "digest": A}}},
        {"inputs": {**WHOLE["inputs"], "/in/a": {"digest": A, "size": 3, "unpack": True}}},
        {"inputs": {**WHOLE["inputs"], "/in/a": {"digest": A, "size": 3, "writable": True}}},
        {"inputs": {"/in/other": {"digest": A, "size": 3}, "/in/b": WHOLE["inputs"]["/in/b"]}},
        {"inputs": {**WHOLE["inputs"], "/in/b": {"members": [{"name": "u", "digest": B, "size": 1}]}}},
        {"inputs": {**WHOLE["inputs"], "/in/b": {"members": [{"name": "t", "digest": A, "size": 1}]}}},
        {"outputs": {"n": "/work/n"}},
        {"outputs": {"n": "/work/m", "all": "/work/d/*.csv"}},
        {"outputs": {"n": "/work/n", "all": "/work/d/*.tsv"}},
        {"outputs": {"n": {"path": "/work/n", "max_mib": 1}, "all": "/work/d/*.csv"}},
        {"network": "bridge"},
        {"profile": "aws"},
        {"user": "1000"},
        {"gpus": 1},
        {"gpus": 1, "gpu_type": "a100"},
    ],
)
def test_what_may_change_the_result_counts(fields: dict[str, Any]) -> None:
    assert known(**fields) != known()


def test_the_image_counts_by_its_content() -> None:
    assert known(image=A) != known(image=B)
    named = [Job.parse({**WHOLE, "image": name}) for name in ("busybox", "mirror/busybox:1")]
    assert len({identity(job, image=A, sources={}, index=None) for job in named}) == 1


def test_a_child_of_an_array_is_the_one_of_its_index_and_size() -> None:
    told = {known(), known(array_size=3, index=0), known(array_size=3, index=1), known(array_size=4, index=1)}
    assert len(told) == 4


def test_inputs_of_other_jobs_count_by_what_they_are() -> None:
    def of(source: Source, job: str = "j", name: str = "o") -> str:
        return known(inputs={"/in/a": {"job": job, "from": name}}, depends_on=[job], sources={"/in/a": source})

    one, two = Blob(digest=A, size=3), Blob(digest=B, size=3)
    assert of(one) == of(one, "k", "p") == known(inputs={"/in/a": {"digest": A, "size": 3}})
    assert len({of(one), of(two), of(Blob(digest=A, size=3, kind="tree")), of({0: one}), of({1: one})}) == 5
    assert of({0: one, 1: two}) == of({1: two, 0: one}, "k") != of({0: one, 1: two}, name="p")


def test_a_step_of_a_chain_is_known_by_what_the_step_before_made() -> None:
    def step(job_id: str, digest: str) -> str:
        job = Job.parse({**WHOLE, "inputs": {"/in/a": {"from": "o"}}})
        before = {"job_id": job_id, "outputs": {"o": {"digest": digest, "size": 3, "kind": "file"}}}
        return identity(resolve(job, before), image=IMAGE, sources={}, index=None)

    assert step("j", A) == step("k", A) != step("k", B)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"inputs": {"/in/x": "s3://bucket/x"}}, 'input "/in/x" has no digest'),
        ({"inputs": {"/in/x": "https://host/x"}}, 'input "/in/x" has no digest'),
        ({"inputs": {"/in/x": "file:///x"}}, 'input "/in/x" has no digest'),
        ({"outputs": {"o": {"path": "/work/o", "to": "s3://bucket/o", "credentials": "s3"}}}, 'output "o" goes to'),
    ],
)
def test_a_job_that_cannot_be_known_again_says_why(fields: dict[str, Any], said: str) -> None:
    assert said in str(obstacle(Job.parse({**WHOLE, **fields})))


def test_a_field_that_is_not_known_here_counts() -> None:
    assert set(Job.model_fields) > _ASIDE
    assert "digest" in Input.model_fields
    assert set(Job.model_fields) - _ASIDE == {
        "image", "command", "environment", "secrets", "gpus", "gpu_type", "inputs", "outputs", "nodes", "profile",
        "network", "user",
    }  # fmt: skip
