"""How many inputs a node has already, of a trace of jobs over shared inputs, when nodes say with a claim what they have
and when they do not. The real claim; no job runs. See `sim.trace`.
"""

from __future__ import annotations

from pathlib import Path

from batchyard.broker.seal import KeyRing
from batchyard.broker.store import Yard
from sim.trace import Trace
from yardtest.redis import RedisServer, free_port

from .row import Row

BETTER = 1.2


def rows(folder: Path, *, quick: bool) -> list[Row]:
    trace = Trace(seed=1, jobs=1000 if quick else 5000, inputs=200, nodes=4, cached=20)
    server = RedisServer(free_port(), folder)
    server.start()
    try:
        yard = Yard(server.url(), KeyRing.new())
        yard.prepare()
        yard.redis.config_set("appendonly", "no")
        found = {}
        for told in (True, False):
            yard.redis.flushdb()
            found[told] = trace.hits(yard, told=told)
    finally:
        server.kill9()
    return [
        Row(
            row=f"inputs found on the node, {trace.inputs} shared ones, {trace.cached} cached a node",
            ours=round(found[True], 3),
            peer=round(found[False], 3),
            peer_name="ours, nodes say nothing",
            unit="share of uses",
            goal=f"ratio >= {BETTER}",
            holds=found[True] >= BETTER * found[False],
        )
    ]
