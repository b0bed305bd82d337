"""What the doors need of a blob store. The layer above gives it, through the entry point group `batchyard.blobs`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, cast

from .errors import InvalidConfig
from .keysource import AnySource, load_ring
from .seal import KeyRing

GROUP = "batchyard.blobs"

OnBytes = Callable[[int], None]
"""Hears how many more bytes of content are done."""
BeforePut = Callable[[str, str], None]
"""Hears name and mark of an object before it is put; see `expiry`."""


class Lines(Protocol):
    """A stream that is read line by line."""

    def readline(self) -> bytes: ...


class Blobs(Protocol):
    """Files and directories by digest."""

    def of(self, tenant: str) -> Blobs:
        """One tenant's; '' for the yard's own. Another one's are as if they were not there."""
        ...

    def put(
        self, path: Path, *, on_bytes: OnBytes | None = None, before_put: BeforePut | None = None
    ) -> dict[str, Any]:
        """Keeps a file or directory: {"digest", "size" in bytes, "kind": "file" or "tree"}. InputError, DiskFull …"""
        ...

    def get(self, digest: str, path: Path, *, part: str = "", on_bytes: OnBytes | None = None) -> str:
        """Writes the verified content to `path`, which must not exist; its kind. part: only what the tree has at this
        path. NotFound, IntegrityError …
        """
        ...

    def look(self, digest: str) -> dict[str, Any]:
        """What a blob is, without fetching it: {"digest", "kind", "size" of the file or of all files in the tree,
        "entries"}. An entry of a tree: {"path", "type": "file", "directory" or "symlink", "mode", "size", "digest",
        "target"}; the last three where they apply. NotFound, IntegrityError …
        """
        ...

    def open(self, digest: str) -> AbstractContextManager[Lines]:
        """A blob as a stream, authentic byte by byte; IntegrityError at its end if it is not whole."""
        ...


def open_blobs(store: str, ring: KeyRing, *, create: bool = False) -> Blobs:
    """The store of a spec. create: make it if there is none. Raises NotFound, InvalidConfig, StoreUnavailable."""
    for entry in entry_points(group=GROUP):
        return cast(Blobs, entry.load()(store, ring, create=create))
    raise InvalidConfig("this installation has no blob store; install batchyard again")


@dataclass(slots=True, kw_only=True)
class Rewrapped:
    """What one pass over a store found. damaged, unknown: names of objects whose header is broken, or whose key is not
    here; neither was touched.
    """

    objects: int = 0
    """headers that were read"""
    wrapped: int = 0
    """that got a new wrap now"""
    skipped_shards: int = 0
    """that an earlier run had done"""
    damaged: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


OnShard = Callable[[int, int], None]
"""Hears how many shards are done, of how many."""


class Rewrapping(Protocol):
    """A rotation's part in the store; see `cache/rewrap.py`."""

    def refuse_other(self, known: str | None) -> None:
        """InvalidConfig unless the store has this id, the yard's; None: any will do."""
        ...

    def run(self, *, again: bool = False, on_shard: OnShard = ...) -> Rewrapped:
        """Wraps the keys of all blobs under the current one. StoreUnavailable, DiskFull, IntegrityError."""
        ...

    def census(self) -> Mapping[str, int]:
        """How many blobs each key is needed for. StoreUnavailable."""
        ...

    def forget(self, key_id: str) -> None:
        """What was kept for this key alone. StoreUnavailable."""
        ...


def open_rewrapping(store: str, ring: KeyRing) -> Rewrapping:
    """Of the store of a spec. Raises NotFound, InvalidConfig, StoreUnavailable."""
    opened: Any = open_blobs(store, ring)
    return cast(Rewrapping, opened.rewrap())


class LazyBlobs:
    """A store that is opened when it is first used: most commands never need it."""

    def __init__(self, store: str, keys: AnySource) -> None:
        self._store, self._keys = store, keys
        self._opened: Blobs | None = None
        self._ring: KeyRing | None = None

    @property
    def ring(self) -> KeyRing:
        """The keys that it seals with. Raises InvalidConfig."""
        if self._ring is None:
            self._ring = load_ring(self._keys)
        return self._ring

    def of(self, tenant: str) -> Blobs:
        return self._blobs().of(tenant) if tenant else self

    def put(
        self, path: Path, *, on_bytes: OnBytes | None = None, before_put: BeforePut | None = None
    ) -> dict[str, Any]:
        return self._blobs().put(path, on_bytes=on_bytes, before_put=before_put)

    def get(self, digest: str, path: Path, *, part: str = "", on_bytes: OnBytes | None = None) -> str:
        return self._blobs().get(digest, path, part=part, on_bytes=on_bytes)

    def look(self, digest: str) -> dict[str, Any]:
        return self._blobs().look(digest)

    def open(self, digest: str) -> AbstractContextManager[Lines]:
        return self._blobs().open(digest)

    def _blobs(self) -> Blobs:
        if self._opened is None:
            self._opened = open_blobs(self._store, self.ring)
        return self._opened
