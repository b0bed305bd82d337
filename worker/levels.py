"""The levels of a node's cache, put together as its options say.

job <- copies (L1: memory, then scratch) <- near store (L2, with --near) <- durable store (L4)
                                                                         <- other nodes' near stores (L3, with
                                                                            --peer-address)
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from batchyard.broker.errors import BatchyardError, BrokerUnavailable, DiskFull, InvalidConfig, StoreUnavailable
from batchyard.broker.seal import KeyRing
from batchyard.broker.store import Yard
from batchyard.cache.copies.folder import Folder
from batchyard.cache.copies.local import LocalCopies
from batchyard.cache.copies.scrub import Scrub
from batchyard.cache.index import Index
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.bounded import LEVEL, Bounded
from batchyard.cache.stores.counted import Counted
from batchyard.cache.stores.late import Late
from batchyard.cache.stores.protocol import Store
from batchyard.cache.stores.tiered import Tiered

from . import memory
from .near_store import id_of, mark_of, open_near_store
from .options import NodeOptions
from .peering import Peering
from .yard_store import open_yard_store

log = logging.getLogger(__name__)
_COUNT_AGAIN_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheFacts:
    """What a node tells of its cache, since it was started; held is now. Fetched bytes are content, others sealed.

    peer_bytes: from other nodes; given_bytes: to them; peer_failures: how often one was asked in vain.
    """

    hits: int
    misses: int
    evictions: int
    fetched_bytes: int
    held_bytes: int
    limit_bytes: int
    far_bytes: int
    near_bytes: int = 0
    near_held_bytes: int = 0
    near_evictions: int = 0
    peer_bytes: int = 0
    peer_failures: int = 0
    given_bytes: int = 0
    scrubbed_bytes: int = 0
    scrub_bad: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """blobs: the stores as one. near: None without --near. peering: None without --peer-address. yard_store: reached
    once it was seen to be the yard's.
    """

    blobs: BlobStore
    copies: LocalCopies
    far: Counted
    near: Counted | None = None
    bounded: Bounded | None = None
    yard_store: Late
    scrub: Scrub
    peering: Peering | None = None

    def near_id(self, ring: KeyRing) -> str:
        """Tells the near store from others'; empty where there is none, or it does not answer."""
        try:
            return id_of(self.bounded, ring) if self.bounded else ""
        except StoreUnavailable:
            return ""

    @property
    def peer_address(self) -> str:
        """Where other nodes get what is in the near store; empty where they do not."""
        return self.peering.address if self.peering else ""

    def facts(self) -> CacheFacts:
        copies, scrub = self.copies.counts, self.scrub.counts
        return CacheFacts(
            hits=copies.hits,
            misses=copies.misses,
            evictions=copies.evictions,
            fetched_bytes=copies.fetched_bytes,
            held_bytes=copies.held_bytes,
            limit_bytes=copies.limit_bytes,
            far_bytes=self.far.counts.get_bytes,
            near_bytes=self.near.counts.get_bytes if self.near else 0,
            near_held_bytes=self.bounded.held_bytes if self.bounded else 0,
            near_evictions=self.bounded.evictions if self.bounded else 0,
            peer_bytes=self.peering.fetched_bytes if self.peering else 0,
            peer_failures=self.peering.failures if self.peering else 0,
            given_bytes=self.peering.given_bytes if self.peering else 0,
            scrubbed_bytes=scrub.bytes,
            scrub_bad=scrub.bad,
        )


def open_levels(options: NodeOptions, yard: Yard) -> Levels:
    """Stores that are away are reached later. InvalidConfig: also of a store that is not the yard's. StoreUnavailable,
    DiskFull: of the node's own folders.
    """
    ring = yard.ring
    if options.peer_address is not None and options.near is None:
        raise InvalidConfig("--peer-address lets other nodes into the store of --near; give that too")
    peering = Peering(options, yard) if options.peer_address is not None else None
    yard_store = Late(lambda: open_yard_store(yard, options.store, new=options.new_store))
    _try(yard_store, options.store)
    root = options.files / "copies"
    folders = [Folder(root, int(options.copies_gib * 2**30))]  # locks it, so it comes before the index
    if options.copies_memory_mib:
        in_memory = memory.open_folder(options.state, options.copies_memory_mib << 20)
        folders = [*([in_memory] if in_memory else []), *folders]
    index = Index(root)
    far = Counted(yard_store)
    if options.near is None:
        blobs = BlobStore(far, ring)
        copies = LocalCopies(blobs, index, folders)
        return Levels(blobs=blobs, copies=copies, far=far, yard_store=yard_store, scrub=Scrub(copies))
    near_store = _near(options.near, yard, index, durable=options.store)
    if peering is not None:
        near_store = peering.near(near_store)
    bounded = Bounded(near_store, index, int(options.near_gib * 2**30), keep=mark_of(ring))
    threading.Thread(target=_count, args=(bounded,), name="count the near store", daemon=True).start()
    near = Counted(bounded)
    tiered = Tiered(near, peering.far(far) if peering is not None else far)
    if peering is not None:
        peering.open(bounded, tiered.arriving)
    blobs = BlobStore(tiered, ring)
    copies = LocalCopies(blobs, index, folders)
    return Levels(
        blobs=blobs,
        copies=copies,
        far=far,
        near=near,
        bounded=bounded,
        yard_store=yard_store,
        scrub=Scrub(copies, bounded),
        peering=peering,
    )


def _near(spec: str, yard: Yard, index: Index, *, durable: str) -> Store:
    """A bucket that does not answer is reached later; a folder that cannot be used is a mistake. InvalidConfig."""
    known = {entry.key for _, entry in index.load(LEVEL)}
    started = False

    def reach() -> Store:
        try:
            return open_near_store(spec, yard.ring, known, durable=durable)
        except (InvalidConfig, DiskFull) as error:
            if not started:
                raise
            raise StoreUnavailable(str(error)) from error  # the node works: without it

    late = _try(Late(reach), spec)
    started = True
    return late


def _try(late: Late, spec: str) -> Late:
    try:
        late.reach()
    except StoreUnavailable as error:
        if not spec.startswith("s3://") and not isinstance(error.__cause__, BrokerUnavailable):
            raise
        log.warning("the node starts without a store: %s", error)
    return late


def _count(near: Bounded) -> None:
    pause = threading.Event()
    while True:
        try:
            near.count()
            return
        except BatchyardError as error:
            log.warning("the near store is not used yet: %s", error)
        except Exception:
            log.exception("the near store is not used yet")
        pause.wait(_COUNT_AGAIN_S)
