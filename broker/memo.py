"""What jobs made that may be reused, in Redis: by a name that says nothing of the job, and sealed.

An entry is written in the call that settles the job, and goes by itself. One that is damaged is as good as none.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import keys
from .errors import BatchyardError
from .recorder import Effect
from .seal import KeyRing
from .store import Yard

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What a job made. outputs: name → {"digest", "size", "kind"}."""

    job_id: str
    outputs: Mapping[str, Mapping[str, Any]]


def name_of(ring: KeyRing, identity: str) -> str:
    """The name of what is to run; see `worker.reuse.identity`."""
    return ring.name(f"memo|{identity}")


def look_up(yard: Yard, ring: KeyRing, name: str) -> Made | None:
    """What a job of that name made, as far as that is still known. Raises BrokerUnavailable."""
    sealed: bytes | None = yard.guard(lambda: yard.redis.get(keys.memo(name)))
    if sealed is None:
        return None
    try:
        told = json.loads(ring.open(sealed, about(name)))
        return Made(job_id=str(told["job"]), outputs={str(k): dict(v) for k, v in told["outputs"].items()})
    except (BatchyardError, ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("what was noted for reuse cannot be read, and is not used: %s", error)
        return None


def written(ring: KeyRing, name: str, made: Made, *, keep_s: int) -> Effect:
    """The effect that notes it, for the call that settles the job."""
    told = json.dumps({"job": made.job_id, "outputs": {k: dict(v) for k, v in made.outputs.items()}})
    return "SET", (keys.memo(name), ring.seal(told.encode(), about(name)), "EX", keep_s)


def about(name: str) -> bytes:
    return f"memo {name}".encode()
