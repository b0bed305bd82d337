"""From `send_task` to a started container on an idle yard, against create and start by the bare Engine API.

What the yard adds is push, intake, claim and the container's hardening: some 6 ms of Redis and Python beside the 200
to 600 ms that an engine takes to create and start a container, and joining a parked namespace saves more than that. So
the goal is that a job is not started later than a tenth after a container of one's own.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import docker

import images
from yardtest.wait import until
from yardtest.yard import TestYard, running_yard

from .noop import IMAGE
from .row import Row

PAIRS, GOAL = 30, 1.10


def rows(folder: Path, *, quick: bool) -> list[Row]:
    images.busybox(IMAGE)
    engine = docker.APIClient(version="auto")
    with running_yard(folder / "yard", IMAGE, nodes=0) as yard:
        yard.start_node("bench")
        _ours_ms(yard)
        _bare_ms(engine)
        pairs = [(_ours_ms(yard), _bare_ms(engine)) for _ in range(8 if quick else PAIRS)]
    ours, bare = (statistics.median(side) for side in zip(*pairs, strict=True))
    return [
        Row(
            row="idle: submitted to container started",
            ours=round(ours, 1),
            peer=round(bare, 1),
            peer_name="Engine API create + start",
            unit="ms",
            goal=f"ratio <= {GOAL}",
            holds=ours / bare <= GOAL,
        )
    ]


def _ours_ms(yard: TestYard) -> float:
    began = time.time()
    result = yard.send("true")
    value = result.get(timeout=60)
    until(lambda: not yard.containers(jobs_only=True), "the container is removed")
    return float(value["started"] - began) * 1000


def _bare_ms(engine: Any) -> float:
    began = time.time()
    config = engine.create_container_config(
        IMAGE, ["true"], host_config=engine.create_host_config(network_mode="none", init=True)
    )
    container = engine.create_container_from_config(config)["Id"]
    engine.start(container)
    took_s = time.time() - began
    engine.wait(container)
    engine.remove_container(container, v=True)
    return took_s * 1000
