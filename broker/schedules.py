"""Schedules in Redis: kept sealed as jobs are, listed, paused; and what is sent for one. `timetable` sends them."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from celery import Celery
from kombu.utils.json import dumps

from . import keys
from . import schedule as rules
from .config import Config
from .definitions import Find, expand
from .errors import IntegrityError, InvalidConfig, InvalidJob, NotFound
from .functions import Functions
from .job import Job
from .message import TASK
from .remote import celery_app
from .schedule import Due, Schedule
from .seal import KeyRing
from .state import State
from .store import KEEP_CANCEL_S, Yard

Origin = Literal["config", "runtime"]
_NAMESPACE = uuid.UUID("8f5c51a5-6d0f-5a0b-9f0e-3f1c2f6f6a11")
_ELSEWHERE = {
    "config": "it comes from the yard's configuration; change it there",
    "runtime": "it was added at run time; remove it with `batchyard schedule remove`, or choose another name",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleView:
    """A schedule as it stands. when: in words. next: when it sends its next job, last: the time of its last one, both
    epoch seconds. last_state: None when the record is not there (yet, or any more). skipped: times that fell out
    because a job had not ended. note: what went wrong last time.
    """

    name: str
    when: str
    queue: str
    overlap: str
    catch_up: str
    state: str
    origin: str
    next: float | None
    last: float | None
    last_job: str | None
    last_state: str | None
    skipped: int
    note: str

    def as_json(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self)


class Schedules:
    """All of a yard's. ring: asked for where something is sealed or opened; may raise InvalidConfig."""

    def __init__(self, yard: Yard, ring: Callable[[], KeyRing]) -> None:
        self._yard, self._ring, self._functions = yard, ring, Functions(yard.redis)

    def add(self, schedule: Schedule, *, replace: bool = False, origin: Origin = "runtime") -> None:
        """Keeps it; it sends its first job at its first time from now on. Raises InvalidConfig: there is one already.

        replace: a changed one keeps its state and, while its times stay the same, goes on where it was.
        """
        before = self._stored(schedule.name) if replace else None
        due = rules.first(schedule, int(self._yard.now_s() * 1000))
        same_state = before is not None and before.state == schedule.state
        same_times = before is not None and before.timing == schedule.timing
        there = self._functions.call(
            "schedule_put", schedule.name, self._ring().seal(schedule.dumps().encode(), about(schedule.name)), origin,
            _clear(schedule), schedule.state, *due_pair(due), int(replace), int(same_state), int(same_times),
        )  # fmt: skip
        if there:
            self._refuse(schedule.name, there.decode(), origin)

    def apply(self, wanted: Mapping[str, Schedule]) -> None:
        """Those of a configuration instead of those of the one before. Raises InvalidConfig: nothing is changed."""
        there = {view.name: view.origin for view in self.list()}
        for name in wanted:
            if there.get(name, "config") != "config":
                raise InvalidConfig(f'schedule "{name}": {_ELSEWHERE["runtime"]}')
        for schedule in wanted.values():
            self.add(schedule, replace=True, origin="config")
        for name, origin in there.items():
            if origin == "config" and name not in wanted:
                self._functions.call("schedule_drop", name, "config")

    def remove(self, name: str) -> None:
        """For good; jobs that it sent go on. Raises NotFound, InvalidConfig (it comes from the configuration)."""
        stays = self._functions.call("schedule_drop", name, "runtime")
        if stays is None:
            raise _unknown(name)
        if stays:
            self._refuse(name, stays.decode(), "runtime")

    def pause(self, name: str) -> None:
        """It sends nothing until it is resumed. Raises NotFound."""
        self._state(name, "PAUSED")

    def resume(self, name: str) -> None:
        """It goes on, and what it missed comes by its catch-up policy. Raises NotFound."""
        self._state(name, "ENABLED")

    def run_now(self, name: str) -> str:
        """Sends its job once, paused or not, whatever its overlap; the job's id.

        Raises NotFound (no such schedule, no such queue any more), InvalidConfig.
        """
        schedule, config = self.show(name), self._yard.config()
        _check_queue(schedule, config)
        job_id, now = str(uuid.uuid4()), int(self._yard.now_s() * 1000)
        with celery_app(self._yard.url) as app:
            raw = message(app, schedule, job_id, now)
        sent = self._functions.call(
            "fire", name, "", now, "", "", job_id, list_of(schedule), raw, "allow", config.retention_s * 1000, "",
            KEEP_CANCEL_S,
        )  # fmt: skip
        if sent == b"stale":
            raise _unknown(name)
        return job_id

    def show(self, name: str) -> Schedule:
        """A schedule, opened. Raises NotFound, InvalidConfig, IntegrityError."""
        sealed: bytes | None = self._yard.guard(lambda: self._yard.redis.hget(keys.schedule(name), "doc"))
        if sealed is None:
            raise _unknown(name)
        return opened(self._ring(), name, sealed)

    def list(self) -> list[ScheduleView]:
        """By name. Nothing is opened."""
        redis = self._yard.redis
        names = sorted(n.decode() for n in self._yard.guard(lambda: redis.smembers(keys.SCHEDULES)))
        pipe = redis.pipeline(transaction=False)
        for name in names:
            pipe.hgetall(keys.schedule(name))
        found = {n: h for n, h in zip(names, self._yard.guard(pipe.execute), strict=True) if h}
        pipe = redis.pipeline(transaction=False)
        for fields in found.values():
            pipe.hget(keys.job(fields.get(b"last_id", b"").decode()), "state")
        states = self._yard.guard(pipe.execute)
        return [_view(name, fields, state) for (name, fields), state in zip(found.items(), states, strict=True)]

    def _stored(self, name: str) -> Schedule | None:
        """What is kept under a name, where it can still be read."""
        try:
            return self.show(name)
        except (NotFound, InvalidConfig, IntegrityError):
            return None

    def _state(self, name: str, state: str) -> None:
        if not self._functions.call("schedule_state", name, state):
            raise _unknown(name)

    @staticmethod
    def _refuse(name: str, there: str, origin: Origin) -> None:
        told = "there is one already; replace it, or choose another name" if there == origin else _ELSEWHERE[there]
        raise InvalidConfig(f'schedule "{name}": {told}')


def check(schedule: Schedule, config: Config, find: Find) -> None:
    """Whether its job could be sent now. Raises InvalidConfig, NotFound (no such queue)."""
    _check_queue(schedule, config)
    try:
        reason = config.refusal(schedule.queue, Job.parse(expand(schedule.job, find)))
    except InvalidJob as error:
        reason = str(error)
    if reason is not None:
        raise InvalidConfig(f'schedule "{schedule.name}": {reason}')


def _check_queue(schedule: Schedule, config: Config) -> None:
    if schedule.queue not in config.queues:
        raise NotFound(f'queue "{schedule.queue}" is not known; choose of {", ".join(config.by_priority())}')


def job_id_of(ring: KeyRing, name: str, due: int) -> str:
    """The id of the job of one time: the same whoever sends it."""
    return str(uuid.uuid5(_NAMESPACE, f"{ring.mark}/{name}/{due}"))


def message(app: Celery, schedule: Schedule, job_id: str, due: int) -> bytes:
    """What a stock producer would push. Ref::schedule and Ref::due are parameters, unless the job has its own."""
    moment = datetime.fromtimestamp(due / 1000, UTC).isoformat().replace("+00:00", "Z")
    given = schedule.job.get("parameters") or {}
    job = {**schedule.job, "parameters": {"schedule": schedule.name, "due": moment, **given}}
    told: Any = app.amqp
    sent = told.as_task_v2(
        job_id, TASK, kwargs={"job": job}, root_id=job_id, argsrepr="", kwargsrepr=f"schedule={schedule.name}",
        ignore_result=False, origin=f"schedule@{schedule.name}",
    )  # fmt: skip
    properties = {
        **sent.properties,
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": schedule.queue},
        "priority": schedule.priority or 0,
        "body_encoding": "base64",
        "delivery_tag": job_id,
    }
    whole = {
        "body": base64.b64encode(dumps(sent.body).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", **sent.headers},
        "properties": properties,
    }
    return dumps(whole).encode()


def opened(ring: KeyRing, name: str, sealed: bytes) -> Schedule:
    """Raises IntegrityError, InvalidConfig (a time zone that this machine does not know)."""
    return rules.parse(json.loads(ring.open(sealed, about(name))))


def about(name: str) -> bytes:
    return f"schedule {name}".encode()


def list_of(schedule: Schedule) -> str:
    """The producers' list that its messages go to."""
    return keys.priority_list(schedule.queue, schedule.priority or 0)


def _clear(schedule: Schedule) -> str:
    told = {"when": schedule.when, "queue": schedule.queue, "overlap": schedule.overlap, "catch_up": schedule.catch_up}
    return json.dumps(told)


def due_pair(due: Due | None) -> tuple[str, str]:
    """Due and fire time as the Redis functions read them; none is empty."""
    return ("", "") if due is None else (str(due.due), str(due.fire))


def _unknown(name: str) -> NotFound:
    return NotFound(f'no schedule "{name}"; see `batchyard schedule list`')


def _view(name: str, fields: Mapping[bytes, bytes], last_state: bytes | None) -> ScheduleView:
    def text(field: bytes) -> str:
        return fields.get(field, b"").decode("utf-8", "replace")

    def seconds(field: bytes) -> float | None:
        return int(fields[field]) / 1000 if field in fields else None

    return ScheduleView(
        name=name,
        **json.loads(fields[b"about"]),
        state=text(b"state"),
        origin=text(b"origin"),
        next=seconds(b"fire") if text(b"state") == "ENABLED" else None,
        last=seconds(b"last"),
        last_job=text(b"last_id") or None,
        last_state=None if last_state is None else State(last_state.decode()).value,
        skipped=int(fields.get(b"skipped", b"0")),
        note=text(b"note"),
    )
