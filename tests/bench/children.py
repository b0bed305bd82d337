"""An array of no-op children through one Redis by simulated nodes, 32 jobs a call: children a second of real time.

The controller's work is done here too, and the parent's counters are read all the time: they must be right at every
read. Python and Redis take a processor each, so other work on a small machine shows in the figure.
"""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from batchyard.broker.batch import MOST, End, Start
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

from .row import Row

NODES, THREADS, GOAL = 64, 2, 2000
CONFIG = Config(
    queues={"cpu": Queue(environments=("here",))},
    environments={"here": Environment(vcpus=64, memory_mib=65536, disk_gib=1000)},
)
ROOM = Free(vcpus=64, memory_mib=65536, gpus=0, disk_gib=1000)
JOB = {"image": "busybox:1", "command": ["true"], "memory_mib": 64}


def rows(folder: Path, *, quick: bool) -> list[Row]:
    size = 10_000 if quick else 100_000
    server = RedisServer(free_port(), folder)
    server.start()
    try:
        yard = Yard(server.url(), KeyRing.new(), socket_timeout=60)
        yard.prepare()
        yard.configure(CONFIG)
        took_s = _through(yard, size)
    finally:
        server.kill9()
    return [
        Row(
            row=f"array of {size:,}, {NODES} simulated nodes, {MOST} a call",
            ours=round(size / took_s),
            unit="children/s",
            goal=f">= {GOAL}",
            holds=size / took_s >= GOAL,
        )
    ]


@dataclass(slots=True)
class _Told:
    """What nodes have said of their jobs. begun: a call that ends so many is on its way, or was."""

    begun: int = 0
    ended: int = 0
    over: bool = False


def _through(yard: Yard, size: int) -> float:
    """Seconds from the submit to the end of the parent."""
    intake, outbox = Intake(yard), Outbox(yard, Followups(yard.url, result_expires_s=1000), retention_s=1000)
    told = [_Told() for _ in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool, Client(yard.url) as client:
        began = time.perf_counter()
        job_id = client.submit({**JOB, "array_size": size})
        while intake.run(CONFIG):
            pass
        nodes = [pool.submit(_work, yard.url, yard.ring, number, one) for number, one in enumerate(told)]
        try:
            while not _look(yard, job_id, size, told):
                outbox.run()
                assert not [node for node in nodes if node.done()]
        finally:
            for one in told:
                one.over = True
        took_s = time.perf_counter() - began
        for node in nodes:
            node.result()
    return took_s


def _look(yard: Yard, job_id: str, size: int, told: list[_Told]) -> bool:
    """Reads the parent's counters. -> whether it has ended"""
    least = sum(one.ended for one in told)
    record = yard.record(job_id)
    most = sum(one.begun for one in told)
    assert record.array is not None
    counts = record.array.counts
    assert sum(counts.values()) == size
    assert least <= counts[State.SUCCEEDED] <= most
    assert counts[State.STARTING] + counts[State.RUNNING] <= THREADS * MOST
    assert counts[State.FAILED] == 0
    return record.state is State.SUCCEEDED


def _work(url: str, ring: KeyRing, number: int, told: _Told) -> None:
    """Some of the nodes, in turn: each takes what it gets, runs it for no time and settles it."""
    yard = Yard(url, ring, socket_timeout=60)
    for turn in itertools.count():
        if told.over:
            return
        node = f"n{number}-{turn % (NODES // THREADS)}"
        jobs = yard.claim(node, f"c{number}-{turn}", ROOM, ["cpu"], lease_s=600, count=MOST)[1]
        if not jobs:
            time.sleep(0.001)  # the children come as fast as the controller makes them
            continue
        now_s = time.time()
        assert all(yard.start_many([Start(job=job, started_s=now_s) for job in jobs]))
        attempt = Attempt(
            node=node, started=now_s, ended=now_s, exit_code=0, reason="Essential container in task exited"
        )
        ends = [End(job=job, state=State.SUCCEEDED, attempt=attempt, fields={"exit_code": "0"}) for job in jobs]
        told.begun += len(ends)
        assert all(answer is True for answer in yard.settle_many(ends, retention_s=1000))
        told.ended += len(ends)
