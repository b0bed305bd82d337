"""The yard's durable store, opened by a node: the one that all its nodes have, or none."""

from __future__ import annotations

from batchyard.broker.errors import BrokerUnavailable, IntegrityError, InvalidConfig, NotFound, StoreUnavailable
from batchyard.broker.seal import KeyRing
from batchyard.broker.store import Yard
from batchyard.cache.identity import store_id
from batchyard.cache.stores.place import store_at
from batchyard.cache.stores.protocol import Store


def open_yard_store(yard: Yard, spec: str, *, new: bool = False) -> Store:
    """The store of a spec, if it is the yard's. A yard that has none yet takes this one, made if need be; new: so does
    one that has another. InvalidConfig: it is not the yard's. StoreUnavailable: it, or Redis, is away.
    """
    try:
        known = None if new else yard.store_id()
        make = known is None
        store = _opened(spec, make=make)
        found = _id_of(store, yard.ring, spec, make=make)
        if known is None and found is not None:
            known = yard.keep_store_id(found, replace=new)
    except BrokerUnavailable as error:
        raise StoreUnavailable(f"nobody can say whether this is the yard's store: {error}") from error
    if found is None or found != known:
        raise not_ours(f'"{spec}" ' + ("has no id" if found is None else "has another id"))
    # what is opened to be made is also cleared of what killed writers left
    return store if make else store_at(spec, create=True)


def not_ours(why: str) -> InvalidConfig:
    """What is wrong with a store, and what to do."""
    return InvalidConfig(
        f"this is not the yard's store: {why}; correct --store, or start one node (or `up`) with --new-store to give "
        "the yard this one"
    )


def _opened(spec: str, *, make: bool) -> Store:
    try:
        return store_at(spec, create=make)
    except NotFound as error:
        raise not_ours(str(error).partition(";")[0]) from None


def _id_of(store: Store, ring: KeyRing, spec: str, *, make: bool) -> str | None:
    try:
        return store_id(store, ring, make=make)
    except IntegrityError as error:
        raise not_ours(f'"{spec}": {error}') from None
