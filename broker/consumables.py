"""Consumable resources: what jobs take that no node has, such as licence tokens. Counted in Redis, taken at the claim.

A job says `consumables: {licence-a: 2}`. All that it asks for is taken at once when a node claims it, or it waits, and
others pass it. REPLENISHABLE: given back when the job gives up its node. NON_REPLENISHABLE: used up by a job that ran.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal

from . import keys, rules
from .errors import InvalidConfig, NotFound
from .functions import Functions
from .store import Yard

KEEP_TOKEN_S = 8 * 3600
_REPEAT_S = 60  # within which a client says the same once more, when the answer was lost
MOST = 2**31 - 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_TOKEN = re.compile(r"[\x21-\x7e]{1,64}")


class Kind(StrEnum):
    """What becomes of it when a job ends."""

    REPLENISHABLE = "REPLENISHABLE"
    NON_REPLENISHABLE = "NON_REPLENISHABLE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumable:
    """total: all there are now, those in use among them. jobs: that hold some. Times are epoch seconds.

    changed: when some were last taken, given back, or added.
    """

    name: str
    kind: Kind
    total: int
    in_use: int
    jobs: int
    created: float
    changed: float

    @property
    def available(self) -> int:
        """May be taken now. Never negative: the total may have been made smaller than what is in use."""
        return max(0, self.total - self.in_use)

    def as_json(self) -> dict[str, Any]:
        """JSON types only."""
        return {**asdict(self), "kind": str(self.kind), "available": self.available}


class Consumables:
    """All of a yard's. Every call raises BrokerUnavailable."""

    def __init__(self, yard: Yard) -> None:
        self._yard, self._functions = yard, Functions(yard.redis)

    def create(self, name: str, total: int, *, kind: Kind = Kind.REPLENISHABLE) -> Consumable:
        """Raises InvalidConfig: a bad name or number, or there is one of this name."""
        if not _NAME.fullmatch(name):
            raise InvalidConfig(f'"{name}" is no name of a consumable resource: a name is {rules.NAME}')
        if not self._functions.call("consumable_create", name, str(kind), _quantity(total)):
            raise InvalidConfig(f'there is a consumable resource "{name}" already; see `batchyard consumable update`')
        return self.show(name)

    def update(
        self, name: str, quantity: int, *, how: Literal["SET", "ADD", "REMOVE"] = "SET", token: str | None = None
    ) -> Consumable:
        """Another total. token: within 8 h the same one changes nothing again. Raises NotFound, InvalidConfig."""
        if token is not None and not _TOKEN.fullmatch(token):
            raise InvalidConfig("a client token has 1 to 64 printable characters, without blanks")
        known, keep_s = (token, KEEP_TOKEN_S) if token else (uuid.uuid4().hex, _REPEAT_S)
        answer = self._functions.call("consumable_update", name, how, _quantity(quantity), known, keep_s)
        if answer is None:
            raise _unknown(name)
        if isinstance(answer, Sequence):
            what = "would be more than there may be" if how == "ADD" else "cannot be taken away"
            raise InvalidConfig(f'consumable resource "{name}" has {answer[1]} in all; {quantity} {what}')
        return self.show(name)

    def delete(self, name: str) -> None:
        """Raises NotFound, InvalidConfig: jobs hold some. Jobs that wait for it go on waiting, and say so."""
        jobs = self._functions.call("consumable_delete", name)
        if jobs is None:
            raise _unknown(name)
        if jobs:
            raise InvalidConfig(
                f'consumable resource "{name}" is in use by {jobs} {"job" if jobs == 1 else "jobs"}; '
                "wait until they have ended, or cancel them"
            )

    def show(self, name: str) -> Consumable:
        """Raises NotFound."""
        found = self.read([name])
        if name not in found:
            raise _unknown(name)
        return found[name]

    def list(self) -> list[Consumable]:
        """By name."""
        names = self._yard.guard(lambda: self._yard.redis.smembers(keys.CONSUMABLES))
        found = self.read(sorted(name.decode() for name in names))
        return list(found.values())

    def read(self, names: Sequence[str]) -> dict[str, Consumable]:
        """Those that there are of these, in one round trip."""
        pipe = self._yard.redis.pipeline(transaction=False)
        for name in names:
            pipe.hgetall(keys.consumable(name))
        fields = self._yard.guard(pipe.execute) if names else []
        return {name: _consumable(name, h) for name, h in zip(names, fields, strict=True) if h}


def unmet(asked: Mapping[str, int], there: Mapping[str, Consumable]) -> tuple[str, str] | None:
    """The first resource of which a job may never have what it asks for, and why; as intake decides it."""
    for name, need in asked.items():
        one = there.get(name)
        if one is None:
            return name, "no such consumable resource; create it, or see `batchyard consumable list`"
        if one.kind is Kind.REPLENISHABLE and need > one.total:
            return name, f"there are {one.total} in all; ask for less, or add some (`batchyard consumable update`)"
    return None


def _quantity(value: int) -> int:
    if not 0 <= value <= MOST:
        raise InvalidConfig(f"a quantity is a whole number from 0 to {MOST}, not {value}")
    return value


def _unknown(name: str) -> NotFound:
    return NotFound(f'no consumable resource "{name}"; see `batchyard consumable list`')


def _consumable(name: str, h: Mapping[bytes, bytes]) -> Consumable:
    return Consumable(
        name=name,
        kind=Kind(h[b"type"].decode()),
        total=int(h[b"total"]),
        in_use=int(h[b"held"]),
        jobs=int(h[b"jobs"]),
        created=int(h[b"created"]) / 1000,
        changed=int(h[b"changed"]) / 1000,
    )
