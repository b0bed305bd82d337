"""Which objects of the durable store may be deleted, and when: the calls of `lua/blobs.lua`.

An object that nobody has told of here stays for ever. Objects are named as the store names them, never by digest. All
calls raise BrokerUnavailable.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from . import keys
from .functions import Functions
from .record import Claimed
from .store import Yard

AT_ONCE = 256  # names in one call
MOST_SETTLED = 1024  # names that one settle has: it blocks Redis for some 20 ms then
ORPHAN_S = 86400.0
"""How long what was put stays when nobody says what has become of it; as in shared/blobs.lua."""


def owner_of(job: Claimed) -> str:
    """Whose objects they are as long as this attempt holds its lease."""
    return f"{job.id} {job.token}"


def told(expire_s: int | None, names: Iterable[str]) -> dict[str, str]:
    """What a settle or a give-back says of the objects that an attempt has put, among its fields."""
    named = " ".join(names)
    return {"blobs": f"{_ms(expire_s)} {named}"} if named else {}


def _ms(expire_s: int | None) -> str:
    return "-" if expire_s is None else str(expire_s * 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """Of one object. pinned: a person keeps it. expires: when it may be deleted, in epoch seconds; None: it stays."""

    pinned: bool = False
    expires: float | None = None


class Unpinned(Enum):
    """Of an object that was pinned."""

    MAY_EXPIRE = 1  # at once, or when its jobs' queues say so
    STAYS = 2  # a job's queue keeps it, or it was there before
    PINNED = 3  # with another blob too


class Expiry:
    """May be shared by threads."""

    def __init__(self, yard: Yard) -> None:
        self._yard, self._functions = yard, Functions(yard.redis)

    # -- who puts
    def put(self, owner: str, heads: Mapping[str, str]) -> list[str]:
        """Before objects are put: name → head. Names of those that are being deleted just now, which must be told of
        again before they are put.
        """
        return self._each("blobs_put", [owner], [x for pair in heads.items() for x in pair], width=2)

    def use(self, owner: str, names: Iterable[str]) -> list[str]:
        """Objects that an earlier job has put are this one's too, if it settles with them (`told`). Names of those that
        are being deleted. Ask afterwards whether the store has the rest.
        """
        return self.put(owner, dict.fromkeys(names, ""))

    def keep(self, expire_s: int | None, names: Sequence[str]) -> None:
        """Of what an attempt has put, all that is beyond MOST_SETTLED: before it settles, as `told`."""
        self._each("blobs_keep", [_ms(expire_s)], names)

    # -- who keeps
    def pin(self, blob: str, names: Iterable[str], *, owner: str = "") -> list[str]:
        """A person keeps a blob, which is these objects, itself among them. owner: who has put them. Names of those
        that are being deleted just now, or have been since their owner put them.
        """
        return self._each("blobs_pin", [owner, blob], list(names))

    def unpin(self, blob: str, names: Sequence[str]) -> dict[str, Unpinned]:
        """Those that were pinned with the blob, and what becomes of them."""
        found: dict[str, Unpinned] = {}
        for some in _some(names):
            answers = self._functions.call("blobs_unpin", blob, *some)
            found |= {name: Unpinned(int(n)) for name, n in zip(some, answers, strict=True) if n}
        return found

    def fates(self, names: Sequence[str]) -> list[Fate]:
        """Of each, in two round trips for some."""
        out: list[Fate] = []
        for some in _some(names):
            pipe = self._yard.redis.pipeline(transaction=False)
            pipe.hmget(keys.BLOBS_PINNED, list(some))
            pipe.zmscore(keys.BLOBS_UNTIL, list(some))
            pinned, scores = self._yard.guard(pipe.execute)
            out += [
                Fate(pinned=pin is not None, expires=None if pin is not None or ms is None else float(ms) / 1000)
                for pin, ms in zip(pinned, scores, strict=True)
            ]
        return out

    def counts(self) -> tuple[int, int, int]:
        """How many objects are pinned, may expire some time, are being deleted."""
        pipe = self._yard.redis.pipeline(transaction=False)
        pipe.hlen(keys.BLOBS_PINNED)
        pipe.zcard(keys.BLOBS_UNTIL)
        pipe.hlen(keys.BLOBS_GOING)
        pinned, some, going = self._yard.guard(pipe.execute)
        return int(pinned), int(some), int(going)

    # -- who deletes
    def wait_s(self) -> float | None:
        """How long there is nothing to delete; None: there is nothing that may expire."""
        pipe = self._yard.redis.pipeline(transaction=False)
        pipe.hlen(keys.BLOBS_GOING)
        pipe.zrange(keys.BLOBS_UNTIL, 0, 0, withscores=True)
        going, first = self._yard.guard(pipe.execute)
        if going:
            return 0.0
        return max(0.0, first[0][1] / 1000 - self._yard.now_s()) if first else None

    def due(self, *, early_s: float = 0.0) -> list[str]:
        """Names of those that nobody needs any more, but jobs that wait: see `needs`.

        early_s: those too that no job has ended with, by so much sooner than ORPHAN_S.
        """
        found: list[str] = []
        skip, more = 0, True
        while more:
            left, again, *due = self._functions.call("blobs_due", skip, AT_ONCE, int(early_s * 1000))
            skip, more = skip + int(left), bool(again)
            found += [name.decode() for name in due]
        return list(dict.fromkeys(found))

    def lapsed(self, names: Iterable[str]) -> list[str]:
        """Of these, those that no job which has ended wants to keep any more, whatever else puts their time off. What
        was put for a blob is kept at least as long as the blob itself: nothing of one that is not among these is due.
        """
        found: list[str] = []
        now_ms = self._yard.now_s() * 1000
        for some in _some(list(names)):
            made: list[Any] = self._yard.guard(lambda some=some: self._yard.redis.hmget(keys.BLOBS_MADE, list(some)))
            found += [name for name, text in zip(some, made, strict=True) if text and json.loads(text)["u"] <= now_ms]
        return found

    def mark(self, names: Iterable[str], *, early_s: float = 0.0) -> dict[str, frozenset[str]]:
        """Of these, those that are still due, and are being deleted from now on: name → the heads of objects that may
        be. Until `gone` or `spare` nobody puts them.
        """
        found: dict[str, frozenset[str]] = {}
        for some in _some(list(names)):
            answer = self._functions.call("blobs_mark", int(early_s * 1000), *some)
            found |= {
                name.decode(): frozenset(heads.decode().split())
                for name, heads in zip(answer[::2], answer[1::2], strict=True)
            }
        return found

    def going(self) -> Iterator[tuple[str, frozenset[str]]]:
        """What was marked and is not gone yet, also by one who was killed; as `mark`."""
        names = [name.decode() for name in self._yard.guard(lambda: self._yard.redis.hkeys(keys.BLOBS_GOING))]
        for some in _some(names):
            made: list[Any] = self._yard.guard(lambda some=some: self._yard.redis.hmget(keys.BLOBS_MADE, list(some)))
            for name, text in zip(some, made, strict=True):
                yield name, frozenset(json.loads(text)["h"]) if text else frozenset()

    def spare(self, names: Iterable[str], for_s: float) -> None:
        """These are needed: they are looked at again in so long."""
        self._each("blobs_spare", [int(for_s * 1000)], list(names))

    def gone(self, names: Iterable[str]) -> None:
        """These are deleted, or are objects of somebody else."""
        self._each("blobs_gone", [], list(names))

    def _each(self, call: str, before: list[Any], values: Sequence[str], *, width: int = 1) -> list[str]:
        found: list[str] = []
        for some in _some(values, AT_ONCE * width):
            found += [name.decode() for name in self._functions.call(call, *before, *some) or []]
        return found


def _some(values: Sequence[str], most: int = AT_ONCE) -> Iterator[Sequence[str]]:
    return (values[at : at + most] for at in range(0, len(values), most))
