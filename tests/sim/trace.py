"""A trace of jobs over shared inputs, claimed by nodes with small caches from the real Redis functions.

No job runs: a claim is a use of the job's inputs in that node's cache, which forgets what was used least. Inputs are
wanted as files are, a few very often: the n-th with a weight of 1/n (Zipf).
"""

from __future__ import annotations

import hashlib
import random
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from batchyard.broker.locality import short_hash
from batchyard.broker.store import MOST_HOLDS, Free, Incoming, Yard

QUEUE = "cpu"
_LEASE_S = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """jobs, each with one to `most_inputs` of `inputs`; `cached` of them is what one of `nodes` keeps. As many as
    `waiting` jobs wait at any time. told: whether nodes say with a claim what they have.
    """

    seed: int
    jobs: int
    inputs: int
    nodes: int
    cached: int
    most_inputs: int = 2
    waiting: int = 64

    def hits(self, yard: Yard, *, told: bool) -> float:
        """The share of uses that found the input in the node's cache. An empty yard, which has leases afterwards."""
        rnd, sent = random.Random(self.seed), self._sent(random.Random(self.seed + 1))
        wanted: dict[str, list[str]] = {}
        caches: list[OrderedDict[str, None]] = [OrderedDict() for _ in range(self.nodes)]
        found = used = ended = 0
        while ended < self.jobs:
            while len(wanted) < self.waiting and (more := next(sent, None)) is not None:
                wanted[more[0]] = more[1]
                _send(yard, *more)
            node = rnd.randrange(self.nodes)
            for name in wanted.pop(self._claimed(yard, node, ended, caches[node] if told else {})):
                used, found = used + 1, found + (name in caches[node])
                _use(caches[node], name, self.cached)
            ended += 1
        return found / used

    def _sent(self, rnd: random.Random) -> Iterator[tuple[str, list[str]]]:
        names = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(self.inputs)]
        weights = [1 / (n + 1) for n in range(self.inputs)]
        for _ in range(self.jobs):
            inputs = rnd.choices(names, weights, k=rnd.randint(1, self.most_inputs))
            yield str(UUID(int=rnd.getrandbits(128))), list(dict.fromkeys(inputs))

    @staticmethod
    def _claimed(yard: Yard, node: int, number: int, cache: OrderedDict[str, None] | dict[str, None]) -> str:
        free = Free(vcpus=1, memory_mib=1024, gpus=0, disk_gib=10)
        holds = list(reversed(cache))[:MOST_HOLDS]
        _, [job] = yard.claim(f"n{node}", f"claim-{number}", free, [QUEUE], lease_s=_LEASE_S, holds=holds)
        return job.id


def _send(yard: Yard, job_id: str, names: list[str]) -> None:
    one = Incoming(list_key=QUEUE, raw=job_id.encode(), kind="job", id=job_id, queue=QUEUE, vcpus=1, memory_mib=64,
                   disk_gib=1, clear={"in": " ".join(map(short_hash, names))}, document=b"x")  # fmt: skip
    yard.redis.lpush(QUEUE, one.raw)
    assert yard.intake([one]) == 1


def _use(cache: OrderedDict[str, None], name: str, most: int) -> None:
    cache[name] = None
    cache.move_to_end(name)
    if len(cache) > most:
        cache.popitem(last=False)
