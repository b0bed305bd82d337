"""The outbox emptied: jobs that end outside a node, dependants of ended jobs, arrays, the bodies of completed chords.

Any number of processes may do it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from typing import Any

from celery import states

from . import message
from .children import Children
from .errors import BrokerUnavailable, IntegrityError, JobFailed, NotFound
from .followups import CannotFollow, Followups
from .message import Message
from .recorder import Effect
from .state import State
from .store import Yard

log = logging.getLogger(__name__)
TRY_AGAIN_S = 60.0
RELEASES = 16  # calls for one job's dependants, 64 a call, before others' turn comes
CHUNKS = 16  # calls for arrays, some 2 ms each, before others' turn comes; each array gets one
ENDS = 40  # children in a call


class Outbox:
    """Delivers what the Redis functions left to be followed up."""

    def __init__(self, yard: Yard, followups: Followups, *, retention_s: int) -> None:
        self._yard, self._followups, self._retention_s = yard, followups, retention_s
        self._cursor = 0
        self._later: dict[str, float] = {}
        self._arrays, self._children = 0, Children(yard)

    def run(self) -> int:
        """Delivers a bounded number of entries. Returns how many this call delivered."""
        done, now = 0, time.monotonic()
        self._cursor, entries = self._yard.outbox(self._cursor)
        if self._cursor == 0:
            self._later = {field: at for field, at in self._later.items() if at > now}
        self._arrays = sum(field.startswith("array:") for field in entries)
        for field, entry in entries.items():
            if field in self._later:
                continue
            try:
                done += self._deliver(field, entry)
            except BrokerUnavailable:
                raise
            except Exception:  # whatever it is, it must not hold up the others
                log.exception("outbox entry %s cannot be delivered; it is tried again in a minute", field)
                self._later[field] = now + TRY_AGAIN_S
        return done + bool(self._cursor)

    def _deliver(self, field: str, entry: dict[str, Any]) -> bool:
        if field.startswith("end:"):
            return self._end(entry)
        if field.startswith("deps:"):
            for _ in range(RELEASES):
                if self._yard.release(entry["id"]) == 0:
                    break
            return True
        if field.startswith("array:"):
            return self._array(entry["id"])
        if field == "children":
            for _ in range(CHUNKS):
                if not self._children.end(ENDS):
                    break
            return True
        return self._body(field, entry)

    def _array(self, job_id: str) -> bool:
        try:
            for _ in range(max(1, CHUNKS // max(1, self._arrays))):
                if not self._children.step(job_id):
                    break
        except BrokerUnavailable:  # no memory for new children, maybe: what ends must end all the same
            self._children.step(job_id, spawn=False)
            return False
        return True

    def _body(self, field: str, entry: dict[str, Any]) -> bool:
        effects = self._followups.body(entry, self._member)
        return self._yard.deliver(field, effects)

    def _end(self, entry: dict[str, Any]) -> bool:
        job_id, reason, now_ms = entry["id"], entry["reason"], int(time.time() * 1000)
        fields, state = {"reason": reason, "ended": str(now_ms)}, State.FAILED
        try:
            if entry["state"] == states.SUCCESS:
                result = self._children.result(job_id, now_ms / 1000)
                effects = self._followups.succeeded(self._message(job_id), result)
                fields["result"], state = json.dumps(result), State.SUCCEEDED
            else:
                effects = self._effects(job_id, entry["state"], reason)
        except CannotFollow as error:
            effects, fields["reason"] = error.effects, "; ".join(filter(None, (reason, str(error))))
        except NotFound:
            effects = []  # the record has expired with all that hung on it
        except BrokerUnavailable:
            raise
        except Exception as error:  # its message is such that not even its own end can be told: it ends all the same
            log.exception("job %s: what follows it cannot be told", job_id)
            told = f"what follows the job cannot be told: {error}"
            effects, fields["reason"] = [], "; ".join(filter(None, (reason, told)))
        return self._yard.finish(job_id, state, fields, effects, retention_s=self._retention_s)

    def _message(self, job_id: str) -> Message:
        try:
            return self._yard.document(job_id).message
        except IntegrityError:
            log.exception("job %s: its document does not open; nothing can follow it", job_id)
            return message.bare(job_id)

    def _member(self, job_id: str) -> Message:
        """The body of its chord starts also when its record has expired meanwhile."""
        try:
            return self._message(job_id)
        except NotFound:
            return message.bare(job_id)

    def _effects(self, job_id: str, celery_state: str, reason: str) -> list[Effect]:
        sent = self._message(job_id)
        if celery_state == states.REVOKED:
            return self._followups.revoked(sent, reason)
        return self._followups.failed(sent, failure(job_id, reason))


def failure(
    job_id: str,
    reason: str,
    *,
    exit_code: int | None = None,
    log_tail: str = "",
    outputs: Mapping[str, object] | None = None,
) -> JobFailed:
    """The exception that a producer gets. outputs: those that were kept all the same."""
    details: dict[str, object] = {"exit_code": exit_code, "reason": reason, "log_tail": log_tail, "job_id": job_id}
    if outputs:
        details["outputs"] = dict(outputs)
    return JobFailed(f"job {job_id} failed: {reason}", details)
