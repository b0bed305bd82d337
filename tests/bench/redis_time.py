"""How long Redis was busy with each call of a function: the same clock as commandstats, by function."""

from __future__ import annotations

from typing import Any

MOST = 200_000


class RedisTime:
    """Counts from its making on, by a slow log that takes everything."""

    def __init__(self, client: Any) -> None:
        self._client = client
        client.config_set("slowlog-max-len", MOST)
        client.config_set("slowlog-log-slower-than", 0)
        client.slowlog_reset()

    def calls_ms(self, function: str) -> list[float]:
        """Milliseconds of every call of this function so far; then it counts from zero."""
        return self.calls_of(function)[function]

    def calls_of(self, *functions: str) -> dict[str, list[float]]:
        """The same of several functions, by name."""
        self._client.config_set("slowlog-log-slower-than", -1)
        entries = self._client.slowlog_get(MOST)
        found = {
            name: [e["duration"] / 1000 for e in entries if e["command"].upper().startswith(wanted)]
            for name in functions
            for wanted in [f"FCALL {name} ".encode().upper()]
        }
        self._client.slowlog_reset()
        self._client.config_set("slowlog-log-slower-than", 0)
        return found
