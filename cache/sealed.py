"""Blobs by digest over a store that is not trusted: sealed on the way in, verified on the way out.

What fails to open is looked at once more, and if it fails again deleted, counted, and reported as IntegrityError. An
object sealed under a key that this ring lacks is reported (SealUnknown) and left alone: it may be this node's key file
that is old.
"""

from __future__ import annotations

import io
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from batchyard.broker.errors import (
    BatchyardError,
    InputError,
    IntegrityError,
    NotFound,
    StoreUnavailable,
)
from batchyard.broker.seal import KeyRing, Opening, SealUnknown

from .digest import Blob, Digest, Kind, copy_hashed, digest_of, parse_digest
from .newfile import new_file
from .store import Store


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
        self._store, self._ring = store, ring
        self.counters = Counters()

    def put_file(self, path: Path) -> Blob:
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
            return self.put_fd(fd)
        except OSError as error:  # of reading the file: a store raises none
            raise InputError(f'"{path}" cannot be read: {error.strerror}') from error
        finally:
            os.close(fd)

    def put_fd(self, fd: int) -> Blob:
        """As `put_file`, for a regular file that is open for reading. Moves the file's position."""
        before = os.fstat(fd)
        with io.FileIO(fd, closefd=False) as file:
            file.seek(0)
            digest, size = copy_hashed(file, limit=before.st_size + 1)  # 1 more: growing is seen, endless growth ends
            after = os.fstat(fd)
            if size != before.st_size or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise IntegrityError(f"the bytes of {digest} changed while they were read")
            file.seek(0)
            return self._put(file, digest, size, "file")

    def put_bytes(self, data: bytes, kind: Kind = "file") -> Blob:
        """Keep bytes, durable when it returns."""
        return self._put(io.BytesIO(data), digest_of(data), len(data), kind)

    def _put(self, reader: io.FileIO | io.BytesIO, digest: Digest, size: int, kind: Kind) -> Blob:
        sealing = self._ring.seal_stream(reader, digest, size)
        if self._store.put_if_absent(self._ring.name(digest), sealing, sealing.length):
            self.counters.add(puts=1, sealed_bytes_in=sealing.length)
        else:
            self.counters.add(known_puts=1)
        return Blob(digest=digest, size=size, kind=kind)

    def has(self, digest: Digest) -> bool:
        """Whether the store has an object for this digest; says nothing of its content."""
        return self._store.stat(self._ring.name(parse_digest(digest))) is not None

    def fetch(self, digest: Digest, size: int | None, sink_path: Path, mode: int = 0o444) -> None:
        """Write the verified plaintext to `sink_path`, which appears whole, with this mode, or not at all.

        Not synced: after a power cut a copy may be cut short. NotFound; IntegrityError; DiskFull; StoreUnavailable;
        InputError if `size` is given and wrong.
        """
        with self._opened(digest) as opening, new_file(sink_path.parent) as new:
            if size is not None and size != opening.size:
                raise InputError(
                    f"blob {digest} has {opening.size} bytes, not {size}; correct the size or leave it out"
                )
            for piece in opening.chunks():
                new.write(piece)
            new.replace(sink_path, mode)
            self.counters.add(fetches=1, plain_bytes_out=opening.size)

    def read_bytes(self, digest: Digest, limit: int) -> bytes:
        """The verified content of a blob of at most `limit` bytes. InputError: it is larger."""
        with self._opened(digest) as opening:
            if opening.size > limit:
                raise InputError(f"blob {digest} has {opening.size} bytes; at most {limit} are allowed here")
            data = b"".join(bytes(piece) for piece in opening.chunks())
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
                    raise NotFound(f"blob {digest} is not in the store; put it first") from None
                opening = self._ring.opening(reader, digest)
                yield opening
        except SealUnknown:
            raise
        except IntegrityError as error:
            if opening is not None and error is not opening.failure:
                raise  # of something else that the caller did meanwhile
            raise self._condemn(digest, name, error) from error

    def _condemn(self, digest: Digest, name: str, cause: IntegrityError) -> BatchyardError:
        """Delete an object that did not open, unless a second look finds it sound; the error to raise.

        The second look forgives a bad read, and an object that another node has already replaced.
        """
        try:
            with self._store.get(name) as reader:
                for _ in self._ring.opening(reader, digest).chunks():
                    pass
        except SealUnknown as error:
            return error
        except NotFound:
            return IntegrityError(f"{cause}; it was deleted from the store, put it again")
        except IntegrityError:
            self._store.delete(name)
            self.counters.add(corrupt=1)
            return IntegrityError(f"{cause}; it was deleted from the store, put it again")
        return StoreUnavailable(f"{cause} at first and did at a second look; try again")
