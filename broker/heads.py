"""The first jobs of queues: a snapshot of them, why nothing can start the first one, and what a queue does about it."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from . import keys
from .blocked import Amounts, Block, Ground, Machine, Scaling, blocked
from .config import Config
from .errors import NotFound
from .functions import Functions
from .shares import shares
from .store import Yard

log = logging.getLogger(__name__)
MOST = 100
LOOK_S = 5.0  # between two looks at the first jobs
_FRESH_MS = 60_000
_FREE = ("free_vcpus", "free_memory_mib", "free_gpus", "free_disk_gib")
_TOTAL = ("vcpus", "memory_mib", "gpus", "disk_gib")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A job at the front. since: epoch seconds from when on it is ready, the earliest time at its position."""

    id: str
    position: int
    since: float | None
    share: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The first jobs of a queue that may run. states: jobs by state. shares: vCPUs in use by share, where it has some.
    blocked: why nothing can start the first one; at: epoch seconds.
    """

    queue: str
    at: float
    front: tuple[Place, ...]
    states: dict[str, int]
    shares: dict[str, float]
    blocked: str

    def as_json(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What was last seen of a queue's first job. first, since: epoch seconds from when on it is the first, and blocked
    for this reason; code, text: empty when it is not blocked.
    """

    id: str
    first: float
    code: str
    since: float
    text: str


class Heads:
    """A yard's. All raise BrokerUnavailable."""

    def __init__(self, yard: Yard) -> None:
        self._yard, self._functions = yard, Functions(yard.redis)

    def snapshot(self, queue: str, limit: int = MOST) -> Snapshot:
        """Raises NotFound: no such queue, no yard."""
        if queue not in (known := self._yard.config().by_priority()):
            raise NotFound(f'queue "{queue}" is not known; choose of {", ".join(known)}')
        head, front = self.told(queue), self.front(queue, limit)
        return Snapshot(
            queue=queue,
            at=round(self._yard.now_s(), 3),
            front=tuple(front),
            states={state.value: n for state, n in self._yard.counts([queue])[queue].items()},
            shares={one.share: one.running for one in shares(self._yard, queue)},
            blocked=head.text if head and front and head.id == front[0].id else "",
        )

    def front(self, queue: str, limit: int) -> list[Place]:
        """The first jobs of a queue in the order of a claim."""
        flat = [x.decode() for x in self._functions.call("front", queue, limit)]
        return [
            Place(
                id=flat[i],
                position=i // 3 + 1,
                since=int(flat[i + 1]) / 1000 if flat[i + 1] else None,
                share=flat[i + 2],
            )
            for i in range(0, len(flat), 3)
        ]

    def told(self, queue: str) -> Head | None:
        """What the controller saw last, within the last minute."""
        found = self._yard.guard(lambda: self._yard.redis.hgetall(keys.head(queue)))
        h = {k.decode(): v.decode("utf-8", "replace") for k, v in found.items()}
        if not h or self._yard.now_s() * 1000 - int(h["seen"]) > _FRESH_MS:
            return None
        first, since = int(h["first"]) / 1000, int(h["since"]) / 1000
        return Head(id=h["id"], first=first, code=h["code"], since=since, text=h["text"])

    def need(self, job_id: str) -> Amounts | None:
        """What a job asks for; None when its record is gone."""
        h = self._yard.guard(lambda: self._yard.redis.hmget(keys.job(job_id), "mc", "mem", "gpu", "disk"))
        if None in h:
            return None
        return Amounts(vcpus=int(h[0]) / 1000, memory_mib=int(h[1]), gpus=int(h[2]), disk_gib=int(h[3]) / 1024)

    def ground(self, config: Config) -> Ground:
        """What the yard has now, in two round trips."""
        client, now_s = self._yard.redis, self._yard.now_s()
        up = f"({(now_s - config.lease_s) * 1000:.0f}"
        names = [n.decode() for n in self._yard.guard(lambda: client.zrangebyscore(keys.NODES, up, "+inf"))]
        pipe = client.pipeline(transaction=False)
        for name in names:
            pipe.hmget(keys.node(name), "environment", "queues", "state", *_TOTAL, *_FREE)
        machines = [_machine(values, config) for values in self._yard.guard(pipe.execute)]
        return Ground(
            config=config,
            machines=[one for one in machines if one is not None],
            scaling=self.scaling(list(config.environments)),
        )

    def scaling(self, environments: Sequence[str]) -> dict[str, Scaling]:
        """What an autoscaler does about these environments; those of which it says nothing are left out."""
        texts = self._yard.guard(lambda: self._yard.redis.mget([keys.scaling(name) for name in environments]))
        found = zip(environments, texts, strict=True)
        return {name: told for name, text in found if (told := _scaling(text)) is not None}

    def look(self, config: Config) -> None:
        """Keeps why nothing can start the first job of each queue, since when, and does what the queue says of that."""
        fronts = {queue: self.front(queue, 1) for queue in config.by_priority()}
        waiting = {queue: front[0].id for queue, front in fronts.items() if front}
        ground = self.ground(config) if waiting else Ground(config=config)
        for queue, job_id in waiting.items():
            need = self.need(job_id)
            if need is None:
                continue
            before = self.told(queue)
            first_s = self._yard.now_s() - before.first if before and before.id == job_id else 0.0
            found = blocked(queue, need, ground, first_s=first_s)
            self._act(queue, job_id, found, config)

    def _act(self, queue: str, job_id: str, found: Block | None, config: Config) -> None:
        code, text = (found.code, found.text) if found else ("", "")
        _, since = self._functions.call("head", queue, job_id, code, text, _FRESH_MS)
        for limit in config.queues[queue].job_state_time_limit_actions:
            if code == limit.reason and self._yard.now_s() - since / 1000 >= limit.max_time_s:
                reason = f"Canceled by JobStateTimeLimit action due to reason: {code}"
                if self._functions.call("cancel_ready", job_id, reason):
                    log.info("job %s: %s", job_id, reason)
                return


def _machine(values: Sequence[bytes | None], config: Config) -> Machine | None:
    """None: it takes no jobs, or has not said yet what it has."""
    environment, queues, state, *figures = (None if v is None else v.decode() for v in values)
    if state not in {"READY", "UPLOADING"} or any(not figure for figure in figures):
        return None
    numbers = [float(figure or 0) for figure in figures]
    served = tuple((queues or "").split(",")) if queues else tuple(config.served(environment or ""))
    total, free = _amounts(numbers[:4]), _amounts(numbers[4:] if state == "READY" else [0, 0, 0, 0])
    return Machine(environment=environment or "", queues=served, total=total, free=free)


def _amounts(four: Sequence[float]) -> Amounts:
    return Amounts(vcpus=four[0], memory_mib=int(four[1]), gpus=int(four[2]), disk_gib=four[3])


def _scaling(text: bytes | None) -> Scaling | None:
    if text is None:
        return None
    try:
        told = json.loads(text)
        since_s, shape, words = float(told.get("since_s", 0)), str(told.get("shape", "")), str(told.get("text", ""))
        return Scaling(state=str(told["state"]), since_s=since_s, shape=shape, text=words)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None  # what is not understood is not believed
