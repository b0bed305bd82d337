"""Changes of jobs' states as events, in the shape that AWS Batch sends them to EventBridge.

The Redis functions append a few words for each change to one stream of bounded length; the shape is made when it is
read, from the record as it is then. The first submission is no event, as with AWS.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from . import keys
from .record import Attempt, Record, from_hash
from .state import State
from .store import Yard

DETAIL_TYPE, BLOCKED_TYPE, SOURCE = "Batch Job State Change", "Batch Job Queue Blocked", "aws.batch"
ACCOUNT, REGION = "000000000000", "batchyard"  # a yard has neither; a reader of such events wants some
FIRST = "0-0"
_NAMESPACE = uuid.UUID("0d6a2c7e-2f0c-5f0e-9a54-7c2b9d7f3c55")
_CLOCKS_MS = 1000  # a node's clock against Redis's
_WINDOW, _MOST_WINDOWS = 1000, 100
_FIELDS = (
    "state", "queue", "image", "name", "definition", "created", "started", "ended", "node", "exit_code", "reason",
    "attempts", "depends", "log",
)  # fmt: skip
_MORE = ("array", "index", "share")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One change. cursor: where it stands in the stream; at_ms: by Redis's clock; reason: of an end, else empty.

    blocked: no change, but the first job of a queue that nothing can start, for this reason.
    """

    cursor: str
    at_ms: int
    job_id: str
    queue: str
    state: State
    reason: str
    blocked: bool = False


class Events:
    """A yard's stream of changes, oldest first. All raise BrokerUnavailable."""

    MOST_WAITING = 1000  # that are counted

    def __init__(self, yard: Yard) -> None:
        self._yard = yard

    def after(self, cursor: str, *, count: int = 100, block_ms: int | None = None) -> list[Event]:
        """The next ones, at most `count`; none within block_ms gives an empty list. Those that were dropped from the
        stream meanwhile are passed over.
        """
        redis = self._yard.redis
        found: Any = self._yard.guard(lambda: redis.xread({keys.EVENTS: cursor}, count=count, block=block_ms))
        streams = list(found.values()) if isinstance(found, dict) else [entries for _, entries in found or ()]
        return [_event(entry, fields) for entries in streams for entry, fields in _flat(entries)]

    def newest(self, count: int, queue: str | None = None) -> tuple[str, list[Event]]:
        """The cursor behind all that there is, and the newest of a queue or of all; of a queue, among 100,000."""
        redis, found, last, before = self._yard.redis, list[Event](), FIRST, "+"
        for _ in range(_MOST_WINDOWS):
            some = self._yard.guard(lambda at=before: redis.xrevrange(keys.EVENTS, at, "-", count=max(count, _WINDOW)))
            events = [_event(entry, fields) for entry, fields in some]
            last = events[0].cursor if events and before == "+" else last
            found += [one for one in events if queue in (None, one.queue)]
            if len(found) >= count or len(some) < max(count, _WINDOW):
                break
            before = f"({events[-1].cursor}"
        return last, found[:count][::-1]

    def delivered(self) -> dict[str, Any] | None:
        """How far the webhook has come: {"upto" in epoch seconds, "waiting" events, "failures" of the one that is
        tried now, "note" of why}. None: no webhook is told. JSON types only.
        """
        client = self._yard.redis
        h: Any = self._yard.guard(lambda: client.hgetall(keys.WEBHOOK))
        if b"cursor" not in h:
            return None
        cursor = h[b"cursor"].decode()
        return {
            "upto": int(cursor.partition("-")[0]) / 1000,
            "waiting": len(self.after(cursor, count=self.MOST_WAITING)),
            "failures": int(h.get(b"failures", 0)),
            "note": h.get(b"note", b"").decode("utf-8", "replace"),
        }

    def shaped(self, events: Sequence[Event]) -> list[dict[str, Any]]:
        """Each as AWS sends it, in one round trip."""
        pipe = self._yard.redis.pipeline(transaction=False)
        for one in events:
            pipe.hmget(keys.job(one.job_id), *_FIELDS, *_MORE)
        found = self._yard.guard(pipe.execute) if events else []
        return [shape(one, _told(values)) for one, values in zip(events, found, strict=True)]


def shape(event: Event, fields: Mapping[bytes, bytes]) -> dict[str, Any]:
    """One event as EventBridge would bring it. fields: of its record now; none when that has expired."""
    moment = datetime.fromtimestamp(event.at_ms / 1000, UTC).isoformat(timespec="milliseconds")
    arn = job_arn(event.job_id)
    return {
        "version": "0",
        "id": str(uuid.uuid5(_NAMESPACE, f"{event.cursor} {event.job_id}")),
        "detail-type": BLOCKED_TYPE if event.blocked else DETAIL_TYPE,
        "source": SOURCE,
        "account": ACCOUNT,
        "time": moment.replace("+00:00", "Z"),
        "region": REGION,
        "resources": [arn],
        "detail": {"jobArn": arn, **_detail(event, fields)},
    }


def job_arn(job_id: str) -> str:
    """What stands for AWS's name of a job."""
    return f"arn:aws:batch:{REGION}:{ACCOUNT}:job/{job_id}"


def _detail(event: Event, fields: Mapping[bytes, bytes]) -> dict[str, Any]:
    """As DescribeJobs answers, with what was so at that moment; what is absent is left out."""
    r = from_hash(event.job_id, fields)
    past = [a for a in r.attempts if a.ended * 1000 <= event.at_ms + _CLOCKS_MS or event.state.ended]
    reason, short = _reasons(event, past)
    told: dict[str, Any] = {
        "jobName": r.name or event.job_id,
        "jobId": event.job_id,
        "jobQueue": event.queue,
        "jobDefinition": r.definition or None,
        "status": event.state.value,
        "statusReason": reason or None,
        "createdAt": _ms(r.created or None),
        "startedAt": _started(event, r),
        "stoppedAt": (_ms(r.ended) or event.at_ms) if event.state.ended else None,
        "attempts": [_attempt(a) for a in past],
        "dependsOn": [{"jobId": on.job_id} for on in r.depends_on],
        "shareIdentifier": fields.get(b"share", b"").decode() or None,
        "arrayProperties": _array(fields),
        "container": _present(
            image=r.image or None,
            exitCode=r.exit_code if event.state.ended else None,
            reason=short or None,
            containerInstanceArn=r.node
            if event.state in {State.STARTING, State.RUNNING} or event.state.ended
            else None,
        ),
    }
    return _present(**told)


def _reasons(event: Event, past: Sequence[Attempt]) -> tuple[str, str]:
    """AWS's word for the end, and the container's. A job that was cancelled has its own reason, not its last run's."""
    if not event.state.ended or not past or past[-1].reason != event.reason:
        return event.reason, ""
    return past[-1].status_reason or event.reason, event.reason


def _started(event: Event, r: Record) -> int | None:
    """When the run began that this event is of; each later run has its own."""
    if event.state is not State.RUNNING and not event.state.ended:
        return None
    known = [_ms(at) for at in (*(a.started for a in r.attempts), r.started)]
    return max((at for at in known if at is not None and at <= event.at_ms + _CLOCKS_MS), default=None)


def _attempt(a: Attempt) -> dict[str, Any]:
    return _present(
        startedAt=_ms(a.started),
        stoppedAt=_ms(a.ended),
        statusReason=a.status_reason or a.reason,
        container=_present(exitCode=a.exit_code, reason=a.reason, containerInstanceArn=a.node),
    )


def _array(fields: Mapping[bytes, bytes]) -> dict[str, int] | None:
    for field, name in ((b"array", "size"), (b"index", "index")):
        if fields.get(field, b"").isdigit():
            return {name: int(fields[field])}
    return None


def _present(**told: Any) -> dict[str, Any]:
    """AWS leaves out what is absent."""
    return {name: value for name, value in told.items() if value is not None}


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


def _told(values: Sequence[bytes | None]) -> dict[bytes, bytes]:
    named = zip((*_FIELDS, *_MORE), values, strict=True)
    return {name.encode(): value for name, value in named if value is not None}


def _flat(entries: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """redis-py nests the entries once more with some versions of the protocol."""
    return entries[0] if entries and isinstance(entries[0], list) else entries


def _event(entry: bytes, fields: Mapping[bytes, bytes]) -> Event:
    job_id, queue, state, reason = fields[b"e"].decode("utf-8", "replace").split(" ", 3)
    cursor, blocked = entry.decode(), state == "BLOCKED"
    return Event(
        cursor=cursor,
        at_ms=int(cursor.partition("-")[0]),
        job_id=job_id,
        queue=queue,
        state=State.RUNNABLE if blocked else State(state),
        reason=reason,
        blocked=blocked,
    )
