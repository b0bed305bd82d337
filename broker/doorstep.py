"""Messages that wait in their lists for others that may have been sent with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace

from .store import Incoming

PATIENCE_S, LONGEST_S = 5.0, 10.0
MOST_HELD = 128  # lines of a list; while there are more, those behind them wait
MOST_HELD_BYTES = 8 << 20  # of a list; what is more does not wait
MOST_TRIED = 64  # of a queue in one round
_TRY_AGAIN_S = 0.25
_LONGEST_PAUSE_S = 1.0  # of this process, or of Redis: it is not counted


@dataclass(slots=True)
class _Held:
    message: Incoming
    since_s: float
    waited_s: float = 0.0
    ready: bool = False
    room: bool = True

    def over(self, now_s: float) -> bool:
        return not self.room or self.waited_s >= PATIENCE_S or now_s - self.since_s >= LONGEST_S


class Doorstep:
    """Messages that stay in their lists for a while: what they depend on may be sent, and not be taken in yet.

    A producer that sends parent and child in a row to two queues may have the child seen first. One waits for
    PATIENCE_S in which nothing else was left to be taken in, and for LONGEST_S at most. Bounded in number and bytes.
    Forgotten with the process: the next one begins anew.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: dict[str, dict[bytes, _Held]] = {}
        self._lines: dict[str, int] = {}
        self._last_s = self._asked_s = clock()
        self._moved = True

    def count(self, list_key: str) -> int:
        """How many lines of this list wait, as last seen. Copies of one message are as many lines."""
        return self._lines.get(list_key, 0)

    def full(self, list_key: str) -> bool:
        """Whether those behind the ones that wait have to stay there."""
        crowded = any(not one.room for one in self._held.get(list_key, {}).values())
        return crowded or self.count(list_key) >= MOST_HELD

    def waits(self, list_key: str, raw: bytes) -> bool:
        """Whether this message waits already, so that it is not to be read."""
        return raw in self._held.get(list_key, {})

    def to_ask(self) -> list[Incoming]:
        """Those of which it is to be asked whether what they wait for is there. Call once a round, then `told`."""
        now_s = self._clock()
        if not self._moved and now_s - self._asked_s < _TRY_AGAIN_S:
            return []
        self._asked_s = now_s
        return [one.message for held in self._held.values() for one in held.values() if not one.over(now_s)]

    def told(self, messages: Sequence[Incoming], ready: Sequence[bool]) -> None:
        """The answers, one for each message of `to_ask`."""
        for message, answer in zip(messages, ready, strict=True):
            self._held[message.list_key][message.raw].ready = answer

    def again(self, lists: Sequence[str]) -> list[Incoming]:
        """Those of these lists that are to be tried: what they wait for is there, or their time is over."""
        now_s = self._clock()
        held = [one for key in lists for one in self._held.get(key, {}).values()]
        due = [one for one in held if one.ready or one.over(now_s)]
        return [replace(one.message, patient=not one.over(now_s)) for one in due[:MOST_TRIED]]

    def tried(self, messages: Sequence[Incoming], left: Set[int]) -> None:
        """What became of messages: left are the numbers of those that stayed in their lists."""
        now_s = self._clock()
        for n, message in enumerate(messages):
            held = self._held.setdefault(message.list_key, {})
            if n in left:
                held.setdefault(message.raw, _Held(message=message, since_s=now_s)).ready = False
            else:
                held.pop(message.raw, None)
            if not held:
                del self._held[message.list_key]

    def seen(self, list_key: str, lines: Sequence[bytes]) -> None:
        """The lines of a list that were read in this round, oldest first. Call when they have been tried."""
        held = self._held.get(list_key, {})
        waiting = [held[raw] for raw in lines if raw in held]
        self._lines[list_key], size = len(waiting), 0
        for one in waiting:
            size += len(one.message.raw)
            if size > MOST_HELD_BYTES:
                one.room = False

    def round_ended(self, *, taken: int, drained: bool) -> None:
        """taken: messages in this round. drained: all lists were read to their ends, so none waits behind others."""
        now_s = self._clock()
        passed_s = min(now_s - self._last_s, _LONGEST_PAUSE_S)
        self._last_s, self._moved = now_s, taken > 0
        if drained:
            for held in self._held.values():
                for one in held.values():
                    one.waited_s += passed_s
