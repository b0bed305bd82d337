"""What a schedule may say, and when it comes: time zones, clocks that are put forward and back, what was missed."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from itertools import islice, pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from batchyard.broker import config
from batchyard.broker.errors import InvalidConfig
from batchyard.broker.intake import read
from batchyard.broker.remote import celery_app
from batchyard.broker.schedule import LATE_MS, MOST_CAUGHT_UP, Schedule, first, parse, plan, times
from batchyard.broker.schedules import job_id_of, message
from batchyard.broker.seal import KeyRing

JOB = {"image": "busybox"}
MINUTE = 60_000


def made(**fields: Any) -> Schedule:
    return parse({"name": "s", "job": JOB, **fields})


def at(*moment: int, zone: str = "UTC", fold: int = 0) -> int:
    return int(datetime(*moment, tzinfo=ZoneInfo(zone), fold=fold).timestamp() * 1000)  # type: ignore[arg-type,misc]


def local(schedule: Schedule, after: int, count: int) -> list[str]:
    zone = ZoneInfo(schedule.timezone)
    return [
        datetime.fromtimestamp(t / 1000, zone).strftime("%d %H:%M%z") for t in islice(times(schedule, after), count)
    ]


def test_a_fixed_time_that_does_not_exist_comes_as_soon_as_the_clock_goes_on() -> None:
    schedule = made(cron="30 2 * * *", timezone="Europe/Berlin")
    assert local(schedule, at(2026, 3, 28), 3) == ["28 02:30+0100", "29 03:00+0200", "30 02:30+0200"]
    assert local(schedule, at(2026, 3, 29, 1), 1) == ["30 02:30+0200"]  # 03:00 there: it has come


def test_a_fixed_time_that_comes_twice_comes_the_first_time() -> None:
    schedule = made(cron="30 2 * * *", timezone="Europe/Berlin")
    assert local(schedule, at(2026, 10, 24, 1), 3) == ["25 02:30+0200", "26 02:30+0100", "27 02:30+0100"]
    again = at(2026, 10, 25, 2, 10, zone="Europe/Berlin", fold=1)  # the second 02:10
    assert local(schedule, again, 1) == ["26 02:30+0100"]


def test_a_line_with_a_star_follows_the_clock_on_the_wall() -> None:
    schedule = made(cron="*/30 2 * * *", timezone="Europe/Berlin")
    assert local(schedule, at(2026, 3, 28), 3) == ["28 02:00+0100", "28 02:30+0100", "30 02:00+0200"]
    every = made(cron="*/30 * * * *", timezone="Europe/Berlin")
    there = list(islice(times(every, at(2026, 10, 24, 20)), 20))
    assert {b - a for a, b in pairwise(there)} == {30 * MINUTE}


def test_a_rate_is_counted_from_its_start_else_from_1970() -> None:
    now = at(2026, 1, 1, 12, 34, 56)
    assert first(made(rate="1h"), now) == first(made(cron="0 * * * *"), now)
    from_start = made(rate="90s", start="2026-01-01T12:34:50Z")
    assert [t - now for t in islice(times(from_start, now), 2)] == [84_000, 174_000]
    assert next(times(from_start, 0)) == at(2026, 1, 1, 12, 34, 50)  # the start itself


def test_start_and_end_bound_it_and_without_an_offset_they_are_of_its_time_zone() -> None:
    schedule = made(cron="@daily", timezone="Asia/Tokyo", start="2026-01-02T00:00", end=datetime(2026, 1, 3))
    assert local(schedule, 0, 9) == ["02 00:00+0900", "03 00:00+0900"]
    assert first(schedule, at(2026, 1, 3)) is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "either cron"),
        ({"cron": "* * * * *", "rate": "1s"}, "either cron"),
        ({"cron": "61 * * * *"}, "Bad minute"),
        ({"cron": "* * * *"}, "five fields"),
        ({"cron": "0 * * * * *"}, "five fields"),
        ({"cron": "@reboot"}, "@daily"),
        ({"cron": "0 0 31 2,4 *"}, "cron"),
        ({"rate": "0s"}, "from 1s to 366d"),
        ({"rate": "10"}, "from 1s to 366d"),
        ({"rate": "400d"}, "from 1s to 366d"),
        ({"rate": "1s", "timezone": "No/Where"}, "timezone"),
        ({"rate": "1s", "timezone": "../../etc/passwd"}, "timezone"),
        ({"rate": "1s", "timezone": "Europe"}, "timezone"),
        ({"rate": "1s", "start": "2026-01-02", "end": "2026-01-01"}, "end lies before"),
        ({"rate": "1s", "start": "9999-12-31T23:59:59Z"}, "1971 to 2999"),
        ({"rate": "1s", "job": {"image": "x", "vcpus": -1}}, "job.vcpus"),
        ({"rate": "1s", "job": {}}, "job.image"),
        ({"rate": "1s", "job": {"image": "x", "inputs": {"/in/a": {"from": "o"}}}}, "previous step"),
        ({"rate": "1s", "definition": "a b"}, "job.definition"),
        ({"rate": "1s", "name": "a b"}, "name"),
        ({"rate": "1s", "overlap": "never"}, "overlap"),
        ({"rate": "1s", "jitter_s": -1}, "jitter_s"),
        ({"rate": "1s", "hour": 3}, "hour"),
    ],
)
def test_what_is_no_schedule_is_refused_with_its_name(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidConfig, match=r"^schedule") as told:
        made(**fields)
    assert words in str(told.value)


def test_a_definition_may_stand_in_the_place_of_the_job_or_beside_it() -> None:
    assert parse({"name": "s", "rate": "1h", "definition": "d:2"}).job == {"definition": "d:2"}
    both = made(rate="1h", definition="d", job={"vcpus": 2})
    assert both.job == {"definition": "d", "vcpus": 2}
    assert parse(json.loads(both.dumps())) == both


def test_what_was_missed_comes_by_its_policy() -> None:
    due, now = at(2026, 1, 1), at(2026, 1, 1, 5, 0, 30)
    hourly = {policy: plan(made(cron="@hourly", catch_up=policy), now, due) for policy in ("none", "last", "all")}
    assert [len(hourly[policy].fires) for policy in ("none", "last", "all")] == [1, 1, 6]
    assert hourly["none"].fires == hourly["last"].fires == (at(2026, 1, 1, 5),)
    assert hourly["all"].fires[0] == due
    assert [hourly[policy].dropped for policy in ("none", "last", "all")] == [True, True, False]
    for one in hourly.values():
        assert one.next is not None
        assert one.next.due == at(2026, 1, 1, 6)


def test_without_catching_up_a_time_that_is_over_a_minute_late_falls_out() -> None:
    due = at(2026, 1, 1)
    schedule = made(cron="@hourly", catch_up="none")
    assert plan(schedule, due + LATE_MS, due).fires == (due,)
    late = plan(schedule, due + LATE_MS + 1, due)
    assert (late.fires, late.dropped) == ((), True)
    assert late.next is not None
    assert late.next.due == at(2026, 1, 1, 1)


@pytest.mark.parametrize("when", [{"rate": "1s"}, {"cron": "* * * * *"}, {"cron": "0 0 29 2 *"}])
def test_years_of_missed_times_are_bounded_and_quickly_looked_through(when: dict[str, str]) -> None:
    due, now = next(times(made(**when), at(1996, 1, 1))), at(2026, 1, 1)
    found = plan(made(**when, catch_up="all"), now, due)
    assert len(found.fires) == (MOST_CAUGHT_UP if "29" not in str(when) else 8)
    assert found.next is not None
    assert (*found.fires, found.next.due) == tuple(
        islice(times(made(**when), found.fires[0] - 1), len(found.fires) + 1)
    )


@pytest.mark.parametrize("overlap", ["skip", "replace"])
def test_one_that_does_not_allow_overlap_sends_one_of_what_it_missed(overlap: str) -> None:
    due = at(2026, 1, 1)
    found = plan(made(rate="1m", catch_up="all", overlap=overlap), due + 10 * MINUTE, due)
    assert found.fires == (due + 10 * MINUTE,)


def test_a_schedule_whose_end_has_come_sends_its_last_job_and_no_more() -> None:
    schedule = made(rate="1m", end="2026-01-01T00:01:00Z", catch_up="all")
    found = plan(schedule, at(2026, 1, 2), at(2026, 1, 1))
    assert found.fires == (at(2026, 1, 1), at(2026, 1, 1, 0, 1))
    assert found.next is None


def test_the_message_is_one_of_celerys_and_its_id_is_that_of_the_time() -> None:
    ring = KeyRing.new()
    schedule = made(
        rate="1h", queue="cpu", priority=3, job={"image": "busybox", "command": ["echo", "Ref::due", "Ref::schedule"]}
    )
    job_id = job_id_of(ring, "s", at(2026, 1, 1))
    assert job_id == job_id_of(ring, "s", at(2026, 1, 1)) != job_id_of(ring, "s", at(2026, 1, 1, 1))
    assert job_id != job_id_of(KeyRing.new(), "s", at(2026, 1, 1))
    raw = message(celery_app("redis://127.0.0.1:1/0"), schedule, job_id, at(2026, 1, 1))
    one = read("the list", "cpu", raw, config=config.single_machine(1, 1024, 0, 5), ring=ring)
    assert (one.kind, one.id, one.priority, one.reason) == ("job", job_id, 3, "")
    kept = json.loads(ring.open(one.document, job_id.encode()))
    assert kept["job"]["command"] == ["echo", "2026-01-01T00:00:00Z", "s"]
    assert kept["headers"]["task"] == "batchyard.run"


def test_the_yards_configuration_names_schedules_and_keeps_them_out_of_what_lies_in_clear(tmp_path: Path) -> None:
    file = tmp_path / "yard.yaml"
    file.write_text(
        "queues: {cpu: {environments: [here]}}\n"
        "environments: {here: {vcpus: 4, memory_mib: 4096}}\n"
        "schedules:\n"
        "  nightly: {cron: '30 2 * * *', timezone: Europe/Berlin, definition: report, start: 2026-01-01}\n"
        "  pulse: {rate: 10m, job: {image: busybox, environment: {A: pl41n, B: 007, C: 1.10, D: no, E: 12:30}}}\n"
    )
    told = config.load(file)
    assert [(s.name, s.when) for s in told.schedules.values()] == [
        ("nightly", "30 2 * * * Europe/Berlin"), ("pulse", "every 10m"),
    ]  # fmt: skip
    assert "pl41n" not in told.model_dump_json()
    assert told.schedules["nightly"].start == datetime(2026, 1, 1)
    texts = {"A": "pl41n", "B": "007", "C": "1.10", "D": "no", "E": "12:30"}
    assert told.schedules["pulse"].job["environment"] == texts


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ({"rate": "1h", "job": JOB, "queue": "nosuch"}, 'queue "nosuch" is not defined'),
        ({"rate": "1h", "job": {"image": "x", "vcpus": 100}}, "no node"),
        ({"cron": "99 * * * *", "job": JOB}, "Bad minute"),
        ({"rate": "1h", "job": {"image": "x", "profile": "strict", "user": "0"}}, "root is not allowed"),
        ("daily", "schedules.bad"),
    ],
)
def test_a_configuration_with_a_bad_schedule_is_refused(schedule: Any, words: str) -> None:
    data = {
        "queues": {"cpu": {"environments": ["here"]}},
        "environments": {"here": {"vcpus": 4, "memory_mib": 4096}},
        "schedules": {"bad": schedule},
    }
    with pytest.raises(InvalidConfig) as told:
        config.parse(data, "yard.yaml")
    assert words in str(told.value)
    assert str(told.value).startswith("yard.yaml")


def test_moments_are_whole_in_utc() -> None:
    assert at(2026, 1, 1) == int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) * 1000
