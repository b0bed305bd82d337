"""A durable store, and beside it the near stores of other nodes: what one of them has is not fetched twice.

The first node that wants an object fetches it from the durable store, and says so. Another that wants it meanwhile
waits for that node and gets it there; later ones get it from any that has it. All this only saves bytes: a peer that is
away, slow or lying, and a Redis that does not answer, lead to the durable store without a word but the log's.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from batchyard.broker.errors import BrokerUnavailable, IntegrityError, StoreUnavailable
from batchyard.broker.hints import FLIGHT_S, Peer, Sought
from batchyard.broker.seal import Readable

from .peers import Later, Transfer
from .protocol import CopyLost, Store, check_name, levels

log = logging.getLogger(__name__)
REST_S = 30.0
"""How long a peer that failed, an object that peers failed with, or a Redis that did not answer is left alone."""
_BUSY_S = 60.0
_MOST_FAILURES = 2
_MOST_KNOWN = 1000


class Hints(Protocol):
    """`broker.hints.Hints`, as far as it is used here. All raise BrokerUnavailable."""

    def seek(self, name: str, *, without: Iterable[str] = ()) -> Sought: ...
    def fly(self, name: str) -> bool: ...
    def land(self, names: Sequence[str]) -> None: ...
    def drop(self, names: Sequence[str], node: str | None = None) -> None: ...
    def forget(self, name: str) -> None: ...


class Doors(Protocol):
    """`peers.Doors`."""

    def ask(self, peer: Peer, name: str) -> Transfer | Later | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerCounts:
    """Since start. bytes: sealed ones from peers. failures: how often one was asked in vain, or gave up half-way."""

    gets: int = 0
    bytes: int = 0
    failures: int = 0


class Peered:
    """Use as the far store of a `Tiered` whose near one other nodes are let into: only what is kept can be given.

    Bytes of a peer are opened and verified by the caller like any. When they do not open, the caller gets CopyLost, and
    the next read is of another copy: nothing durable is ever deleted for what a peer said.
    """

    def __init__(self, far: Store, hints: Hints, doors: Doors, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.levels = levels(far)
        self._far, self._hints, self._doors, self._clock = far, hints, doors, clock
        self._guard = threading.Lock()
        self._silent: dict[str, float] = {}  # node -> until when it is not asked
        self._bad: dict[str, tuple[int, float]] = {}  # name -> failures, until when they count
        self._rest_until = -1.0
        self._flights: dict[str, float] = {}  # names of what this node fetches, as others know
        self.counts = PeerCounts()

    def put_if_absent(self, name: str, source: Readable, size: int) -> bool:
        return self._far.put_if_absent(name, source, size)

    def stat(self, name: str) -> int | None:
        return self._far.stat(name)

    def names(self) -> Iterator[str]:
        return self._far.names()

    def delete(self, name: str) -> None:
        self._far.delete(name)
        self._tell(lambda: self._hints.forget(name))

    def landed(self, name: str) -> bool:
        """Whether others take this node for the one that fetches it; it is for the caller to tell them better."""
        with self._guard:
            return self._flights.pop(name, None) is not None

    @contextmanager
    def get(self, name: str) -> Iterator[Readable]:
        found = self._find(check_name(name))
        if isinstance(found, Transfer):
            with self._transferred(name, found):
                yield found
            return
        flown: _Flown | None = None
        try:
            with self._far.get(name) as reader:
                flown = _Flown(reader, lambda: self._go_on(name), self._clock)
                yield flown
        finally:
            # of what came whole, whoever keeps it tells
            if not (flown is not None and flown.at_end) and self.landed(name):
                self._tell(lambda: self._hints.land([name]))

    # -- from a peer
    def _find(self, name: str) -> Transfer | None:
        """What a peer gives. None: the durable store is to be read. Raises nothing."""
        without, arrived, until = self._unwanted(name), dict[str, int](), self._clock() + _BUSY_S
        while without is not None:
            sought = self._seek(name, without)
            if sought is None or sought.mine:
                return None
            for peer in random.sample(sought.peers, len(sought.peers)):
                answer = self._ask(peer, name)
                if isinstance(answer, Transfer):
                    return answer
                if answer is None:
                    without.add(peer.node)
                    self._drop(name, peer)
                elif answer.arrived is None and self._clock() > until:
                    without.add(peer.node)
                elif answer.arrived is not None:
                    if answer.arrived <= arrived.get(peer.node, -1):
                        self._failed(name, peer, "gets no more of it")
                        without.add(peer.node)
                    arrived[peer.node] = answer.arrived
        return None

    def _unwanted(self, name: str) -> set[str] | None:
        """Nodes that are not asked; None: no node is."""
        now = self._clock()
        with self._guard:
            failures, until = self._bad.get(name, (0, 0.0))
            if now < self._rest_until or (failures >= _MOST_FAILURES and now < until):
                return None
            self._silent = {node: until for node, until in self._silent.items() if now < until}
            return set(self._silent)

    def _seek(self, name: str, without: set[str]) -> Sought | None:
        try:
            sought = self._hints.seek(name, without=without)
        except BrokerUnavailable as error:
            self._rest(error)
            return None
        if sought.mine:
            with self._guard:
                self._flights[name] = self._clock()
                while len(self._flights) > _MOST_KNOWN:  # those that nobody kept
                    del self._flights[next(iter(self._flights))]
        return sought

    def _ask(self, peer: Peer, name: str) -> Transfer | Later | None:
        try:
            return self._doors.ask(peer, name)
        except StoreUnavailable as error:
            self._failed(name, peer, str(error))
            return None

    @contextmanager
    def _transferred(self, name: str, transfer: Transfer) -> Iterator[None]:
        try:
            yield
        except IntegrityError as error:
            self._failed(name, transfer.peer, f"gave what does not open: {error}", times=_MOST_FAILURES)
            self._drop(name, transfer.peer)
            raise CopyLost(f"what node {transfer.peer.node} gave is not used: {error}") from error
        except CopyLost as error:
            self._failed(name, transfer.peer, str(error))
            raise
        finally:
            transfer.close()
            self._count(gets=1, bytes=transfer.at)

    def _failed(self, name: str, peer: Peer, why: str, *, times: int = 1) -> None:
        log.warning("object %s is not had from node %s: %s", name, peer.node, why)
        now = self._clock()
        with self._guard:
            self._silent[peer.node] = now + REST_S
            before, until = self._bad.pop(name, (0, 0.0))
            self._bad[name] = (times + (before if now < until else 0), now + REST_S)
            while len(self._bad) > _MOST_KNOWN:
                del self._bad[next(iter(self._bad))]
        self._count(failures=1)

    def _count(self, *, gets: int = 0, bytes: int = 0, failures: int = 0) -> None:
        with self._guard:
            was = self.counts
            self.counts = replace(was, gets=was.gets + gets, bytes=was.bytes + bytes, failures=was.failures + failures)

    # -- what others are told
    def _go_on(self, name: str) -> None:
        if name in self._flights:
            self._tell(lambda: self._hints.fly(name))

    def _drop(self, name: str, peer: Peer) -> None:
        self._tell(lambda: self._hints.drop([name], peer.node))

    def _tell(self, act: Callable[[], object]) -> None:
        if self._clock() < self._rest_until:
            return
        try:
            act()
        except BrokerUnavailable as error:
            self._rest(error)

    def _rest(self, error: BrokerUnavailable) -> None:
        log.warning("no peer is asked for %g s: %s", REST_S, error)
        self._rest_until = self._clock() + REST_S


class _Flown:
    """A reader of the durable store that says from time to time that it goes on."""

    def __init__(self, reader: Readable, go_on: Callable[[], None], clock: Callable[[], float]) -> None:
        self._reader, self._go_on, self._clock = reader, go_on, clock
        self._told, self.at_end = clock(), False

    def readinto(self, buffer: memoryview, /) -> int:
        count = self._reader.readinto(buffer) or 0
        self.at_end = self.at_end or (count == 0 and len(buffer) > 0)
        if self._clock() - self._told > FLIGHT_S / 6:
            self._told = self._clock()
            self._go_on()
        return count
