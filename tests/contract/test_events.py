"""Counters and events of jobs' states, against a real Redis: right after each move, and in AWS's shape."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import redis

from batchyard.broker import functions, keys
from batchyard.broker.children import Children
from batchyard.broker.cli import run
from batchyard.broker.config import parse
from batchyard.broker.dependencies import Dependency
from batchyard.broker.errors import InvalidConfig
from batchyard.broker.events import FIRST, Events
from batchyard.broker.record import Attempt, Claimed
from batchyard.broker.state import State
from batchyard.broker.store import Free, Incoming, Yard

pytestmark = pytest.mark.system
ROOM = Free(vcpus=100, memory_mib=1 << 20, gpus=0, disk_gib=1000)
QUEUES = {"cpu": {"environments": ["here"]}, "gpu": {"environments": ["here"]}}
CONFIG = parse({"queues": QUEUES, "environments": {"here": {"vcpus": 8, "memory_mib": 4096}}}, "test")
_numbers = itertools.count()


def send(yard: Yard, job_id: str, queue: str = "cpu", **fields: Any) -> str:
    clear = {"image": "busybox", "name": f"name-{job_id}", "definition": "nightly:3"}
    plain: dict[str, Any] = {"vcpus": 1, "memory_mib": 64, "disk_gib": 1, "clear": clear, "document": b"x"}
    one = Incoming(list_key=queue, raw=job_id.encode(), kind="job", id=job_id, queue=queue, **plain | fields)
    yard.redis.lpush(queue, one.raw)
    assert yard.intake([one]) == 1
    return job_id


def claim(yard: Yard, queue: str = "cpu") -> Claimed:
    return yard.claim("n1", f"c{next(_numbers)}", ROOM, [queue], lease_s=30)[1][0]


def attempt(at: float, reason: str, **more: Any) -> Attempt:
    fields: dict[str, Any] = {"node": "n1", "started": at - 1, "ended": at, "exit_code": 3, "reason": reason}
    fields["status_reason"] = "Essential container in task exited"
    return Attempt(**fields | more)


def end(yard: Yard, job: Claimed, state: State = State.SUCCEEDED, reason: str = "ended well", **more: Any) -> None:
    now = yard.now_s()
    fields = {"reason": reason, "ended": str(int(now * 1000)), "exit_code": "3", "node": "n1"}
    assert yard.settle(job, state, attempt(now, reason, **more), fields, [], retention_s=100)


def counted(yard: Yard, queue: str = "cpu") -> dict[str, int]:
    return {state.value: n for state, n in yard.counts([queue])[queue].items() if n}


def told(yard: Yard) -> list[tuple[str, str]]:
    return [(one.job_id, one.state.value) for one in Events(yard).after(FIRST, count=1000)]


def test_counters_follow_each_move_of_a_job_and_keep_totals_of_the_ends(yard: Yard) -> None:
    send(yard, "a")
    send(yard, "b")
    send(yard, "other", queue="gpu")
    assert (counted(yard), counted(yard, "gpu")) == ({"RUNNABLE": 2}, {"RUNNABLE": 1})
    a = claim(yard)
    assert counted(yard) == {"RUNNABLE": 1, "STARTING": 1}
    assert yard.start(a, started_s=1.0, celery="", expires_s=10)
    assert yard.start(a, started_s=1.0, celery="", expires_s=10)  # the repeat of a lost reply
    assert counted(yard) == {"RUNNABLE": 1, "RUNNING": 1}
    assert yard.give_back(a, attempt(2.0, "again"), delay_s=100)
    assert counted(yard) == {"RUNNABLE": 1, "PENDING": 1}
    end(yard, claim(yard))
    assert counted(yard) == {"PENDING": 1, "SUCCEEDED": 1}
    yard.redis.delete(keys.job("b"))  # its record expires
    yard.tick(["cpu"], lease_s=30)
    assert counted(yard) == {"PENDING": 1, "SUCCEEDED": 1}
    yard.cancel("a", "no more", terminate=True)
    yard.finish("a", State.FAILED, {"reason": "no more"}, [], retention_s=10)
    assert counted(yard) == {"SUCCEEDED": 1, "FAILED": 1}
    assert yard.counts([]) == {}


def test_each_change_is_an_event_but_the_first_submission_and_a_repeat(yard: Yard) -> None:
    send(yard, "a")
    job = claim(yard)
    for _ in range(2):
        yard.start(job, started_s=1.0, celery="", expires_s=10)
    end(yard, job)
    end_again = yard.settle(job, State.SUCCEEDED, attempt(1, ""), {}, [], retention_s=10)
    assert end_again
    assert told(yard) == [("a", s) for s in ("RUNNABLE", "STARTING", "RUNNING", "SUCCEEDED")]


def test_a_child_that_comes_only_to_end_is_an_event(yard: Yard) -> None:
    send(yard, "a", clear={"array": "2"})
    yard.cancel("a", "not wanted", terminate=True)
    while Children(yard).step("a"):
        pass
    assert told(yard)[-2:] == [("a:0", "FAILED"), ("a:1", "FAILED")]


def test_an_event_has_the_shape_that_aws_sends(yard: Yard) -> None:
    send(yard, "first")
    send(yard, "a", depends_on=[Dependency(job_id="first")])
    end(yard, claim(yard))
    created_ms, began = int(yard.record("a").created * 1000), yard.now_s()
    job = claim(yard)
    yard.start(job, started_s=began, celery="", expires_s=10)
    end(yard, job, State.FAILED, "the command ended with exit code 3", started=began)
    events = Events(yard)
    of_a = [one for one in events.after(FIRST, count=100) if one.job_id == "a"]
    shaped = events.shaped(of_a)
    assert json.loads(json.dumps(shaped)) == shaped
    statuses = [one["detail"]["status"] for one in shaped]
    assert statuses == ["PENDING", "RUNNABLE", "STARTING", "RUNNING", "FAILED"]
    last = shaped[-1]
    assert (last["detail-type"], last["source"], last["version"]) == ("Batch Job State Change", "aws.batch", "0")
    assert last["resources"] == [last["detail"]["jobArn"]]
    assert last["time"].endswith("Z")
    assert len({one["id"] for one in shaped}) == 5
    detail = last["detail"]
    assert {k: detail[k] for k in ("jobName", "jobId", "jobQueue", "jobDefinition", "createdAt")} == {
        "jobName": "name-a", "jobId": "a", "jobQueue": "cpu", "jobDefinition": "nightly:3", "createdAt": created_ms,
    }  # fmt: skip
    assert detail["statusReason"] == "Essential container in task exited"
    assert detail["container"]["reason"] == "the command ended with exit code 3"
    assert (detail["container"]["exitCode"], detail["dependsOn"]) == (3, [{"jobId": "first"}])
    assert abs(detail["startedAt"] - began * 1000) <= 1
    assert detail["stoppedAt"] >= detail["startedAt"]
    assert len(detail["attempts"]) == 1
    for early in shaped[:3]:  # what came later is not told of what was before
        assert not {"startedAt", "stoppedAt", "statusReason"} & early["detail"].keys()
        assert "exitCode" not in early["detail"]["container"]


def test_a_cancelled_job_tells_its_own_reason_not_that_of_the_run_before(yard: Yard) -> None:
    send(yard, "a")
    assert yard.give_back(claim(yard), attempt(1.0, "it crashed"), delay_s=100)
    yard.cancel("a", "not wanted: it costs too much", terminate=True)
    yard.finish("a", State.FAILED, {"reason": "not wanted: it costs too much"}, [], retention_s=10)
    events = Events(yard)
    (last,) = events.shaped(events.newest(1)[1])
    assert last["detail"]["statusReason"] == "not wanted: it costs too much"
    assert last["detail"]["attempts"][0]["container"]["reason"] == "it crashed"


def test_an_event_outlives_its_record(yard: Yard) -> None:
    send(yard, "a")
    yard.redis.delete(keys.job("a"))
    events = Events(yard)
    (one,) = events.shaped(events.newest(1)[1])
    assert one["detail"] == {
        "jobArn": one["resources"][0], "jobName": "a", "jobId": "a", "jobQueue": "cpu", "status": "RUNNABLE",
        "attempts": [], "dependsOn": [], "container": {},
    }  # fmt: skip


def test_the_stream_is_bounded(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    text = functions.library()
    assert "EVENTS = '100000'" in text
    monkeypatch.setattr(functions, "library", lambda: text.replace("EVENTS = '100000'", "EVENTS = '200'"))
    yard.prepare()
    for n in range(400):
        send(yard, f"j{n}")
    assert 200 <= int(yard.redis.xlen(keys.EVENTS)) < 320
    events = Events(yard)
    assert events.after(FIRST, count=1)[0].job_id != "j0"
    monkeypatch.undo()
    yard.prepare()


def test_without_the_stream_counters_are_right_and_events_come_again_when_it_is_wanted(yard: Yard) -> None:
    plain = CONFIG.model_dump(mode="json")
    send(yard, "before")
    yard.configure(parse({**plain, "events": {"stream": False}}, "test"))
    assert not yard.redis.exists(keys.EVENTS)
    end(yard, claim(yard))
    assert (told(yard), counted(yard)) == ([], {"SUCCEEDED": 1})
    yard.configure(CONFIG)
    send(yard, "after")
    assert told(yard) == [("after", "RUNNABLE")]
    with pytest.raises(InvalidConfig, match="fed from the stream"):
        hook = {"url": "https://example.org/", "secret": "X"}
        parse({**plain, "events": {"stream": False, "webhook": hook}}, "test")


def test_what_a_failing_function_had_moved_is_counted(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    text = functions.library()
    broken = "  redis.call('PUBLISH', K.wake, queue)\nend"
    assert broken in text
    monkeypatch.setattr(functions, "library", lambda: text.replace(broken, "  redis.call('NOSUCH')\nend"))
    yard.prepare()
    with pytest.raises(redis.ResponseError):
        send(yard, "a")
    monkeypatch.undo()
    yard.prepare()
    assert yard.record("a").state == "RUNNABLE"
    assert counted(yard) == {"RUNNABLE": 1}


def test_the_newest_events_of_a_queue_are_found_behind_those_of_others(yard: Yard) -> None:
    for n in range(3):
        send(yard, f"g{n}", queue="gpu")
    for n in range(20):
        send(yard, f"c{n}")
    cursor, found = Events(yard).newest(2, "gpu")
    assert [one.job_id for one in found] == ["g1", "g2"]
    assert Events(yard).after(cursor) == []
    send(yard, "later")
    assert [one.job_id for one in Events(yard).after(cursor, block_ms=1000)] == ["later"]
    assert Events(yard).newest(0)[1] == []


def test_the_command_line_prints_and_follows(
    yard: Yard, key_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    yard.configure(CONFIG)
    named = ["--broker", yard.url, "--key-file", str(key_file)]
    assert run(["events", *named]) == 0
    assert capsys.readouterr().out == ""
    send(yard, "a")
    send(yard, "g", queue="gpu")
    assert run(["events", "--queue", "gpu", *named]) == 0
    assert capsys.readouterr().out.split()[-3:] == ["g", "gpu", "RUNNABLE"]
    seen: list[str] = []

    def hear(text: str) -> None:
        seen.append(json.loads(text)["detail"]["jobId"])
        if len(seen) == 2:
            send(yard, "late")
        if len(seen) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("batchyard.broker.cli.events.click.echo", hear)
    assert run(["events", "-f", "--json", *named]) == 130
    assert seen == ["a", "g", "late"]


def test_queues_shows_counters(yard: Yard, key_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yard.configure(CONFIG)
    send(yard, "a")
    end(yard, claim(yard))
    send(yard, "b")
    named = ["--broker", yard.url, "--key-file", str(key_file)]
    assert run(["queues", "--json", *named]) == 0
    shown = {one["name"]: one["states"] for one in json.loads(capsys.readouterr().out)}
    assert shown["cpu"] == {"SUBMITTED": 0, "PENDING": 0, "RUNNABLE": 1, "STARTING": 0, "RUNNING": 0,
                            "SUCCEEDED": 1, "FAILED": 0}  # fmt: skip
    assert shown["gpu"]["RUNNABLE"] == 0
    assert run(["queues", *named]) == 0
    table = capsys.readouterr().out
    assert "RUNNABLE" in table
    assert "SUCCEEDED" in table
