"""Array jobs with real containers: through the client, the command line and plain Celery."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from celery import chain

from batchyard.broker import cli
from batchyard.broker.client import Client
from batchyard.broker.state import State
from yardtest.wait import until
from yardtest.yard import TestYard, running_yard

INDEX, SIZE = "$AWS_BATCH_JOB_ARRAY_INDEX", "$AWS_BATCH_JOB_ARRAY_SIZE"


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory, image: str) -> Iterator[TestYard]:
    with running_yard(tmp_path_factory.mktemp("arrays"), image) as made:
        yield made


@pytest.fixture
def client(yard: TestYard) -> Iterator[Client]:
    with Client(yard.url) as made:
        yield made


def job(yard: TestYard, script: str, **fields: Any) -> dict[str, Any]:
    small = {"image": yard.image, "vcpus": 0.25, "memory_mib": 32, "disk_gib": 0.1}
    return {**small, "command": ["sh", "-c", script], "outputs": {"o": "/work/o"}, **fields}


def digest(result: Any) -> str:
    """Of the output `o`."""
    return str(result["outputs"]["o"]["digest"])


def of_text(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def test_an_array_feeds_another_one_child_by_child_and_one_job_reads_all(yard: TestYard, client: Client) -> None:
    first = client.submit(job(yard, f"echo {INDEX} of {SIZE} >/work/o", array_size=3))
    wanted = {"job_id": first, "type": "N_TO_N"}
    second = client.submit(
        job(yard, f"sed s/^/{INDEX}:/ /in/x >/work/o", array_size=3, depends_on=[wanted],
            inputs={"/in/x": {"job": first, "from": "o"}}),
        queue="other",
    )  # fmt: skip
    reduce = client.submit(
        job(yard, "cd /in/all && ls | tr '\\n' ' ' >/work/o && cat */o >>/work/o", depends_on=[second],
            inputs={"/in/all": {"job": second, "from": "o"}})
    )  # fmt: skip
    records = client.wait([first, second, reduce], timeout_s=90)
    assert [r.state for r in records] == ["SUCCEEDED"] * 3, records
    assert records[1].result is not None
    assert records[1].result["array"] == {"size": 3, "succeeded": 3, "failed": 0}
    assert digest(records[2].result) == of_text("0 1 2 0:0 of 3\n1:1 of 3\n2:2 of 3\n")
    child = client.status(f"{second}:2")
    assert (child.index, child.parent, child.attempts[0].exit_code) == (2, second, 0)
    yard.nothing_left()


def test_a_running_array_is_cancelled_as_a_whole(yard: TestYard, client: Client) -> None:
    array = client.submit(job(yard, "sleep 600", array_size=200))
    after = client.submit(job(yard, "true", depends_on=[array]))
    until(lambda: _count(client, array, "RUNNING") >= 4, "some children run", timeout_s=60)
    assert client.cancel(array, "not wanted") == "stopping"
    ended = client.wait([array, after], timeout_s=60)
    assert [(r.state, r.reason) for r in ended] == [
        ("FAILED", "not wanted"),
        ("FAILED", f"Dependent Job failed: {array}"),
    ]
    assert client.cancelled(ended[0])
    assert _count(client, array, "FAILED") == 200
    assert client.status(f"{array}:199").reason == "not wanted"
    yard.nothing_left()


def _count(client: Client, array: str, state: str) -> int:
    found = client.status(array).array
    assert found is not None
    assert sum(found.counts.values()) == found.size
    return found.counts[State(state)]


def test_the_next_step_of_a_chain_gets_the_outputs_of_an_array_as_a_directory(yard: TestYard) -> None:
    """Also of more children than a container has mounts for."""
    first = yard.signature("sh", "-c", f"echo {INDEX} >/work/o", outputs={"o": "/work/o"}, array_size=70, attempts=2)
    then = yard.signature(
        "sh", "-c", "cat /in/all/*/o | sort -n >/work/o; cat /in/7 >>/work/o", outputs={"o": "/work/o"},
        inputs={"/in/all": {"from": "o"}, "/in/7": {"from": "o", "index": 7}},
    )  # fmt: skip
    result = chain(first, then).apply_async()
    assert digest(result.get(timeout=120)) == of_text("".join(f"{n}\n" for n in (*range(70), 7)))
    before: Any = result.parent
    told = before.get(timeout=5)
    assert (told["array"], told["outputs"]) == ({"size": 70, "succeeded": 70, "failed": 0}, {})
    yard.nothing_left()


def test_a_child_that_fails_is_tried_again_by_itself_and_what_is_left_can_be_gathered(
    yard: TestYard, client: Client
) -> None:
    script = f"[ {INDEX} = 1 ] && exit 3; [ {INDEX}$AWS_BATCH_JOB_ATTEMPT = 21 ] && exit 4; echo {INDEX} >/work/o"
    array = client.submit(job(yard, script, array_size=3, attempts=2))
    tolerant = {"job_id": array, "on_failure": "CONTINUE"}
    source = {"/in/all": {"job": array, "from": "o"}}
    rest = client.submit(job(yard, "cd /in/all; ls | xargs >/work/o", depends_on=[tolerant], inputs=source))
    ended = client.wait([array, rest], timeout_s=60)
    assert (ended[0].state, ended[0].reason) == ("FAILED", "Array Child Job failed")
    assert [len(client.status(f"{array}:{n}").attempts) for n in range(3)] == [1, 2, 2]
    assert digest(ended[1].result) == of_text("0 2\n")
    reason = yard.reason(yard.shell("true", depends_on=[tolerant], inputs={"/in/x": {"job": array, "from": "none"}}))
    assert reason == f'input "/in/x": job "{array}:0" has no output "none"; it has o'
    yard.nothing_left()


def test_the_command_line_knows_arrays_and_their_children(
    yard: TestYard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BATCHYARD_BROKER_URL", yard.url)
    monkeypatch.setenv("BATCHYARD_STORE", str(yard.blobs))
    monkeypatch.setenv("BATCHYARD_KEY_FILE", str(yard.key_file))

    def run(*words: str, code: int = 0) -> str:
        capsys.readouterr()
        assert cli.run(words) == code, capsys.readouterr()
        return capsys.readouterr().out.strip()

    small = ("--image", yard.image, "--vcpus", "0.25", "--memory-mib", "32", "--disk-gib", "0.1", "--array", "3")
    script = ("--", "sh", "-c", f"echo child {INDEX} >/work/o; [ {INDEX} != 2 ] || exec sleep 600")
    array = run("submit", *small, "--output", "o=/work/o", *script)
    other = run("submit", *small, "--n-to-n", array, "--sequential", "--input", f"/in=job:{array}:o", "--", "true")
    until(lambda: "2 of 3 children have ended; 1 run" in run("why", array), "two children end", timeout_s=60)
    assert "3 children: 2 succeeded, 1 running" in run("status", array)
    assert json.loads(run("status", "--json", array[:12]))["array"]["counts"]["SUCCEEDED"] == 2
    assert run("logs", f"{array}:1") == ""
    assert json.loads(run("status", "--json", f"{array[:12]}:1"))["exit_code"] == 0
    assert run("get", f"{array}:1:o", "-") == "child 1"
    assert "3 children" in run("ls", array)
    assert [c["index"] for c in json.loads(run("ls", "--array", array, "--json"))] == [0, 1, 2]
    assert [c["index"] for c in json.loads(run("ls", "--array", array, "--status", "RUNNING", "--json"))] == [2]
    assert [c["index"] for c in json.loads(run("ls", "--array", array, "--from", "1", "--limit", "1", "--json"))] == [1]
    waits = json.loads(run("why", "--json", f"{other}:2"))["reasons"]
    assert f"{array}:2" in [r["depends_on"] for r in waits if r["code"] == "depends_on"]
    assert "is being stopped" in run("cancel", f"{array}:2")
    assert "FAILED" in run("wait", array, other, "--quiet", code=1)
    assert f"Dependent Job failed: {array}:2" in run("status", f"{other}:2")
    assert "Array Child Job failed (3 children: 2 succeeded, 1 failed)" in run("wait", array, code=1)
    run("status", f"{array}:3", code=1)
    run("submit", *small[:-1], "1", "--", "true", code=2)
    yard.nothing_left()
