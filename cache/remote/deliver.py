"""An output into somebody's bucket: first under keys of its own, then, when told so, copied to its names.

What is uploaded is read from the work directory as `publish` read it, and must have the bytes that were kept. A bucket
has neither symlinks nor empty directories nor modes: a symlink is refused, the others are left out.
"""

from __future__ import annotations

import hashlib
import io
import mimetypes
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from batchyard.broker.errors import OutputError, StoreUnavailable
from batchyard.broker.uri import MOST_KEY_BYTES, S3Uri

from ..beneath import looked_at, reading
from ..digest import Blob, Digest
from ..manifest import MOST_ENTRIES, File, Symlink
from ..sealed import BlobStore
from ..tree import read_tree
from .object import OWN_FOLDER

if TYPE_CHECKING:
    from .bucket import Bucket

AT_ONCE = 4
_BYTES = "application/octet-stream"
_NO_LETTER = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptMark:
    """Where an attempt's temporary objects lie, in the folder of the destination: `<folder><number>/<number>`.

    of_job: where those of all attempts of the job lie, and nobody else's.
    """

    of_job: str
    folder: str

    @classmethod
    def of(cls, yard_id: str, job_id: str, token: str) -> AttemptMark:
        """A job's id is its producer's word: it may hold anything."""
        of_job = f"{OWN_FOLDER}/{yard_id}/{hashlib.sha256(job_id.encode()).hexdigest()[:32]}/"
        return cls(of_job=of_job, folder=f"{of_job}{_NO_LETTER.sub('-', token)}/")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """A file of the output: where it lies below the work directory, what it holds, where it goes."""

    names: Sequence[str]
    digest: Digest
    size: int
    temporary: str
    key: str

    @property
    def kind(self) -> str:
        """The content type that its name tells."""
        return mimetypes.guess_type(self.key)[0] or _BYTES


class Delivery:
    """`upload`, then `place`; both may be called again after they raised, and go on where they were.

    target: the object, or the prefix of a directory. temporary: a prefix that nobody else writes below. stopped:
    nobody wants it any more.
    """

    def __init__(
        self, bucket: Bucket, target: S3Uri, *, temporary: str, stopped: Callable[[], bool] = lambda: False
    ) -> None:
        self._bucket, self.target, self._temporary, self._stopped = bucket, target, temporary, stopped
        self._uploaded: set[str] = set()
        self._placed: set[str] = set()
        self._pieces: list[_Piece] = []

    def sweep_others(self, prefix: str, *, keep: str) -> None:
        """Deletes what lies below `prefix` and not below `keep`: after this, nobody can copy it any more."""
        listed = self._bucket.list(prefix, MOST_ENTRIES)
        self._bucket.delete([one.key for one in listed if not one.key.startswith(keep)])

    def upload(self, blobs: BlobStore, work: Path, path: str, blob: Blob) -> None:
        """The file or directory `path` below `work`, which is kept as `blob`, to temporary keys. OutputError,
        StoreUnavailable, DiskFull.
        """
        if not self._pieces:
            self._pieces = list(self._plan(blobs, path, blob))
        todo = [piece for piece in self._pieces if piece.temporary not in self._uploaded]
        _side_by_side(lambda piece: self._upload(work, piece), todo)

    def place(self, confirm: Callable[[], None], *, fresh_s: float, now: Callable[[], float] = time.monotonic) -> None:
        """Copies to the names that are wanted, each after `confirm` has not raised, less than `fresh_s` ago."""
        confirmed = _Confirmed(confirm, fresh_s, now)
        todo = [piece for piece in self._pieces if piece.key not in self._placed]
        _side_by_side(lambda piece: self._place(piece, confirmed), todo)

    def sweep(self) -> None:
        """Deletes the temporary objects, also those whose upload was not heard to end."""
        self._bucket.delete([one.key for one in self._bucket.list(self._temporary, MOST_ENTRIES)])
        self._uploaded.clear()

    def _plan(self, blobs: BlobStore, path: str, blob: Blob) -> Iterator[_Piece]:
        top = [name for name in path.split("/") if name not in {"", "."}]
        if blob.kind == "file":
            yield self._piece(top, blob.digest, blob.size, 0, self.target.key)
            return
        for number, entry in enumerate(read_tree(blobs, blob.digest).entries):
            if isinstance(entry, Symlink):
                raise OutputError(f"{entry.path[:200]!r} is a symlink, which a bucket does not have; write a file")
            if isinstance(entry, File):
                key = self.target.key + entry.path
                yield self._piece([*top, *entry.path.split("/")], entry.digest, entry.size, number, key)

    def _piece(self, names: Sequence[str], digest: Digest, size: int, number: int, key: str) -> _Piece:
        try:
            length = len(key.encode())
        except UnicodeEncodeError:
            raise OutputError(f"{key[:200]!r} cannot be a key: its name is no UTF-8") from None
        if length > MOST_KEY_BYTES:
            raise OutputError(f"{key[:200]!r} cannot be a key: it has {length} bytes, more than {MOST_KEY_BYTES}")
        return _Piece(names=names, digest=digest, size=size, temporary=f"{self._temporary}{number}", key=key)

    def _upload(self, work: Path, piece: _Piece) -> None:
        shown = "/".join(["/work", *piece.names])
        try:
            with _opened(work, piece.names) as fd, _Hashed(fd, self._stopped) as source:
                self._bucket.put(piece.temporary, cast(BinaryIO, source), piece.size, piece.kind)
                same = source.digest() == piece.digest and not source.read(1)
        except OSError as error:
            raise OutputError(f"{shown[:200]!r} cannot be read: {error.strerror or error}") from error
        if not same:
            raise OutputError(f"{shown[:200]!r} changed while it was read; let the job end what writes it")
        self._uploaded.add(piece.temporary)

    def _place(self, piece: _Piece, confirmed: _Confirmed) -> None:
        if self._stopped():
            raise StoreUnavailable("it was given up: its job was told to stop")
        confirmed.again()
        self._bucket.copy(piece.temporary, piece.key, piece.size, piece.kind)
        self._placed.add(piece.key)


class _Confirmed:
    """That the job is ours, which is asked at once, and again when the answer is old. Share it between threads."""

    def __init__(self, confirm: Callable[[], None], fresh_s: float, now: Callable[[], float]) -> None:
        self._confirm, self._fresh_s, self._now = confirm, fresh_s, now
        self._guard = threading.Lock()
        self._ask()

    def again(self) -> None:
        with self._guard:
            if self._now() - self._asked_s >= self._fresh_s:
                self._ask()

    def _ask(self) -> None:
        asked_s = self._now()  # before: the answer may have taken long
        self._confirm()
        self._asked_s = asked_s


class _Hashed(io.RawIOBase):
    """A file that knows the digest of what was read of it. The descriptor stays its opener's."""

    def __init__(self, fd: int, stopped: Callable[[], bool]) -> None:
        self._file, self._seen, self._stopped = io.FileIO(fd, closefd=False), hashlib.sha256(), stopped

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        if self._stopped():
            raise StoreUnavailable("it was given up: its job was told to stop")
        count = self._file.readinto(buffer) or 0
        self._seen.update(memoryview(buffer)[:count])
        return count

    def digest(self) -> Digest:
        return f"sha256:{self._seen.hexdigest()}"


@contextmanager
def _opened(work: Path, names: Sequence[str]) -> Iterator[int]:
    """A file below `work` for reading, without following any symlink. OSError."""
    with ExitStack() as stack:
        here = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, here)
        for name in names:
            found, _ = stack.enter_context(looked_at(name, here))
            here = stack.enter_context(reading(found))
        yield here


def _side_by_side(act: Callable[[_Piece], None], pieces: Iterable[_Piece]) -> None:
    """Raises the first failure, when all that had begun has ended."""
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="deliver") as pool:
        jobs = [pool.submit(act, piece) for piece in pieces]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
