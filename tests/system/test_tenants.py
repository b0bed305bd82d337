"""Two tenants on one node: each has its queue, its blobs and its secrets, and learns nothing of the other's."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from batchyard.broker import cli, keys
from batchyard.broker.blobs import LazyBlobs
from batchyard.broker.client import Client
from batchyard.broker.errors import NotFound
from batchyard.broker.hints import Peer
from batchyard.cache.digest import digest_of
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.disk import DirectoryStore
from batchyard.cache.stores.peers import Doors, Transfer
from batchyard.worker.engine.docker import DockerEngine
from batchyard.worker.images import save
from yardtest.wait import until
from yardtest.website import Page, Website
from yardtest.yard import TestYard, running_yard

QUEUES = {
    **{name: {"environments": ["here"]} for name in ("cpu", "tiny")},
    "alice": {"environments": ["here"], "tenant": "alice"},
    "bob": {"environments": ["here"], "tenant": "bob"},
    "bob-there": {"environments": ["here"], "tenant": "bob"},
}
NEVER = digest_of(b"nobody ever put this")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Website]:
    with Website(tmp_path_factory.mktemp("site")) as running:
        yield running


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory, image: str, site: Website) -> Iterator[TestYard]:
    """Node a is everybody's, node b is bob's; each lets the other one into its near store."""
    with running_yard(tmp_path_factory.mktemp("tenants") / "y", image, nodes=0, config={"queues": QUEUES}) as made:
        for tenant in ("alice", "bob"):
            (made.secrets / tenant).mkdir()
            (made.secrets / tenant / "token").write_text(f"token of {tenant}\n")
        for node, queues in (("a", "cpu,alice,bob"), ("b", "bob-there")):
            made.start_node(
                node, wait=False, queues=queues, near=made.directory / f"near-{node}", peer_address="127.0.0.1",
                environment={"SSL_CERT_FILE": str(site.ca)}, allow_url_host="localhost",
            )  # fmt: skip
        made.wait_ready()
        yield made
        made.nothing_left()
        made.healthy()


@pytest.fixture
def client(yard: TestYard) -> Iterator[Client]:
    with Client(yard.url, blobs=LazyBlobs(str(yard.blobs), yard.key_file), key_file=yard.key_file) as made:
        yield made


def made_by_alice(yard: TestYard, text: str = "alice knows") -> tuple[str, str]:
    """A job of alice's, and the digest of its output `o`."""
    sent = yard.shell(f"echo {text} >/work/o", queue="alice", outputs={"o": "/work/o"})
    return sent.id, sent.get(timeout=60)["outputs"]["o"]["digest"]


def without(reason: str, digest: str) -> str:
    """What a reason says, whichever blob it was asked for."""
    return reason.replace(digest, "…")


def log_of(client: Client, job_id: str) -> list[str]:
    """What its log says, but for when."""
    return [line.split(" ", 1)[1] for line in client.logs(job_id)]


def as_if_it_were_not_there(yard: TestYard, client: Client, digest: str, jobs: Callable[[str], list[Any]]) -> None:
    """Jobs of bob's that name a blob end as they do that name one which nobody ever put, in all that he sees."""
    there, never = jobs(digest), jobs(NEVER)
    assert [without(yard.reason(one), digest) for one in there] == [without(yard.reason(one), NEVER) for one in never]
    for one, other in zip(there, never, strict=True):
        logs = [
            [without(text, name) for text in log_of(client, job.id)] for job, name in ((one, digest), (other, NEVER))
        ]
        assert logs[0] == logs[1]
        records = [yard.store.record(job.id) for job in (one, other)]
        assert [(r.exit_code, len(r.attempts), r.progress) for r in records[:1]] == [
            (r.exit_code, len(r.attempts), r.progress) for r in records[1:]
        ]


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
    never = yard.shell("true", queue="bob", depends_on=[f"{made}-never"])
    reasons = [yard.reason(one) for one in (yard.shell("cat /in/x", queue="bob", **read), never)]
    assert reasons == [f"job.depends_on = '{one}': no such job" for one in (made, f"{made}-never")]


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
    told = {"job_id": array, "array": {"size": 2}}  # as a chain gives it to its next step, or somebody else
    taken = yard.signature("ls", "/in/all", queue="bob", inputs={"/in/all": {"from": "o"}}).clone((told,))
    assert "there is no record of job" in yard.reason(taken.apply_async())


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
    _, digest = made_by_alice(yard)
    sent = yard.shell("sleep 3", queue="alice", inputs={"/in/x": digest})
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


def test_a_blob_of_another_tenant_is_not_there_in_any_form(yard: TestYard, client: Client, tmp_path: Path) -> None:
    """An archive, unpacked; something to change; one of several; a directory; an image, loaded and run by its owner."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        entry = tarfile.TarInfo("x")
        entry.size = 5
        tar.addfile(entry, io.BytesIO(b"alice"))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x").write_text("alice")
    archive, tree = (client.put(tmp_path / name, tenant="alice")["digest"] for name in ("a.tar", "d"))
    forms: list[dict[str, Any]] = [{"unpack": True}, {"writable": True}, {"unpack": True, "writable": True}]
    for digest, form in ((archive, forms[2]), (tree, forms[1])):
        yard.shell("grep alice /in/x/x", queue="alice", inputs={"/in/x": {"digest": digest, **form}}).get(timeout=60)

    def by_any(digest: str) -> list[Any]:
        sent = [yard.shell("ls /in/x", queue="bob", inputs={"/in/x": {"digest": digest, **form}}) for form in forms]
        told = {"job_id": "made-up", "outputs": {"o": {"digest": digest, "size": 5, "kind": "tree"}}}
        for previous in (told, [told, told]):  # a result that he made up
            one = yard.signature("ls", "/in/x", queue="bob", inputs={"/in/x": {"from": "o"}})
            sent.append(one.clone((previous,)).apply_async())
        return sent

    for digest in (archive, tree):
        as_if_it_were_not_there(yard, client, digest, by_any)


def test_an_image_of_another_tenant_is_neither_there_nor_run_by_its_id(
    yard: TestYard, client: Client, tmp_path: Path
) -> None:
    save(yard.image, tmp_path / "image")
    digest = client.put(tmp_path / "image", tenant="alice")["digest"]
    yard.shell("true", queue="alice", image=digest).get(timeout=60)
    loaded = f"batchyard/blob:{yard.ring.of('alice').name(digest)}"
    try:
        image_id = DockerEngine().image_present(loaded)
        assert image_id is not None
        as_if_it_were_not_there(yard, client, digest, lambda one: [yard.shell("true", queue="bob", image=one)])
        for name in (image_id[7:15], image_id.removeprefix("sha256:")):
            assert "cannot be had" in yard.reason(yard.shell("true", queue="bob", image=name))
    finally:
        subprocess.run(["docker", "rmi", loaded], capture_output=True, check=True, timeout=60)


def test_a_job_that_another_tenant_has_run_is_run(yard: TestYard, client: Client, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("both have this\n")
    digest = {client.put(tmp_path / "x", tenant=tenant)["digest"] for tenant in ("alice", "bob")}.pop()
    job: dict[str, Any] = {"inputs": {"/in/x": digest}, "outputs": {"o": "/work/o"}, "reuse": True}

    def result(queue: str) -> Any:
        return yard.shell("cat /in/x >/work/o", queue=queue, **job).get(timeout=60)

    alices, bobs, cpus = result("alice"), result("bob"), yard.shell("cat /in/x", queue="cpu", **job)
    assert "is not in the store" in yard.reason(cpus)
    assert "reused_from" not in bobs
    assert bobs["outputs"] == alices["outputs"]
    for queue, first in (("alice", alices), ("bob", bobs)):
        assert result(queue)["reused_from"] == first["job_id"]
    other = "\n".join(log_of(client, bobs["job_id"]))
    assert alices["job_id"] not in other


def test_a_hint_where_it_is_is_of_no_use_to_another_tenant(yard: TestYard, client: Client) -> None:
    made = yard.shell("head -c 3000000 /dev/urandom >/work/o", queue="alice", outputs={"o": "/work/o"}).get(timeout=60)
    digest, ring = made["outputs"]["o"]["digest"], yard.ring
    until(lambda: yard.redis.exists(keys.holders(ring.of("alice").name(digest))), "it is told that node a has it")
    before = json.loads(yard.redis.hget(keys.node("b"), "cache") or "{}")
    as_if_it_were_not_there(
        yard, client, digest, lambda one: [yard.shell("wc -c /in/x", queue="bob-there", inputs={"/in/x": one})]
    )
    assert not yard.redis.exists(*(keys.holders(ring.of(tenant).name(digest)) for tenant in ("", "bob")))
    assert json.loads(yard.redis.hget(keys.node("b"), "cache") or "{}")["peer_bytes"] == before["peer_bytes"]
    peer = Peer(node="a", address=yard.store.nodes()["a"]["peer"])
    doors = Doors(ring.of("bob"))
    assert doors.ask(peer, ring.of("bob").name(digest)) is None
    given = doors.ask(peer, ring.of("alice").name(digest))
    assert isinstance(given, Transfer), "the door is for nodes, which know names of all tenants"
    given.close()


def test_what_one_tenant_fetched_from_elsewhere_another_fetches_itself(
    yard: TestYard, client: Client, site: Website
) -> None:
    body = os.urandom(100_000)
    site.pages["/x"] = Page(body=body, etag='"1"')
    url, digest = site.url("/x"), digest_of(body)

    def asked(queue: str, **more: Any) -> int:
        before = site.bytes_sent
        yard.shell("wc -c </in/x", queue=queue, inputs={"/in/x": {"uri": url, **more}}).get(timeout=60)
        return site.bytes_sent - before

    assert [asked("alice"), asked("alice"), asked("alice", digest=digest)] == [len(body), 0, 0]
    as_if_it_were_not_there(
        yard, client, digest, lambda one: [yard.shell("wc -c </in/x", queue="bob", inputs={"/in/x": one})]
    )
    assert [asked("bob", digest=digest), asked("bob")] == [len(body), 0]
    site.pages["/x"] = Page(status=403)
    assert "403" in yard.reason(yard.shell("wc -c </in/x", queue="cpu", inputs={"/in/x": {"uri": url}}))


def test_commands_for_one_tenant_find_nothing_of_another(
    yard: TestYard, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _, digest = made_by_alice(yard, "what only alice has")
    where = ["--broker", yard.url, "--key-file", str(yard.key_file), "--store", str(yard.blobs)]

    def said(*words: str) -> tuple[int, str]:
        code = cli.run([*words, *where])
        told = capsys.readouterr()
        return code, told.out + told.err

    for command in (("cache", "verify"), ("cache", "pin"), ("cache", "unpin"), ("ls",), ("get",)):
        ends = [str(tmp_path / "o")] if command == ("get",) else []
        for tenant in ("bob", ""):
            there, never = (said(*command, one, *ends, "--tenant", tenant) for one in (digest, NEVER))
            assert there[0] != 0, (command, there)
            names = yard.ring.of(tenant).name(digest), yard.ring.of(tenant).name(NEVER)
            assert (there[0], without(without(there[1], digest), names[0])) == (
                never[0], without(without(never[1], NEVER), names[1])
            )  # fmt: skip
    assert said("cache", "verify", digest, "--tenant", "alice") == (0, "1 whole\n")
    assert (digest in said("cache", "ls", "--all", "--json")[1]) is True, "the operator sees whose it is"


def test_no_container_learns_the_yards_keys(yard: TestYard) -> None:
    text = base64.b64encode(yard.key_file.read_bytes()).decode()
    secrets = [*json.loads(yard.key_file.read_text())["keys"].values(), text]
    node = yard.start_node("k", queues="tiny", environment={"BATCHYARD_KEYS": text})
    script = "env >/work/o; cat /proc/*/environ /proc/*/cmdline >>/work/o 2>/dev/null; true"
    done = yard.shell(script, queue="tiny", outputs={"o": "/work/o"}).get(timeout=60)
    blobs = BlobStore(DirectoryStore(yard.blobs), yard.ring)
    seen = blobs.read_bytes(done["outputs"]["o"]["digest"], 1 << 20)
    assert b"BATCHYARD_JOB_ID" in seen
    for secret in secrets:
        assert secret.encode() not in seen
        assert secret not in node.said()
    assert b"BATCHYARD_KEY" not in seen
    kept = b"".join(yard.redis.dump(key) or b"" for key in yard.redis.keys("*"))
    assert not any(secret.encode() in kept for secret in secrets)
    yard.forget_node("k")
