"""An array of no-op children through one Redis, no containers: what it costs to submit, spawn, claim and settle."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from uuid import uuid4

from batchyard.broker.client import Client
from batchyard.broker.config import Config, Queue
from batchyard.broker.ending import Outbox
from batchyard.broker.environment import Environment
from batchyard.broker.followups import Followups
from batchyard.broker.intake import Intake
from batchyard.broker.record import Attempt
from batchyard.broker.seal import KeyRing
from batchyard.broker.state import State
from batchyard.broker.store import Free, Yard
from yardtest.redis import RedisServer, free_port

from .redis_time import RedisTime
from .row import Row

SUBMITTED, AT_ONCE = 10_000, 32
SUBMIT_GOAL_MS, CALL_GOAL_MS, RATE_GOAL = 50.0, 3.0, 2000
CONFIG = Config(
    queues={"cpu": Queue(environments=("here",))},
    environments={"here": Environment(vcpus=64, memory_mib=65536, disk_gib=1000)},
)
ROOM = Free(vcpus=100_000, memory_mib=1 << 30, gpus=0, disk_gib=1e6)
JOB = {"image": "busybox:1", "command": ["true"], "memory_mib": 64, "environment": {"LANG": "C.UTF-8"}}
ENDED = Attempt(node="n0", started=1.0, ended=2.0, exit_code=0, reason="Essential container in task exited")


def rows(folder: Path, *, quick: bool) -> list[Row]:
    server = RedisServer(free_port(), folder)
    server.start()
    try:
        yard = Yard(server.url(), KeyRing.new(), socket_timeout=60)
        yard.prepare()
        yard.configure(CONFIG)
        return [*_submit(yard), *_life(yard, SUBMITTED)]
    finally:
        server.kill9()


def _submit(yard: Yard) -> list[Row]:
    """From the call of the client to its answer. The last one is cancelled when it has been spawned."""
    took: list[float] = []
    job_id = ""
    with Client(yard.url) as client:
        for n in range(9):
            began = time.perf_counter()
            job_id = client.submit({**JOB, "array_size": SUBMITTED})
            took.append((time.perf_counter() - began) * 1000)
            if n < 8:
                yard.cancel(job_id, "a measure", terminate=True)
    while Intake(yard).run(CONFIG):
        pass
    _deliver(yard)
    clock = RedisTime(yard.redis)
    yard.cancel(job_id, "a measure", terminate=True)
    _deliver(yard)
    spent = clock.calls_of("by_array", "by_children_end")
    each = sum(map(sum, spent.values())) / SUBMITTED * 1000
    slow = max(statistics.median(calls) for calls in spent.values())
    median = statistics.median(took)
    return [
        Row(
            row=f"submit of an array of {SUBMITTED:,}",
            ours=round(median, 2),
            unit="ms, p50",
            goal=f"<= {SUBMIT_GOAL_MS:g}",
            holds=median <= SUBMIT_GOAL_MS,
        ),
        Row(
            row=f"cancel of an array of {SUBMITTED:,}: a call; {each:.1f} µs of Redis a child",
            ours=round(slow, 2),
            unit="ms of Redis, p50",
            goal=f"<= {CALL_GOAL_MS:g}",
            holds=slow <= CALL_GOAL_MS,
        ),
    ]


def _deliver(yard: Yard) -> None:
    outbox = Outbox(yard, Followups(yard.url, result_expires_s=1000), retention_s=1000)
    while outbox.run() or yard.redis.hlen("by:outbox"):
        pass


def _life(yard: Yard, size: int) -> list[Row]:
    clock = RedisTime(yard.redis)
    with Client(yard.url) as client:
        client.submit({**JOB, "array_size": size})
    began = time.perf_counter()
    while Intake(yard).run(CONFIG):
        pass
    _deliver(yard)
    spawn = clock.calls_ms("by_array")
    while jobs := yard.claim("n0", uuid4().hex, ROOM, ["cpu"], lease_s=600, count=AT_ONCE)[1]:
        for job in jobs:
            assert yard.settle(job, State.SUCCEEDED, ENDED, {"exit_code": "0"}, [], retention_s=1000)
    _deliver(yard)
    took_s = time.perf_counter() - began
    spent = clock.calls_of("by_claim", "by_settle", "by_array")
    calls = {"spawned": spawn, "claimed": spent["by_claim"], "settled": spent["by_settle"], "kept": spent["by_array"]}
    # By the median call: Redis' clock runs on while another process has its processor.
    each_us = {word: statistics.median(took) * len(took) / size * 1000 for word, took in calls.items()}
    told = ", ".join(f"{word} {cost:.1f}" for word, cost in each_us.items())
    rate, slow = 1e6 / sum(each_us.values()), max(statistics.median(took) for took in calls.values())
    return [
        Row(
            row=f"array of {size:,}: µs of Redis a child: {told}; {took_s:.0f} s in one process",
            ours=round(rate),
            unit="children/s of Redis",
            goal=f">= {RATE_GOAL}",
            holds=rate >= RATE_GOAL,
        ),
        Row(
            row=f"array of {size:,}, the longest kind of call",
            ours=round(slow, 2),
            unit="ms of Redis, p50",
            goal=f"<= {CALL_GOAL_MS:g}",
            holds=slow <= CALL_GOAL_MS,
        ),
    ]
