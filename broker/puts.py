"""What one owner puts into the store, told to the yard before: see `expiry`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from .errors import BatchyardError, BrokerUnavailable, StoreUnavailable
from .expiry import Expiry

_PATIENCE_S, _AGAIN_S, _REFRESH_S = 60.0, 0.25, 600.0


class Puts:
    """`before` is told of each object. names: of all that were put, or were there already.

    wait: called with what is in the way (Redis does not answer, or the object is just being deleted) before the next
    try; it raises to give up.
    """

    def __init__(self, expiry: Expiry, owner: str, wait: Callable[[BatchyardError], None] | None = None) -> None:
        self._expiry, self._owner, self._wait = expiry, owner, wait or _Patience().wait
        self._marks: dict[str, str] = {}
        self._told_at = time.monotonic()

    @property
    def names(self) -> list[str]:
        return list(self._marks)

    def forget(self) -> None:
        """Nothing came of what was put until now: it goes when its time is over."""
        self._marks.clear()

    def before(self, name: str, mark: str) -> None:
        if time.monotonic() > self._told_at + _REFRESH_S:  # a put may take days
            self._insist(dict(self._marks))
            self._told_at = time.monotonic()
        self._insist({name: mark})
        self._marks.pop(name, None)  # so that the last one is the last
        self._marks[name] = mark

    def use(self, names: Sequence[str]) -> list[str]:
        """These are there already, and are as if they had been put; those that are being deleted are given back."""
        going = self._expiry.use(self._owner, names)
        self._marks |= dict.fromkeys(names, "")
        return going

    def pin(self) -> None:
        """A person keeps the blob that was put last, and all that was put for it. StoreUnavailable: it took so long
        that some is being deleted, or was.
        """
        names = self.names
        if left := self._expiry.pin(names[-1], names, owner=self._owner):
            raise StoreUnavailable(f"object {left[0]} was not kept in time; put it again")

    def _insist(self, marks: dict[str, str]) -> None:
        while marks:
            try:
                left = self._expiry.put(self._owner, marks)
            except BrokerUnavailable as error:
                self._wait(error)
                continue
            marks = {name: marks[name] for name in left}
            if left:
                self._wait(_going(left))


def _going(names: list[str]) -> StoreUnavailable:
    return StoreUnavailable(f"object {names[0]} is just being deleted; try again in a moment")


class _Patience:
    """Of a person: a minute for what is being deleted, none for a Redis that is away."""

    def __init__(self) -> None:
        self._until = time.monotonic() + _PATIENCE_S

    def wait(self, error: BatchyardError) -> None:
        if isinstance(error, BrokerUnavailable) or time.monotonic() > self._until:
            raise error
        time.sleep(_AGAIN_S)
