"""Blobs by digest over a store that is not trusted: sealed on the way in, verified on the way out.

What fails to open, or what the store itself cannot read, is looked at once more, and if it fails again deleted,
counted, and reported as IntegrityError. An object sealed under a key that this ring lacks is reported (SealUnknown) and
left alone: it may be this node's key file that is old.
"""

from __future__ import annotations

import io
import logging
import os
import stat
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar, runtime_checkable

from batchyard.broker.errors import (
    BatchyardError,
    BlobMissing,
    InputError,
    IntegrityError,
    NotFound,
    StoreUnavailable,
)
from batchyard.broker.seal import KeyRing, Opening, Readable, SealUnknown, Witness, mark_of, read_full

from .digest import Blob, Digest, Kind, copy_hashed, parse_digest
from .newfile import new_file
from .rewrap import Rewrap
from .stores.protocol import CopyLost, Store, Unreadable, levels
from .wraps import Wraps

log = logging.getLogger(__name__)
T = TypeVar("T")
_HEAD_BYTES = 256
_COPIES = 4
"""As many may be read in turn: the near one, those of two other nodes, the durable one."""
OnBytes: TypeAlias = Callable[[int], None]
"""Hears how many more bytes of content are done; in the end, of a call that succeeds, as many as the blob has."""
BeforePut: TypeAlias = Callable[[str, str], None]
"""Hears the name of an object and its mark (`seal.mark_of`) before it is put, and may wait, or refuse by an error."""


@runtime_checkable
class Resting(Protocol):
    """A store of levels that can leave its nearer ones alone for a while."""

    def rest(self, error: BatchyardError) -> None: ...


@dataclass(slots=True)
class Counters:
    """What a `BlobStore` did since it was made."""

    puts: int = 0
    """objects that this store got from us"""
    known_puts: int = 0
    """puts of what was there already"""
    sealed_bytes_in: int = 0
    fetches: int = 0
    """blobs read to their verified end"""
    plain_bytes_out: int = 0
    corrupt: int = 0
    """objects that did not open and were deleted"""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, **amounts: int) -> None:
        with self._lock:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)


class BlobStore:
    """What the rest of the yard uses. May be shared by threads, and by processes if the store may."""

    def __init__(self, store: Store, ring: KeyRing) -> None:
        self._store, self._ring, self._yard_ring = store, ring, ring
        self._wraps = Wraps(store, ring)
        self._before_put: BeforePut | None = None
        self.counters = Counters()

    def of(self, tenant: str) -> BlobStore:
        """What one tenant put and made, in the same store; the counters are shared. '' is the yard's own."""
        scoped = copy(self)
        scoped._ring = self._yard_ring.of(tenant)
        return scoped

    def rewrap(self) -> Rewrap:
        """The rotation of keys in this store, of all tenants."""
        return Rewrap(self._store, self._yard_ring)

    def telling(self, before_put: BeforePut) -> BlobStore:
        """The same blobs, for one who wants to hear what is put through this."""
        told = copy(self)
        told._before_put = before_put
        return told

    def name(self, digest: Digest) -> str:
        """What the blob is called wherever tenants share a place: 64 hex digits, another tenant's are others."""
        return self._ring.name(digest)

    def put_file(self, path: Path, on_bytes: OnBytes | None = None) -> Blob:
        """Keep a file's content, durable when it returns. InputError: not a readable file. IntegrityError: the file
        changed while it was read. If the blob is there already, no bytes are moved.
        """
        try:
            # O_NONBLOCK: a fifo must be refused, not waited for
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(f'"{path}" cannot be read: {error.strerror}') from error
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise InputError(f'"{path}" is not a file; give a file, or put a directory as a tree')
            return self.put_fd(fd, on_bytes)
        except OSError as error:  # of reading the file: a store raises none
            raise InputError(f'"{path}" cannot be read: {error.strerror}') from error
        finally:
            os.close(fd)

    def put_fd(self, fd: int, on_bytes: OnBytes | None = None) -> Blob:
        """As `put_file`, for a regular file that is open for reading. Moves the file's position."""
        before = os.fstat(fd)
        with io.FileIO(fd, closefd=False) as file:
            file.seek(0)
            witness = Witness()
            # 1 more: growing is seen, endless growth ends
            digest, size = copy_hashed(file, witness.see, limit=before.st_size + 1)
            after = os.fstat(fd)
            if size != before.st_size or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise IntegrityError(f"the bytes of {digest} changed while they were read")
            file.seek(0)
            reader = _Told(file, on_bytes)
            blob = self._put(reader, digest, size, "file", witness)
            reader.tell(size - reader.told)  # what the store had already was not read
            return blob

    def put_bytes(self, data: bytes, kind: Kind = "file") -> Blob:
        """Keep bytes, durable when it returns."""
        witness = Witness()
        digest, size = copy_hashed(io.BytesIO(data), witness.see)
        return self._put(io.BytesIO(data), digest, size, kind, witness)

    def _put(self, reader: Readable, digest: Digest, size: int, kind: Kind, witness: Witness | None = None) -> Blob:
        sealing = self._ring.seal_stream(reader, digest, size, witness=witness)
        if self._before_put is not None:
            self._before_put(self._ring.name(digest), sealing.mark)
        if self._store.put_if_absent(self._ring.name(digest), sealing, sealing.length):
            self.counters.add(puts=1, sealed_bytes_in=sealing.length)
        else:
            self.counters.add(known_puts=1)
        return Blob(digest=digest, size=size, kind=kind)

    def has(self, digest: Digest) -> bool:
        """Whether the store has an object for this digest; says nothing of its content."""
        return self._store.stat(self._ring.name(parse_digest(digest))) is not None

    def delete(self, name: str, marks: Collection[str], *, sure: Callable[[], None] = lambda: None) -> int | None:
        """Delete an object if it is one of these puts, by `seal.mark_of`; its size as stored. None: there is none, or
        it is somebody else's. StoreUnavailable. Nobody may put it meanwhile.

        sure: called right before it is deleted; raises if it must not be any more.
        """
        durable = levels(self._store)[-1]  # a near copy may be of an object that was here before
        try:
            with durable.get(name) as reader:
                if mark_of(_head_of(reader)) not in marks:
                    return None
            size = durable.stat(name)
        except NotFound:
            return None
        sure()
        self._store.delete(name)
        return size

    def check(self, name: str, reader: Readable, on_bytes: OnBytes | None = None) -> tuple[Digest, int]:
        """Read an object, of any tenant's, to its verified end: its digest, and the size of its content. Nothing is
        deleted. IntegrityError, SealUnknown; of its store StoreUnavailable, Unreadable.
        """
        opening = self._ring.opening_of(reader, name, self._wraps.find)
        for piece in opening.chunks():
            if on_bytes is not None:
                on_bytes(len(piece))
        return opening.digest, opening.size

    def condemn(self, name: str) -> bool:
        """Delete a durable object that does not open, unless a second look finds it sound. StoreUnavailable."""
        durable = levels(self._store)[-1]
        head: bytes | None = None
        try:
            with durable.get(name) as reader:
                head = _head_of(reader)
                self.check(name, _From(head, reader))
        except (SealUnknown, NotFound):
            return False
        except (IntegrityError, Unreadable):
            gone = _delete_same(durable, name, head)
            self.counters.add(corrupt=int(gone))
            return gone
        return False

    def tell(self, name: str) -> Digest | None:
        """Which blob the object of this name is, by its first bytes alone; None: no blob, but what the yard keeps
        beside them. NotFound, IntegrityError, SealUnknown, StoreUnavailable.
        """
        with levels(self._store)[-1].get(name) as reader:
            head = _head_of(reader)
        return self._ring.digest_in(head, name, self._wraps.find) if mark_of(head) is not None else None

    def fetch(
        self,
        digest: Digest,
        size: int | None,
        sink_path: Path | Callable[[int], Path],
        mode: int = 0o444,
        on_bytes: OnBytes | None = None,
    ) -> None:
        """Write the verified plaintext to `sink_path`, which appears whole, with this mode, or not at all.

        `sink_path` may be a function of the authentic size, called before anything is written, perhaps twice. Not
        synced: after a power cut a copy may be cut short. NotFound; IntegrityError; DiskFull; StoreUnavailable;
        InputError if `size` is given and wrong.
        """
        told = _Told(None, on_bytes)
        _again(lambda: self._fetch(digest, size, sink_path, mode, told))

    def _fetch(
        self, digest: Digest, size: int | None, sink_path: Path | Callable[[int], Path], mode: int, told: _Told
    ) -> None:
        with self._opened(digest) as opening:
            if size is not None and size != opening.size:
                raise InputError(
                    f"blob {digest} has {opening.size} bytes, not {size}; correct the size or leave it out"
                )
            path = sink_path if isinstance(sink_path, Path) else sink_path(opening.size)
            done = 0

            def on_piece(count: int) -> None:
                nonlocal done
                done += count
                told.tell(max(0, done - told.told))  # from another copy, what was told already is not told again

            with new_file(path.parent) as new:
                opening.pour(new.write_at, on_piece)
                new.replace(path, mode)
            self.counters.add(fetches=1, plain_bytes_out=opening.size)

    def read_bytes(self, digest: Digest, limit: int) -> bytes:
        """The verified content of a blob of at most `limit` bytes. InputError: it is larger."""
        return bytes(_again(lambda: self._read(digest, limit)))

    def read_sized(self, digest: Digest, size: int) -> memoryview:
        """The verified content of a blob that has this size. InputError: it has another."""
        data = memoryview(_again(lambda: self._read(digest, size)))
        if len(data) != size:
            raise InputError(f"blob {digest} has {len(data)} bytes, not {size}; correct the size")
        return data

    def _read(self, digest: Digest, limit: int) -> bytearray:
        with self._opened(digest) as opening:
            if opening.size > limit:
                raise InputError(f"blob {digest} has {opening.size} bytes; at most {limit} are allowed here")
            data = bytearray(opening.size)
            read_full(opening, memoryview(data))
            self.counters.add(fetches=1, plain_bytes_out=opening.size)
            return data

    @contextmanager
    def open(self, digest: Digest) -> Iterator[io.BufferedReader[Opening]]:
        """Read a blob as a stream. Every byte given is authentic, but only the end proves that the blob is whole:
        reads raise IntegrityError there, so act on nothing before the end was read.
        """
        with self._opened(digest) as opening, io.BufferedReader(opening) as reader:
            yield reader

    @contextmanager
    def _opened(self, digest: Digest) -> Iterator[Opening]:
        name = self._ring.name(parse_digest(digest))
        opening: Opening | None = None
        try:
            with ExitStack() as stack:
                try:
                    reader = stack.enter_context(self._store.get(name))
                except NotFound:
                    raise BlobMissing(f"blob {digest} is not in the store; put it first") from None
                opening = self._ring.opening(reader, digest, self._wraps.find)
                yield opening
        except SealUnknown as error:
            if opening is not None or len(levels(self._store)) == 1:
                raise
            raise self._condemn(digest, name, error) from error
        except Unreadable as error:
            raise self._condemn(digest, name, IntegrityError(f"blob {digest} is damaged: {error}")) from error
        except IntegrityError as error:
            if opening is not None and error is not opening.failure:
                raise  # of something else that the caller did meanwhile
            raise self._condemn(digest, name, error) from error

    def _condemn(self, digest: Digest, name: str, cause: BatchyardError) -> BatchyardError:
        """Delete a copy that did not open, unless a second look finds it sound; the error to raise.

        The second look forgives a bad read, and an object that another node has already replaced. Each level is looked
        at by itself, the nearest first: a bad copy near us takes no good one with it.
        """
        every = levels(self._store)
        for level in every:
            durable = level is every[-1]
            head: list[bytes] = []
            try:
                self._read_through(level, name, digest, head)
            except SealUnknown as error:
                if durable:
                    return error
                with suppress(StoreUnavailable):  # what the durable one has may have been put again since
                    _delete_same(level, name, *head)
                continue
            except NotFound:
                continue
            except (IntegrityError, Unreadable):
                try:
                    deleted = _delete_same(level, name, *head)
                except StoreUnavailable as error:
                    if durable or not isinstance(self._store, Resting):
                        raise
                    self._store.rest(error)
                    return CopyLost(f"{cause}; that copy could not be deleted and is left alone, try again: {error}")
                if deleted:
                    self.counters.add(corrupt=1)
                    if not durable:
                        return CopyLost(f"{cause}; that copy was deleted, try again")
                    break
            except StoreUnavailable:
                if durable:
                    raise
                continue
            said = f"{cause} at first and did at a second look; try again"
            return StoreUnavailable(said) if len(every) == 1 else CopyLost(said)
        return IntegrityError(f"{cause}; it was deleted from the store, put it again")

    def _read_through(self, level: Store, name: str, digest: Digest, head: list[bytes]) -> None:
        """One level's copy to its verified end. head: gets what `_head_of` says of it."""
        with level.get(name) as reader:
            head.append(_head_of(reader))
            for _ in self._ring.opening(_From(head[0], reader), digest, self._wraps.find).chunks():
                pass


def _head_of(reader: Readable) -> bytes:
    """Of an object: its header and more, which no two puts have in common, not even of one blob."""
    head = bytearray(_HEAD_BYTES)
    return bytes(head[: read_full(reader, memoryview(head))])


def _delete_same(level: Store, name: str, head: bytes | None = None) -> bool:
    """Delete an object unless it was put again since it was judged; head: None if it could not be read. Whether it is
    gone. StoreUnavailable.
    """
    try:
        with level.get(name) as reader:
            if _head_of(reader) != head:
                return False
    except NotFound:
        return True
    except Unreadable:
        pass
    level.delete(name)
    return True


class _From:
    """A reader that begins with what was read already."""

    def __init__(self, head: bytes, reader: Readable) -> None:
        self._head, self._reader = memoryview(head), reader

    def readinto(self, buffer: memoryview, /) -> int:
        if not self._head:
            return self._reader.readinto(buffer) or 0
        count = min(len(buffer), len(self._head))
        buffer[:count], self._head = self._head[:count], self._head[count:]
        return count


def _again(act: Callable[[], T]) -> T:
    """Again while the copy that was read is given up: the next one is another."""
    for _ in range(_COPIES - 1):
        try:
            return act()
        except CopyLost as error:
            log.warning("%s", error)
    return act()


class _Told:
    """A reader that tells how far it was read."""

    def __init__(self, reader: Readable | None, on_bytes: OnBytes | None) -> None:
        self._reader, self._on_bytes, self.told = reader, on_bytes, 0

    def readinto(self, buffer: memoryview, /) -> int:
        count = (self._reader.readinto(buffer) or 0) if self._reader is not None else 0
        self.tell(count)
        return count

    def tell(self, count: int) -> None:
        self.told += count
        if self._on_bytes is not None and count:
            self._on_bytes(count)
