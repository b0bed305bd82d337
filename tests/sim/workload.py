"""What a simulated yard is made of and has to do: sizes of nodes, shapes of jobs, when they come, how long they run."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Vector = tuple[int, int, int, int]  # milli-vCPU, MiB, GPUs, MiB of disk
GIB = 1024
FIRST, FASTER = 0.4, 1.1  # the part of the jobs that is there at the beginning; how much faster the others come
TYPES: Sequence[tuple[float, Vector]] = (  # of the nodes, that part has this size
    (0.55, (16_000, 64 * GIB, 0, 400 * GIB)),
    (0.30, (32_000, 128 * GIB, 0, 800 * GIB)),
    (0.10, (64_000, 256 * GIB, 0, 1600 * GIB)),
    (0.05, (32_000, 192 * GIB, 4, 800 * GIB)),
)


@dataclass(slots=True, kw_only=True)
class Work:
    """One job as the simulation knows it. passed_s: when a later one was taken before it for the first time."""

    id: str
    order: int
    demand: Vector
    runs_s: int
    arrives_s: int
    priority: int = 0
    passed_s: int | None = None


def shapes(rnd: random.Random, count: int) -> list[tuple[float, Vector]]:
    """(weight, demand), all different: from a quarter of a vCPU to half of the largest node, small ones more often."""
    found: dict[Vector, float] = {}
    while len(found) < count:
        mc = rnd.choice((250, 500, 1000, 1500, 2000, 3000, 4000, 6000, 8000, 12_000, 16_000, 24_000, 32_000))
        gib_per_vcpu = min(8.0, rnd.lognormvariate(0.7, 0.7))
        gpus = rnd.choice((1, 2, 4)) if mc in {4000, 8000} and rnd.random() < 0.2 else 0
        mem = max(128, min(120 * GIB, round(mc / 1000 * gib_per_vcpu * 4) * 256))
        found[mc, mem, gpus, rnd.choice((1, 5, 20, 50)) * GIB] = (0.2 if gpus else 1.0) * 1000 / mc
    return [(weight, demand) for demand, weight in found.items()]


def works(rnd: random.Random, count: int, kinds: Sequence[tuple[float, Vector]], capacity: Vector) -> list[Work]:
    """Jobs of half a minute to hours. Some are there at the beginning, the rest comes faster than it can be served."""
    demands = rnd.choices([demand for _, demand in kinds], [weight for weight, _ in kinds], k=count)
    made = [(demand, int(min(7200, max(30, rnd.lognormvariate(5.7, 0.8))))) for demand in demands]
    load = max(sum(demand[i] * s for demand, s in made) / capacity[i] for i in range(4) if capacity[i])
    first, between = int(FIRST * count), load / count / FASTER
    out, at = [], 0.0
    for order, (demand, runs_s) in enumerate(made):
        if order >= first:
            at += rnd.expovariate(1 / between)
        out.append(Work(id=f"job-{order}", order=order, demand=demand, runs_s=runs_s, arrives_s=int(at)))
    return out


def fits(demand: Vector, free: Vector) -> bool:
    return demand[0] <= free[0] and demand[1] <= free[1] and demand[2] <= free[2] and demand[3] <= free[3]


def plus(a: Vector, b: Vector) -> Vector:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]


def minus(a: Vector, b: Vector) -> Vector:
    return a[0] - b[0], a[1] - b[1], a[2] - b[2], a[3] - b[3]


def total(vectors: Iterable[Vector]) -> Vector:
    found = (0, 0, 0, 0)
    for one in vectors:
        found = plus(found, one)
    return found
