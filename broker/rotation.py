"""Rotating the yard's keys while it works.

    rotate   a new key is added; once every process has it, it becomes the current one; once every process seals under
             it, blobs get new wraps and what Redis keeps sealed is sealed anew
    retire   once nobody seals under the old key, a last pass over both; then it leaves the key file

Each may be killed at any point and is then called again: what was done is found done. Nothing is lost in between, as
all keys stay until `retire` has seen that the old one is needed for nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from . import keys
from .blobs import Rewrapped, Rewrapping
from .errors import InvalidConfig, NotEnded, NotFound
from .keysource import KeySource
from .keywatch import Holder, holders, wanted
from .resealing import Resealed, reseal
from .seal import KeyRing, Keys, keyfile
from .store import Yard

WAIT_S = 60.0
_LOOK_S = 0.5
_MOST_PASSES = 10
T = TypeVar("T")
OnStep = Callable[[str], None]
"""Hears in words what is being done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotated:
    """current: the key that all is under now, or was wrapped for. others: the keys that are still here."""

    current: str
    others: tuple[str, ...]
    blobs: Rewrapped
    records: Resealed


class Rotation:
    """yard: opened with a ring that nobody else renews. wait_s: how long processes that lag are waited for."""

    def __init__(
        self,
        yard: Yard,
        source: KeySource,
        store: Callable[[], Rewrapping],
        *,
        wait_s: float = WAIT_S,
        on_step: OnStep = lambda text: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._yard, self._source, self._store = yard, source, store
        self._wait_s, self._on_step, self._sleep = wait_s, on_step, sleep

    def rotate(self, to: str | None = None) -> Rotated:
        """To a new key, or the one that an unfinished rotation began with; to: to this one, which is here already.

        InvalidConfig; NotFound (no such key); NotEnded (somebody lags); BrokerUnavailable, StoreUnavailable, DiskFull.
        """
        target = self._target(to)
        self._note("rotating", target)
        self._wait(f"has key {target}", lambda one: target in one.ids)
        if self._yard.ring.current != target:
            self._change(lambda found: found.with_current(target), f"make {target} the current key there")
        self._wait(f"seals under key {target}", lambda one: one.in_use == (target,))
        blobs, records = self._blobs(again=False), self._records()
        self._yard.guard(lambda: self._yard.redis.hdel(keys.KEY_STATE, "rotating"))
        return self._rotated(blobs, records)

    def retire(self, old: str) -> Rotated:
        """Takes a key away that is not the current one, once nothing needs it. Raises as `rotate`."""
        self._load()
        ring = self._yard.ring
        if old == ring.current:
            raise InvalidConfig(f"key {old} is the current one; `batchyard keys rotate` first")
        if old not in ring.ids:
            raise NotFound(f"no key {old} in {self._source}; see `batchyard keys list`")
        if (rotating := wanted(self._yard)) is not None:
            raise InvalidConfig(f"a rotation to {rotating} is unfinished; `batchyard keys rotate` goes on with it")
        self._note(f"retired:{old}", str(int(self._yard.now_s() * 1000)))  # nobody starts to seal under it from now on
        self._wait(f"seals under key {ring.current}", lambda one: one.current == ring.current and old not in one.in_use)
        blobs = self._until_clean(lambda: self._blobs(again=True), lambda done: done.wrapped)
        records = self._until_clean(self._records, lambda done: done.changed + done.left)
        self._store().forget(old)
        self._change(lambda found: found.without(old), f"take key {old} out there; nothing needs it any more")
        return self._rotated(blobs, records)

    def lagging(self) -> list[Holder]:
        """Processes that do not seal under the current key alone, or lack it. Raises BrokerUnavailable."""
        return [one for one in holders(self._yard) if one.in_use != (self._yard.ring.current,)]

    def _target(self, to: str | None) -> str:
        self._load()
        ring, path = self._yard.ring, self._source.path
        if to is not None:
            if to not in ring.ids:
                raise NotFound(f"no key {to} in {self._source}; add it there first")
            return to
        unfinished = wanted(self._yard)
        if unfinished in ring.ids:
            return str(unfinished)
        if path is None:
            raise InvalidConfig(
                f"{self._source} is no file that could be changed: put there what `batchyard keys print --add` prints, "
                "give it to all processes, and say `batchyard keys rotate --to ID` with the new key's id"
            )
        found = keyfile.found(path)
        if found.newest == found.current:
            found = keyfile.change(path, _one_more)
            self._load()
        return found.newest

    def _load(self) -> None:
        self._yard.ring.renew(self._source.load())

    def _change(self, changed: Callable[[Keys], Keys], todo: str) -> None:
        path: Path | None = self._source.path
        if path is None:
            self._yard.ring.renew(changed(self._source.load()))
            self._on_step(f"{self._source} is not a file that could be changed: {todo}")
            return
        keyfile.change(path, changed)
        self._load()

    def _note(self, field: str, value: str) -> None:
        self._yard.guard(lambda: self._yard.redis.hset(keys.KEY_STATE, field, value))

    def _wait(self, what: str, done: Callable[[Holder], bool]) -> None:
        """Until every process is so. NotEnded."""
        waited = 0.0
        while late := [one.name for one in holders(self._yard) if not done(one)]:
            if waited >= self._wait_s:
                told = "; ".join(late[:5]) + (f" and {len(late) - 5} more" if len(late) > 5 else "")
                raise NotEnded(
                    f"not every process {what} yet: {told}; give them the keys of {self._source} as they are now "
                    "(a copied key file is read again by itself, a variable takes a restart), and call this again"
                )
            if not waited:
                self._on_step(f"waiting until every process {what}")
            self._sleep(_LOOK_S)
            waited += _LOOK_S

    def _blobs(self, *, again: bool) -> Rewrapped:
        def told(done: int, of: int) -> None:
            if done % 64 == 0 or done == of:
                self._on_step(f"blobs: {done} of {of} parts")

        return self._store().run(again=again, on_shard=told)

    def _until_clean(self, act: Callable[[], T], found: Callable[[T], int]) -> T:
        """Passes until one finds nothing to do: what was under way when the pass before it looked."""
        for _ in range(_MOST_PASSES):
            if not found(done := act()):
                return done
        raise NotEnded("something is sealed under the old key again and again; `batchyard keys list` says who has it")

    def _records(self) -> Resealed:
        self._on_step("what Redis keeps sealed")
        return reseal(self._yard)

    def _rotated(self, blobs: Rewrapped, records: Resealed) -> Rotated:
        ring: KeyRing = self._yard.ring
        return Rotated(
            current=ring.current, others=tuple(one for one in ring.ids if one != ring.current),
            blobs=blobs, records=records,
        )  # fmt: skip


def _one_more(found: Keys) -> Keys:
    """Another call may have been there first."""
    return found.added() if found.newest == found.current else found
