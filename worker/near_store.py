"""A node's near store, opened: a place of this node alone, since what is there beyond its budget is deleted."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Container
from pathlib import Path

from batchyard.broker.errors import IntegrityError, InvalidConfig, NotFound
from batchyard.broker.seal import KeyRing, read_full
from batchyard.broker.store import Yard
from batchyard.cache.identity import store_id
from batchyard.cache.stores.place import store_at
from batchyard.cache.stores.protocol import Store

_ABOUT = "mark of a near store"
_MOST_MARK = 4096


def mark_of(ring: KeyRing) -> str:
    """The name of the small object that says that a store is a node's near one."""
    return ring.yard_name(_ABOUT)


def open_near_store(spec: str, ring: KeyRing, known: Container[str], *, durable: str) -> Store:
    """The store of a spec, marked as near; nothing of it is deleted before it is seen to be one. known: the names of
    objects that this node put there. durable: the spec of the yard's store. InvalidConfig: it may be somebody's only
    copy. StoreUnavailable, DiskFull.
    """
    if _same(spec, durable):
        raise InvalidConfig("--near and --store are the same place; give --near an empty one, or leave it out")
    store = store_at(spec, create=True, sweep_after_s=None)
    if _has_id(store, ring):
        raise InvalidConfig(f'"{spec}" is the durable store of a yard; give --near an empty place')
    mark = mark_of(ring)
    if store.stat(mark) is None:
        if any(name not in known for name in store.names()):
            raise InvalidConfig(
                f'"{spec}" holds objects that no node\'s near store put there; give --near an empty place'
            )
        sealed = ring.seal(b"near", _ABOUT.encode(), lasting=True)
        store.put_if_absent(mark, io.BytesIO(sealed), len(sealed))
    return store_at(spec, create=True, sweep_after_s=0)


def id_of(store: Store, ring: KeyRing) -> str:
    """Tells one near store from another: of its mark, which no two have in common. Empty: it has none. Raises
    StoreUnavailable.
    """
    try:
        with store.get(mark_of(ring)) as reader:
            mark = bytearray(_MOST_MARK)
            return hashlib.sha256(mark[: read_full(reader, memoryview(mark))]).hexdigest()[:16]
    except NotFound:
        return ""


def check_alone(yard: Yard, node: str, near_id: str, *, alive_s: float) -> None:
    """InvalidConfig: another node that lives has this near store too, and each would delete what the other keeps.
    BrokerUnavailable.
    """
    since_s = yard.now_s() - alive_s
    for name, about in yard.nodes().items():
        if name != node and near_id and about.get("near") == near_id and float(about["seen"]) > since_s:
            raise InvalidConfig(f'node "{name}" uses the same store as --near; give each node one of its own')


def _same(one: str, other: str) -> bool:
    if "://" in one or "://" in other:
        return one == other
    return Path(one).resolve() == Path(other).resolve()


def _has_id(store: Store, ring: KeyRing) -> bool:
    try:
        return store_id(store, ring) is not None
    except IntegrityError:  # one that does not open
        return True
