"""How an attempt ended, and what is to become of its job. Pure."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import Enum

from batchyard.broker.errors import BatchyardError

from .engine.protocol import Exit


class Stop(Enum):
    """Why this node stopped a container, if it did. The first reason counts, but LOST overrules all."""

    CANCEL = "cancel"
    TIMEOUT = "timeout"
    DRAIN = "drain"
    LOST = "lost"


class Fate(Enum):
    """What becomes of the job."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REVOKED = "revoked"
    RETRY = "retry"  # back to the queue, one attempt used
    RETURN = "return"  # back to the queue, no attempt used
    FORGET = "forget"  # not ours any more: write nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """fate, the reason in words, and the command's exit code where it has one."""

    fate: Fate
    reason: str
    exit_code: int | None


OUT_OF_MEMORY = "OutOfMemoryError: Container killed due to memory usage"
TIMED_OUT = "Job attempt duration exceeded timeout"
SUCCEEDED = "Essential container in task exited"


def decide(
    *, exit: Exit | None, error: BatchyardError | None, stop: Stop | None, why: str, attempt: int, attempts: int
) -> Outcome:
    """exit: how the container ended, None if it never ran. error: what went wrong before or after it ran.

    stop, why: whether this node stopped it, and the canceller's reason. attempt counts from 1. Cancelled and timed-out
    jobs are never retried (as AWS Batch).
    """
    code = exit.code if exit else None
    if stop is Stop.LOST:
        return Outcome(fate=Fate.FORGET, reason="the lease was lost", exit_code=code)
    if stop is Stop.CANCEL:
        return Outcome(fate=Fate.REVOKED, reason=why, exit_code=code)
    if stop is Stop.TIMEOUT:
        return Outcome(fate=Fate.FAILED, reason=TIMED_OUT, exit_code=code)
    if stop is Stop.DRAIN:
        return Outcome(fate=Fate.RETURN, reason="the node drained", exit_code=code)
    if exit is not None and exit.code == 0 and error is None:
        return Outcome(fate=Fate.SUCCEEDED, reason=SUCCEEDED, exit_code=0)
    if exit is not None and exit.interrupted and exit.code >= 128:
        return Outcome(fate=Fate.RETURN, reason="the container engine was restarted under the job", exit_code=code)
    fate = Fate.RETRY if attempt < attempts else Fate.FAILED
    said = str(error).encode("utf-8", "replace").decode()  # a file name in it may be no text, which Redis refuses
    return Outcome(fate=fate, reason=said if error else _ended(exit), exit_code=code)


def _ended(exit: Exit | None) -> str:
    if exit is None:
        return "the container never ran"
    if exit.oom:
        return OUT_OF_MEMORY
    if exit.error:
        return f"the command could not be run: {exit.error}"
    if exit.code > 128:
        try:
            return f"the command was killed by {signal.Signals(exit.code - 128).name} (exit code {exit.code})"
        except ValueError:
            pass
    return f"the command ended with exit code {exit.code}"
