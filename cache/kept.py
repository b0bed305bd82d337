"""What a yard keeps for itself in its durable store: small sealed objects, each of them twice.

An object is the same for all tenants, under a name that only the yard's keys give.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

from batchyard.broker.errors import IntegrityError, NotFound
from batchyard.broker.seal import KeyRing, SealUnknown

from .stores.protocol import Store, Unreadable, levels

MOST_BYTES = 64 << 20
_TWINS = ("second", "first")  # the first one is written last: where it is, the other one is


class Kept:
    """`what` tells one thing from another. Both twins are sealed under the key that was current then."""

    def __init__(self, store: Store, ring: KeyRing) -> None:
        self._store, self._ring = levels(store)[-1], ring

    def put(self, what: str, data: bytes) -> bytes:
        """Keep something, durable when it returns; what is kept: of several puts the first one counts."""
        for twin in _TWINS:
            about = _about(what, twin)
            sealed = self._ring.seal(data, about)
            if not self._store.put_if_absent(self._name(what, twin), io.BytesIO(sealed), len(sealed)):
                found = self._get(what, twin)
                data = data if found is None else found
        return data

    def get(self, what: str) -> bytes | None:
        """None: there is no such thing. SealUnknown: neither twin opens. StoreUnavailable."""
        failed: Exception | None = None
        for twin in reversed(_TWINS):
            try:
                found = self._get(what, twin)
            except (IntegrityError, Unreadable) as error:
                failed = error
                continue
            if found is not None:
                return found
        if failed is not None:
            raise SealUnknown(f'what the store keeps of "{what}" does not open: {failed}') from failed
        return None

    def has(self, what: str) -> bool:
        """Whether both twins were put; says nothing of their content."""
        return self._store.stat(self._name(what, _TWINS[-1])) is not None

    def drop(self, what: str) -> None:
        """Forget it. Not an error if there is no such thing. When it is killed, the thing is still there for `has`."""
        for twin in _TWINS:
            self._store.delete(self._name(what, twin))

    def names(self, what: str) -> Iterator[str]:
        """What its objects are called in the store."""
        return (self._name(what, twin) for twin in _TWINS)

    def _name(self, what: str, twin: str) -> str:
        return self._ring.yard_name(f"{what} {twin}")

    def _get(self, what: str, twin: str) -> bytes | None:
        try:
            with self._store.get(self._name(what, twin)) as reader:
                found = bytearray()
                buffer = memoryview(bytearray(1 << 16))
                while count := reader.readinto(buffer):
                    found += buffer[:count]
                    if len(found) > MOST_BYTES:
                        raise IntegrityError(f'"{what}" is larger than anything that is kept so')
        except NotFound:
            return None
        return self._ring.open(bytes(found), _about(what, twin))


def _about(what: str, twin: str) -> bytes:
    return f"kept {what} {twin}".encode()
