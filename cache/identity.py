"""A durable store's id: what tells the store of a yard from an empty one, and from another's.

One small sealed object, under a name that only the yard's keys give. Whoever opens a yard's store first makes it.
"""

from __future__ import annotations

import io
import secrets

from batchyard.broker.errors import IntegrityError, InvalidConfig, NotFound
from batchyard.broker.seal import KeyRing

from .stores.protocol import Store

_ABOUT = "id of the store"
_MOST_BYTES = 4096


def store_id(store: Store, ring: KeyRing, *, make: bool = False) -> str | None:
    """The id; make: give it one if it has none. None: it has none. IntegrityError: what is there does not open."""
    name = ring.yard_name(_ABOUT)
    if store.stat(name) is None:
        if not make:
            return None
        sealed = ring.seal(secrets.token_hex(16).encode(), _ABOUT.encode(), lasting=True)
        store.put_if_absent(name, io.BytesIO(sealed), len(sealed))  # what counts is what is read then
    try:
        with store.get(name) as reader:
            found, size = bytearray(_MOST_BYTES), 0
            while count := reader.readinto(memoryview(found)[size:]):
                size += count
    except NotFound:
        return None
    try:
        return ring.open(bytes(found[:size]), _ABOUT.encode(), lasting=True).decode()
    except UnicodeDecodeError:
        raise IntegrityError("the id of the store is no text") from None


def refuse_other(store: Store, ring: KeyRing, known: str | None) -> None:
    """InvalidConfig unless the store has this id, the yard's; None: the yard has no store yet, so any will do."""
    if known is not None and (found := store_id(store, ring)) != known:
        why = "has no id" if found is None else "has another id"
        raise InvalidConfig(f"this is not the yard's store: it {why}; correct --store, or BATCHYARD_STORE")
