"""Putting, settling, pinning and deleting the same few blobs at once, in random orders, with kills at any point: what
was promised is there as long as it was promised, and nothing else is left in the end.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import random
from collections.abc import Callable, Generator
from typing import Any

import pytest

from batchyard.broker import keys
from batchyard.broker.expiry import Expiry, owner_of, told
from batchyard.broker.message import Document, Message
from batchyard.broker.record import Attempt, Claimed
from batchyard.broker.seal import KeyRing
from batchyard.broker.state import State
from batchyard.broker.store import Free, Incoming, Yard
from batchyard.cache.collect import Collector
from batchyard.cache.digest import digest_of
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.memory import MemoryStore

ALL = Free(vcpus=1000, memory_mib=1 << 20, gpus=8, disk_gib=1 << 20)
CONTENTS = [b"one", b"two", b"three", b"four", b"five"]
EXPIRE_S = (None, 100, 100, 200_000, 200_000)
DAY_MS = 86_400_000
STEPS = 60

pytestmark = pytest.mark.system
_numbers = itertools.count(1)


class Killed(BaseException):
    """As by SIGKILL: nothing is done after it."""


class Interrupted(MemoryStore):
    """Between any two things that a collector does, others do something."""

    def __init__(self) -> None:
        super().__init__()
        self.between: Callable[[], None] = lambda: None

    def delete(self, name: str) -> None:
        self.between()
        super().delete(name)
        self.between()


class Told(Expiry):
    between: Callable[[], None] = staticmethod(lambda: None)

    def _each(self, *args: Any, **more: Any) -> list[str]:
        self.between()
        found = super()._each(*args, **more)
        self.between()
        return found

    def mark(self, *args: Any, **more: Any) -> dict[str, frozenset[str]]:
        self.between()
        found = super().mark(*args, **more)
        self.between()
        return found


class Play:
    """One random history. `promised`: until when each object must be there, in ms of the history's own clock. `late`:
    what a person has put longer than a day after it was told; of that nobody may know.
    """

    def __init__(self, yard: Yard, seed: int) -> None:
        self.yard, self.dice = yard, random.Random(seed)
        self.store = Interrupted()
        self.blobs = BlobStore(self.store, yard.ring)
        self.expiry = Expiry(yard)
        self.actors: list[Generator[None, None, None]] = []
        self.promised: dict[str, float] = {}
        self.late: set[str] = set()
        self.clock_ms, self.collecting = 0, False
        self.deletions = 0

    # -- actors: each yields where it may be interrupted, or killed
    def attempt(self) -> Generator[None, None, None]:
        job_id, expire_s = f"j{next(_numbers)}", self.dice.choice(EXPIRE_S)
        sent = Message(headers={"id": job_id}, properties={}, body="")
        sealed = self.yard.ring.seal(Document(message=sent, job={"inputs": {}}).dumps(), job_id.encode())
        one = Incoming(list_key="cpu", raw=job_id.encode(), kind="job", id=job_id, queue="cpu", vcpus=1, memory_mib=1,
                       document=sealed)  # fmt: skip
        self.yard.redis.lpush("cpu", one.raw)
        self.yard.intake([one])
        _, (job,) = self.yard.claim("n", f"c{next(_numbers)}", ALL, ["cpu"], lease_s=3600)
        try:
            names = []
            for content in self.dice.sample(CONTENTS, self.dice.choice((1, 2))):
                names.append(self.blobs.name(digest_of(content)))
                yield from self._put(owner_of(job), content)
            self._settle(job, expire_s, names)
        except GeneratorExit:
            self.yard.redis.hdel(keys.job(job_id), "token")  # its lease lapses
            self.yard.redis.hset(keys.job(job_id), "state", "FAILED")
            raise

    def _settle(self, job: Claimed, expire_s: int | None, names: list[str]) -> None:
        done = Attempt(node="n", started=1.0, ended=2.0, exit_code=0, reason="")
        assert self.yard.settle(job, State.SUCCEEDED, done, told(expire_s, names), [], retention_s=1000)
        until_ms = math.inf if expire_s is None else self.clock_ms + expire_s * 1000
        for name in names:
            self.promised[name] = max(self.promised.get(name, 0), until_ms)

    def person(self) -> Generator[None, None, None]:
        content, owner = self.dice.choice(CONTENTS), f"put:{next(_numbers)}"
        name = self.blobs.name(digest_of(content))
        yield from self._put(owner, content)
        while self.expiry.pin(name, [name], owner=owner):  # it took so long that it goes, or has gone
            yield from self._put(owner, content)
        self.promised[name] = math.inf

    def _put(self, owner: str, content: bytes) -> Generator[None, None, None]:
        digest = digest_of(content)
        sealing = self.yard.ring.seal_stream(io.BytesIO(content), digest, len(content))
        name = self.yard.ring.name(digest)
        while self.expiry.put(owner, {name: sealing.mark}):
            yield
        told_ms = self.clock_ms
        yield
        self.store.put_if_absent(name, sealing, sealing.length)
        if owner.startswith("put:") and self.clock_ms >= told_ms + DAY_MS:
            self.late.add(name)
        yield

    # -- the history
    def step(self) -> None:
        act = self.dice.random()
        if act < 0.2 and len(self.actors) < 6:
            self.actors.append(self.attempt())
        elif act < 0.21:
            self.actors.append(self.person())
        elif act < 0.33:
            self.age(self.dice.choice((1000, 101_000, 101_000, 2_000_000, DAY_MS)))
        elif act < 0.48 and not self.collecting:
            self.collect()
        elif act < 0.5 and self.actors:
            self.actors.pop(self.dice.randrange(len(self.actors))).close()
        elif self.actors:
            actor = self.dice.choice(self.actors)
            if next(actor, self) is self:
                self.actors.remove(actor)
        self.check()

    def collect(self, *, kill: float = 0.1) -> None:
        collector, expiry, dead = Collector(self.yard, self.blobs, lambda: {"cpu": ""}), Told(self.yard), [False]

        def between() -> None:
            if dead[0] or self.dice.random() < kill:
                dead[0] = True
                raise Killed
            for _ in range(self.dice.choice((0, 0, 1, 3)) if kill else 0):
                self.step()

        collector._expiry, expiry.between, self.store.between = expiry, between, between
        self.collecting = True
        try:
            self.deletions += collector.round().objects
        except Killed:
            self.yard.redis.delete(keys.BLOBS_LOCK)  # it runs out
        finally:
            self.collecting, self.store.between = False, lambda: None

    def age(self, ms: int) -> None:
        self.clock_ms += ms
        redis: Any = self.yard.redis
        for name, score in redis.zrange(keys.BLOBS_UNTIL, 0, -1, withscores=True):
            redis.zadd(keys.BLOBS_UNTIL, {name: score - ms})
        for key in (keys.BLOBS_MADE, keys.BLOBS_PINNED):
            for name, text in redis.hgetall(key).items():
                known = json.loads(text)
                known["u"] = max(0, known["u"] - ms)
                known["f"] = {owner: at - ms for owner, at in known["f"].items()}
                redis.hset(key, name, json.dumps(known))

    def check(self) -> None:
        for name, until_ms in self.promised.items():
            assert until_ms <= self.clock_ms or self.store.stat(name) is not None, f"{name} is lost"

    def end(self) -> None:
        """All that still goes on is killed; then only what stays for ever is there, and perhaps what was late."""
        for actor in self.actors:
            actor.close()
        for _ in range(3):
            self.age(3 * DAY_MS)
            self.collect(kill=0)
        self.check()
        stay = {name for name, until_ms in self.promised.items() if until_ms == math.inf}
        assert stay <= set(self.store.names()) <= stay | self.late
        known = self.yard.redis.exists(keys.BLOBS_UNTIL, keys.BLOBS_MADE, keys.BLOBS_GOING, keys.BLOBS_LOCK)
        assert known == 0


def play(url: str, seed: int) -> int:
    yard = Yard(url, KeyRing.new())
    yard.redis.flushdb()
    one = Play(yard, seed)
    for _ in range(STEPS):
        one.step()
    one.end()
    yard.redis.close()
    return one.deletions


def test_no_promise_is_broken_and_nothing_is_left_in_any_order(fresh_redis_url: str) -> None:
    deletions = 0
    for seed in range(25):
        try:
            deletions += play(fresh_redis_url, seed)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    assert deletions > 25


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("block", range(8))
def test_no_promise_is_broken_in_many_orders(fresh_redis_url: str, block: int) -> None:
    for seed in range(1000 + 500 * block, 1500 + 500 * block):
        try:
            play(fresh_redis_url, seed)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
