"""How an attempt ended, and what becomes of its job: every combination that a node can meet."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from batchyard.broker.errors import (
    BatchyardError,
    EngineUnavailable,
    ImageError,
    ImageUnavailable,
    OutputError,
    StartError,
    StoreUnavailable,
)
from batchyard.broker.retry import ExitRule, Strategy
from batchyard.worker.engine.protocol import Exit
from batchyard.worker.outcome import OUT_OF_MEMORY, SUCCEEDED, TIMED_OUT, Fate, Outcome, Stop, decide


def ended(code: int, **more: Any) -> Exit:
    return Exit(**{"code": code, "oom": False, "started_at": 1.0, "finished_at": 2.0, **more})


def fate(
    exit: Exit | None = None, error: BatchyardError | None = None, stop: Stop | None = None, **more: Any
) -> Outcome:
    how = {"attempts": more.pop("attempts", 1), "rules": more.pop("rules", ())}
    plain = {"exit": exit, "error": error, "stop": stop, "why": "why", "attempt": 1, "strategy": Strategy(**how)}
    return decide(**plain | more)


def test_exit_code_0_succeeds() -> None:
    assert fate(ended(0)) == Outcome(fate=Fate.SUCCEEDED, reason=SUCCEEDED, exit_code=0, status_reason=SUCCEEDED)


@pytest.mark.parametrize(
    ("exit", "reason"),
    [
        (ended(3), "the command ended with exit code 3"),
        (ended(255), "the command ended with exit code 255"),
        (ended(137), "the command was killed by SIGKILL (exit code 137)"),
        (ended(139), "SIGSEGV"),
        (ended(137, oom=True), OUT_OF_MEMORY),
        (ended(127, error="exec nosuch failed"), "the command could not be run: exec nosuch failed"),
        (None, "the container never ran"),
    ],
)
def test_a_failure_says_how(exit: Exit | None, reason: str) -> None:
    outcome = fate(exit)
    assert outcome.fate is Fate.FAILED
    assert reason in outcome.reason
    assert outcome.exit_code == (exit.code if exit else None)


def test_an_error_before_or_after_the_run_is_the_reason() -> None:
    wanted = Outcome(fate=Fate.FAILED, reason="no image", exit_code=None, status_reason="Task failed to start")
    assert fate(None, ImageError("no image")) == wanted
    late = fate(ended(0), OutputError("no output"))
    assert (late.fate, late.reason) == (Fate.FAILED, "no output")


def test_attempts_are_used_up_one_by_one() -> None:
    fates = [fate(ended(1), attempt=n, attempts=3).fate for n in (1, 2, 3)]
    assert fates == [Fate.RETRY, Fate.RETRY, Fate.FAILED]


@pytest.mark.parametrize("exit", [None, ended(0), ended(1), ended(137), ended(143, interrupted=True)])
def test_why_the_node_stopped_it_counts_more_than_how_it_ended(exit: Exit | None) -> None:
    wanted = {
        Stop.CANCEL: (Fate.REVOKED, "why"),
        Stop.TIMEOUT: (Fate.FAILED, TIMED_OUT),
        Stop.DRAIN: (Fate.RETURN, "the node drained"),
        Stop.LOST: (Fate.FORGET, "the lease was lost"),
    }
    for stop, (found, reason) in wanted.items():
        outcome = fate(exit, ImageError("x"), stop, attempts=5)
        assert (outcome.fate, outcome.reason) == (found, reason)


def test_an_engine_restarted_under_a_job_uses_up_no_attempt() -> None:
    assert fate(ended(137, interrupted=True), attempts=3).fate is Fate.INTERRUPTED
    assert fate(ended(255, interrupted=True)).fate is Fate.INTERRUPTED
    last = fate(ended(137, interrupted=True), interruptions=10)
    assert (last.fate, last.counted) == (Fate.FAILED, False)
    assert "restarted under the job; interrupted 11 times" in last.reason
    assert fate(ended(0, interrupted=True)).fate is Fate.SUCCEEDED
    assert fate(ended(1, interrupted=True)).fate is Fate.FAILED


def test_a_lost_lease_never_writes_anything() -> None:
    for exit, attempt in itertools.product((None, ended(0), ended(9)), (1, 2)):
        assert fate(exit, None, Stop.LOST, attempt=attempt, attempts=2).fate is Fate.FORGET


@pytest.mark.parametrize("error", [ImageUnavailable("registry away"), EngineUnavailable("engine away")])
def test_a_start_that_fails_for_a_passing_reason_uses_up_no_attempt(error: BatchyardError) -> None:
    outcome = fate(None, error, interruptions=3)
    assert (outcome.fate, outcome.counted, outcome.delay_s) == (Fate.INTERRUPTED, False, 8)
    assert fate(None, error, interruptions=10).fate is Fate.FAILED


@pytest.mark.parametrize(
    ("exit", "error", "rule"),
    [
        (ended(3), None, {"on_exit_code": "3"}),
        (ended(137, oom=True), None, {"on_reason": "OutOfMemoryError*", "on_exit_code": "137"}),
        (ended(1), None, {"on_status_reason": "Essential container in task exited"}),
        (ended(0), OutputError("output x: missing"), {"on_reason": "output x: missing", "on_exit_code": "0"}),
        (None, ImageError("x"), {"on_status_reason": "Task failed to start", "on_reason": "CannotPullContainer*"}),
        (None, ImageUnavailable("x"), {"on_reason": "CannotPullContainerError: x"}),
        (None, StartError("x"), {"on_reason": "CannotStartContainerError*"}),
        (None, EngineUnavailable("x"), {"on_reason": "DockerTimeoutError*"}),
        (None, StoreUnavailable("x"), {"on_reason": "ResourceInitializationError*"}),
        (ended(255, interrupted=True), None, {"on_status_reason": "Host EC2*"}),
        (None, None, {"on_reason": "the container never ran"}),
    ],
)
def test_a_rule_sees_the_words_that_aws_batch_has(
    exit: Exit | None, error: BatchyardError | None, rule: dict[str, str]
) -> None:
    stays = ExitRule.model_validate({"action": "exit", **rule})
    outcome = fate(exit, error, attempts=5, rules=(stays,))
    assert outcome.fate is Fate.FAILED
    assert outcome.reason.endswith("rule 1 of evaluate_on_exit ends the job")
    assert fate(exit, error, attempts=5).fate in {Fate.RETRY, Fate.INTERRUPTED}
