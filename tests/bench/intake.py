"""Messages of a stock producer into records: how many a second, and how long a call holds Redis up.

Of three runs the best counts: Redis' clock runs on while another process has its processor, and that adds only.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from celery import Celery

from batchyard.broker.config import Config, Queue
from batchyard.broker.environment import Environment
from batchyard.broker.intake import Intake
from batchyard.broker.seal import KeyRing
from batchyard.broker.store import Yard
from yardtest.redis import RedisServer, free_port

from .redis_time import RedisTime
from .row import Row

RATE_GOAL, CALL_GOAL_MS = 1500, 20.0


def rows(folder: Path, *, quick: bool) -> list[Row]:
    runs = [_run(folder / str(n), 2000 if quick else 6000) for n in range(3)]
    return _rows(max(rate for rate, _ in runs), min(slowest for _, slowest in runs))


def _run(folder: Path, count: int) -> tuple[float, float]:
    """Messages a second, and the slowest call in ms."""
    folder.mkdir()
    server = RedisServer(free_port(), folder)
    server.start()
    try:
        yard = Yard(server.url(), KeyRing.new())
        yard.prepare()
        config = Config(
            queues={"cpu": Queue(environments=("here",))},
            environments={"here": Environment(vcpus=64, memory_mib=65536)},
        )
        _send(server.url(), count)
        intake, clock = Intake(yard), RedisTime(yard.redis)
        began = time.perf_counter()
        taken = 0
        while taken < count:
            taken += intake.run(config)
        rate = taken / (time.perf_counter() - began)
        slowest = max(clock.calls_ms("by_intake"))
        assert yard.depth(["cpu"])["cpu"].index == count
        return rate, slowest
    finally:
        server.stop()


def _rows(rate: float, slowest: float) -> list[Row]:
    return [
        Row(
            row="intake of stock messages",
            ours=round(rate),
            unit="messages/s",
            goal=f">= {RATE_GOAL}",
            holds=rate >= RATE_GOAL,
        ),
        Row(
            row="intake, slowest call",
            ours=round(slowest, 2),
            unit="ms of Redis",
            goal=f"<= {CALL_GOAL_MS:g}",
            holds=slowest <= CALL_GOAL_MS,
        ),
    ]


def _send(url: str, count: int) -> None:
    """As a producer that knows only Celery."""
    app: Any = Celery("producer", broker=url, set_as_current=False)
    job = {
        "image": "busybox:1",
        "command": ["sh", "-c", "wc -l < /in/part.csv > /work/lines"],
        "environment": {"LANG": "C.UTF-8", "STAGE": "count"},
        "inputs": {"/in/part.csv": "sha256:" + "0" * 64},
        "outputs": {"lines": "/work/lines"},
        "memory_mib": 64,
    }
    with app.producer_or_acquire() as producer:
        for n in range(count):
            app.send_task(
                "batchyard.run",
                kwargs={"job": {**job, "vcpus": 1 + n % 4}},
                queue="cpu",
                priority=n % 10,
                producer=producer,
                ignore_result=True,
            )
    app.close()
