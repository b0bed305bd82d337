"""Jobs a second at 4 in parallel, `true` in a container without a network, against Celery threads with docker-py.

One node with 4 vCPUs and jobs of 1 vCPU, a controller, one Redis with every write synced; the peer works on the same
Redis and the same engine. Rounds are interleaved, and the first jobs of each side are not counted.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import images
from yardtest.yard import TestYard, running_yard

from .peer import QUEUE
from .row import Row

IMAGE = "batchyard-bench/busybox:1"
ROUNDS, AT_ONCE, GOAL = 3, 4, 0.95


def rows(folder: Path, *, quick: bool) -> list[Row]:
    images.busybox(IMAGE)
    count = 40 if quick else 200
    with running_yard(folder / "yard", IMAGE, nodes=0) as yard:
        yard.start_node("bench", vcpus=AT_ONCE)
        _start_peer(yard)
        ours, peer = _Sender(yard, yard.signature("true", vcpus=1).apply_async), _Sender(yard, _peer(yard))
        ours.rate(8)
        peer.rate(8)
        pairs = [(ours.rate(count), peer.rate(count)) for _ in range(ROUNDS)]
    return [_row([o for o, _ in pairs], [p for _, p in pairs])]


def _row(ours: list[float], peer: list[float]) -> Row:
    a, b = statistics.median(ours), statistics.median(peer)
    return Row(
        row="no-op jobs at 4 in parallel",
        ours=round(a, 3),
        peer=round(b, 3),
        peer_name="Celery threads + docker-py",
        unit="jobs/s",
        goal=f"ratio >= {GOAL}",
        holds=a / b >= GOAL,
    )


class _Sender:
    """Sends and waits for the results of all, as a producer would."""

    def __init__(self, yard: TestYard, send: Callable[[], Any]) -> None:
        self._yard, self._send = yard, send

    def rate(self, count: int) -> float:
        """Results a second from the first send to the last result."""
        began = time.perf_counter()
        results = [self._send() for _ in range(count)]
        for result in results:
            assert result.get(timeout=300)["exit_code"] == 0
        return count / (time.perf_counter() - began)


def _start_peer(yard: TestYard) -> None:
    tests = Path(__file__).parents[1]
    options = ["-P", "threads", "-c", str(AT_ONCE), "-Q", QUEUE, "-l", "WARNING", "-n", "peer@bench"]
    environment = {
        "PEER_URL": yard.url,
        "PEER_IMAGE": IMAGE,
        "PYTHONPATH": os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")]),
    }
    yard.start_other(
        "peer", [sys.executable, "-m", "celery", "-A", "bench.peer", "worker", *options], environment=environment
    )


def _peer(yard: TestYard) -> Callable[[], Any]:
    return lambda: yard.producer.send_task("peer.noop", queue=QUEUE)
