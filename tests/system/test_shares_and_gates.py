"""Tokens, limits of jobs at once, shares and types of GPU with real containers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import pytest

from batchyard.broker.client import Client
from batchyard.broker.record import Record
from yardtest.yard import TestYard, running_yard

CONFIG = {
    "queues": {
        "cpu": {"environments": ["here"]},
        "other": {"environments": ["here"], "fair_share": {"shares": [{"share": "alice"}, {"share": "bob"}]}},
    },
    "environments": {"here": {"vcpus": 4, "memory_mib": 4096, "gpus": 2, "gpu_types": ["a100", "t4"]}},
}


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory, image: str) -> Iterator[TestYard]:
    with running_yard(tmp_path_factory.mktemp("gates"), image, nodes=0, config=CONFIG) as made:
        made.start_node(gpus="a100=1,t4=1")
        yield made


@pytest.fixture
def client(yard: TestYard) -> Iterator[Client]:
    with Client(yard.url, key_file=yard.key_file) as made:
        yield made


def one_after_the_other(records: Sequence[Record]) -> bool:
    spans = sorted((r.started or 0, r.ended or 0) for r in records)
    return all(ended <= began for (_, ended), (began, _) in itertools.pairwise(spans))


def test_jobs_with_one_token_between_them_run_one_after_the_other(yard: TestYard, client: Client) -> None:
    client.consumables.create("lic", 1)
    ids = [yard.shell("sleep 0.5", consumables={"lic": 1}).id for _ in range(3)]
    free = yard.shell("true").id
    records = client.wait([*ids, free], timeout_s=60)
    assert {str(r.state) for r in records} == {"SUCCEEDED"}
    assert one_after_the_other(records[:3])
    assert (records[3].ended or 0) < max(r.ended or 0 for r in records[:3])
    assert client.consumables.show("lic").in_use == 0
    assert yard.reason(yard.shell("true", consumables={"lic": 2})).startswith("job.consumables.lic = 2: there are 1")
    client.consumables.delete("lic")


def test_a_definition_runs_no_more_of_its_jobs_at_once_than_it_says(yard: TestYard, client: Client) -> None:
    small = {"image": yard.image, "vcpus": 0.25, "memory_mib": 32, "disk_gib": 0.1, "command": ["sleep", "0.5"]}
    client.definitions.register("single", {**small, "max_concurrent": 1})
    ids = [client.submit({"definition": "single"}) for _ in range(3)]
    assert one_after_the_other(client.wait(ids, timeout_s=60))


def test_a_job_gets_a_gpu_of_the_type_that_it_asks_for(yard: TestYard) -> None:
    script = 'test "$NVIDIA_VISIBLE_DEVICES" = '
    asked = [yard.shell(script + device, gpus=1, gpu_type=kind) for kind, device in
             (("T4", "declared-1"), ("a100", "declared-0"), ("t4", "declared-1"))]  # fmt: skip
    assert [yard.ended(one.id).exit_code for one in asked] == [0, 0, 0]
    assert "gpu_type h100, it has a100, t4" in yard.reason(yard.shell("true", gpus=1, gpu_type="h100"))


def test_shares_run_and_a_job_without_one_is_refused(yard: TestYard) -> None:
    sent = [yard.send("true", queue="other", share=share) for share in ("alice", "bob", "carol")]
    assert {str(yard.ended(one.id).state) for one in sent} == {"SUCCEEDED"}
    assert "say whose work it is with job.share" in yard.reason(yard.send("true", queue="other"))
    yard.healthy()
