"""Outputs of jobs on a real node: patterns, of jobs that fail, and how large they may be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchyard.broker.client import Client
from batchyard.broker.endpoints import Endpoints
from batchyard.cache.stores.place import store_at
from yardtest.minio import S3Server
from yardtest.yard import TestYard, running_yard

QUEUES = {
    **{name: {"environments": ["here"]} for name in ("cpu", "tiny")},
    "other": {"environments": ["here"], "max_output_gib": 0.001},
}


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory, image: str, minio: S3Server) -> Iterator[TestYard]:
    folder = tmp_path_factory.mktemp("yard") / "y"
    with running_yard(folder, image, config={"queues": QUEUES}, nodes=0) as running:
        (running.secrets / "s3").write_bytes(minio.credentials.read_bytes())
        running.start_node("a")
        yield running
        running.nothing_left()
        running.healthy()


@pytest.fixture
def client(yard: TestYard) -> Iterator[Client]:
    ends = Endpoints(broker_url=yard.url, result_backend=yard.url, key_file=str(yard.key_file), store=str(yard.blobs))
    with Client.of(ends) as made:
        yield made


def details(sent: Any) -> dict[str, Any]:
    """What the producer of a job is told that fails."""
    with pytest.raises(Exception, match="failed") as caught:
        sent.get(timeout=60)
    found: dict[str, Any] = caught.value.args[1]
    return found


def text(client: Client, name: str, folder: Path) -> str:
    """What is in an output, by the name that people give it: `JOB:OUTPUT`."""
    digest, tenant = client.named(name)
    client.get(digest, folder / "got", tenant=tenant)
    return (folder / "got").read_text()


def test_a_pattern_gives_the_next_step_a_directory_of_what_matches(yard: TestYard) -> None:
    script = (
        "mkdir -p /work/o/x; for n in 1 2 3; do echo $n >/work/o/$n.csv; done; cp /work/o/1.csv /work/o/x; >/work/o/z"
    )
    first = yard.shell(script, outputs={"all": "/work/o/**/*.csv", "some": "/work/o/[12].csv"}).get(timeout=60)
    inputs = {f"/in/{name}": first["outputs"][name] for name in ("all", "some")}
    told = "cd /in; find all some -type f | sort | tr '\\n' ' ' >/work/t"
    second = yard.shell(f"{told}; grep -q 'all/1.csv all/2.csv all/3.csv all/x/1.csv some/1.csv some/2.csv' /work/t",
                        inputs=inputs, outputs={"t": "/work/t"})  # fmt: skip
    assert second.get(timeout=60)["outputs"]["t"]["size"] == len(
        "all/1.csv all/2.csv all/3.csv all/x/1.csv some/1.csv some/2.csv "
    )


def test_a_pattern_goes_to_a_bucket_as_a_directory_does(yard: TestYard, minio: S3Server) -> None:
    bucket, s3 = "patterns", minio.access().client()
    s3.make_bucket(bucket)
    output = {"path": "/work/o/*.csv", "to": f"s3://{bucket}/r/", "credentials": "s3"}
    yard.shell("mkdir /work/o; echo 1 >/work/o/a.csv; echo 2 >/work/o/b", outputs={"o": output}).get(timeout=60)
    assert [one.object_name for one in s3.list_objects(bucket, recursive=True)] == ["r/a.csv"]


def test_a_pattern_that_matches_nothing_fails_the_job(yard: TestYard) -> None:
    reason = yard.reason(yard.shell("mkdir /work/o; >/work/o/x", outputs={"o": "/work/o/*.csv"}))
    assert reason == 'output "o": nothing matches /work/o/*.csv'


def test_a_failed_job_keeps_what_it_was_told_to(yard: TestYard, client: Client, tmp_path: Path) -> None:
    outputs = {
        "report": {"path": "/work/report", "on_failure": True},
        "cores": {"path": "/work/core.*", "on_failure": True},
        "missing": {"path": "/work/missing", "on_failure": True},
        "table": "/work/table",
    }
    sent = yard.shell("echo bad >/work/report; echo x >/work/core.1; echo >/work/table; exit 3", outputs=outputs)
    told = details(sent)
    assert (told["exit_code"], told["reason"]) == (3, "the command ended with exit code 3")
    assert {name: one["kind"] for name, one in told["outputs"].items()} == {"report": "file", "cores": "tree"}
    record = client.status(sent.id)
    assert (record.state, record.result, record.outputs) == ("FAILED", None, told["outputs"])
    assert text(client, f"{sent.id}:report", tmp_path) == "bad\n"


def test_what_a_failed_job_kept_is_an_input_of_one_that_waits_for_any_end(yard: TestYard) -> None:
    first = yard.shell(
        "echo bad >/work/n; exit 3", outputs={"n": {"path": "/work/n", "on_failure": True}, "t": "/work/t"}
    )
    details(first)
    after = {"depends_on": [{"job_id": first.id, "on_failure": "CONTINUE"}]}
    second = yard.shell("test $(cat /in/n) = bad", inputs={"/in/n": {"job": first.id, "from": "n"}}, **after)
    assert second.get(timeout=60)["exit_code"] == 0
    third = yard.shell("true", inputs={"/in/t": {"job": first.id, "from": "t"}}, **after)
    assert yard.reason(third) == f'input "/in/t": job "{first.id}" is FAILED, so there is no output "t" of it'


def test_a_job_without_such_outputs_fails_as_ever(yard: TestYard, client: Client) -> None:
    sent = yard.shell("echo >/work/table; exit 3", outputs={"table": "/work/table"})
    assert set(details(sent)) == {"exit_code", "reason", "log_tail", "job_id"}
    assert client.status(sent.id).outputs == {}


def test_what_is_kept_of_a_failed_job_is_of_its_last_attempt(yard: TestYard, client: Client, tmp_path: Path) -> None:
    outputs = {"n": {"path": "/work/n", "on_failure": True}}
    before = set(store_at(str(yard.blobs)).names())
    sent = yard.shell("echo attempt $AWS_BATCH_JOB_ATTEMPT >/work/n; exit 3", outputs=outputs, attempts=2)
    details(sent)
    assert text(client, f"{sent.id}:n", tmp_path) == "attempt 2\n"
    assert len(set(store_at(str(yard.blobs)).names()) - before) == 3  # two logs and that


def test_of_a_job_whose_time_is_over_it_is_kept_and_of_a_cancelled_one_not(
    yard: TestYard, client: Client, minio: S3Server, tmp_path: Path
) -> None:
    bucket, s3 = "late", minio.access().client()
    s3.make_bucket(bucket)
    outputs = {
        "n": {"path": "/work/n", "on_failure": True},
        "m": {"path": "/work/n", "on_failure": True, "to": f"s3://{bucket}/n", "credentials": "s3"},
    }
    late = yard.shell("echo so far >/work/n; sleep 60", outputs=outputs, timeout_s=1)
    told = details(late)
    assert told["reason"] == "Job attempt duration exceeded timeout"
    assert text(client, f"{late.id}:n", tmp_path) == "so far\n"
    assert told["outputs"]["m"]["uri"] == f"s3://{bucket}/n"
    assert [one.object_name for one in s3.list_objects(bucket, recursive=True)] == ["n"]
    cancelled = yard.shell("echo so far >/work/n; sleep 60", outputs=outputs)
    yard.running(cancelled.id)
    client.cancel(cancelled.id)
    assert yard.ended(cancelled.id).outputs == {}


def test_of_a_job_that_lacks_an_output_the_others_may_be_kept(yard: TestYard, client: Client) -> None:
    outputs = {"a": "/work/a", "b": {"path": "/work/b", "on_failure": True}}
    sent = yard.shell("echo >/work/b", outputs=outputs)
    assert yard.reason(sent) == 'output "a": /work/a was not written by the job'
    assert list(client.status(sent.id).outputs) == ["b"]


def test_what_is_too_large_is_refused_before_anything_is_stored(yard: TestYard) -> None:
    before = set(store_at(str(yard.blobs)).names())
    outputs = {"small": "/work/s", "large": {"path": "/work/l", "max_mib": 0.5}}
    script = "echo >/work/s; mkdir /work/l; for n in 1 2; do head -c 300000 /dev/zero >/work/l/$n; done"
    assert yard.reason(yard.shell(script, outputs=outputs)) == (
        'output "large": /work/l has 600,000 bytes, more than max_mib = 0.5 allows (524,288); write less, or allow more'
    )
    assert len(set(store_at(str(yard.blobs)).names()) - before) == 1  # the log
    fits = yard.shell(script, outputs={**outputs, "large": {"path": "/work/l", "max_mib": 0.6}})
    assert fits.get(timeout=60)["exit_code"] == 0


def test_a_queue_bounds_what_all_outputs_of_a_job_have_together(yard: TestYard, client: Client) -> None:
    outputs = {"a": {"path": "/work/a", "on_failure": True}, "b": {"path": "/work/b", "on_failure": True}}
    script = "for n in a b; do head -c 600000 /dev/zero >/work/$n; done"
    sent = yard.shell(script, outputs=outputs, queue="other")
    assert yard.reason(sent) == (
        'output "b": the job\'s outputs have 1,200,000 bytes up to this one (a 600,000, b 600,000), more than queue '
        '"other" allows (1,073,741, its max_output_gib); write less'
    )
    assert list(client.status(sent.id).outputs) == ["a"]
    assert yard.shell(script, outputs=outputs).get(timeout=60)["exit_code"] == 0
