"""What a node holds is read again, slowly, before a job finds out that it is damaged: copies are compared with their
digests, near objects are opened. What is bad is removed, and fetched again when it is wanted.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from batchyard.broker.errors import BatchyardError, InputError, IntegrityError, NotFound, StoreUnavailable
from batchyard.broker.seal import SealUnknown

from ..digest import Digest, digest_of
from ..manifest import Directory, Entry, File, Symlink
from ..sealed import BlobStore
from ..stores.bounded import Bounded
from ..stores.protocol import Unreadable
from ..tree import read_tree
from .local import LocalCopies

log = logging.getLogger(__name__)
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubCounts:
    """Since start. bytes: read again; bad: removed; unknown: of which nobody can say now what they should be."""

    bytes: int = 0
    bad: int = 0
    unknown: int = 0


class Pace:
    """Not more than so many bytes a second: `spend` waits as long as that takes."""

    def __init__(self, bytes_per_s: float, wait: Callable[[float], object] = time.sleep) -> None:
        self._bytes_per_s, self._wait = bytes_per_s, wait

    def spend(self, bytes_: int) -> None:
        self._wait(bytes_ / self._bytes_per_s)


class Scrub:
    """`step` looks at one copy or object. Not for use by several threads at once."""

    def __init__(self, copies: LocalCopies, near: Bounded | None = None) -> None:
        self._held, self._blobs, self._near = copies.held, copies.blobs, near
        self._tenants: frozenset[str] = frozenset()
        self._spend: Callable[[int], None] = lambda bytes_: None
        self._seen: dict[str, Digest] = {}
        self._todo: Iterator[Callable[[], None]] | None = None
        self.counts = ScrubCounts()

    def step(self, tenants: Iterable[str] = (), spend: Callable[[int], None] = lambda bytes_: None) -> bool:
        """False: that was all; the next step begins anew. tenants: all whose blobs may be here. spend: called with the
        bytes that were read, and may wait.
        """
        self._tenants, self._spend = frozenset({"", *tenants}), spend
        try:
            self._todo = self._todo or self._everything()
            act = next(self._todo, None)
            if act is None:
                self._todo = None
                return False
            act()
        except (BatchyardError, OSError) as error:
            log.warning("a copy could not be looked at: %s", error)
        return True

    def _everything(self) -> Iterator[Callable[[], None]]:
        for path, key in self._held.copies():
            yield partial(self._copy, path, key)
        for name in self._near.held() if self._near is not None else ():
            yield partial(self._object, name)

    # -- copies
    def _copy(self, path: Path, key: str) -> None:
        name = key.partition("/")[2]
        stamp = self._held.stamp(path, key)
        try:
            good = self._is(self._hashed(path), name) if key.startswith("file/") else self._is_tree(path, key)
        except FileNotFoundError:
            return  # evicted meanwhile
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            good = False  # a disk that does not give its bytes any more
        except (SealUnknown, StoreUnavailable) as error:
            log.info("copy %s cannot be checked now: %s", key, error)
            self.counts = replace(self.counts, unknown=self.counts.unknown + 1)
            return
        if good or stamp is None:
            return
        found = self._held.condemn(path, key, stamp)
        if found == "gone":
            return
        self.counts = replace(self.counts, bad=self.counts.bad + 1)
        if found == "in use":
            log.error("copy %s is damaged, and running jobs read it: their outputs may be wrong; see the disk", path)
        else:
            log.warning("copy %s was damaged and is removed; it is fetched again when it is wanted", path)

    def _is(self, digest: Digest, name: str) -> bool:
        """Whether the blob has this name for one of the tenants, or is what the store has under it."""
        if any(self._blobs.of(tenant).name(digest) == name for tenant in self._tenants):
            return True
        try:
            return self._blobs.tell(name) == digest
        except NotFound:
            return False
        except IntegrityError as error:
            raise StoreUnavailable(f"its object in the store does not open: {error}") from error

    def _is_tree(self, path: Path, key: str) -> bool:
        """Whether a directory is what its manifest says. Of one without a manifest in the store, such as what was in an
        archive, whether it is as it was at the first look.
        """
        there = sorted(map(_content, self._walk(path, "")))
        said = self._said(key)
        if said is not None:
            return there == said
        seen = digest_of(json.dumps(there).encode())
        return self._seen.setdefault(key, seen) == seen

    def _said(self, key: str) -> list[tuple[str, ...]] | None:
        kind, _, name = key.partition("/")
        if kind != "tree":
            return None
        try:
            digest = self._blobs.tell(name)
            if digest is None:
                return None
            return sorted(map(_content, read_tree(self._blobs_of(digest, name), digest).entries))
        except (NotFound, InputError):
            return None
        except SealUnknown:
            raise
        except IntegrityError as error:
            raise StoreUnavailable(f"its manifest in the store does not open: {error}") from error

    def _blobs_of(self, digest: Digest, name: str) -> BlobStore:
        """Those of the tenant that has this one."""
        for tenant in self._tenants:
            if self._blobs.of(tenant).name(digest) == name:
                return self._blobs.of(tenant)
        raise StoreUnavailable("it is of a tenant that has no queue any more")

    def _walk(self, path: Path, prefix: str) -> Iterator[Entry]:
        for found in os.scandir(path):
            name = prefix + found.name
            if found.is_symlink():
                yield Symlink(path=name, target=os.readlink(found.path))
            elif found.is_dir(follow_symlinks=False):
                yield Directory(path=name)
                yield from self._walk(Path(found.path), name + "/")
            else:
                status = found.stat(follow_symlinks=False)
                executable = bool(status.st_mode & stat.S_IXUSR)
                yield File(path=name, digest=self._hashed(Path(found.path)), size=status.st_size, executable=executable)

    def _hashed(self, path: Path) -> Digest:
        seen, buffer = hashlib.sha256(), memoryview(bytearray(_PIECE_BYTES))
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                seen.update(buffer[:count])
                self._read(count)
        return "sha256:" + seen.hexdigest()

    # -- the near store
    def _object(self, name: str) -> None:
        assert self._near is not None
        try:
            with self._near.look(name) as reader:
                self._blobs.check(name, reader, self._read)
        except (NotFound, SealUnknown):
            return
        except (IntegrityError, Unreadable) as error:
            log.warning("near object %s is damaged and is removed: %s", name, error)
            self._near.delete(name)
            self.counts = replace(self.counts, bad=self.counts.bad + 1)

    def _read(self, count: int) -> None:
        self.counts = replace(self.counts, bytes=self.counts.bytes + count)
        self._spend(count)


def _content(entry: Entry) -> tuple[str, ...]:
    match entry:
        case File():
            return entry.path, "file", entry.digest, str(entry.executable)
        case Directory():
            return entry.path, "directory"
        case Symlink():
            return entry.path, "symlink", entry.target
