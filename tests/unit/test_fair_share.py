"""Shares, limits and GPU types in the configuration and in a job: what is read, and what is refused at the door."""

from __future__ import annotations

import json
from typing import Any

import pytest

from batchyard.broker.config import Config, parse
from batchyard.broker.definitions import expand
from batchyard.broker.errors import InvalidConfig, InvalidJob
from batchyard.broker.job import Job

HERE: dict[str, Any] = {"here": {"vcpus": 4, "memory_mib": 4096, "gpus": 2, "gpu_types": ["A100", "t4"]}}


def config(environments: dict[str, Any] | None = None, **queue: Any) -> Config:
    told = {"queues": {"lab": {"environments": ["here"], **queue}}, "environments": environments or HERE}
    return parse(told, "test")


def job(**fields: Any) -> Job:
    return Job.parse({"image": "busybox", **fields})


@pytest.mark.parametrize(
    ("fair", "words"),
    [
        ({"shares": [{"share": "team*"}, {"share": "team1"}]}, ['"team*" and "team1" overlap']),
        ({"shares": [{"share": "a*"}, {"share": "ab*"}]}, ["overlap"]),
        ({"shares": [{"share": "ab*"}, {"share": "a*"}]}, ["overlap"]),
        ({"shares": [{"share": "*"}, {"share": "x"}]}, ["overlap"]),
        ({"shares": [{"share": "x"}, {"share": "x"}]}, ['"x" is there twice']),
        ({"shares": [{"share": "x", "weight": 0}]}, ["shares.0.weight", "0.0001"]),
        ({"shares": [{"share": "x", "weight": 1000}]}, ["shares.0.weight", "999.9999"]),
        ({"shares": [{"share": "a-b"}]}, ["letters and digits"]),
        ({"shares": [{"share": "a*b"}]}, ["letters and digits"]),
        ({"shares": [{"share": "a", "wieght": 1}]}, ['did you mean "weight"']),
        ({"share_decay_s": 604801}, ["share_decay_s", "604800"]),
        ({"compute_reservation": 100}, ["compute_reservation", "99"]),
        ({"compute_reservation": 10}, ["max_vcpus"]),
        ({"decay": 10}, ["no such field", "share_decay_s"]),
        ("x", ["must be a mapping", "share_decay_s"]),
    ],
)
def test_a_policy_that_means_nothing_is_refused(fair: object, words: list[str]) -> None:
    with pytest.raises(InvalidConfig) as caught:
        config(fair_share=fair)
    assert all(word in str(caught.value) for word in words), caught.value


def test_the_claim_is_told_of_policies_and_of_nothing_else() -> None:
    assert config().policies() == {}
    here = {"here": {**HERE["here"], "max_vcpus": 64}}
    shares = [{"share": "a", "weight": 0.5}, {"share": "b*"}]
    told = config(here, fair_share={"shares": shares, "compute_reservation": 50}, max_concurrent=3).policies()
    assert json.loads(told["lab"]) == {
        "max_concurrent": 3,
        "fair": {"decay_s": 0, "reservation": 50, "max_vcpus": 64, "shares": [["a", 0.5], ["b*", 1.0]]},
    }


def test_a_share_is_required_where_there_is_a_policy_and_forbidden_elsewhere() -> None:
    fair = config(fair_share={"shares": [{"share": "alice"}]})
    assert "say whose work it is with job.share, such as alice" in (fair.refusal("lab", job()) or "")
    assert fair.refusal("lab", job(share="anybody")) is None
    assert "has no fair share; leave job.share out" in (config().refusal("lab", job(share="alice")) or "")


def test_a_type_of_gpu_that_no_environment_has_is_refused() -> None:
    assert config().refusal("lab", job(gpus=1, gpu_type="a100")) is None
    assert config().refusal("lab", job(gpus=1, gpu_type="T4")) is None
    assert "gpu_type h100, it has a100, t4" in (config().refusal("lab", job(gpus=1, gpu_type="h100")) or "")
    silent = config({"here": {**HERE["here"], "gpu_types": None}})
    assert silent.refusal("lab", job(gpus=1, gpu_type="h100")) is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"share": "a b"}, "letters and digits"),
        ({"share": ""}, "letters and digits"),
        ({"share": "x" * 256}, "letters and digits"),
        ({"scheduling_priority": 10000}, "9999"),
        ({"consumables": {"a b": 1}}, "name is letters"),
        ({"consumables": {"lic": 0}}, "greater than or equal to 1"),
        ({"consumables": {f"l{n}": 1 for n in range(6)}}, "at most 5"),
        ({"gpu_type": "a100"}, "goes with gpus"),
        ({"gpus": 1, "gpu_type": "a 100"}, "a type of GPU"),
    ],
)
def test_a_job_that_asks_wrongly_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        job(**fields)
    assert words in str(caught.value)


def test_a_share_has_up_to_255_letters_and_a_gpu_type_any_case() -> None:
    assert job(share="x" * 255).share == "x" * 255
    assert job(gpus=1, gpu_type="A100").gpu_type == "a100"


def test_only_a_definition_says_how_many_of_its_jobs_run_at_once() -> None:
    def find(_: object) -> tuple[str, dict[str, Any]]:
        return "d:1", {"image": "busybox", "max_concurrent": 2}

    with pytest.raises(InvalidJob, match="is said by a job definition"):
        expand({"image": "busybox", "max_concurrent": 1}, find)
    with pytest.raises(InvalidJob, match="is for d:1 to say"):
        expand({"definition": "d", "max_concurrent": 1}, find)
    whole = Job.parse(expand({"definition": "d"}, find))
    assert (whole.max_concurrent, whole.definition) == (2, "d:1")
    assert Job.parse(expand(whole.dump(), find)) == whole
