"""Nodes without jobs: a near store with a peer door, over a durable store that all have; real Redis, real HTTP.

with NearNode("a", yard, far, folder) as a, NearNode("b", yard, far, folder) as b:
    a.blobs.put_bytes(b"x")
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from batchyard.broker.store import Yard
from batchyard.cache.index import Index
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.bounded import Bounded
from batchyard.cache.stores.counted import Counted
from batchyard.cache.stores.disk import DirectoryStore
from batchyard.cache.stores.protocol import Store
from batchyard.cache.stores.tiered import Tiered
from batchyard.worker.options import NodeOptions
from batchyard.worker.peering import Peering

GIB = 1 << 30


class NearNode:
    """What `worker.levels` makes of --near and --peer-address, and a heartbeat that says where the door is.

    `far` counts what it takes from the durable store, `plain` is its near store without any account. address: what
    others are told in place of the door's own.
    """

    def __init__(self, name: str, yard: Yard, far: Store, folder: Path, *, address: str | None = None) -> None:
        place = folder / f"near-{name}"
        options = NodeOptions(
            name=name, state=folder, store="", queues=(), vcpus=1, memory_mib=64, disk_gib=1, near=str(place),
            peer_address="127.0.0.1",
        )  # fmt: skip
        self.name, self._yard = name, yard
        self.peering = Peering(options, yard)
        self.far = Counted(far)
        self.plain = DirectoryStore(place)
        index = place / "index"
        index.mkdir(exist_ok=True)
        bounded = Bounded(self.peering.near(self.plain), Index(index), GIB)
        bounded.count()
        self.peered = self.peering.far(self.far)
        self.tiered = Tiered(bounded, self.peered)
        self.peering.open(bounded, self.tiered.arriving)
        self.blobs = BlobStore(self.tiered, yard.ring)
        self.beat(address)

    def __enter__(self) -> NearNode:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def beat(self, address: str | None = None) -> None:
        """Tell where the door is."""
        self._yard.renew(self.name, {"peer": address or self.peering.address}, {}, lease_s=30)

    def settle(self) -> None:
        """Until all that was read or put is in the near store."""
        assert self.tiered.settle(30)

    def stop(self) -> None:
        """The door is shut."""
        self.peering.close()
