"""Two stores as one: a near one that is quick and may forget, and a far one that is durable.

What counts is the far store: an object is there, durable and listed, when it is there in the far one. The near one is
filled with what goes by, written or read, bit by bit as it is in the far one. That it is full, slow or gone costs
speed and nothing else.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from batchyard.broker.errors import BatchyardError, DiskFull, NotFound, StoreUnavailable
from batchyard.broker.seal import Readable

from .fill import Fill, Places, Tee
from .protocol import CopyLost, Store, Unreadable, check_name, levels

log = logging.getLogger(__name__)
REST_S = 30.0
"""How long a near store that did not answer is left alone: each try may cost a connect's time."""
_MOST_FILLS = 8
_DELETE_WAIT_S = 30.0


class Tiered:
    """`near` belongs to this process alone. Use where the far store is further than the near one.

    put: straight to the far store, and what it takes goes into the near one too; that becomes visible only after the
    far one has it. get: from the near store if it is there and whole, else from the far one; when that was read to its
    end, the near one has it from then on. stat, names: the far store's. delete: in both; of something that another
    process deletes in the far store, a near copy may be read on.

    A copy that turns out to be bad is deleted by who can tell, at its own level (`levels`).
    """

    def __init__(self, near: Store, far: Store, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.levels = (near, *levels(far))
        self._near, self._far, self._clock = near, far, clock
        self._rest_until = -1.0
        self._guard = threading.Lock()
        self._places = Places(_MOST_FILLS)
        self._fills: set[Fill] = set()

    def put_if_absent(self, name: str, source: Readable, size: int) -> bool:
        fill = self._begin(check_name(name), size)
        try:
            made = self._far.put_if_absent(name, Tee(source, fill), size)
        except BaseException:
            _drop(fill)
            raise
        if fill is not None:
            fill.finish() if made else fill.abandon()  # what another one made is not what we have
        return made

    @contextmanager
    def get(self, name: str) -> Iterator[Readable]:
        with ExitStack() as stack:
            near = self._from_near(stack, check_name(name))
            if near is not None:
                yield near
                return
            # known before the far store is asked, so that a delete finds it
            fill = self._begin(name, lambda: self._far.stat(name))
            try:
                far = Tee(stack.enter_context(self._far.get(name)), fill)
                yield far
            except BaseException:
                _drop(fill)
                raise
            if fill is not None:
                fill.finish() if far.at_end else fill.abandon()

    def _from_near(self, stack: ExitStack, name: str) -> Readable | None:
        if self._resting():
            return None
        try:
            return _NearReader(stack.enter_context(self._near.get(name)), lambda error: self._failed(name, error))
        except NotFound:
            return None
        except Unreadable:
            raise
        except StoreUnavailable as error:
            self.rest(error)
            return None

    def _failed(self, name: str, error: StoreUnavailable) -> BatchyardError:
        """The near store stopped in the middle: what to raise, so that the next try reads the far one."""
        first, answers = not self._resting(), isinstance(error, CopyLost)
        if not answers:
            self.rest(error)
        if first:  # it may be this object alone, as where it was evicted meanwhile
            try:
                self._near.delete(name)
            except BatchyardError:
                self.rest(error)
        return CopyLost(f"the near copy was given up: {error}")

    def stat(self, name: str) -> int | None:
        return self._far.stat(name)

    def delete(self, name: str) -> None:
        self._far.delete(name)
        with self._guard:
            fills = [fill for fill in self._fills if fill.name == name]
        for fill in fills:  # whoever begins one from now on does not find it in the far store
            fill.abandon()
            if not fill.ended.wait(_DELETE_WAIT_S):
                raise StoreUnavailable(f"object {name} was deleted, but a copy may come back to the near store")
        self._near.delete(name)

    def names(self) -> Iterator[str]:
        return self._far.names()

    def settle(self, timeout_s: float) -> bool:
        """Waits for what is on its way into the near store; whether that is all done."""
        end = time.monotonic() + timeout_s
        with self._guard:
            fills = list(self._fills)
        return all(fill.ended.wait(max(0.0, end - time.monotonic())) for fill in fills)

    def arriving(self, name: str) -> Fill | None:
        """What is on its way into the near store under this name, if anything is."""
        with self._guard:
            return next((fill for fill in self._fills if fill.name == name), None)

    def _begin(self, name: str, size: int | Callable[[], int | None]) -> Fill | None:
        if self._resting():
            return None
        fill = Fill(self._near, name, size, places=self._places, on_error=self._refused, on_end=self._end)
        with self._guard:
            self._fills.add(fill)
        return fill

    def _end(self, fill: Fill) -> None:
        with self._guard:
            self._fills.discard(fill)

    def _refused(self, error: BatchyardError) -> None:
        if isinstance(error, StoreUnavailable):
            self.rest(error)
        elif not isinstance(error, DiskFull):  # a budget that has no room for it, as a rule
            log.warning("not kept in the near store: %s", error)

    def _resting(self) -> bool:
        return self._clock() < self._rest_until

    def rest(self, error: BatchyardError) -> None:
        """Only the far store is read and written for a while."""
        if not self._resting():
            log.warning("the near store is left alone for %g s: %s", REST_S, error)
        self._rest_until = self._clock() + REST_S


def _drop(fill: Fill | None) -> None:
    if fill is not None:
        fill.abandon()


class _NearReader:
    def __init__(self, reader: Readable, failed: Callable[[StoreUnavailable], BatchyardError]) -> None:
        self._reader, self._failed = reader, failed

    def readinto(self, buffer: memoryview, /) -> int:
        try:
            return self._reader.readinto(buffer) or 0
        except Unreadable:
            raise  # the store answers, and it is this object that is bad: as if its bytes did not open
        except StoreUnavailable as error:
            raise self._failed(error) from error
