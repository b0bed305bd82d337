"""What it is worth that nodes say what they have when they claim."""

from __future__ import annotations

import pytest

from batchyard.broker.seal import KeyRing
from batchyard.broker.store import Yard

from .trace import Trace

pytestmark = pytest.mark.system
TRACE = Trace(seed=1, jobs=400, inputs=100, nodes=2, cached=10)


def test_nodes_that_say_what_they_have_fetch_less(fresh_redis_url: str) -> None:
    yard = Yard(fresh_redis_url, KeyRing.new())
    yard.prepare()
    found = {}
    for told in (False, True):
        yard.redis.flushdb()
        found[told] = TRACE.hits(yard, told=told)
    assert 0.2 < found[False] < 0.5
    assert found[True] > found[False] + 0.1
