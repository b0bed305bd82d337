"""Any schedule, any time zone, any moments at which somebody looks: each time comes once, and in order."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from itertools import islice, takewhile
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from batchyard.broker.schedule import LATE_MS, Schedule, first, parse, plan, times

DAY = 86_400_000
ZONES = [
    "UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "America/Havana",
    "Africa/Casablanca", "Pacific/Apia", "America/Sao_Paulo", "Asia/Tehran",
]  # fmt: skip
LINES = [
    "* * * * *", "*/7 * * * *", "30 2 * * *", "0,30 1-3 * * *", "5 */6 * * *", "0 0 * * *", "@hourly", "@daily",
    "15 0 1 * *", "0 12 * * MON-FRI", "59 23 L * *", "30 1,2,3 * * SUN",
]  # fmt: skip
# Around the days on which some of these zones change their clocks.
MOMENTS = st.one_of(
    st.integers(1_600_000_000_000, 1_800_000_000_000),
    st.sampled_from(
        [1_774_742_400_000, 1_792_886_400_000, 1_762_041_600_000, 1_772_928_000_000, 1_775_318_400_000]
    ).flatmap(lambda begin: st.integers(begin, begin + 2 * DAY)),
)
WHEN = st.one_of(
    st.builds(lambda line, zone: {"cron": line, "timezone": zone}, st.sampled_from(LINES), st.sampled_from(ZONES)),
    st.sampled_from([{"rate": rate} for rate in ("1s", "7s", "1m", "90m", "1d", "36h")]),
)
SCHEDULES = st.builds(
    lambda when, **more: parse({"name": "s", "job": {"image": "x"}, **when, **more}),
    WHEN,
    catch_up=st.sampled_from(["none", "last", "all"]),
    jitter_s=st.sampled_from([0, 0, 1, 30, 4000]),
)


@given(SCHEDULES, MOMENTS, st.integers(0, 3 * DAY))
def test_times_are_in_order_and_the_same_from_wherever_one_begins(schedule: Schedule, a: int, width: int) -> None:
    b = a + min(width, 3600_000 if schedule.rate or (schedule.cron or "").startswith("*") else width)
    whole = list(takewhile(lambda at: at <= b + 30 * DAY, islice(times(schedule, a), 5000)))
    assert all(x < y for x, y in zip([a, *whole], whole, strict=False))
    later = [at for at in whole if at > b][:20]
    assert list(islice(times(schedule, b), len(later))) == later


@given(st.sampled_from(ZONES), st.integers(0, 23), st.integers(0, 59), st.dates(date(2020, 1, 1), date(2030, 1, 1)))
def test_a_fixed_time_of_the_day_comes_once_on_every_day(zone: str, hour: int, minute: int, day: date) -> None:
    schedule = parse({"name": "s", "job": {"image": "x"}, "cron": f"{minute} {hour} * * *", "timezone": zone})
    here = ZoneInfo(zone)
    begin = int(datetime(day.year, day.month, day.day, tzinfo=here).timestamp() * 1000) - 1
    days = [datetime.fromtimestamp(at / 1000, here).date() for at in islice(times(schedule, begin), 300)]
    assert days == [day + timedelta(days=n) for n in range(300)]


@given(SCHEDULES, MOMENTS, st.lists(st.integers(0, 600_000), min_size=1, max_size=12))
def test_whoever_looks_whenever_each_time_is_dealt_with_once(schedule: Schedule, now: int, steps: list[int]) -> None:
    sent: list[int] = []
    upcoming = first(schedule, now)
    begin, dropped = now, False
    for step in steps:
        now += step
        if upcoming is None or upcoming.fire > now:
            continue
        found = plan(schedule, now, upcoming.due)
        assert found == plan(schedule, now, upcoming.due)
        assert all(at <= now for at in found.fires)
        assert found.next is not None
        assert found.next.fire > now
        sent, dropped, upcoming = [*sent, *found.fires], dropped or found.dropped, found.next
    assert upcoming is not None
    expected = list(takewhile(lambda at: at < upcoming.due, times(schedule, begin)))
    assert sent == sorted(set(sent))
    assert set(sent) <= set(expected)
    assert dropped or sent == expected
    if schedule.catch_up == "last" and expected:
        assert sent[-1] == expected[-1]
    if schedule.catch_up == "all":
        assert dropped is (len(sent) < len(expected))


@given(SCHEDULES, MOMENTS, st.integers(0, 400 * DAY))
def test_after_a_downtime_comes_what_the_policy_says(schedule: Schedule, now: int, down: int) -> None:
    upcoming = first(schedule, now)
    assert upcoming is not None
    later = max(now + down, upcoming.fire)
    found = plan(schedule, later, upcoming.due)
    assert found.next is not None
    assert len(found.fires) <= (100 if schedule.catch_up == "all" else 1)
    if schedule.catch_up != "none":
        assert found.fires
    elif found.fires:
        assert later - found.fires[-1] <= LATE_MS + schedule.jitter_s * 1000
    run: Any = [*found.fires, found.next.due]
    assert run == list(islice(times(schedule, run[0] - 1), len(run)))


@given(WHEN, MOMENTS, st.sampled_from([1, 30, 4000]))
def test_jitter_is_less_than_it_says_and_never_passes_the_next_time(
    when: dict[str, Any], now: int, jitter: int
) -> None:
    schedule = parse({"name": "s", "job": {"image": "x"}, "jitter_s": jitter, **when})
    one = first(schedule, now)
    assert one is not None
    following = next(times(schedule, one.due))
    assert one.due <= one.fire < min(one.due + jitter * 1000, following)
    assert one == first(schedule, now)
    other = [first(parse({**schedule.model_dump(), "name": f"s{n}"}), now) for n in range(8)]
    assert len({d.fire for d in other if d}) > 1
