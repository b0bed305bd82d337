"""Retries with real containers: by exit code, by memory, after a backoff, and when an image cannot be had just now."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from yardtest.yard import TestYard, running_yard

ON_13_ONLY = [{"action": "RETRY", "on_exit_code": "13"}, {"action": "EXIT", "on_exit_code": "*"}]


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory, image: str) -> Iterator[TestYard]:
    with running_yard(tmp_path_factory.mktemp("retries"), image) as made:
        yield made


def test_an_exit_code_decides_whether_a_job_is_tried_again(yard: TestYard) -> None:
    script = "case $AWS_BATCH_JOB_ATTEMPT in 1) exit 13;; 2) exit 13;; *) exit 4;; esac"
    record = yard.ended(yard.shell(script, attempts=5, evaluate_on_exit=ON_13_ONLY).id)
    assert [a.exit_code for a in record.attempts] == [13, 13, 4]
    assert record.reason == "the command ended with exit code 4; rule 2 of evaluate_on_exit ends the job"
    assert {a.status_reason for a in record.attempts} == {"Essential container in task exited"}
    yard.nothing_left()


def test_a_job_out_of_memory_ends_by_its_rule(yard: TestYard) -> None:
    rules = [{"action": "exit", "on_reason": "OutOfMemoryError*"}]
    record = yard.ended(yard.shell("tail /dev/zero", memory_mib=16, attempts=3, evaluate_on_exit=rules).id)
    assert (record.state, len(record.attempts)) == ("FAILED", 1)
    assert record.reason.startswith("OutOfMemoryError: Container killed due to memory usage; rule 1")


def test_a_job_that_took_too_long_is_not_tried_again_whatever_the_rules_say(yard: TestYard) -> None:
    rules = [{"action": "RETRY", "on_status_reason": "Job attempt duration exceeded timeout"}]
    record = yard.ended(yard.shell("sleep 60", timeout_s=1, attempts=3, evaluate_on_exit=rules).id)
    assert (record.reason, len(record.attempts)) == ("Job attempt duration exceeded timeout", 1)


def test_a_retry_waits_for_its_backoff(yard: TestYard) -> None:
    record = yard.ended(yard.shell("test $AWS_BATCH_JOB_ATTEMPT = 3", attempts=3, backoff_s=0.5).id)
    assert [a.exit_code for a in record.attempts] == [1, 1, 0]
    ended, started = [a.ended for a in record.attempts], [a.started or 0.0 for a in record.attempts]
    assert started[1] - ended[0] >= 0.5
    assert started[2] - ended[1] >= 1.0
    yard.nothing_left()


def test_a_registry_that_is_away_uses_up_no_attempt_and_is_asked_again(yard: TestYard) -> None:
    record = yard.ended(yard.send("true", image="127.0.0.1:1/there/is:none", infrastructure_retries=1).id)
    assert (record.state, [a.counted for a in record.attempts], record.interruptions) == ("FAILED", [False, False], 1)
    assert "cannot be pulled now" in record.reason
    assert "interrupted 2 times, and infrastructure_retries is 1" in record.reason
    assert record.attempts[1].ended - record.attempts[0].ended >= 1.0


def test_an_image_that_there_is_not_is_a_failed_attempt(yard: TestYard) -> None:
    record = yard.ended(yard.send("true", image="Not A Name").id)
    assert record.attempts == ()
    record = yard.ended(yard.send("true", image="there-is/no-such:image", attempts=2).id)
    assert [a.counted for a in record.attempts] == [True, True]
    assert {a.status_reason for a in record.attempts} == {"Task failed to start"}
