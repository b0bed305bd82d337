"""All objects below a prefix as a directory: planned from the listing alone, then fetched side by side.

Keys are somebody else's words: one that is no plain relative path, or that is a file and a directory at once, makes the
whole directory refused, before a byte of it is fetched.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from batchyard.broker.errors import InputError
from batchyard.broker.uri import S3Uri

from ..copies.flight import Flight, OnMoved
from ..digest import Digest, digest_of
from ..manifest import EMPTY, BadEntry, Directory, Entry, File, encode, in_order
from ..newfile import local_disk, new_file
from ..packs import SMALL_BYTES, Packer
from ..shelf import charge
from .body import Stopped
from .object import Found, is_waiting

if TYPE_CHECKING:
    from .bucket import Bucket

AT_ONCE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a directory is to hold: folders before what is in them, and the object of each file by its path."""

    directories: Sequence[str]
    files: dict[str, Found]
    size: int

    @property
    def charge(self) -> int:
        """What the directory will count on this node."""
        return sum(charge(one.size) for one in self.files.values()) + (1 + len(self.directories)) * charge(0)

    @property
    def mark(self) -> str:
        """Differs as soon as any object does."""
        lines = [f"{path}\0{one.etag}\0{one.size}" for path, one in sorted(self.files.items())]
        return hashlib.sha256("\n".join([*lines, *sorted(self.directories)]).encode("utf-8", "replace")).hexdigest()


def plan(place: S3Uri, listing: Sequence[Found]) -> Plan:
    """Raises InputError for what cannot be a directory. An empty object `a/b/` is an empty directory."""
    files: dict[str, Found] = {}
    directories: set[str] = set()
    for one in listing:
        path = one.key.removeprefix(place.key)
        if not path or is_waiting(one.key):
            continue
        if path.endswith("/"):
            path = path[:-1]
            if one.size:
                raise InputError(f'{place}: the object "{path}/" has bytes, and the name of a directory')
            directories.add(path)
        else:
            files[path] = one
        while path := path.rpartition("/")[0]:
            directories.add(path)
    if not files and not directories:
        raise InputError(f"{place} holds no object; correct bucket and prefix")
    if both := sorted(directories & files.keys()):
        raise InputError(f"{place}: {both[0][:200]!r} is an object, and so is something below it")
    entries: list[Entry] = [_unread(number, path, one) for number, (path, one) in enumerate(files.items())]
    try:
        encode([*entries, *(Directory(path=path) for path in directories)])
    except BadEntry as error:
        raise InputError(f"{place} cannot be a directory: {error}") from None
    return Plan(directories=sorted(directories), files=files, size=sum(one.size for one in files.values()))


def _unread(number: int, path: str, one: Found) -> File:
    """With the digest of no other file: nobody knows yet which are equal."""
    return File(path=path, digest=f"sha256:{number:064x}" if one.size else EMPTY, size=one.size)


def fetch(bucket: Bucket, planned: Plan, top: Path, *, stopped: Stopped, on_moved: OnMoved | None = None) -> Digest:
    """Makes the directory `top`, which must not exist: files 0444, directories 0555; the tree's digest.

    Changed: an object is not what the listing said. InputError, StoreUnavailable, DiskFull. `top` stays when it fails.
    """
    with local_disk(top):
        top.mkdir(mode=0o700)
        for path in planned.directories:
            (top / path).mkdir(mode=0o700)
    failed, flight = threading.Event(), Flight()
    flight.join(on_moved)
    flight.expect(planned.size)
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fetch") as pool:
        jobs = {
            path: pool.submit(_one, bucket, one, top / path, lambda: failed.is_set() or stopped(), flight)
            for path, one in planned.files.items()
        }
        done, _ = wait(jobs.values(), return_when=FIRST_EXCEPTION)
        failures = [error for job in done if (error := job.exception()) is not None]
        if failures:
            failed.set()
            pool.shutdown(cancel_futures=True)
            raise failures[0]
    manifest = _manifest(top, {path: job.result() for path, job in jobs.items()}, planned)
    with local_disk(top):
        for path in (*reversed(planned.directories), "."):
            os.chmod(top / path, 0o555)
    return digest_of(manifest)


def _manifest(top: Path, digests: dict[str, Digest], planned: Plan) -> bytes:
    """What `put_tree` would keep of this directory: so the small files are read again, to find their packs' digests."""
    entries: list[Entry] = [
        File(path=path, digest=digest, size=planned.files[path].size) for path, digest in digests.items()
    ]
    entries += [Directory(path=path) for path in planned.directories]
    packer = Packer(digest_of)
    try:
        with local_disk(top):
            placed = [_placed(top, entry, packer) for entry in sorted(entries, key=in_order)]
        return encode(placed, packer.end())
    except BadEntry as error:
        raise InputError(f"it cannot be a directory: {error}") from None


def _placed(top: Path, entry: Entry, packer: Packer) -> Entry:
    if not isinstance(entry, File) or not 0 < entry.size <= SMALL_BYTES:
        return entry
    return replace(entry, place=packer.add(entry.digest, (top / entry.path).read_bytes()))


def _one(bucket: Bucket, one: Found, path: Path, stopped: Stopped, flight: Flight) -> Digest:
    with bucket.get(one.key, only=one.etag) as body, new_file(path.parent) as new:
        assert body is not None
        digest, size = body.save(new, most_bytes=one.size, stopped=stopped)
        if size != one.size:
            raise InputError(f"{body.shown} has {size} bytes, and was listed with {one.size}")
        if os.path.lexists(path):  # a file system for which two names are one
            raise InputError(f"{body.shown}: this node's file system takes its name for that of another object")
        new.replace(path, 0o444)
        flight.more(size)
    return digest
