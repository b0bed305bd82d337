"""Virtual time for the Redis functions: they ask for it in one place only, which is another one in this library text.

Functions belong to the server, so the server must be the test's own (`own_redis`). The product has no such switch.
"""

from __future__ import annotations

import pytest
import redis

from batchyard.broker import functions

KEY = "test:clock"
_REAL = """local function now()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
"""
_VIRTUAL = f"local function now() return tonumber(redis.call('GET', '{KEY}')) end\n"


class VirtualClock:
    """Set it before the first call of a function. Times are milliseconds since the epoch."""

    def __init__(self, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, *, start_ms: int) -> None:
        text = functions.library()
        assert text.count(_REAL) == 1, "the functions' clock has another text now"
        monkeypatch.setattr(functions, "library", lambda: text.replace(_REAL, _VIRTUAL))
        self._client, self.ms = client, start_ms
        self.set(start_ms)

    def set(self, ms: int) -> None:
        self.ms = ms
        self._client.set(KEY, ms)

    def forward(self, ms: int) -> None:
        self.set(self.ms + ms)
