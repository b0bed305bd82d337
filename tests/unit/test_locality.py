"""What a record says of a job's inputs."""

from __future__ import annotations

from batchyard.broker.job import Job
from batchyard.broker.locality import short_hash, short_hashes
from batchyard.broker.seal import KeyRing

RING = KeyRing.new()


def digest(n: int) -> str:
    return f"sha256:{n:08x}" + "0" * 56


def short(n: int) -> str:
    return short_hash(RING.name(digest(n)))


def test_the_largest_eight_inputs_are_named_each_once() -> None:
    inputs = {f"/in/{n}": {"digest": digest(n), "size": n} for n in range(20)}
    job = Job.parse({"image": "i", "inputs": {**inputs, "/again": digest(19), "/web": "https://example.org/x"}})
    assert short_hashes(job.inputs.values(), RING) == [short(n) for n in range(19, 11, -1)]
    assert short_hashes(Job.parse({"image": "i"}).inputs.values(), RING) == []


def test_the_members_of_a_group_are_inputs_too() -> None:
    members = [{"name": "o", "digest": digest(n), "size": 1} for n in range(3)]
    job = Job.parse({"image": "i", "inputs": {"/in/all": {"members": members}}})
    assert short_hashes(job.inputs.values(), RING) == [short(0), short(1), short(2)]


def test_what_a_record_says_of_an_input_tells_neither_its_digest_nor_whether_another_tenant_has_it() -> None:
    job = Job.parse({"image": "i", "inputs": {"/in/a": digest(7)}})
    mine, theirs = (short_hashes(job.inputs.values(), RING.of(tenant)) for tenant in ("alice", "bob"))
    assert mine != theirs
    assert digest(7).removeprefix("sha256:")[:8] not in {*mine, *theirs}
