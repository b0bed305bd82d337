"""Outputs that expire on a real yard, and `batchyard cache` beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from batchyard.broker import cli, keys
from batchyard.broker.blobs import LazyBlobs
from batchyard.broker.client import Client
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.disk import DirectoryStore
from yardtest.wait import until
from yardtest.yard import TestYard, running_yard

QUEUES = {"cpu": {"environments": ["here"]}, "brief": {"environments": ["here"], "outputs_expire_s": 2}}
Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory, image: str) -> Iterator[TestYard]:
    with running_yard(tmp_path_factory.mktemp("cache") / "y", image, nodes=0, config={"queues": QUEUES}) as made:
        made.start_node("a", queues="cpu,brief", near=made.directory / "near")
        yield made
        made.nothing_left()
        made.healthy()


@pytest.fixture
def blobs(yard: TestYard) -> BlobStore:
    return BlobStore(DirectoryStore(yard.blobs), yard.ring)


@pytest.fixture
def run(yard: TestYard, capsys: pytest.CaptureFixture[str]) -> Run:
    """Exit code and stdout of `batchyard cache …`."""

    def go(*words: str) -> tuple[int, str]:
        where = ["--broker", yard.url, "--key-file", str(yard.key_file), "--store", str(yard.blobs)]
        code = cli.run(["cache", *words, *where])
        return code, capsys.readouterr().out

    return go


def told(run: Run, *words: str, code: int = 0) -> Any:
    found, out = run(*words, "--json")
    assert found == code, out
    return json.loads(out)


def digest_of(result: dict[str, Any]) -> str:
    return str(result["outputs"]["o"]["digest"])


def expired(run: Run, blobs: BlobStore, *digests: str) -> None:
    """Once their time is over, and whichever of node and command deletes them."""
    until(lambda: run("gc")[0] == 0 and not any(map(blobs.has, digests)), "they go", timeout_s=30, every_s=0.3)


def output(yard: TestYard, text: str, queue: str, **more: Any) -> dict[str, Any]:
    done: dict[str, Any] = yard.shell(f"echo {text} >/work/o", queue=queue, outputs={"o": "/work/o"}, **more).get(
        timeout=60
    )
    return done


def test_outputs_and_logs_go_by_the_policy_of_their_queue_and_no_others(
    yard: TestYard, blobs: BlobStore, run: Run
) -> None:
    kept, brief = output(yard, "kept", "cpu"), output(yard, "brief", "brief")
    both = [output(yard, "both", queue) for queue in ("cpu", "brief")]
    expired(run, blobs, digest_of(brief), brief["log"])
    assert blobs.has(digest_of(kept))
    assert blobs.has(kept["log"])
    assert digest_of(both[0]) == digest_of(both[1])
    assert blobs.has(digest_of(both[0]))
    again = output(yard, "brief", "brief")  # its bytes are put again
    assert digest_of(again) == digest_of(brief)
    assert blobs.read_bytes(digest_of(again), 100) == b"brief\n"


def test_what_a_later_job_needs_stays_until_that_has_run(yard: TestYard, blobs: BlobStore, run: Run) -> None:
    made = output(yard, "needed", "brief")
    later = yard.signature(
        "cat", "/in/o", "/in/p",
        inputs={"/in/o": digest_of(made), "/in/p": {"job": made["job_id"], "from": "o"}},
        depends_on=[made["job_id"]],
    ).apply_async(countdown=6)  # fmt: skip
    until(lambda: yard.peek(later.id) is not None, "it is taken in")
    until(lambda: yard.redis.zscore(keys.BLOBS_UNTIL, blobs.name(digest_of(made))) is not None, "it may expire")
    expired(run, blobs, made["log"])
    assert blobs.has(digest_of(made))
    assert later.get(timeout=60)["exit_code"] == 0
    log = blobs.read_bytes(yard.ended(later.id).log or "", 10_000).decode()
    assert log.count("needed") == 2


def test_what_a_person_puts_stays_until_it_is_unpinned(
    yard: TestYard, blobs: BlobStore, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "f").write_text("of a person\n")
    with Client(yard.url, blobs=LazyBlobs(str(yard.blobs), yard.key_file), key_file=yard.key_file) as client:
        tree = client.put(tmp_path / "in")["digest"]
    made = yard.shell("echo of a person >/work/o", queue="brief", outputs={"o": "/work/o"}).get(timeout=60)
    expired(run, blobs, made["log"])
    assert blobs.has(digest_of(made))
    pinned = {one["digest"] for one in told(run, "ls", "--pinned")}
    assert pinned == {tree, digest_of(made)}
    assert told(run, "unpin", tree)[0]["may_expire"] == 2
    assert run("unpin", tree)[0] == 1
    expired(run, blobs, tree, digest_of(made))
    code, _ = run("pin", f"{made['job_id']}:o")
    assert code == 1


def test_stats_and_ls_tell_what_there_is(yard: TestYard, blobs: BlobStore, run: Run) -> None:
    output(yard, "there", "cpu")
    stats = told(run, "stats")
    assert stats["store"]["objects"] == len(list(DirectoryStore(yard.blobs).names()))
    assert stats["store"]["bytes"] > 0
    assert [node["name"] for node in stats["nodes"]] == ["a"]
    assert "scrub_bad" in stats["nodes"][0]
    listed = told(run, "ls", "--all")
    assert len(listed) == stats["store"]["objects"] - 1  # the store's id is none
    assert all(blobs.name(one["digest"]) == one["name"] for one in listed)
    code, out = run("ls")
    assert code == 0
    assert "DIGEST" in out
    code, out = run("stats")
    assert "may expire" in out


def test_verify_finds_what_does_not_open_and_deletes_it_when_told(yard: TestYard, blobs: BlobStore, run: Run) -> None:
    good, bad = (digest_of(output(yard, text, "cpu")) for text in ("good", "bad"))
    assert told(run, "verify")["bad"] == []
    name = blobs.name(bad)
    path = yard.blobs / "objects" / name[:2] / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    assert told(run, "verify", good)["whole"] == 1
    found = told(run, "verify", bad, code=1)
    assert (found["damaged"], found["bad"][0]["deleted"]) == (1, False)
    assert blobs.has(bad)
    assert told(run, "verify", "--sample", "100", "--delete", code=1)["bad"][0]["deleted"]
    assert not blobs.has(bad)
    code, _ = run("verify", bad)
    assert code == 1
    assert told(run, "verify")["bad"] == []
