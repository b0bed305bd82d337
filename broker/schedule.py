"""Schedules: when jobs are to be sent by themselves. Pure: times are milliseconds since the epoch, and `now` is given.

    nightly: {cron: "30 2 * * *", timezone: Europe/Berlin, definition: report, overlap: skip, catch_up: last}
    pulse: {rate: 10m, job: {image: busybox, command: [date]}, queue: cpu, jitter_s: 30}

`cron` is a crontab line of five fields, or @hourly, @daily, @weekly, @monthly, @yearly. When the clock is put forward
or back it does as Debian's cron: a fixed time that does not exist comes as soon as the clock goes on, one that comes
twice comes the first time; a line with `*` in its minutes or hours follows the clock on the wall. `rate` is counted
from `start`, else from 1970, so that 1h is on the hour in UTC.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import Field, ValidationError, model_validator

from .errors import InvalidConfig, InvalidJob
from .fields import Frozen
from .job import Job

MOST_CAUGHT_UP = 100
LATE_MS = 60_000  # by catch_up "none", what nobody sent for so long is not sent any more
_NAMED = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_RATE = re.compile(r"(?:(\d{1,5})d)?(?:(\d{1,5})h)?(?:(\d{1,6})m)?(?:(\d{1,7})s)?")
_UNITS_S = (86400, 3600, 60, 1)
_LONGEST_RATE_S = 366 * 86400
_BEGIN_MS = 1_704_067_200_000  # 2024: from here on it must come at least once
_YEARS = range(1971, 3000)
_FIRST_LOOK_MS, _WIDER = 3_600_000, 8


class Schedule(Frozen):
    """One schedule. job: a job's fields, or `definition` in its place or beside it. jitter_s: sent up to so much later.

    overlap, when its last job has not ended: send all the same, skip this time, or cancel the last one.
    catch_up, after a downtime or a pause: send nothing that is over a minute late, the last missed one, or up to 100.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$")]
    cron: str | None = None
    rate: str | None = None
    timezone: str = "UTC"
    job: dict[str, Any]
    queue: str = "cpu"
    priority: Annotated[int, Field(ge=0, le=9)] | None = None
    overlap: Literal["allow", "skip", "replace"] = "allow"
    catch_up: Literal["none", "last", "all"] = "last"
    jitter_s: Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)] = 0
    state: Literal["ENABLED", "PAUSED"] = "ENABLED"
    start: datetime | None = None
    end: datetime | None = None

    @model_validator(mode="before")
    @classmethod
    def _with_definition(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or "definition" not in value:
            return value
        job = value.get("job") or {}
        rest = {key: part for key, part in value.items() if key != "definition"}
        return {**rest, "job": {**job, "definition": value["definition"]} if isinstance(job, Mapping) else job}

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if (self.cron is None) == (self.rate is None):
            raise ValueError('give either cron, such as "*/5 * * * *", or rate, such as "10m"')
        _zone(self.timezone)
        if any(moment is not None and moment.year not in _YEARS for moment in (self.start, self.end)):
            raise ValueError(f"start and end lie in {_YEARS[0]} to {_YEARS[-1]}")
        if self.rate is not None:
            rate_ms(self.rate)
        elif next(times(self, _BEGIN_MS, endless=True), None) is None:
            raise ValueError(f'cron = "{self.cron}": no such day ever comes; correct the line')
        if self.start is not None and self.end is not None and _ms(self.end, self) < _ms(self.start, self):
            raise ValueError("end lies before start")
        job = self.job if self.job.get("definition") is None else {"image": "of-its-definition", **self.job}
        if any(spec.from_ is not None for spec in Job.parse(job).inputs.values()):
            raise ValueError('job.inputs: "from" needs a previous step; name a digest or a URI')
        return self

    @property
    def when(self) -> str:
        """In words, for people: `30 2 * * * Europe/Berlin`, `every 10m`."""
        return f"every {self.rate}" if self.rate is not None else f"{self.cron} {self.timezone}"

    @property
    def timing(self) -> tuple[object, ...]:
        """What decides its times: while it stays the same, a changed schedule goes on where it was."""
        return self.cron, self.rate, self.timezone, self.start, self.end

    def dumps(self) -> str:
        """JSON; `parse(json.loads(…))` is the same schedule."""
        return self.model_dump_json(exclude_defaults=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A time of a schedule. fire: when it is sent, `due` and its jitter."""

    due: int
    fire: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Times to send a job for now, in their order; the next one, if any; whether times were missed for good."""

    fires: tuple[int, ...]
    next: Due | None
    dropped: bool


def parse(value: object, source: str = "schedule") -> Schedule:
    """Raises InvalidConfig that names schedule, field and rule."""
    name = value.get("name") if isinstance(value, Mapping) else None
    where = f'{source} "{name}"' if isinstance(name, str) else source
    try:
        return Schedule.model_validate(value)
    except InvalidJob as error:
        raise InvalidConfig(f"{where}: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidConfig(f"{where}: {field and f'{field}: '}{first['msg'].removeprefix('Value error, ')}") from None


def first(schedule: Schedule, now: int) -> Due | None:
    """Its first time after now; None when it has no more."""
    for due, following in _pairs(times(schedule, now)):
        return Due(due=due, fire=_fire(schedule, due, following))
    return None


def plan(schedule: Schedule, now: int, due: int) -> Plan:
    """What is to be sent now, when all times before `due` have been dealt with.

    Of a schedule that does not allow overlap at most one: the others would be skipped or cancelled at once.
    """
    most = MOST_CAUGHT_UP if schedule.catch_up == "all" and schedule.overlap == "allow" else 1
    begin, width = due - 1, _FIRST_LOOK_MS
    while True:  # back from now, each time further: years of missed minutes are not gone through
        since = max(begin, now - width)
        ready: deque[Due] = deque(maxlen=most)
        seen, upcoming = 0, None
        for at, following in _pairs(times(schedule, since)):
            upcoming = Due(due=at, fire=_fire(schedule, at, following))
            if upcoming.fire > now:
                break
            ready.append(upcoming)
            seen, upcoming = seen + 1, None
        if seen >= most or since == begin:
            break
        width *= _WIDER
    dropped = since > begin or seen > most
    if schedule.catch_up == "none" and ready and now - ready[-1].fire > LATE_MS:
        ready.clear()
        dropped = True
    return Plan(fires=tuple(one.due for one in ready), next=upcoming, dropped=dropped)


def times(schedule: Schedule, after: int, *, endless: bool = False) -> Iterator[int]:
    """Its times after a moment, without jitter, up to its end. endless: whatever its end."""
    if schedule.start is not None:
        after = max(after, _ms(schedule.start, schedule) - 1)
    end = None if schedule.end is None or endless else _ms(schedule.end, schedule)
    for at in _rate_times(schedule, after) if schedule.rate is not None else _cron_times(schedule, after):
        if end is not None and at > end:
            return
        yield at


def rate_ms(text: str) -> int:
    """`90s`, `10m`, `1h30m`, `2d` in ms. Raises ValueError."""
    found = _RATE.fullmatch(text.strip().lower())
    seconds = sum(int(n) * unit for n, unit in zip(found.groups(), _UNITS_S, strict=True) if n) if found else 0
    if not 1 <= seconds <= _LONGEST_RATE_S:
        raise ValueError(f'rate = "{text}": must be a time from 1s to 366d, such as 30s, 10m, 1h30m or 2d')
    return seconds * 1000


def _rate_times(schedule: Schedule, after: int) -> Iterator[int]:
    step = rate_ms(schedule.rate or "")
    anchor = 0 if schedule.start is None else _ms(schedule.start, schedule)
    at = anchor + ((after - anchor) // step + 1) * step
    while True:
        yield at
        at += step


def _cron_times(schedule: Schedule, after: int) -> Iterator[int]:
    zone = _zone(schedule.timezone)
    try:
        line = CronSim(_line(schedule.cron or ""), datetime.fromtimestamp(after // 1000, zone))
    except CronSimError as error:
        raise ValueError(f'cron = "{schedule.cron}": {error}; correct the line') from None
    last = after
    for moment in line:
        at = int(moment.timestamp()) * 1000
        if at > last:  # the repeated hour begins before `after`, and times of a missing hour fall together
            yield at
            last = at


def _line(cron: str) -> str:
    text = cron.strip()
    if text.startswith("@"):
        if text.lower() not in _NAMED:
            raise ValueError(f'cron = "{cron}": is not known; choose of {", ".join(_NAMED)}')
        return _NAMED[text.lower()]
    if len(text.split()) != 5:
        raise ValueError(f'cron = "{cron}": must have five fields: minute, hour, day of month, month, day of week')
    return text


@lru_cache(maxsize=256)
def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC  # cronsim is quicker with it
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError):
        raise ValueError(f'timezone = "{name}": is not known; give one such as Europe/Berlin') from None


def _ms(moment: datetime, schedule: Schedule) -> int:
    aware = moment if moment.tzinfo else moment.replace(tzinfo=_zone(schedule.timezone))
    return int(aware.timestamp() * 1000)


def _fire(schedule: Schedule, due: int, following: int | None) -> int:
    """When a time is sent: the same on every controller, and before the next time."""
    room = int(schedule.jitter_s * 1000)
    if not room:
        return due
    if following is not None:
        room = min(room, following - due)
    drawn = int.from_bytes(hashlib.sha256(f"{schedule.name}/{due}".encode()).digest()[:6])
    return due + room * drawn // 2**48


def _pairs(moments: Iterator[int]) -> Iterator[tuple[int, int | None]]:
    """Each with the one that follows."""
    last: int | None = None
    for at in moments:
        if last is not None:
            yield last, at
        last = at
    if last is not None:
        yield last, None
