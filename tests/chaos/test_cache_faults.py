"""Faults at every level of the cache: `yardtest.faults.case` says what is done and what must hold.

One case again: `BATCHYARD_FAULT=1234 .venv/bin/pytest tests/chaos/test_cache_faults.py -k one_case` (`1234s` with a
MinIO).
"""

from __future__ import annotations

import os

import pytest

from yardtest.faults.case import run, run_struck
from yardtest.faults.strike import Kind as StrikeKind
from yardtest.faults.strike import Strike
from yardtest.minio import S3Server

AT_ONCE = 50
OFTEN, RARELY = 430, 9_000
OFTEN_MINIO, RARELY_MINIO = 30, 540
STRUCK = (3, 5)
"""Seeds of cases with a near store."""


def run_all(seeds: range, server: S3Server | None = None) -> None:
    """Each, also after one that failed."""
    failed: list[str] = []
    for seed in seeds:
        try:
            run(seed, server)
        except AssertionError as error:
            failed.append(str(error))
    assert not failed, f"{len(failed)} of {len(seeds)} cases:\n" + "\n".join(failed)


def struck_at_each_step(kind: StrikeKind, *, seed: int, most: int) -> None:
    """Of one script, from the first step to the last; of a script with more steps than `most`, at so many of them."""
    steps = run_struck(seed, Strike(kind="died", at=1 << 30))
    assert steps > 20
    for at in range(0, steps, -(-steps // most)):
        run_struck(seed, Strike(kind=kind, at=at, lasts=2))


def in_bites(first: int, count: int) -> list[range]:
    return [range(at, min(at + AT_ONCE, first + count)) for at in range(first, first + count, AT_ONCE)]


@pytest.mark.parametrize("seeds", in_bites(0, OFTEN), ids=str)
def test_no_wrong_byte_is_served_and_no_byte_leaks(seeds: range) -> None:
    run_all(seeds)


@pytest.mark.parametrize("seeds", in_bites(0, OFTEN_MINIO), ids=str)
def test_no_wrong_byte_is_served_and_none_leaks_with_stores_in_a_minio(seeds: range, minio: S3Server) -> None:
    run_all(seeds, minio)


@pytest.mark.parametrize("kind", ["killed", "died", "full", "broken"])
def test_a_node_may_be_struck_at_any_step(kind: StrikeKind) -> None:
    struck_at_each_step(kind, seed=STRUCK[0], most=15)


@pytest.mark.full
@pytest.mark.parametrize("seeds", in_bites(OFTEN, RARELY), ids=str)
def test_no_wrong_byte_is_served_and_no_byte_leaks_in_thousands_of_cases(seeds: range) -> None:
    run_all(seeds)


@pytest.mark.full
@pytest.mark.parametrize("seeds", in_bites(OFTEN_MINIO, RARELY_MINIO), ids=str)
def test_no_wrong_byte_is_served_and_none_leaks_in_hundreds_of_cases_with_a_minio(
    seeds: range, minio: S3Server
) -> None:
    run_all(seeds, minio)


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", STRUCK)
@pytest.mark.parametrize("kind", ["killed", "died", "full", "broken"])
def test_a_node_may_be_struck_at_each_step(kind: StrikeKind, seed: int) -> None:
    struck_at_each_step(kind, seed=seed, most=400)


@pytest.mark.skipif("BATCHYARD_FAULT" not in os.environ, reason="only to look at one case again")
def test_one_case(request: pytest.FixtureRequest) -> None:
    seed = os.environ["BATCHYARD_FAULT"]
    run(int(seed.rstrip("s")), request.getfixturevalue("minio") if seed.endswith("s") else None)
