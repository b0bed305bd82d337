"""A node's part in what nodes give each other: its peer door, and what it tells of its near store.

near store <- door <- other nodes        hints in Redis: what this node has, renewed while it has it
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from batchyard.broker.errors import BatchyardError, InvalidConfig
from batchyard.broker.hints import HELD_S, Hints
from batchyard.broker.store import Yard
from batchyard.cache.stores.announced import Announced
from batchyard.cache.stores.bounded import Bounded
from batchyard.cache.stores.counted import Counted
from batchyard.cache.stores.fill import Fill
from batchyard.cache.stores.peercall import join_address, split_address
from batchyard.cache.stores.peered import Peered
from batchyard.cache.stores.peers import Doors
from batchyard.cache.stores.protocol import Store

from .options import NodeOptions

if TYPE_CHECKING:
    from batchyard.cache.stores.peerdoor import PeerDoor

log = logging.getLogger(__name__)
LEAST_BYTES = 1 << 20
"""Of an object that others are told of: a smaller one costs them hardly more from the durable store."""
_MOST_TOLD = 1024
_RENEW_S = HELD_S / 3
_REST_S = 5.0
_ANYWHERE = {"0.0.0.0", "::"}


class Peering:
    """Made of a node's options; `far` and `near` put it between the levels, `open` lets others in. InvalidConfig."""

    def __init__(self, options: NodeOptions, yard: Yard) -> None:
        assert options.peer_address is not None
        self._node, self._ring, self._hints = options.name, yard.ring, Hints(yard, options.name)
        self._listening, self.address = _listen(options.peer_address, options.address)
        self._peered: Peered | None = None
        self._served: Counted | None = None
        self._door: PeerDoor | None = None
        self._closed = False
        self._kept: deque[str] = deque(maxlen=_MOST_TOLD)
        self._landed: deque[str] = deque(maxlen=_MOST_TOLD)
        self._gone: deque[str] = deque(maxlen=_MOST_TOLD)
        self._news = threading.Event()

    def far(self, far: Store) -> Peered:
        """The durable store, and the other nodes."""
        self._peered = Peered(far, self._hints, Doors(self._ring))
        return self._peered

    def near(self, near: Store) -> Announced:
        """The near store: others hear what is in it."""
        return Announced(near, kept=self._keeps, gone=self._loses)

    def open(self, near: Bounded, arriving: Callable[[str], Fill | None]) -> None:
        """Lets others in, from now on."""
        from batchyard.cache.stores.peerdoor import PeerDoor  # takes a while to import

        self._served = Counted(near)
        self._door = PeerDoor(self._listening, self._served, arriving, self._ring, self._node)
        threading.Thread(target=self._tell, args=(near,), name="tell peers", daemon=True).start()

    def close(self) -> None:
        """Others get nothing more, and are told nothing more. May be called twice."""
        self._closed = True
        self._news.set()
        if self._door is not None:
            self._door.stop()

    @property
    def fetched_bytes(self) -> int:
        """Sealed, from peers."""
        return self._peered.counts.bytes if self._peered else 0

    @property
    def failures(self) -> int:
        """How often a peer was asked in vain."""
        return self._peered.counts.failures if self._peered else 0

    @property
    def given_bytes(self) -> int:
        """Sealed, to peers."""
        return self._served.counts.get_bytes if self._served else 0

    # -- what others are told, on a thread of its own: neither a put nor a job waits for Redis
    def _keeps(self, name: str, size: int) -> None:
        flew = self._peered is not None and self._peered.landed(name)
        if size >= LEAST_BYTES:
            self._kept.append(name)
        elif flew:
            self._landed.append(name)
        else:
            return
        self._news.set()

    def _loses(self, name: str) -> None:
        self._gone.append(name)
        self._news.set()

    def _tell(self, near: Bounded) -> None:
        pause, renew_at = threading.Event(), time.monotonic()
        while not self._closed:
            try:
                if time.monotonic() >= renew_at:
                    self._hints.hold(near.last_used(_MOST_TOLD, least_bytes=LEAST_BYTES))
                    renew_at = time.monotonic() + _RENEW_S
                self._hints.hold(_all(self._kept))
                self._hints.land(_all(self._landed))
                self._hints.drop(_all(self._gone))
                self._news.wait(max(0.0, renew_at - time.monotonic()))
                self._news.clear()
            except BatchyardError as error:
                log.warning("other nodes are not told what this one has: %s", error)
                pause.wait(_REST_S)
            except Exception:
                log.exception("other nodes are not told what this one has")
                pause.wait(_REST_S)


def _all(names: deque[str]) -> list[str]:
    """All that are in it, which are out of it then."""
    found: list[str] = []
    while names:
        found.append(names.popleft())
    return found


def _listen(text: str, here: str) -> tuple[socket.socket, str]:
    """A socket that listens there, and the address that others are told. here: how they reach this machine."""
    try:
        host, port = split_address(text)
    except ValueError as error:
        raise InvalidConfig(f"--peer-address {error}") from None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise InvalidConfig(
            f'--peer-address "{text}" cannot be listened on ({why}); give an address of this machine, and a '
            "port that is free"
        ) from None
    return listening, join_address(here if host in _ANYWHERE else host, int(listening.getsockname()[1]))
