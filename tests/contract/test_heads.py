"""The first jobs of a queue, on a real Redis: in the order of claims, blocked with a reason, cancelled in time."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from batchyard.broker import keys
from batchyard.broker.cli import run
from batchyard.broker.config import Config, parse
from batchyard.broker.controller import Duties
from batchyard.broker.errors import InvalidConfig, NotFound
from batchyard.broker.events import FIRST, Events
from batchyard.broker.followups import Followups
from batchyard.broker.functions import Functions
from batchyard.broker.heads import Heads
from batchyard.broker.store import Free, Incoming, Yard

pytestmark = pytest.mark.system
ROOM = Free(vcpus=1000, memory_mib=1 << 20, gpus=0, disk_gib=100000)
CAPACITY = "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY"
LIMIT = {"reason": CAPACITY, "state": "RUNNABLE", "max_time_s": 600, "action": "CANCEL"}
_numbers = itertools.count()


def config_of(**more: Any) -> Config:
    here = {"vcpus": 8, "memory_mib": 16000, "disk_gib": 1000}
    queue = {"environments": ["here"], "job_state_time_limit_actions": [LIMIT]}
    return parse({"queues": {"cpu": queue}, "environments": {"here": {**here, **more}}}, "test")


@pytest.fixture
def heads(yard: Yard) -> Heads:
    yard.configure(config_of())
    return Heads(yard)


def send(yard: Yard, job_id: str, *, vcpus: float = 1, **fields: Any) -> str:
    one = Incoming(list_key="cpu", raw=job_id.encode(), kind="job", id=job_id, queue="cpu", vcpus=vcpus, memory_mib=64,
                   disk_gib=1, document=b"x", **fields)  # fmt: skip
    yard.redis.lpush("cpu", one.raw)
    assert yard.intake([one]) == 1
    return job_id


def beat(yard: Yard, *, vcpus: float = 8, free: float | None = None, state: str = "READY") -> None:
    about = {"vcpus": vcpus, "memory_mib": 16000, "gpus": 0, "disk_gib": 100}
    room = {f"free_{name}": amount for name, amount in {**about, "vcpus": vcpus if free is None else free}.items()}
    told = {name: str(value) for name, value in {**about, **room}.items()}
    yard.renew("n1", {**told, "environment": "here", "queues": "cpu", "state": state}, {}, lease_s=30)


def age(yard: Yard, seconds: float) -> None:
    """As if so much time had gone by since the first job became the first and was blocked."""
    for name in ("first", "since"):
        yard.redis.hincrby(keys.head("cpu"), name, int(-seconds * 1000))


def told(yard: Yard) -> dict[str, str]:
    found: Any = yard.redis.hgetall(keys.head("cpu"))
    return {k.decode(): v.decode() for k, v in found.items()}


def test_the_front_is_what_is_claimed_next_in_that_order(yard: Yard, heads: Heads) -> None:
    chance = random.Random(3)
    for n in range(300):
        send(yard, f"j{n}", priority=chance.randrange(10), vcpus=(n % 150 + 1) / 100)
    front = heads.front("cpu", 100)
    assert [one.position for one in front] == list(range(1, 101))
    claimed = [job.id for job in yard.claim("n1", "c1", ROOM, ["cpu"], lease_s=30, count=100)[1]]
    assert [one.id for one in front] == claimed
    assert all(one.since is not None and abs(one.since - yard.now_s()) < 30 for one in front)
    assert len(heads.front("cpu", 1000)) == 200
    assert heads.front("nosuch", 100) == []


def test_a_first_job_without_a_node_for_it_is_blocked_since_then_and_an_event_says_so_once(
    yard: Yard, heads: Heads
) -> None:
    send(yard, "a")
    for _ in range(3):
        heads.look(yard.config())
    head = heads.told("cpu")
    assert head is not None
    assert (head.id, head.code) == ("a", CAPACITY)
    blocked = [one for one in Events(yard).after(FIRST) if one.blocked]
    assert [(one.job_id, one.state.value) for one in blocked] == [("a", "RUNNABLE")]
    (shaped,) = Events(yard).shaped(blocked)
    assert (shaped["detail-type"], shaped["detail"]["statusReason"]) == ("Batch Job Queue Blocked", head.text)
    beat(yard, free=0)
    heads.look(yard.config())
    assert told(yard)["code"] == ""  # it waits for its turn
    assert heads.snapshot("cpu").blocked == ""
    beat(yard, state="UPLOADING")
    heads.look(yard.config())
    assert told(yard)["code"] == "", "and for what has ended to be uploaded"


def test_when_it_is_blocked_for_too_long_it_is_cancelled_as_aws_does_it_and_the_next_one_begins_anew(
    yard: Yard, heads: Heads
) -> None:
    send(yard, "a")
    send(yard, "b")
    heads.look(yard.config())
    age(yard, 500)
    heads.look(yard.config())
    assert yard.record("a").state == "RUNNABLE"
    age(yard, 101)
    duties = Duties(yard, yard.config, Followups(yard.url, result_expires_s=100))
    while not yard.record("a").state.ended:
        duties.round()
    assert yard.record("a").reason == f"Canceled by JobStateTimeLimit action due to reason: {CAPACITY}"
    heads.look(yard.config())
    assert told(yard)["id"] == "b"
    assert yard.now_s() - int(told(yard)["since"]) / 1000 < 30
    assert yard.record("b").state == "RUNNABLE"


def test_a_reason_that_goes_away_or_that_nobody_watched_begins_anew(yard: Yard, heads: Heads) -> None:
    send(yard, "a")
    heads.look(yard.config())
    age(yard, 3600)
    beat(yard, free=0)
    heads.look(yard.config())
    yard.leave("n1")
    heads.look(yard.config())  # blocked again, as of now
    age(yard, 3600)
    yard.redis.hincrby(keys.head("cpu"), "seen", -61_000)  # no controller for a minute
    heads.look(yard.config())
    age(yard, 3600)
    yard.redis.hincrby(keys.head("cpu"), "seen", 3_600_000)  # the clock went back
    heads.look(yard.config())
    assert yard.record("a").state == "RUNNABLE"
    assert yard.now_s() - int(told(yard)["since"]) / 1000 < 30


def test_an_action_for_another_reason_leaves_it_alone(yard: Yard, heads: Heads) -> None:
    send(yard, "a", vcpus=8)
    yard.configure(config_of(vcpus=4))  # what was taken in fits nowhere any more
    heads.look(yard.config())
    age(yard, 3600)
    heads.look(yard.config())
    assert told(yard)["code"] == "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT"
    assert yard.record("a").state == "RUNNABLE"


def test_machines_under_way_stop_the_clock(yard: Yard, heads: Heads) -> None:
    send(yard, "a")
    heads.look(yard.config())
    age(yard, 3600)
    yard.redis.set(keys.scaling("here"), json.dumps({"state": "UNDER_WAY", "since_s": yard.now_s()}), ex=60)
    heads.look(yard.config())
    assert (told(yard)["code"], yard.record("a").state) == ("", "RUNNABLE")


def test_a_job_that_a_node_took_meanwhile_is_not_cancelled(yard: Yard, heads: Heads) -> None:
    send(yard, "a")
    yard.claim("n1", "c1", ROOM, ["cpu"], lease_s=30)
    assert Functions(yard.redis).call("cancel_ready", "a", "too late") == 0
    assert Functions(yard.redis).call("cancel_ready", "nosuch", "x") == 0
    assert yard.record("a").state == "STARTING"


def test_a_snapshot_on_the_command_line(
    yard: Yard, heads: Heads, key_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["--broker", yard.url, "--key-file", str(key_file)]
    assert run(["queue", "snapshot", "cpu", *named]) == 0
    assert capsys.readouterr().out == "no job is ready\n"
    for n in range(3):
        send(yard, f"j{n}", priority=n)
    heads.look(yard.config())
    assert run(["queue", "snapshot", "cpu", "--limit", "2", "--json", *named]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [one["id"] for one in shown["front"]] == ["j0", "j1"]
    assert shown["states"]["RUNNABLE"] == 3
    assert shown["blocked"].startswith(f"{CAPACITY} - Service cannot")
    assert run(["queue", "snapshot", "cpu", *named]) == 0
    assert "the first one is blocked: CAPACITY" in capsys.readouterr().out
    assert run(["queue", "snapshot", "nosuch", *named]) == 1
    with pytest.raises(NotFound):
        heads.snapshot("nosuch")


def test_why_tells_what_blocks_a_first_job_and_which_environment_lacks_what(
    yard: Yard, heads: Heads, key_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def why(job_id: str) -> list[dict[str, Any]]:
        assert run(["why", "--json", job_id, "--broker", yard.url, "--key-file", str(key_file)]) == 0
        found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["reasons"]
        return found

    send(yard, "first", vcpus=8)
    send(yard, "second")
    heads.look(yard.config())
    assert [one["code"] for one in why("first")] == ["place", "blocked", "time_limit", "no_node"]
    assert [one["code"] for one in why("second")] == ["place", "no_node"]
    assert why("first")[0]["since"] <= yard.now_s()
    yard.configure(config_of(vcpus=4, state="DISABLED"))
    beat(yard)
    heads.look(yard.config())
    told_ = why("first")
    assert [one["code"] for one in told_] == [
        "place", "blocked", "fits_no_environment", "environment_disabled", "node_disabled",
    ]  # fmt: skip
    assert told_[2]["lacks"] == {"vcpus": 4}
    yard.configure(config_of())
    yard.redis.set(keys.scaling("here"), json.dumps({"state": "UNDER_WAY", "since_s": yard.now_s()}), ex=60)
    heads.look(yard.config())
    assert [one["code"] for one in why("first")] == ["place", "scaling", "has_room"]


@pytest.mark.parametrize("wrong", [{"max_time_s": 599}, {"max_time_s": 86401}, {"reason": "UNDETERMINED"},
                                   {"action": "TERMINATE"}, {"state": "RUNNING"}])  # fmt: skip
def test_a_time_limit_that_aws_would_refuse_is_refused(wrong: dict[str, Any]) -> None:
    here = {"vcpus": 8, "memory_mib": 16000}
    queue = {"environments": ["here"], "job_state_time_limit_actions": [{**LIMIT, **wrong}]}
    with pytest.raises(InvalidConfig, match=rf"job_state_time_limit_actions\.0\.{next(iter(wrong))}"):
        parse({"queues": {"cpu": queue}, "environments": {"here": here}}, "test")
