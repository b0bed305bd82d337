"""What a record says of a job's inputs."""

from __future__ import annotations

from batchyard.broker.job import Job
from batchyard.broker.locality import short_hashes


def digest(n: int) -> str:
    return f"sha256:{n:08x}" + "0" * 56


def test_the_largest_eight_inputs_are_named_each_once() -> None:
    inputs = {f"/in/{n}": {"digest": digest(n), "size": n} for n in range(20)}
    job = Job.parse({"image": "i", "inputs": {**inputs, "/again": digest(19), "/web": "https://example.org/x"}})
    assert short_hashes(job.inputs.values()) == [f"{n:08x}" for n in range(19, 11, -1)]
    assert short_hashes(Job.parse({"image": "i"}).inputs.values()) == []


def test_the_members_of_a_group_are_inputs_too() -> None:
    members = [{"name": "o", "digest": digest(n), "size": 1} for n in range(3)]
    job = Job.parse({"image": "i", "inputs": {"/in/all": {"members": members}}})
    assert short_hashes(job.inputs.values()) == ["00000000", "00000001", "00000002"]
