"""A large yard keeps its machines busy while there is work: see `simulation.py`."""

from __future__ import annotations

import pytest
import redis

from yardtest.redis import RedisServer

from .simulation import Measured, Simulation

pytestmark = pytest.mark.system
LONGEST_S = (
    1800  # that a large job is passed over: a minute, its turn among those that wait so, and what a node still runs
)


def measure(server: RedisServer, *, nodes: int, jobs: int) -> Measured:
    redis.Redis.from_url(server.url()).config_set("appendonly", "no")
    simulation = Simulation(server.url(), nodes=nodes, jobs=jobs)
    found = simulation.run()
    simulation.nothing_left()
    print(found)
    assert (found.jobs, found.shapes >= 100) == (jobs, True)
    return found


def test_a_small_yard_is_used_while_work_waits(own_redis: RedisServer) -> None:
    """With few jobs a node the end weighs much, when only large ones are left."""
    assert measure(own_redis, nodes=40, jobs=3000).used >= 0.8


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_a_thousand_nodes_are_used_while_work_waits(own_redis: RedisServer) -> None:
    found = measure(own_redis, nodes=1000, jobs=100_000)
    assert found.used >= 0.95
    assert found.passed_over_s <= LONGEST_S
