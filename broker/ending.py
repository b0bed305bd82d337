"""The outbox emptied: jobs that end outside a node, and the bodies of completed chords. Any number of processes may."""

from __future__ import annotations

import logging
import time
from typing import Any

from celery import states

from .errors import BatchyardError, BrokerUnavailable, JobFailed, NotFound
from .followups import CannotFollow, Followups
from .recorder import Effect
from .state import State
from .store import Yard

log = logging.getLogger(__name__)


class Outbox:
    """Delivers what the Redis functions left to be followed up."""

    def __init__(self, yard: Yard, followups: Followups, *, retention_s: int) -> None:
        self._yard, self._followups, self._retention_s = yard, followups, retention_s

    def run(self) -> int:
        """Delivers a bounded number of entries. Returns how many this call delivered."""
        done = 0
        for field, entry in self._yard.outbox().items():
            try:
                done += self._end(entry) if field.startswith("end:") else self._body(field, entry)
            except BrokerUnavailable:
                raise
            except (BatchyardError, ValueError, KeyError, RuntimeError):
                log.exception("outbox entry %s cannot be delivered", field)
        return done

    def _body(self, field: str, entry: dict[str, Any]) -> bool:
        effects = self._followups.body(entry, lambda job_id: self._yard.document(job_id).message)
        return self._yard.deliver(field, effects)

    def _end(self, entry: dict[str, Any]) -> bool:
        job_id, reason = entry["id"], entry["reason"]
        fields = {"reason": reason, "ended": str(int(time.time() * 1000))}
        try:
            effects = self._effects(job_id, entry["state"], reason)
        except CannotFollow as error:
            effects, fields["reason"] = error.effects, f"{reason}; {error}"
        except NotFound:
            effects = []  # the record has expired with all that hung on it
        return self._yard.finish(job_id, State.FAILED, fields, effects, retention_s=self._retention_s)

    def _effects(self, job_id: str, celery_state: str, reason: str) -> list[Effect]:
        message = self._yard.document(job_id).message
        if celery_state == states.REVOKED:
            return self._followups.revoked(message, reason)
        return self._followups.failed(message, failure(job_id, reason))


def failure(job_id: str, reason: str, *, exit_code: int | None = None, log_tail: str = "") -> JobFailed:
    """The exception that a producer gets."""
    details: dict[str, object] = {"exit_code": exit_code, "reason": reason, "log_tail": log_tail, "job_id": job_id}
    return JobFailed(f"job {job_id} failed: {reason}", details)
