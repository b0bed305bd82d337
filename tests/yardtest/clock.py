"""A clock that a test moves: leases lapse, etas come and shares decay without anybody waiting for it.

The product's functions ask Redis for the time in one place, `now()` of `broker/lua/shared/base.lua`. A test loads the
same library with that one function replaced by one that reads a key; the product's own text has no such door. What
Redis does by itself keeps real time: `EXPIRE`, and so the life of records and results.
"""

from __future__ import annotations

from collections.abc import Mapping

from batchyard.broker import functions
from batchyard.broker.store import Yard

KEY = "test:now"  # ms since the epoch; while it is missing, real time
START_S = 4_000_000_000.0  # far ahead: what is set to vanish at a time is still there
_REAL = """local function now()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
"""
_MOVED = f"""local function now()
  local set = redis.call('GET', '{KEY}')
  if set then return tonumber(set) end
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
"""


def library(replace: Mapping[str, str] | None = None) -> str:
    """The product's library with a clock that can be set. replace: other texts in it, each of which is there once."""
    text = functions.library()
    for old, new in {_REAL: _MOVED, **(replace or {})}.items():
        assert text.count(old) == 1, f"the library does not have this once: {old!r}"
        text = text.replace(old, new)
    return text


class VirtualClock:
    """The time of one yard's database; it stands still until it is moved.

    Functions are the Redis server's: after a `prepare()` of any yard on it, make another clock. `flushdb` unsets it.
    """

    def __init__(self, yard: Yard, *, now_s: float = START_S, replace: Mapping[str, str] | None = None) -> None:
        """replace: see `library`."""
        self._redis = yard.redis
        self._redis.function_load(library(replace), replace=True)
        self.set(now_s)

    @property
    def now_s(self) -> float:
        """Seconds since the epoch, in whole milliseconds."""
        return self._ms / 1000

    @property
    def now_ms(self) -> int:
        """The same as the functions see it."""
        return self._ms

    def set(self, now_s: float) -> None:
        """From now on it is then; back is allowed, as with any machine's clock."""
        self._ms = round(now_s * 1000)
        self._redis.set(KEY, self._ms)

    def advance(self, seconds: float) -> None:
        """Moves it on, or back."""
        self.set(self.now_s + seconds)
