"""Jobs that were sent a moment ago: they have no record before their messages are taken in."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from .arrays import parent_of
from .errors import InvalidJob, NotFound
from .record import Record
from .store import Yard

PATIENCE_S = 2.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.05


def missing(yard: Yard, queues: Sequence[str], ids: Sequence[str], *, patience_s: float) -> tuple[list[str], bool]:
    """Those of these jobs that have no record, and whether it may still come: messages wait in the queues' lists.

    Waits for patience_s at most, and only while messages wait. Of a child its array is looked for.
    """
    end_s, pause_s = time.monotonic() + patience_s, _FIRST_PAUSE_S
    absent = list(dict.fromkeys(parent_of(job_id) or job_id for job_id in ids if job_id))
    while absent:
        listed = any(depth.lists for depth in yard.depth(queues).values())  # asked first: a move into a record is one
        absent = [job_id for job_id in absent if not yard.exists(job_id)]
        if not (absent and listed):
            return absent, False
        if time.monotonic() >= end_s:
            return absent, True
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
    return [], False


def check_known(yard: Yard, queues: Sequence[str], ids: Sequence[str], sent: Collection[str]) -> None:
    """Raises InvalidJob: one of these jobs was never sent. sent: what the caller itself has sent a moment ago.

    Returns also when messages wait to be taken in for so long that nobody can tell: intake decides then.
    """
    asked = [job_id for job_id in ids if (parent_of(job_id) or job_id) not in sent]
    unknown, may_come = missing(yard, queues, asked, patience_s=PATIENCE_S)
    if unknown and not may_come:
        rule = "depends on an unknown job: it was never sent here, or its record has expired"
        raise InvalidJob("depends_on", unknown[0], rule)


def record(yard: Yard, job_id: str, *, patience_s: float = PATIENCE_S) -> Record:
    """A job's, also of one that was sent a moment ago. Raises NotFound."""
    try:
        return yard.record(job_id)
    except NotFound:
        queues = _queues(yard)
        absent, listed = missing(yard, queues, [job_id.partition("#")[0]], patience_s=patience_s)
        if not absent:
            return yard.record(job_id)
        if not listed:
            raise
    raise NotFound(
        f'no job "{job_id}" yet: messages still wait to be taken in; or it was never sent, its record has expired, or '
        f"the id is not whole; `batchyard why {job_id}` says more"
    )


def _queues(yard: Yard) -> Sequence[str]:
    try:
        return yard.config().by_priority()
    except NotFound:  # no yard has ever run here
        return []
