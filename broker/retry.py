"""Whether a job whose attempt ended without success is tried again. Pure; the rules are AWS Batch's retryStrategy.

An attempt is counted when the job's own command, image or data failed. A lost node and a start that failed for a
passing reason are interruptions: they are counted apart, and bounded by `infrastructure_retries`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from .fields import Frozen, Text

LONGEST_BACKOFF_S = 3600.0
INFRASTRUCTURE_RETRIES = 10
_START_BACKOFF_S, _LONGEST_START_BACKOFF_S = 1.0, 60.0

# AWS's own words, which rules written for it look for.
EXITED = "Essential container in task exited"
NOT_STARTED = "Task failed to start"
HOST_LOST = "Host EC2 (instance "  # then the node's name: no pattern can tell nodes apart, since it has no "("


def _pattern(allowed: str, rule: str) -> Callable[[str], str]:
    whole = re.compile(rf"[{allowed}]*\*?")

    def check(value: str) -> str:
        if not whole.fullmatch(value):
            raise ValueError(rule)
        return value

    return check


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


_WORDS = "has letters, digits, '.', ':' and blanks only, and one * at most, at its end"
_Words = Annotated[str, Field(min_length=1, max_length=512), AfterValidator(_pattern(r"A-Za-z0-9.: \t", _WORDS))]
_DIGITS = 'has digits only, and one * at most, at its end, such as "137" or "1*"'
_Digits = Annotated[Text, Field(min_length=1, max_length=512), AfterValidator(_pattern("0-9", _DIGITS))]


class ExitRule(Frozen):
    """What to do when an attempt ends in this way: all that is given must match. A * at the end stands for anything.

    on_status_reason: how it ended (`Essential container in task exited`, `Task failed to start`, `Host EC2 (instance
    …`); on_reason: what the container, the image or the data said; on_exit_code: the command's, in decimal.
    """

    action: Annotated[Literal["RETRY", "EXIT"], BeforeValidator(_upper)]
    on_status_reason: _Words | None = None
    on_reason: _Words | None = None
    on_exit_code: _Digits | None = None

    def matches(self, ended: Ended) -> bool:
        """Whether all conditions hold. Without an exit code, on_exit_code never does."""
        code = None if ended.exit_code is None else str(ended.exit_code)
        told = (
            (self.on_status_reason, ended.status_reason),
            (self.on_reason, ended.reason),
            (self.on_exit_code, code),
        )
        return all(text is not None and _like(text, pattern) for pattern, text in told if pattern is not None)


def _like(text: str, pattern: str) -> bool:
    return text.startswith(pattern[:-1]) if pattern.endswith("*") else text == pattern


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """attempts: runs at most, 1 to 10. backoff_s: before the first retry, then doubled; 0 for none."""

    attempts: int = 1
    rules: Sequence[ExitRule] = ()
    backoff_s: float = 0
    infrastructure_retries: int = INFRASTRUCTURE_RETRIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How an attempt ended without success. interrupted: not by its own fault. reason: "" where there is none."""

    status_reason: str
    reason: str = ""
    exit_code: int | None = None
    interrupted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """again: the job is tried once more, not before delay_s have passed. note: why an end is one, where it is not clear
    from the attempt alone; else ''."""

    again: bool
    delay_s: float = 0
    note: str = ""


def decide(strategy: Strategy, ended: Ended, *, attempt: int, interruptions: int) -> Verdict:
    """What becomes of the job. attempt: of this run, from 1. interruptions: those before this run's end."""
    rule = next((rule for rule in strategy.rules if rule.matches(ended)), None)
    if rule is not None and rule.action == "EXIT":
        number = list(strategy.rules).index(rule) + 1
        left = ended.interrupted or attempt < strategy.attempts
        return Verdict(again=False, note=f"rule {number} of evaluate_on_exit ends the job" if left else "")
    if ended.interrupted:
        if interruptions >= strategy.infrastructure_retries:
            most = strategy.infrastructure_retries
            return Verdict(
                again=False, note=f"interrupted {_times(interruptions + 1)}, and infrastructure_retries is {most}"
            )
        started = ended.status_reason != NOT_STARTED
        return Verdict(again=True, delay_s=0 if started else _start_backoff_s(interruptions))
    if attempt >= strategy.attempts:
        return Verdict(again=False)
    return Verdict(again=True, delay_s=min(strategy.backoff_s * 2 ** (attempt - 1), LONGEST_BACKOFF_S))


def loss_retries(strategy: Strategy) -> int:
    """How many interruptions a job may have before the loss of a node ends it; -1 when a rule says EXIT to a loss."""
    lost = Ended(status_reason=HOST_LOST, interrupted=True)
    kept = decide(strategy, lost, attempt=1, interruptions=-1)
    return strategy.infrastructure_retries if kept.again else -1


def _start_backoff_s(interruptions: int) -> float:
    """A registry or an engine in trouble is not helped by being asked again at once."""
    return float(min(_START_BACKOFF_S * 2**interruptions, _LONGEST_START_BACKOFF_S))


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"
