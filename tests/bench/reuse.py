"""A pipeline of three steps, a plain Celery chain, that was run before and says `reuse`: from send to the last result.

One node and a controller, one Redis with every write synced, blobs in a folder. Nothing is staged and no container is
made; what is measured is three times intake, claim, a look at what is there, and settle.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from celery import chain

import images
from yardtest.yard import TestYard, running_yard

from .row import Row

IMAGE = "batchyard-bench/busybox:1"
GOAL_S = 1.0


def rows(folder: Path, *, quick: bool) -> list[Row]:
    images.busybox(IMAGE)
    with running_yard(folder / "yard", IMAGE) as yard:
        first_s = _seconds(yard)
        again_s = statistics.median(_seconds(yard) for _ in range(5 if quick else 20))
        made = len(list(yard.redis.scan_iter("by:memo:*")))
        assert made == 3, made
    print(f"a pipeline of three steps: {first_s:.3f} s, and with reuse {again_s:.3f} s")
    return [
        Row(
            row="pipeline of three steps, run again with reuse",
            ours=round(again_s, 4),
            unit="s",
            goal=f"< {GOAL_S:g}",
            holds=again_s < GOAL_S,
        )
    ]


def _seconds(yard: TestYard) -> float:
    began = time.perf_counter()
    last = _pipeline(yard).apply_async()
    assert last.get(timeout=60)["exit_code"] == 0
    return time.perf_counter() - began


def _pipeline(yard: TestYard) -> Any:
    def step(script: str, **job: Any) -> Any:
        return yard.signature("sh", "-c", script, reuse=True, outputs={"t": "/work/t"}, **job)

    return chain(
        step("seq 1000 >/work/t"),
        step("sort -r </in/t >/work/t", inputs={"/in/t": {"from": "t"}}),
        step("wc -l </in/t >/work/t", inputs={"/in/t": {"from": "t"}}),
    )
