"""Schedules on a real Redis: each time is dealt with once, whoever looks, and what was missed comes by its policy."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from batchyard.broker import config as configuration
from batchyard.broker import keys
from batchyard.broker.cli import run
from batchyard.broker.client import Client
from batchyard.broker.errors import BrokerUnavailable, InvalidConfig, NotFound
from batchyard.broker.functions import Functions
from batchyard.broker.intake import Intake
from batchyard.broker.job import Job
from batchyard.broker.schedule import Schedule, parse
from batchyard.broker.schedules import Schedules, ScheduleView, job_id_of
from batchyard.broker.seal import KeyRing
from batchyard.broker.store import Free, Yard
from batchyard.broker.timetable import LOOK_S, Timetable
from yardtest.redis import RedisServer
from yardtest.wait import until

pytestmark = pytest.mark.system
HERE = {"here": {"vcpus": 4, "memory_mib": 4096}}
QUEUES = {name: {"environments": ["here"]} for name in ("cpu", "other")}
CONFIG = configuration.parse({"queues": QUEUES, "environments": HERE}, "test")
ALL = Free(vcpus=4, memory_mib=4096, gpus=0, disk_gib=100)


@pytest.fixture
def yard(yard: Yard) -> Yard:
    yard.configure(CONFIG)
    return yard


@pytest.fixture
def client(yard: Yard, key_file: Path) -> Client:
    return Client(yard.url, key_file=key_file)


def made(name: str = "s", **fields: Any) -> Schedule:
    return parse({"name": name, "rate": "1h", "job": {"image": "busybox"}, **fields})


def set_back(yard: Yard, by_ms: int, name: str = "s") -> int:
    """As if its next time had been so much earlier: the due time that it has now."""
    due = int(yard.redis.hget(keys.schedule(name), "due") or 0) - by_ms
    yard.redis.hset(keys.schedule(name), mapping={"due": due, "fire": due})
    if yard.redis.zscore(keys.SCHEDULES_DUE, name) is not None:
        yard.redis.zadd(keys.SCHEDULES_DUE, {name: due})
    return due


HOUR = 3_600_000


def ids(yard: Yard, queue: str = "cpu") -> list[str]:
    """Of the messages in its lists, the oldest first."""
    raw = [one for key in keys.priority_lists(queue) for one in reversed(yard.redis.lrange(key, 0, -1))]
    return [json.loads(one)["headers"]["id"] for one in raw]


def test_a_time_that_is_due_puts_one_message_into_the_list_and_goes_on(yard: Yard, client: Client) -> None:
    client.schedule(made(priority=3, queue="other"))
    timetable = Timetable(yard)
    assert timetable.round(CONFIG) == LOOK_S
    assert ids(yard, "other") == []
    due = set_back(yard, HOUR)
    timetable.round(CONFIG)
    assert timetable.round(CONFIG) == LOOK_S
    assert ids(yard, "other") == [job_id_of(yard.ring, "s", due)]
    assert yard.redis.llen(keys.priority_list("other", 3)) == 1
    (view,) = client.schedules.list()
    assert (view.last, view.last_job, view.next) == (due / 1000, ids(yard, "other")[0], due / 1000 + 3600)


def test_several_who_look_at_once_send_each_time_once(yard: Yard, client: Client) -> None:
    names = [f"s{n}" for n in range(10)]
    for name in names:
        client.schedule(made(name, catch_up="all"))
        set_back(yard, 5 * HOUR, name)
    started = threading.Barrier(4)

    def look() -> None:
        mine = Timetable(Yard(yard.url, yard.ring))
        started.wait()
        while mine.round(CONFIG) == 0:
            pass

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sent = ids(yard)
    assert len(sent) == len(set(sent)) == 50
    assert Intake(yard).run(CONFIG) == 50


@pytest.mark.parametrize(("policy", "count"), [("none", 0), ("last", 1), ("all", 3)])
def test_after_a_downtime_comes_what_the_policy_says(yard: Yard, client: Client, policy: str, count: int) -> None:
    anchor = int(yard.now_s()) - 10 * 86400 - 600  # ten minutes after a time: too late for "none"
    client.schedule(made(catch_up=policy, start=_iso(anchor)))
    set_back(yard, 3 * HOUR)
    timetable = Timetable(yard)
    while timetable.round(CONFIG) == 0:
        pass
    assert len(ids(yard)) == count


def test_a_call_that_is_repeated_sends_nothing_twice(
    yard: Yard, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.schedule(made(catch_up="all"))
    set_back(yard, 3 * HOUR)
    plain = Functions.call

    def lose_the_reply(self: Functions, name: str, *args: Any) -> Any:
        plain(self, name, *args)
        raise BrokerUnavailable("lost")

    timetable = Timetable(yard)
    monkeypatch.setattr(Functions, "call", lose_the_reply)
    with pytest.raises(BrokerUnavailable):
        timetable.round(CONFIG)
    monkeypatch.setattr(Functions, "call", plain)
    while timetable.round(CONFIG) == 0:
        pass
    assert len(ids(yard)) == len(set(ids(yard))) == 3


def test_a_paused_one_sends_nothing_and_catches_up_when_it_is_resumed(yard: Yard, client: Client) -> None:
    client.schedule(made(catch_up="all"))
    client.schedules.pause("s")
    set_back(yard, 3 * HOUR)
    timetable = Timetable(yard)
    timetable.round(CONFIG)
    assert ids(yard) == []
    assert [(v.state, v.next) for v in client.schedules.list()] == [("PAUSED", None)]
    client.schedules.resume("s")
    timetable.round(CONFIG)
    assert len(ids(yard)) == 3


def next_time(yard: Yard, client: Client, timetable: Timetable) -> ScheduleView:
    """Waits for one more time of a schedule of every second; as it stands then."""
    before = yard.redis.hget(keys.schedule("s"), "due")

    def come() -> bool:
        timetable.round(CONFIG)
        return yard.redis.hget(keys.schedule("s"), "due") != before

    until(come, "the schedule comes", timeout_s=10, every_s=0.02)
    return client.schedules.list()[0]


def test_skip_waits_for_the_end_of_the_last_job(yard: Yard, client: Client) -> None:
    client.schedule(made(overlap="skip", rate="1s"))
    timetable, intake = Timetable(yard), Intake(yard)
    first = next_time(yard, client, timetable)
    assert next_time(yard, client, timetable).skipped == 1  # it lies in its list
    intake.run(CONFIG)
    assert next_time(yard, client, timetable).skipped == 2  # it waits for a node
    yard.claim("n", "c", ALL, ["cpu"], lease_s=30)
    assert next_time(yard, client, timetable).skipped == 3  # it is about to run
    yard.redis.hset(keys.job(first.last_job or ""), "state", "SUCCEEDED")
    last = next_time(yard, client, timetable)
    assert (last.skipped, len(ids(yard))) == (3, 1)
    assert last.last_job != first.last_job
    yard.redis.hset(keys.schedule("s"), "sent", 1)  # of a job whose record has expired by now
    assert next_time(yard, client, timetable).skipped == 3
    assert len(ids(yard)) == 2


def test_replace_cancels_the_last_job_also_one_that_is_not_taken_in_yet(yard: Yard, client: Client) -> None:
    client.schedule(made(overlap="replace", rate="1s"))
    timetable = Timetable(yard)
    sent = [next_time(yard, client, timetable).last_job or "" for _ in range(3)]
    Intake(yard).run(CONFIG)
    assert len(set(sent)) == 3
    assert [yard.redis.hget(keys.job(one), "ending") for one in sent] == [b"REVOKED", b"REVOKED", None]


def test_a_job_that_was_never_taken_in_holds_up_skip_for_a_while_only(yard: Yard, client: Client) -> None:
    client.schedule(made(overlap="skip", rate="1s"))
    timetable = Timetable(yard)
    first = next_time(yard, client, timetable)
    skipped = next_time(yard, client, timetable)
    assert skipped.note == f"a time was skipped: job {first.last_job} has not ended"
    yard.redis.hset(keys.schedule("s"), "sent", int(yard.now_s() * 1000) - 601_000)
    last = next_time(yard, client, timetable)
    assert (last.last_job != first.last_job, last.note) == (True, "")


def test_after_run_now_skip_and_replace_still_know_the_job_that_goes_on(yard: Yard, client: Client) -> None:
    client.schedule(made(overlap="skip", rate="1s"))
    timetable, intake = Timetable(yard), Intake(yard)
    first = next_time(yard, client, timetable)
    intake.run(CONFIG)
    now = client.schedules.run_now("s")
    intake.run(CONFIG)
    assert client.schedules.list()[0].last_job == first.last_job
    yard.redis.hset(keys.job(now), "state", "SUCCEEDED")
    assert next_time(yard, client, timetable).skipped == 1


def test_run_now_refuses_a_queue_that_the_yard_does_not_have(yard: Yard, client: Client) -> None:
    client.schedule(made(queue="other"))
    yard.configure(configuration.parse({"queues": {"cpu": QUEUES["cpu"]}, "environments": HERE}, "test"))
    with pytest.raises(NotFound, match="other"):
        client.schedules.run_now("s")
    assert ids(yard, "other") == []


@pytest.mark.parametrize("state", ["ENABLED", "PAUSED"])
def test_after_a_clock_that_was_ahead_a_schedule_comes_at_its_next_time(yard: Yard, client: Client, state: str) -> None:
    client.schedule(made(state=state))
    client.schedule(made("well"))
    right = yard.redis.hget(keys.schedule("s"), "due")
    timetable = Timetable(yard)
    timetable.round(CONFIG)
    for one in (Timetable(yard), timetable):  # at a start; and where the clock is seen to go back
        set_back(yard, -1000 * HOUR)
        set_back(yard, -30_000, "well")
        timetable._seen_ms = int(yard.now_s() * 1000) + 1000 * HOUR
        one.round(CONFIG)
        assert yard.redis.hget(keys.schedule("s"), "due") == right
        assert yard.redis.zscore(keys.SCHEDULES_DUE, "s") == (float(right or 0) if state == "ENABLED" else None)
    assert int(yard.redis.hget(keys.schedule("well"), "due") or 0) == int(right or 0) + 60_000
    yard.redis.hdel(keys.schedule("s"), "due", "fire")  # it had come to its end
    Timetable(yard).round(CONFIG)
    assert yard.redis.hget(keys.schedule("s"), "due") == right
    assert ids(yard) == []


def test_run_now_sends_one_more_and_its_times_stay(yard: Yard, client: Client) -> None:
    client.schedule(made(overlap="skip", state="PAUSED"))
    due = yard.redis.hget(keys.schedule("s"), "due")
    sent = [client.schedules.run_now("s") for _ in range(2)]
    assert ids(yard) == sent
    assert yard.redis.hget(keys.schedule("s"), "due") == due
    with pytest.raises(NotFound, match="nosuch"):
        client.schedules.run_now("nosuch")


def test_what_cannot_be_sent_is_not_kept(yard: Yard, client: Client) -> None:
    with pytest.raises(NotFound, match="nosuch"):
        client.schedule(made(queue="nosuch"))
    with pytest.raises(InvalidConfig, match="no node"):
        client.schedule(made(job={"image": "x", "vcpus": 100}))
    with pytest.raises(InvalidConfig, match="is not known"):
        client.schedule(made(job={"definition": "nosuch"}))
    client.schedule(made())
    with pytest.raises(InvalidConfig, match="there is one already"):
        client.schedule(made(rate="2h"))
    assert client.schedules.show("s").rate == "1h"
    assert yard.redis.scard(keys.SCHEDULES) == 1


def test_what_is_kept_is_sealed(yard: Yard, client: Client) -> None:
    client.schedule(made(job={"image": "x", "environment": {"A": "pl41n"}}))
    assert b"pl41n" not in repr(yard.redis.hgetall(keys.schedule("s"))).encode()
    assert client.schedules.show("s").job["environment"] == {"A": "pl41n"}


def test_a_replaced_one_goes_on_where_it_was_unless_its_times_change(yard: Yard, client: Client) -> None:
    client.schedule(made())
    client.schedules.pause("s")
    due = set_back(yard, HOUR)
    client.schedule(made(job={"image": "other"}), replace=True)
    assert client.schedules.show("s").job == {"image": "other"}
    assert client.schedules.list()[0].state == "PAUSED"
    assert int(yard.redis.hget(keys.schedule("s"), "due") or 0) == due
    client.schedule(made(rate="2h"), replace=True)
    assert int(yard.redis.hget(keys.schedule("s"), "due") or 0) > due


def test_those_of_the_configuration_replace_those_of_the_one_before_and_leave_the_others(
    yard: Yard, client: Client
) -> None:
    schedules = client.schedules
    client.schedule(made("mine"))
    schedules.apply({n: made(n) for n in ("a", "b")})
    due = set_back(yard, HOUR, "b")
    schedules.pause("b")
    schedules.apply({n: made(n) for n in ("b", "c")})
    assert [(v.name, v.origin, v.state) for v in schedules.list()] == [
        ("b", "config", "PAUSED"), ("c", "config", "ENABLED"), ("mine", "runtime", "ENABLED"),
    ]  # fmt: skip
    assert int(yard.redis.hget(keys.schedule("b"), "due") or 0) == due  # so it catches up over a restart
    with pytest.raises(InvalidConfig, match="added at run time"):
        schedules.apply({n: made(n) for n in ("d", "mine")})
    assert [v.name for v in schedules.list()] == ["b", "c", "mine"]
    for act in (schedules.remove, lambda name: client.schedule(made(name), replace=True)):
        with pytest.raises(InvalidConfig, match="configuration"):
            act("b")
    schedules.remove("mine")
    with pytest.raises(NotFound):
        schedules.remove("mine")
    schedules.apply({})
    assert schedules.list() == []
    assert not yard.redis.exists(keys.SCHEDULES, keys.SCHEDULES_DUE, keys.schedule("b"))


def test_one_that_cannot_be_read_or_sent_holds_up_no_other(yard: Yard, client: Client) -> None:
    for name in ("broken", "homeless", "well"):
        client.schedule(made(name, queue="other" if name == "homeless" else "cpu"))
        set_back(yard, HOUR, name)
    yard.redis.hset(keys.schedule("broken"), "doc", b"no seal")
    without = configuration.parse({"queues": {"cpu": QUEUES["cpu"]}, "environments": HERE}, "test")
    timetable = Timetable(yard)
    timetable.round(without)
    assert timetable.round(without) == LOOK_S
    assert len(ids(yard)) == 1
    assert ids(yard, "other") == []
    notes = {v.name: v.note for v in client.schedules.list()}
    assert "sealed" in notes["broken"]
    assert 'queue "other" is not configured' in notes["homeless"]
    assert notes["well"] == ""


def test_a_full_redis_refuses_a_time_and_it_stays_due(own_redis: RedisServer, key_file: Path) -> None:
    yard = Yard(own_redis.url(), KeyRing.load(key_file))
    yard.prepare()
    yard.configure(CONFIG)
    client = Client(yard.url, key_file=key_file)
    client.schedule(made())
    set_back(yard, HOUR)
    yard.redis.config_set("maxmemory", 1)
    timetable = Timetable(yard)
    with pytest.raises(BrokerUnavailable):
        timetable.round(CONFIG)
    yard.redis.config_set("maxmemory", 0)
    timetable.round(CONFIG)
    assert len(ids(yard)) == 1


def test_a_definition_is_taken_in_the_revision_that_is_the_latest_when_the_time_comes(
    yard: Yard, client: Client
) -> None:
    client.definitions.register("d", {"image": "one", "command": ["echo", "Ref::due"]})
    client.schedule(made(job={"definition": "d"}))
    client.definitions.register("d", {"image": "two", "command": ["echo", "Ref::due"]})
    set_back(yard, HOUR)
    Timetable(yard).round(CONFIG)
    Intake(yard).run(CONFIG)
    (record,) = yard.recent(1)
    assert (record.definition, record.image) == ("d:2", "two")
    job = Job.parse(yard.document(record.id).job)
    assert job.command[1].endswith("Z")


def test_the_command_line_adds_lists_and_removes(
    yard: Yard, key_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*words: str) -> tuple[int, str]:
        named = ["--broker", yard.url, "--key-file", str(key_file)]
        at = words.index("--") if "--" in words else len(words)
        code = run([*words[:at], *named, *words[at:]])
        said = capsys.readouterr()
        return code, said.out + said.err

    code, said = call("schedule", "add", "tick", "--cron", "*/5 * * * *", "--image", "busybox", "--", "date", "-u")
    assert (code, "tick is ENABLED; first at" in said) == (0, True)
    file = tmp_path / "job.yaml"
    file.write_text("image: busybox\nenvironment: {A: 007}\nqueue: other\n")
    code, said = call("schedule", "add", "filed", "--rate", "1h30m", "-f", str(file), "--paused", "--json")
    view = json.loads(said)
    assert (view["queue"], view["state"], view["next"], view["when"]) == ("other", "PAUSED", None, "every 1h30m")
    assert Schedules(yard, lambda: yard.ring).show("filed").job["environment"] == {"A": "007"}
    code, said = call("schedule", "list")
    assert "*/5 * * * * UTC" in said
    assert "every 1h30m" in said
    code, job_id = call("schedule", "run-now", "tick")
    assert ids(yard) == [job_id.strip()]
    assert [one["last_job"] for one in json.loads(call("schedule", "list", "--json")[1])] == [None, job_id.strip()]
    assert call("schedule", "pause", "tick", "filed")[0] == 0
    assert call("schedule", "resume", "tick")[1] == "tick is ENABLED\n"
    for words, told in (
        (("--cron", "61 * * * *", "--image", "x"), "Bad minute"),
        (("--rate", "1h", "--timezone", "No/Where", "--image", "x"), "timezone"),
        (("--rate", "1h", "--image", "x", "--queue", "nosuch"), "nosuch"),
        (("--rate", "1h"), "job.image"),
    ):
        code, said = call("schedule", "add", "bad", *words)
        assert code in {1, 2}
        assert told in said
        assert "Traceback" not in said
    assert call("schedule", "remove", "tick", "filed")[0] == 0
    assert call("schedule", "list")[1] == "no schedules\n"
    assert call("schedule", "remove", "tick")[0] == 1


def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
