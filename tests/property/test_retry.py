"""The decision on retries against a plain model of AWS Batch's rules, for any strategy and any end."""

from __future__ import annotations

import fnmatch
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard.broker.retry import EXITED, HOST_LOST, NOT_STARTED, Ended, ExitRule, Strategy, decide, loss_retries

WORDS = st.sampled_from(["Host EC2", "Task failed", "OutOfMemoryError:", "Essential", "x", "the command"])
PATTERNS = st.builds(lambda word, star: word + star, WORDS, st.sampled_from(["", "*"])) | st.just("*")
CODES = st.sampled_from(["0", "1", "137", "1*", "*", "255"])
RULES = st.builds(
    ExitRule,
    action=st.sampled_from(["RETRY", "EXIT", "retry", "Exit"]),
    on_status_reason=st.none() | PATTERNS,
    on_reason=st.none() | PATTERNS,
    on_exit_code=st.none() | CODES,
)
STRATEGIES = st.builds(
    Strategy,
    attempts=st.integers(1, 10),
    rules=st.lists(RULES, max_size=5).map(tuple),
    backoff_s=st.sampled_from([0, 0.5, 7, 3600]),
    infrastructure_retries=st.integers(0, 100),
)
ENDS = st.builds(
    Ended,
    status_reason=st.sampled_from([EXITED, NOT_STARTED, HOST_LOST + "n1) lost", ""]) | WORDS,
    reason=st.sampled_from(["", "OutOfMemoryError: Container killed", "the command ended with exit code 1"]) | WORDS,
    exit_code=st.none() | st.sampled_from([0, 1, 13, 137, 255]),
    interrupted=st.booleans(),
)


def holds(pattern: str | None, text: str | None) -> bool:
    if pattern is None:
        return True
    return text is not None and re.fullmatch(fnmatch.translate(pattern), text) is not None


def model(strategy: Strategy, ended: Ended, attempt: int, interruptions: int) -> bool:
    """Whether the job is tried again."""
    for rule in strategy.rules:
        code = None if ended.exit_code is None else f"{ended.exit_code}"
        if (
            holds(rule.on_status_reason, ended.status_reason)
            and holds(rule.on_reason, ended.reason)
            and holds(rule.on_exit_code, code)
        ):
            if rule.action == "EXIT":
                return False
            break
    if ended.interrupted:
        return interruptions + 1 <= strategy.infrastructure_retries
    return attempt + 1 <= strategy.attempts


@given(STRATEGIES, ENDS, st.integers(1, 10), st.integers(0, 101))
def test_what_is_decided_is_what_the_rules_say(
    strategy: Strategy, ended: Ended, attempt: int, interruptions: int
) -> None:
    verdict = decide(strategy, ended, attempt=attempt, interruptions=interruptions)
    assert verdict.again is model(strategy, ended, attempt, interruptions)
    assert 0 <= verdict.delay_s <= 3600
    assert not (verdict.again and verdict.note)


@given(STRATEGIES, ENDS)
def test_a_job_that_always_fails_ends_after_a_bounded_number_of_runs(strategy: Strategy, ended: Ended) -> None:
    attempt, interruptions, runs, last_delay_s = 1, 0, 1, 0.0
    while (verdict := decide(strategy, ended, attempt=attempt, interruptions=interruptions)).again:
        attempt, interruptions = attempt + (not ended.interrupted), interruptions + ended.interrupted
        assert verdict.delay_s >= last_delay_s
        last_delay_s, runs = verdict.delay_s, runs + 1
    assert runs <= (strategy.infrastructure_retries + 1 if ended.interrupted else strategy.attempts)


@given(STRATEGIES, st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True), st.integers(0, 101))
def test_the_loss_of_a_node_is_decided_at_intake_as_it_would_be_then(
    strategy: Strategy, node: str, interruptions: int
) -> None:
    lost = Ended(status_reason=f"{HOST_LOST}{node}) lost: its lease lapsed.", interrupted=True)
    assert decide(strategy, lost, attempt=1, interruptions=interruptions).again is (
        interruptions < loss_retries(strategy)
    )


def rules(*told: dict[str, str]) -> tuple[ExitRule, ...]:
    return tuple(ExitRule.model_validate(one) for one in told)


SPOT_ONLY = Strategy(
    attempts=5, rules=rules({"action": "RETRY", "on_status_reason": "Host EC2*"}, {"action": "EXIT", "on_reason": "*"})
)


@pytest.mark.parametrize(
    ("ended", "again"),
    [
        (Ended(status_reason=HOST_LOST + "n1) lost", interrupted=True), True),
        (Ended(status_reason="Host EC2: the container engine was restarted", exit_code=137, interrupted=True), True),
        (Ended(status_reason=EXITED, reason="the command ended with exit code 1", exit_code=1), False),
        (Ended(status_reason=EXITED, exit_code=1), False),  # "*" also matches no reason at all
        (Ended(status_reason=NOT_STARTED, reason="CannotPullContainerError: x", interrupted=True), False),
    ],
)
def test_the_usual_rules_for_spot_machines_retry_lost_nodes_only(ended: Ended, again: bool) -> None:
    assert decide(SPOT_ONLY, ended, attempt=1, interruptions=0).again is again


def test_a_rule_on_the_exit_code_does_not_match_without_one() -> None:
    strategy = Strategy(attempts=2, rules=rules({"action": "EXIT", "on_exit_code": "*"}))
    assert decide(strategy, Ended(status_reason=NOT_STARTED), attempt=1, interruptions=0).again
    assert not decide(strategy, Ended(status_reason=EXITED, exit_code=1), attempt=1, interruptions=0).again


def test_the_first_rule_that_matches_wins() -> None:
    both = ({"action": "RETRY", "on_exit_code": "13*"}, {"action": "EXIT", "on_exit_code": "1*"})
    ended = Ended(status_reason=EXITED, exit_code=137)
    for told, again in ((both, True), (both[::-1], False)):
        strategy = Strategy(attempts=2, rules=rules(*told))
        assert decide(strategy, ended, attempt=1, interruptions=0).again is again


def test_a_backoff_doubles_up_to_an_hour() -> None:
    strategy, ended = Strategy(attempts=10, backoff_s=60), Ended(status_reason=EXITED, exit_code=1)
    waits = [decide(strategy, ended, attempt=n, interruptions=0).delay_s for n in range(1, 10)]
    assert waits == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]


def test_a_start_that_fails_for_a_passing_reason_is_tried_again_later_and_later() -> None:
    ended = Ended(status_reason=NOT_STARTED, interrupted=True)
    waits = [decide(Strategy(), ended, attempt=1, interruptions=n).delay_s for n in range(9)]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    last = decide(Strategy(), ended, attempt=1, interruptions=10)
    assert (last.again, last.note) == (False, "interrupted 11 times, and infrastructure_retries is 10")
