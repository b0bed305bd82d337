"""Two tenants on one node: each has its queue, its blobs and its secrets, and learns nothing of the other's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchyard.broker import cli, keys
from batchyard.broker.blobs import LazyBlobs
from batchyard.broker.client import Client
from batchyard.broker.errors import NotFound
from batchyard.cache.digest import digest_of
from yardtest.yard import TestYard, running_yard

QUEUES = {
    "cpu": {"environments": ["here"]},
    "alice": {"environments": ["here"], "tenant": "alice"},
    "bob": {"environments": ["here"], "tenant": "bob"},
}
NEVER = digest_of(b"nobody ever put this")


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory, image: str) -> Iterator[TestYard]:
    with running_yard(tmp_path_factory.mktemp("tenants") / "y", image, nodes=0, config={"queues": QUEUES}) as made:
        for tenant in ("alice", "bob"):
            (made.secrets / tenant).mkdir()
            (made.secrets / tenant / "token").write_text(f"token of {tenant}\n")
        made.start_node("a", queues="cpu,alice,bob")
        yield made
        made.nothing_left()
        made.healthy()


@pytest.fixture
def client(yard: TestYard) -> Iterator[Client]:
    with Client(yard.url, blobs=LazyBlobs(str(yard.blobs), yard.key_file), key_file=yard.key_file) as made:
        yield made


def made_by_alice(yard: TestYard) -> tuple[str, str]:
    """A job of alice's, and the digest of its output `o`."""
    sent = yard.shell("echo alice knows >/work/o", queue="alice", outputs={"o": "/work/o"})
    return sent.id, sent.get(timeout=60)["outputs"]["o"]["digest"]


def without(reason: str, digest: str) -> str:
    """What a reason says, whichever blob it was asked for."""
    return reason.replace(digest, "…")


def test_a_tenant_reads_what_it_made_and_no_other_does_by_its_digest(yard: TestYard) -> None:
    _, digest = made_by_alice(yard)
    read: dict[str, Any] = {"inputs": {"/in/x": digest}, "outputs": {"o": "/work/o"}}
    again = yard.shell("cat /in/x >/work/o", queue="alice", **read).get(timeout=60)
    assert again["outputs"]["o"]["digest"] == digest
    for queue in ("bob", "cpu"):  # the copy is on the node, and its object in the store
        there = yard.reason(yard.shell("cat /in/x", queue=queue, **read))
        never = yard.reason(yard.shell("cat /in/x", queue=queue, inputs={"/in/x": NEVER}))
        assert without(there, digest) == without(never, NEVER), "it must not tell whether there is such a blob"


def test_an_output_of_a_job_is_for_jobs_of_its_tenant(yard: TestYard) -> None:
    made, digest = made_by_alice(yard)
    read: dict[str, Any] = {"depends_on": [made], "inputs": {"/in/x": f"job:{made}:o"}, "outputs": {"o": "/work/o"}}
    assert yard.shell("cat /in/x >/work/o", queue="alice", **read).get(timeout=60)["outputs"]["o"]["digest"] == digest
    reason = yard.reason(yard.shell("cat /in/x", queue="bob", **read))
    assert "there is no record of job" in reason
    assert digest not in reason


def test_a_step_of_another_tenant_does_not_get_what_the_step_before_made(yard: TestYard) -> None:
    first = yard.signature("sh", "-c", "echo alice knows >/work/o", queue="alice", outputs={"o": "/work/o"})
    second = yard.signature("cat", "/in/x", queue="bob", inputs={"/in/x": {"from": "o"}})
    assert "is not in the store" in yard.reason((first | second).apply_async())


def test_children_of_an_array_are_their_tenants(yard: TestYard, client: Client) -> None:
    job = {"image": yard.image, "command": ["sh", "-c", "echo $AWS_BATCH_JOB_ARRAY_INDEX >/work/o"], "vcpus": 0.25,
           "memory_mib": 32, "disk_gib": 0.1, "outputs": {"o": "/work/o"}, "array_size": 2}  # fmt: skip
    array = client.submit(job, queue="alice")
    client.wait([array], timeout_s=60)
    assert client.status(f"{array}:1").tenant == "alice"
    read: dict[str, Any] = {"depends_on": [array], "inputs": {"/in/all": f"job:{array}:o"}, "outputs": {"o": "/work/o"}}
    gathered = yard.shell("cat /in/all/*/o >/work/o", queue="alice", **read).get(timeout=60)
    assert gathered["outputs"]["o"]["digest"] == digest_of(b"0\n1\n")
    assert "there is no record of job" in yard.reason(yard.shell("cat /in/all/*/o", queue="bob", **read))


def test_a_secret_is_its_tenants(yard: TestYard, client: Client) -> None:
    sent = {queue: yard.shell("echo $T >/work/o", queue=queue, secrets={"T": "token"}, outputs={"o": "/work/o"})
            for queue in ("alice", "bob")}  # fmt: skip
    for queue, result in sent.items():
        digest = result.get(timeout=60)["outputs"]["o"]["digest"]
        assert digest == digest_of(f"token of {queue}\n".encode())
    assert 'secret "token"' in yard.reason(yard.send("true", queue="cpu", secrets={"T": "token"}))


def test_the_operator_names_the_tenant_or_the_job(yard: TestYard, client: Client, tmp_path: Path) -> None:
    made, digest = made_by_alice(yard)
    named = client.named(f"{made}:o")
    assert named == (digest, "alice")
    client.get(digest, tmp_path / "o", tenant="alice")
    assert (tmp_path / "o").read_text() == "alice knows\n"
    with pytest.raises(NotFound):
        client.look(digest)
    assert any("alice" not in line for line in client.logs(made)), "its log is its tenant's, and is found by the job"
    put = client.put(tmp_path / "o", tenant="bob")["digest"]
    assert yard.shell("cat /in/x >/work/o", queue="bob", inputs={"/in/x": put},
                      outputs={"o": "/work/o"}).get(timeout=60)["outputs"]["o"]["digest"] == put  # fmt: skip


def test_nothing_in_redis_or_the_store_tells_a_tenants_digest(yard: TestYard) -> None:
    sent = yard.shell("sleep 3", queue="alice", inputs={"/in/x": made_by_alice(yard)[1]})
    _, digest = made_by_alice(yard)
    yard.running(sent.id)
    told: Any = yard.redis.hget(keys.job(sent.id), "in")
    assert told.decode() not in digest
    objects = [path.name for path in yard.blobs.rglob("*") if path.is_file()]
    assert objects
    assert digest.removeprefix("sha256:") not in objects
    assert sent.get(timeout=60)["exit_code"] == 0


def test_nothing_is_put_for_a_tenant_that_no_queue_has(
    yard: TestYard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "o").write_text("whose?")
    where = ["--broker", yard.url, "--key-file", str(yard.key_file), "--store", str(yard.blobs)]
    assert cli.run(["put", "--tenant", "alcie", str(tmp_path / "o"), *where]) == 2
    assert 'no queue has tenant "alcie" (they have alice, bob); correct --tenant' in capsys.readouterr().err
    assert cli.run(["put", "--tenant", "alice", str(tmp_path / "o"), *where]) == 0
