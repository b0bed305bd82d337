"""Asking other nodes for sealed objects, at their peer doors."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import urllib3

from batchyard.broker.errors import StoreUnavailable
from batchyard.broker.hints import Peer
from batchyard.broker.seal import KeyRing

from .peercall import ARRIVED, HOLD_S, PATH, split_address, stamp
from .protocol import CopyLost

_CONNECT_S, _READ_S = 2.0, HOLD_S + 5.0
_PIECE_BYTES = 256 << 10
_PACE_BYTES, _PACE_S = 1 << 20, 10.0
"""A peer that gives less in this time of waiting for it is given up."""
_BROKEN = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Later:
    """Ask again. arrived: bytes of the object that have come to the node; None: it has too many who ask."""

    arrived: int | None = None


class Doors:
    """The peer doors of a yard's other nodes. May be shared by threads. now_s: the wall clock."""

    def __init__(self, ring: KeyRing, *, now_s: Callable[[], float] = time.time) -> None:
        self._ring, self._now_s = ring, now_s
        self._pool = urllib3.PoolManager(
            maxsize=4, timeout=urllib3.Timeout(connect=_CONNECT_S, read=_READ_S), retries=False, blocksize=1 << 16
        )

    def ask(self, peer: Peer, name: str) -> Transfer | Later | None:
        """None: the node does not have it. May take HOLD_S. StoreUnavailable: no answer that makes sense."""
        headers = {"Authorization": stamp(self._ring, peer.node, name, self._now_s())}
        try:
            split_address(peer.address)
            url = f"http://{peer.address}{PATH}{name}"
            answer = self._pool.request(
                "GET", url, headers=headers, preload_content=False, redirect=False, retries=False
            )
        except (*_BROKEN, ValueError) as error:
            raise StoreUnavailable(f"node {peer.node} does not answer at {peer.address}: {error}") from error
        if answer.status == 200 and (size := _number(answer.headers.get("Content-Length"))) is not None:
            return Transfer(peer, answer, size)
        answer.close()
        if answer.status == 202:
            return Later(arrived=_number(answer.headers.get(ARRIVED)))
        if answer.status == 503:
            return Later()
        if answer.status == 404:
            return None
        raise StoreUnavailable(f"node {peer.node} answers {answer.status} at its peer door")


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None


class Transfer:
    """An object as it comes from a peer. Reads raise CopyLost when it ends early, or comes too slowly."""

    def __init__(
        self, peer: Peer, answer: urllib3.BaseHTTPResponse, size: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.peer, self.at, self._size = peer, 0, size
        self._answer, self._clock = answer, clock
        # urllib3's own copies once more
        source: Any = getattr(answer, "_fp", None)
        self._source: Any = source if isinstance(source, http.client.HTTPResponse) else answer
        self._waited_s, self._mark = 0.0, 0

    def readinto(self, buffer: memoryview, /) -> int:
        if self.at == self._size or not len(buffer):
            return 0
        began = self._clock()
        try:
            # what is there: `readinto` would wait until the buffer is full, and a drip would not be seen
            piece: bytes = self._source.read1(min(len(buffer), _PIECE_BYTES, self._size - self.at))
        except _BROKEN as error:
            raise self._lost(f"stopped: {error}") from error
        count = len(piece)
        if not count:
            raise self._lost("ended early")
        buffer[:count] = piece
        self.at += count
        self._waited_s += self._clock() - began
        if self._waited_s > _PACE_S:
            if self.at - self._mark < _PACE_BYTES:
                raise self._lost("is too slow")
            self._waited_s, self._mark = 0.0, self.at
        return count

    def _lost(self, what: str) -> CopyLost:
        return CopyLost(f"the copy of node {self.peer.node} {what}, at byte {self.at} of {self._size}")

    def close(self) -> None:
        """May be called twice."""
        self._answer.close()
