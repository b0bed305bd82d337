"""A job that leaves spot machines after so many interruptions, on a real Redis."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from batchyard.broker import keys
from batchyard.broker.children import Children
from batchyard.broker.client import Client
from batchyard.broker.config import Config, parse
from batchyard.broker.errors import InvalidJob
from batchyard.broker.job import Job
from batchyard.broker.record import Attempt, Claimed
from batchyard.broker.store import Free, Incoming, Yard

ROOM = Free(vcpus=4, memory_mib=4096, gpus=0, disk_gib=100)
SHAPE = {"vcpus": 4, "memory_mib": 4096}

pytestmark = pytest.mark.system
_numbers = itertools.count()


def config(*, fair: bool = False, **environments: str) -> Config:
    told = {name: {**SHAPE, "kind": kind} for name, kind in environments.items()}
    queue = {"environments": list(environments), "overflow_s": 0, **({"fair_share": {}} if fair else {})}
    return parse({"queues": {"cpu": queue}, "environments": told}, "the test's")


@pytest.fixture
def cloud(yard: Yard) -> Yard:
    """Nodes `cheap`, of spot machines, and `own`."""
    yard.configure(config(cloud="SPOT", here="UNMANAGED"))
    beat(yard)
    return yard


def beat(yard: Yard) -> None:
    for node, environment in (("cheap", "cloud"), ("own", "here")):
        about = {"environment": environment, "vcpus": "4", "memory_mib": "4096", "gpus": "0", "disk_gib": "100"}
        yard.renew(node, {**about, "state": "READY", "queues": "cpu"}, {}, lease_s=30)


def put(yard: Yard, **clear: str) -> str:
    job_id = f"j{next(_numbers)}"
    one = Incoming(list_key="cpu", raw=job_id.encode(), kind="job", id=job_id, queue="cpu", vcpus=1, memory_mib=64,
                   disk_gib=1, document=b"sealed", clear=clear)  # fmt: skip
    yard.redis.lpush("cpu", one.raw)
    assert yard.intake([one]) == 1
    return job_id


def claim(yard: Yard, node: str) -> list[Claimed]:
    return yard.claim(node, f"c{next(_numbers)}", ROOM, ["cpu"], lease_s=30)[1]


def interrupt(yard: Yard, job: Claimed, node: str) -> None:
    attempt = Attempt(node=node, started=1.0, ended=2.0, exit_code=None, reason="taken away", counted=False)
    assert yard.give_back(job, attempt, interrupted=True)


def test_after_so_many_interruptions_there_a_spot_node_does_not_get_it(cloud: Yard) -> None:
    job_id = put(cloud, od="2")
    for _ in range(2):
        (job,) = claim(cloud, "cheap")
        interrupt(cloud, job, "cheap")
    assert claim(cloud, "cheap") == []
    with Client(cloud.url) as client:
        told = {one.code: one.text for one in client.why(job_id)}
    assert "they interrupted it too often" in told["spot"]
    assert "has_room" in told
    (job,) = claim(cloud, "own")
    assert job.id == job_id


def test_what_another_machine_or_the_job_itself_did_is_not_counted(cloud: Yard) -> None:
    put(cloud, od="1")
    (job,) = claim(cloud, "own")
    interrupt(cloud, job, "own")
    (job,) = claim(cloud, "cheap")
    attempt = Attempt(node="cheap", started=1.0, ended=2.0, exit_code=1, reason="failed")
    assert cloud.give_back(job, attempt)
    assert len(claim(cloud, "cheap")) == 1


def test_a_spot_node_that_is_lost_counts(cloud: Yard) -> None:
    job_id = put(cloud, od="1")
    claim(cloud, "cheap")
    cloud.tick(["cpu"], lease_s=30)
    cloud.redis.zadd(keys.LEASES, {job_id: 1})
    assert cloud.tick(["cpu"], lease_s=30)[0] == 1
    assert claim(cloud, "cheap") == []
    assert len(claim(cloud, "own")) == 1


def test_zero_means_never_and_others_are_in_nobodys_way(cloud: Yard) -> None:
    put(cloud, od="0")
    plain = put(cloud)
    assert [job.id for job in claim(cloud, "cheap")] == [plain]


def test_an_environment_that_is_no_spot_one_any_more_takes_it(cloud: Yard) -> None:
    put(cloud, od="0")
    assert claim(cloud, "cheap") == []
    cloud.configure(config(cloud="EC2", here="UNMANAGED"))
    assert len(claim(cloud, "cheap")) == 1


def test_so_it_is_in_a_queue_with_shares(yard: Yard) -> None:
    yard.configure(config(fair=True, cloud="SPOT", here="UNMANAGED"))
    beat(yard)
    first, second = put(yard, od="0", share="A"), put(yard, od="0", share="A")
    assert claim(yard, "cheap") == []
    (job,) = yard.claim("own", "one", ROOM, ["cpu"], lease_s=30, count=1)[1]
    assert job.id == first
    assert claim(yard, "cheap") == []
    yard.configure(config(fair=True, cloud="EC2", here="UNMANAGED"))
    assert [job.id for job in claim(yard, "cheap")] == [second]


def test_children_of_an_array_count_for_themselves(cloud: Yard) -> None:
    array = put(cloud, od="1", array="2")
    while Children(cloud).step(array):
        pass
    (first,) = cloud.claim("cheap", "one", ROOM, ["cpu"], lease_s=30, count=1)[1]
    interrupt(cloud, first, "cheap")
    assert [job.id for job in claim(cloud, "cheap")] == [f"{array}:1"]
    assert [job.id for job in claim(cloud, "own")] == [first.id]


def test_a_queue_of_spot_machines_only_refuses_it() -> None:
    job: dict[str, Any] = {"image": "i", "on_demand_after": 1}
    reason = config(cloud="SPOT").refusal("cpu", Job.parse(job))
    assert reason is not None
    assert "has spot machines only" in reason
    assert config(cloud="SPOT", here="UNMANAGED").refusal("cpu", Job.parse(job)) is None
    with pytest.raises(InvalidJob, match="does not go with nodes"):
        Job.parse({**job, "nodes": 2})
