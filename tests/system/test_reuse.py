"""Jobs that say `reuse`: an identical one is not run again, and its outputs are as if it had."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery import chain
from celery.result import AsyncResult

from batchyard.broker import keys
from batchyard.cache.parts import parts_of
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.place import store_at
from yardtest.stack import docker
from yardtest.yard import TestYard, running_yard

QUEUES = {
    **{name: {"environments": ["here"]} for name in ("cpu", "tiny")},
    "other": {"environments": ["here"], "tenant": "others"},
}
_numbers = itertools.count()


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory, image: str) -> Iterator[TestYard]:
    with running_yard(tmp_path_factory.mktemp("yard") / "y", image, config={"queues": QUEUES}) as running:
        yield running
        running.nothing_left()
        running.healthy()


@pytest.fixture
def seed() -> str:
    """What makes a test's jobs others than those of all tests before."""
    return f"seed {next(_numbers)}"


@contextmanager
def created(yard: TestYard) -> Iterator[list[str]]:
    """Ids of the jobs for which a container was made meanwhile, once it is over; by the engine's own events."""
    labelled = ["--filter", f"label=batchyard.yard={yard.id}", "--filter", "label=batchyard.job"]
    format_ = '{{.Actor.ID}} {{index .Actor.Attributes "batchyard.job"}}'
    found: list[str] = []
    began = _now()
    yield found
    asked = ["events", "--since", began, "--until", _now(), "--filter", "event=create"]
    found += [line.split(" ", 1)[1] for line in docker(*asked, *labelled, "--format", format_).splitlines()]


def _now() -> str:
    return f"{time.time():.6f}"


def pipeline(yard: TestYard, seed: str, **more: Any) -> AsyncResult[Any]:
    """Three steps in a plain Celery chain."""

    def step(script: str, **job: Any) -> Any:
        return yard.signature("sh", "-c", script, reuse=True, **job, **more)

    return chain(
        step(f"mkdir /work/d; echo {seed} >/work/d/a; seq 9 >/work/d/b", outputs={"d": "/work/d"}),
        step("cat /in/d/a /in/d/b >/work/t", inputs={"/in/d": {"from": "d"}}, outputs={"t": "/work/t"}),
        step("wc -l </in/t >/work/n", inputs={"/in/t": {"from": "t"}}, outputs={"n": "/work/n"}),
    ).apply_async()


def steps(last: AsyncResult[Any]) -> list[Any]:
    """The results of all three, the first step's first."""
    before: Any = last.parent
    return [result.get(timeout=60) for result in (before.parent, before, last)]


def test_a_pipeline_that_was_run_starts_no_container_the_second_time(yard: TestYard, seed: str) -> None:
    with created(yard) as first_time:
        first = steps(pipeline(yard, seed))
    assert sorted(first_time) == sorted(one["job_id"] for one in first)
    assert not any("reused_from" in one for one in first)
    with created(yard) as second_time:
        second = steps(pipeline(yard, seed, name="again", memory_mib=48, attempts=3))
    assert second_time == []
    assert [one["outputs"] for one in second] == [one["outputs"] for one in first]
    assert [one["reused_from"] for one in second] == [one["job_id"] for one in first]
    assert [(one["exit_code"], one["started"]) for one in second] == [(0, None)] * 3
    record = yard.store.record(second[2]["job_id"])
    assert (record.state, record.reused, record.result) == ("SUCCEEDED", first[2]["job_id"], second[2])
    assert record.reason == f"not run: its outputs are those of the identical job {record.reused}"
    assert record.reason in log_of(yard, second[2])
    with created(yard) as third_time:
        third = steps(pipeline(yard, seed, environment={"LANG": "C"}))
    assert len(third_time) == 3
    assert [one["outputs"] for one in third] == [one["outputs"] for one in first]


def test_people_ask_for_it_and_see_it(
    yard: TestYard, seed: str, batchyard: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("BROKER_URL", yard.url), ("KEY_FILE", yard.key_file), ("STORE", yard.blobs)):
        monkeypatch.setenv(f"BATCHYARD_{name}", str(value))

    def submit(*options: str) -> str:
        words = ["--image", yard.image, "--memory-mib", "32", "--vcpus", "0.25", "--output", "t=/work/t", *options]
        code, _, err = batchyard("submit", *words, "--wait", "--", "sh", "-c", f"echo {seed} >/work/t")
        assert code == 0, err
        return err.split()[0]

    first, second, third = submit("--reuse"), submit("--reuse"), submit("--reuse", "--no-reuse")
    assert ["reused", "from", first] in [line.split() for line in batchyard("status", second)[1].splitlines()]
    assert json.loads(batchyard("status", "--json", second)[1])["reused"] == first
    assert json.loads(batchyard("status", "--json", third)[1])["reused"] == ""
    assert f"the identical job {first}" in "".join(batchyard("logs", second)[1:])
    assert batchyard("ls", second)[1] == batchyard("ls", first)[1]
    assert batchyard("get", f"{second}:t", "-")[0] == 0


def log_of(yard: TestYard, result: Any, tenant: str = "") -> str:
    return blobs_of(yard).of(tenant).read_bytes(result["log"], 1 << 20).decode()


def blobs_of(yard: TestYard) -> BlobStore:
    return BlobStore(store_at(str(yard.blobs)), yard.ring)


def forget(yard: TestYard, digest: str) -> None:
    store_at(str(yard.blobs)).delete(yard.ring.name(digest))


@pytest.mark.parametrize("gone", ["file", "manifest", "file of a tree"])
def test_a_job_whose_earlier_outputs_are_gone_is_run(yard: TestYard, seed: str, gone: str) -> None:
    outputs = {"d": "/work/d", "t": "/work/t"}

    def run() -> Any:
        script = f"mkdir /work/d; echo {seed} x >/work/d/a; echo {seed} t >/work/t"
        return yard.shell(script, reuse=True, outputs=outputs).get(timeout=60)

    first = run()
    tree = first["outputs"]["d"]["digest"]
    _, inner = parts_of(blobs_of(yard), tree)
    forget(yard, {"file": first["outputs"]["t"]["digest"], "manifest": tree, "file of a tree": inner}[gone])
    second = run()
    assert "reused_from" not in second
    assert second["outputs"] == first["outputs"]
    assert f"what the identical job {first['job_id']} made is not all there any more" in log_of(yard, second)
    assert run()["reused_from"] == second["job_id"]


@pytest.mark.parametrize("harm", [lambda old: b"", lambda old: old[:-1] + bytes([old[-1] ^ 1])])
def test_a_damaged_note_is_no_note(yard: TestYard, seed: str, harm: Callable[[bytes], bytes]) -> None:
    def run() -> Any:
        return yard.shell(f"echo {seed} >/work/t", reuse=True, outputs={"t": "/work/t"}).get(timeout=60)

    before = set(yard.redis.scan_iter(keys.memo("*")))
    run()
    (key,) = set(yard.redis.scan_iter(keys.memo("*"))) - before
    assert 0 < yard.redis.ttl(key) <= yard.config.retention_s
    sealed = yard.redis.get(key)
    assert isinstance(sealed, bytes)
    yard.redis.set(key, harm(sealed))
    again = run()
    assert "reused_from" not in again
    assert run()["reused_from"] == again["job_id"]


def test_what_one_tenant_made_is_not_known_to_another(yard: TestYard, seed: str) -> None:
    def run(queue: str) -> Any:
        job = {"reuse": True, "outputs": {"t": "/work/t"}}
        return yard.shell(f"echo {seed} >/work/t", queue=queue, **job).get(timeout=60)

    first, theirs = run("cpu"), run("other")
    assert "reused_from" not in theirs
    assert first["job_id"] not in log_of(yard, theirs, "others")
    assert run("cpu")["reused_from"] == first["job_id"]
    assert run("other")["reused_from"] == theirs["job_id"]


def test_what_failed_and_what_does_not_ask_is_run_each_time(yard: TestYard, seed: str) -> None:
    notes = len(list(yard.redis.scan_iter(keys.memo("*"))))
    with created(yard) as made:
        for _ in range(2):
            yard.reason(yard.shell(f"echo {seed}; exit 3", reuse=True))
            yard.shell(f"echo {seed}").get(timeout=60)
    assert len(made) == 4
    assert len(list(yard.redis.scan_iter(keys.memo("*")))) == notes


def test_an_image_of_the_same_name_and_other_content_is_another(yard: TestYard, seed: str) -> None:
    name = "batchyard-test/reuse:1"

    def run() -> Any:
        return yard.shell(f"echo {seed} >/work/t", image=name, reuse=True, outputs={"t": "/work/t"}).get(timeout=60)

    try:
        docker("tag", yard.image, name)
        first = run()
        assert run()["reused_from"] == first["job_id"]
        with_label(name, yard.image)
        assert "reused_from" not in run()
    finally:
        docker("rmi", "-f", name)


def with_label(name: str, image: str) -> None:
    """An image of this name that is `image` with something more."""
    container = docker("create", image, "true").strip()
    docker("commit", "--change", "LABEL changed=yes", container, name)
    docker("rm", container)


def test_children_of_arrays_are_reused_by_their_index(yard: TestYard, seed: str) -> None:
    def run(size: int) -> list[Any]:
        script = f"echo {seed} $AWS_BATCH_JOB_ARRAY_INDEX >/work/t"
        sent = yard.shell(script, array_size=size, reuse=True, outputs={"t": "/work/t"})
        sent.get(timeout=60)
        return [yard.store.record(f"{sent.id}:{n}") for n in range(size)]

    first = run(2)
    with created(yard) as made:
        second = run(2)
    assert made == []
    assert [one.reused for one in second] == [one.id for one in first]
    assert [one.outputs for one in second] == [one.outputs for one in first]
    assert second[0].outputs != second[1].outputs
    assert [one.reused for one in run(3)] == [""] * 3  # it is told of how many it is one


def test_a_job_that_cannot_be_known_again_is_run_and_says_why(yard: TestYard, seed: str) -> None:
    (yard.shared / "x").write_text(seed)
    for _ in range(2):
        result = yard.shell("cat /in/x", reuse=True, inputs={"/in/x": f"file://{yard.shared}/x"}).get(timeout=60)
        assert "reused_from" not in result
        assert 'it is run anyway: input "/in/x" has no digest' in log_of(yard, result)


def test_a_success_is_noted_also_by_a_node_that_was_killed_meanwhile(yard: TestYard, seed: str) -> None:
    job = {"reuse": True, "outputs": {"t": "/work/t"}}
    sent = yard.shell(f"sleep 2; echo {seed} >/work/t", **job)
    yard.running(sent.id)
    yard.kill9(yard.nodes["a"])
    yard.start_node("a")
    assert sent.get(timeout=60)["attempt"] == 1
    again = yard.shell(f"sleep 2; echo {seed} >/work/t", **job)
    assert again.get(timeout=60)["reused_from"] == sent.id
