"""How an attempt ended, and what is to become of its job. Pure."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import Enum

from batchyard.broker import retry
from batchyard.broker.errors import (
    BatchyardError,
    EngineUnavailable,
    ImageError,
    ImageUnavailable,
    StartError,
)
from batchyard.broker.retry import Ended, Strategy

from .engine.protocol import Exit


class Stop(Enum):
    """Why this node stopped a container, if it did. The first reason counts, but LOST overrules all."""

    CANCEL = "cancel"
    TIMEOUT = "timeout"
    DRAIN = "drain"
    LOST = "lost"
    HALT = "halt"  # a member of a gang that is over, or goes back


STOPS = {"lost": Stop.LOST, "cancel": Stop.CANCEL, "halt": Stop.HALT}
"""What a heartbeat tells of a job, by how it is stopped for it."""


class Fate(Enum):
    """What becomes of the job."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REVOKED = "revoked"
    RETRY = "retry"  # back to the queue, one attempt used
    INTERRUPTED = "interrupted"  # back to the queue, an infrastructure retry used
    RETURN = "return"  # back to the queue, nothing used
    FORGET = "forget"  # not ours any more: write nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """fate, the reason in words, and the command's exit code where it has one.

    status_reason: AWS Batch's word for how it ended. counted: whether it uses up one of `job.attempts`. delay_s: a
    job that goes back is not to start again before that.
    """

    fate: Fate
    reason: str
    exit_code: int | None
    status_reason: str = ""
    counted: bool = True
    delay_s: float = 0


OUT_OF_MEMORY = "OutOfMemoryError: Container killed due to memory usage"
TIMED_OUT = "Job attempt duration exceeded timeout"
SUCCEEDED = retry.EXITED
_RESTARTED = "the container engine was restarted under the job"
# What AWS's agent calls it when a container cannot be started; rules for retries look for these.
_AGENTS_WORDS: tuple[tuple[type[BatchyardError], str], ...] = (
    (ImageError, "CannotPullContainerError"),
    (ImageUnavailable, "CannotPullContainerError"),
    (StartError, "CannotStartContainerError"),
    (EngineUnavailable, "DockerTimeoutError"),
    (BatchyardError, "ResourceInitializationError"),
)


def decide(
    *,
    exit: Exit | None,
    error: BatchyardError | None,
    stop: Stop | None,
    why: str,
    attempt: int,
    strategy: Strategy,
    interruptions: int = 0,
) -> Outcome:
    """exit: how the container ended, None if it never ran. error: what went wrong before or after it ran.

    stop, why: whether this node stopped it, and the canceller's reason. attempt counts from 1; interruptions: those
    before. Cancelled and timed-out jobs are never retried (as AWS Batch).
    """
    code = exit.code if exit else None
    if stop is Stop.LOST:
        return Outcome(fate=Fate.FORGET, reason="the lease was lost", exit_code=code)
    if stop is Stop.CANCEL:
        return Outcome(fate=Fate.REVOKED, reason=why, exit_code=code, status_reason=why)
    if stop is Stop.TIMEOUT:
        return Outcome(fate=Fate.FAILED, reason=TIMED_OUT, exit_code=code, status_reason=TIMED_OUT)
    if stop is Stop.HALT:
        return Outcome(fate=Fate.RETURN, reason=why, exit_code=code, counted=False)
    if stop is Stop.DRAIN:
        return Outcome(fate=Fate.RETURN, reason="the node drained", exit_code=code, counted=False)
    if exit is not None and exit.code == 0 and error is None:
        return Outcome(fate=Fate.SUCCEEDED, reason=SUCCEEDED, exit_code=0, status_reason=SUCCEEDED)
    reason, ended = _failed(exit, error)
    verdict = retry.decide(strategy, ended, attempt=attempt, interruptions=interruptions)
    again = Fate.INTERRUPTED if ended.interrupted else Fate.RETRY
    return Outcome(
        fate=again if verdict.again else Fate.FAILED,
        reason=f"{reason}; {verdict.note}" if verdict.note else reason,
        exit_code=code,
        status_reason=ended.status_reason,
        counted=not ended.interrupted,
        delay_s=verdict.delay_s,
    )


def _failed(exit: Exit | None, error: BatchyardError | None) -> tuple[str, Ended]:
    """The reason for people, and what rules for retries see."""
    if exit is not None and exit.interrupted and exit.code >= 128:
        return _RESTARTED, Ended(status_reason=f"Host EC2: {_RESTARTED}", exit_code=exit.code, interrupted=True)
    said = str(error).encode("utf-8", "replace").decode()  # a file name in it may be no text, which Redis refuses
    reason = said if error else _ended(exit)
    if exit is not None:
        return reason, Ended(status_reason=retry.EXITED, reason=reason, exit_code=exit.code)
    word = next((word for kind, word in _AGENTS_WORDS if isinstance(error, kind)), "")
    return reason, Ended(
        status_reason=retry.NOT_STARTED,
        reason=f"{word}: {reason}" if word else reason,
        interrupted=isinstance(error, ImageUnavailable | EngineUnavailable),
    )


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
