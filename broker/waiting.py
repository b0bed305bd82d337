"""Waiting for jobs: woken by Celery's result channel, with a look at the records now and then as the fallback."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import redis
from redis.client import PubSub

from . import keys
from .errors import BrokerUnavailable, NotEnded
from .functions import words
from .record import Record
from .store import Yard

LOOK_EVERY_S = 1.0
REDIS_AWAY_S = 60.0

Look = Callable[[Sequence[str]], Mapping[str, Record]]
OnChange = Callable[[Record], None]


def wait_for(
    yard: Yard, ids: Sequence[str], look: Look, *, timeout_s: float | None, on_change: OnChange | None
) -> list[Record]:
    """The records of ended jobs in the order of ids. NotEnded: not in time. BrokerUnavailable: Redis stayed away."""
    board = _Board(ids, on_change)
    end = None if timeout_s is None else time.monotonic() + timeout_s
    reached = time.monotonic()
    while board.open:
        try:
            _session(yard, board, look, end)
            reached = time.monotonic()
        except (redis.ConnectionError, redis.TimeoutError, BrokerUnavailable) as error:
            reached = max(reached, board.looked)
            if time.monotonic() - reached > REDIS_AWAY_S:
                raise BrokerUnavailable(
                    f"Redis does not answer: {words(error)}; the jobs go on without this wait"
                ) from error
            time.sleep(0.3)
        if board.open and end is not None and time.monotonic() >= end:
            raise NotEnded(_late(board, timeout_s or 0))
    return [board.seen[i] for i in ids]


class _Board:
    """What was last seen of each job."""

    def __init__(self, ids: Sequence[str], on_change: OnChange | None) -> None:
        self.open = dict.fromkeys(ids)
        self.seen: dict[str, Record] = {}
        self.looked = 0.0
        self._on_change = on_change

    def update(self, found: Mapping[str, Record]) -> None:
        self.looked = time.monotonic()
        for job_id, record in found.items():
            seen = self.seen.get(job_id)
            before = (seen.state, seen.array) if seen else None
            self.seen[job_id] = record
            if record.state.ended:
                self.open.pop(job_id, None)
            if self._on_change is not None and (record.state, record.array) != before:
                self._on_change(record)


def _session(yard: Yard, board: _Board, look: Look, end: float | None) -> None:
    """Until all have ended or the time is over."""
    prefix = keys.result("").encode()
    pubsub: PubSub = yard.redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
    try:
        pubsub.subscribe(*(keys.result(i) for i in board.open))
        next_look = 0.0  # after subscribing: what ends from now on is heard
        while board.open:
            now = time.monotonic()
            if now >= next_look:
                board.update(look(list(board.open)))
                next_look = now + LOOK_EVERY_S
            elif end is not None and now >= end:
                return
            else:
                until = next_look if end is None else min(next_look, end)
                heard = pubsub.get_message(timeout=max(0.0, until - now))
                if heard is not None:
                    job_id = heard["channel"].removeprefix(prefix).decode()
                    if job_id in board.open:
                        board.update(look([job_id]))
    finally:
        with suppress(redis.RedisError, OSError):
            pubsub.close()


def _late(board: _Board, timeout_s: float) -> str:
    first = next(iter(board.open))
    state = f"is {board.seen[first].state}" if first in board.seen else "is not known to the yard yet"
    more = f" (and {len(board.open) - 1} more)" if len(board.open) > 1 else ""
    return f'after {timeout_s:g} s job "{first}" {state}{more}; wait on, or cancel it'
