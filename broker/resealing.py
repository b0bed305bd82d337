"""What Redis keeps sealed under a key that is not the current one, sealed anew: job documents, definitions, schedules,
dead letters, what may be reused. May be killed and run again at any point, and while all of these change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeAlias

from . import deadletters, definitions, keys, memo, schedules
from .errors import IntegrityError
from .functions import Functions
from .store import Yard

_BATCH = 64
_SCAN = 1000
_JOBS, _MEMOS = keys.job(""), keys.memo("")

Sealed: TypeAlias = tuple[str, str, bytes, bytes]
"""A hash's key, its field ('' for a string), what is sealed there, and about what."""


@dataclass(slots=True, kw_only=True)
class Resealed:
    """changed: sealed anew now. left: under an old key still, since they changed meanwhile. unreadable: under no key
    that is here, or damaged; they were not touched.
    """

    changed: int = 0
    left: int = 0
    unreadable: int = 0


def reseal(yard: Yard) -> Resealed:
    """One pass over all. Raises BrokerUnavailable."""
    done, functions = Resealed(), Functions(yard.redis)
    batch: list[str | bytes] = []

    def send() -> None:
        if batch:
            changed = int(functions.call("reseal", *batch))
            done.changed += changed
            done.left += len(batch) // 4 - changed
            batch.clear()

    for key, field, kept, about in _all(yard):
        try:
            new = _anew(yard, kept, about)
        except IntegrityError:
            done.unreadable += 1
            continue
        if new is not None:
            batch.extend((key, field, kept, new))
        if len(batch) >= 4 * _BATCH:
            send()
    send()
    return done


def _anew(yard: Yard, kept: bytes, about: bytes) -> bytes | None:
    """As it is to be kept; None: it is under the current key. IntegrityError."""
    ring, letter = yard.ring, about == deadletters.ABOUT
    sealed = deadletters.sealed_in(kept) if letter else kept
    if not sealed or ring.key_of(sealed) == ring.current:
        return None
    new = ring.seal(ring.open(sealed, about), about)
    return deadletters.with_sealed(kept, new) if letter else new


def _all(yard: Yard) -> Iterator[Sealed]:
    yield from _read(yard, _scanned(yard, f"{_JOBS}*"), "doc", _about_job)
    yield from _read(yard, _scanned(yard, f"{_MEMOS}*"), "", lambda key: memo.about(key.removeprefix(_MEMOS)))
    names = _decoded(yard, yard.redis.hgetall, keys.DEFINITIONS)
    revisions = (f"{name}:{n}" for name, last in names.items() for n in range(1, int(last) + 1))
    yield from _read(yard, (keys.definition(one) for one in revisions), "doc", _about_definition)
    known = yard.guard(lambda: yard.redis.smembers(keys.SCHEDULES))
    yield from _read(yard, (keys.schedule(name.decode()) for name in known), "doc", _about_schedule)
    for number, text in yard.guard(lambda: yard.redis.hgetall(keys.DEAD)).items():
        yield keys.DEAD, number.decode(), text, deadletters.ABOUT


def _read(yard: Yard, found: Iterator[str], field: str, about: Callable[[str], bytes]) -> Iterator[Sealed]:
    """What is kept under these keys, where there is something."""
    while batch := list(islice(found, _SCAN)):
        pipe = yard.redis.pipeline(transaction=False)
        for key in batch:
            pipe.hget(key, field) if field else pipe.get(key)
        for key, kept in zip(batch, yard.guard(pipe.execute), strict=True):
            if kept is not None:
                yield key, field, kept, about(key)


def _scanned(yard: Yard, pattern: str) -> Iterator[str]:
    cursor = 0
    while True:
        cursor, found = yard.guard(partial(yard.redis.scan, cursor, match=pattern, count=_SCAN))
        yield from (key.decode() for key in found)
        if not cursor:
            return


def _decoded(yard: Yard, read: Any, key: str) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in yard.guard(lambda: read(key)).items()}


def _about_job(key: str) -> bytes:
    return key.removeprefix(_JOBS).encode()


def _about_definition(key: str) -> bytes:
    return definitions.about(key.removeprefix(keys.definition("")).rpartition(":")[0])


def _about_schedule(key: str) -> bytes:
    return schedules.about(key.removeprefix(keys.schedule("")))
