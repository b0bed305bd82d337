"""The controller's duty for schedules: sends the jobs whose time has come, each time once, however many controllers."""

from __future__ import annotations

import logging
from typing import Any

from . import keys
from . import schedule as rules
from .config import Config
from .errors import BrokerUnavailable
from .functions import Functions
from .remote import celery_app
from .schedule import Due, Schedule
from .schedules import due_pair, job_id_of, list_of, message, opened
from .store import KEEP_CANCEL_S, Yard

log = logging.getLogger(__name__)
LOOK_S = 0.5  # how late a schedule that was added just now may be
_BATCH, _MOST_READ = 64, 4096
_AGAIN_MS = 60_000  # when one that cannot be read is looked at again
_JUMP_MS = 60_000  # a clock that went back by more, and times that lie ahead by more, are mended


class Timetable:
    """Sends what is due. Any number of controllers may have one on the same yard."""

    def __init__(self, yard: Yard) -> None:
        self._yard, self._functions = yard, Functions(yard.redis)
        self._app = celery_app(yard.url)
        self._read: dict[str, tuple[bytes, Schedule]] = {}
        self._seen_ms: int | None = None  # the latest moment, of Redis's clock

    def round(self, config: Config) -> float:
        """Sends a bounded number of jobs; seconds until there is something to do again, at most LOOK_S.

        Raises BrokerUnavailable.
        """
        redis = self._yard.redis
        pipe = redis.pipeline(transaction=False)
        pipe.time()
        pipe.zrange(keys.SCHEDULES_DUE, 0, _BATCH, withscores=True)
        (seconds, micros), first = self._yard.guard(pipe.execute)
        now = int(seconds) * 1000 + int(micros) // 1000
        if self._seen_ms is None or now < self._seen_ms - _JUMP_MS:
            self._set_back(now)
            first = self._yard.guard(lambda: redis.zrange(keys.SCHEDULES_DUE, 0, _BATCH, withscores=True))
            self._seen_ms = now
        self._seen_ms = max(now, self._seen_ms)
        due = [name.decode() for name, fire in first if fire <= now]
        for name in due:
            try:
                self._deal_with(name, now, config)
            except BrokerUnavailable:
                raise
            except Exception as error:  # one that cannot be sent must not hold up the others
                log.error("schedule %s waits: %s", name, error)
                self._later(name, now, str(error))
        if due:
            return 0.0
        return min([LOOK_S, *(max(0.001, float(fire - now) / 1000) for _, fire in first[:1])])

    def _set_back(self, now: int) -> None:
        """Schedules that a clock put forward has taken beyond their next time come when it is due again."""
        redis = self._yard.redis
        names = [raw.decode() for raw in self._yard.guard(lambda: redis.smembers(keys.SCHEDULES))]
        pipe = redis.pipeline(transaction=False)
        for name in names:
            pipe.hmget(keys.schedule(name), ("doc", "due"))
        for name, (sealed, due) in zip(names, self._yard.guard(pipe.execute), strict=True):
            try:
                wanted = None if sealed is None else rules.first(self._opened(name, sealed), now)
            except Exception as error:  # it is said again when its time comes
                log.error("schedule %s: %s", name, error)
                wanted = None
            if wanted is not None and due is not None and int(due) <= wanted.due + _JUMP_MS:
                wanted = None
            elif wanted is not None:
                log.warning("schedule %s: its next time is set back, the clock was wrong", name)
            self._functions.call("schedule_back", name, due or "", *due_pair(wanted))

    def _deal_with(self, name: str, now: int, config: Config) -> None:
        asked = ("doc", "due", "state")
        told: Any = self._yard.guard(lambda: self._yard.redis.hmget(keys.schedule(name), asked))
        sealed, due, state = told
        if sealed is None or due is None or state != b"ENABLED":  # it was changed just now
            self._yard.guard(lambda: self._yard.redis.zadd(keys.SCHEDULES_DUE, {name: now + _AGAIN_MS}, xx=True))
            return
        schedule = self._opened(name, sealed)
        found = rules.plan(schedule, now, int(due))
        if found.dropped:
            log.warning("schedule %s: times were missed, and are not caught up", name)
        note = ""
        if schedule.queue not in config.queues:
            note = f'queue "{schedule.queue}" is not configured any more: nothing is sent'
        if note or not found.fires:
            self._fire(schedule, due.decode(), None, found.next, config, note)
            return
        expected = due.decode()
        for n, at in enumerate(found.fires):
            left = found.fires[n + 1 :]
            following = Due(due=left[0], fire=now) if left else found.next
            if self._fire(schedule, expected, at, following, config) in {"stale", "early"}:
                return  # another one deals with it
            expected = str(left[0]) if left else ""

    def _fire(
        self, schedule: Schedule, expected: str, at: int | None, following: Due | None, config: Config, note: str = ""
    ) -> str:
        job_id = "" if at is None else job_id_of(self._yard.ring, schedule.name, at)
        raw = b"" if at is None else message(self._app, schedule, job_id, at)
        done: bytes = self._functions.call(
            "fire", schedule.name, expected, at or 0, *due_pair(following), job_id, list_of(schedule), raw,
            schedule.overlap, config.retention_s * 1000, note, KEEP_CANCEL_S,
        )  # fmt: skip
        if done == b"skipped":
            log.info("schedule %s: its last job has not ended, so this time falls out", schedule.name)
        return done.decode()

    def _opened(self, name: str, sealed: bytes) -> Schedule:
        """Opened once for as long as it stays the same."""
        kept = self._read.get(name)
        if kept is None or kept[0] != sealed:
            if len(self._read) >= _MOST_READ:
                self._read.clear()
            kept = self._read[name] = sealed, opened(self._yard.ring, name, sealed)
        return kept[1]

    def _later(self, name: str, now: int, note: str) -> None:
        redis = self._yard.redis
        self._yard.guard(lambda: redis.zadd(keys.SCHEDULES_DUE, {name: now + _AGAIN_MS}, xx=True))
        if self._yard.guard(lambda: redis.exists(keys.schedule(name))):
            self._yard.guard(lambda: redis.hset(keys.schedule(name), "note", note))
