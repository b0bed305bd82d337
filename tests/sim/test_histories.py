"""Random histories on the real Redis functions and on a plain model: see `machine.py`."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from yardtest.redis import RedisServer

from .arrays_machine import ArrayHistories
from .coarse_machine import CoarseHistories
from .machine import Histories

pytestmark = pytest.mark.system
HAPPENS = {
    "jobs",
    "messages sent twice",
    "claimed",
    "claims with nothing",
    "started",
    "settled",
    "settled too late",
    "retry",
    "interruption",
    "drain",
    "stopped",
    "deaths of nodes",
    "cancel: stored",
    "cancel: ended",
    "cancel: cancelled",
    "cancel: running",
    "cancel: stopping",
    "reaped",
    "due",
    "expired",
    "records expired",
}
OF_ARRAYS = {
    "arrays",
    "arrays SUCCEEDED",
    "arrays FAILED",
    "cancels of arrays",
    "cancels of children",
    "chunks",
}


def run(server: RedisServer, machine: type[Histories], *, histories: int, steps: int) -> Counter[str]:
    """What happened in them. The server is theirs alone."""
    redis.Redis.from_url(server.url()).config_set("appendonly", "no")
    told: Counter[str] = Counter()
    made: Any = type(machine.__name__, (machine,), {"url": server.url(), "told": told})
    run_state_machine_as_test(
        made,
        settings=settings(
            max_examples=histories,
            stateful_step_count=steps,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
    print(dict(sorted(told.items())))
    assert told["histories"] >= histories
    return told


@pytest.mark.timeout(600)
def test_any_history_goes_as_the_model_says_and_leaves_nothing_behind(own_redis: RedisServer) -> None:
    run(own_redis, Histories, histories=40, steps=30)


@pytest.mark.timeout(600)
def test_any_history_of_arrays_goes_as_the_model_says(own_redis: RedisServer) -> None:
    run(own_redis, ArrayHistories, histories=25, steps=30)


@pytest.mark.timeout(600)
def test_any_history_in_coarse_classes_gives_nodes_all_that_fits(own_redis: RedisServer) -> None:
    run(own_redis, CoarseHistories, histories=20, steps=30)


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_two_thousand_histories_go_as_the_model_says(own_redis: RedisServer) -> None:
    told = run(own_redis, ArrayHistories, histories=2000, steps=50)
    assert told.keys() >= HAPPENS | OF_ARRAYS
