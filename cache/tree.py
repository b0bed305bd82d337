"""Directories as blobs: a manifest, itself a blob of kind "tree", that says where the bytes of each file are.

Small files lie together in packs, each a blob; a larger file is a blob of its own.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

from batchyard.broker.errors import InputError, IntegrityError, OutputError

from .beneath import kind_of, looked_at, reading
from .digest import Blob, Digest, digest_of
from .manifest import (
    MOST_BYTES,
    MOST_DEPTH,
    MOST_ENTRIES,
    BadEntry,
    Directory,
    Entry,
    File,
    Symlink,
    Tree,
    decode,
    encode,
)
from .newfile import PREFIX, local_disk, write_new
from .packs import SMALL_BYTES, Pack, Packer
from .sealed import BlobStore, OnBytes

AT_ONCE = 4
"""For a node that builds a tree: packs and large files fetched side by side, each pack in memory."""
_EXECUTABLE = 0o111
_Part: TypeAlias = File | tuple[Pack, list[tuple[File, int]]]


def put_tree(
    blobs: BlobStore,
    root: Path | int,
    on_bytes: OnBytes | None = None,
    *,
    keep: Callable[[str], bool] = lambda path: True,
) -> Blob:
    """Keep a directory, given as a path or an open directory, durable when it returns.

    keep: of what lies in it, whether it is in the tree, by its path; what is in a directory that is not is not either.
    Follows no symlink and reads nothing outside of `root`, whatever changes meanwhile. OutputError: a fifo, socket or
    device in it, a symlink that does not lead to something in it, a file that cannot be read or changes.
    """
    if isinstance(root, int):
        return _put(blobs, root, on_bytes, keep)
    try:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise OutputError(f'"{root}" cannot be read as a directory: {error.strerror}') from error
    try:
        return _put(blobs, fd, on_bytes, keep)
    finally:
        os.close(fd)


def _put(blobs: BlobStore, root: int, on_bytes: OnBytes | None, keep: Callable[[str], bool]) -> Blob:
    walk = _Walk(blobs, on_bytes, keep)
    try:
        walk.folder(root, "")
        return blobs.put_bytes(encode(walk.entries, walk.packer.end()), "tree")
    except BadEntry as error:
        raise OutputError(str(error)) from error


class _Walk:
    """Takes a directory in the order of its manifest, so that no more than one pack is in memory."""

    def __init__(self, blobs: BlobStore, on_bytes: OnBytes | None, wanted: Callable[[str], bool]) -> None:
        self._blobs, self._on_bytes, self._wanted = blobs, on_bytes, wanted
        self._untold = 0
        self.entries: list[Entry] = []
        self.packer = Packer(self._keep)

    def folder(self, folder: int, prefix: str) -> None:
        with _readable(prefix or "."):
            names = sorted(name for name in os.listdir(folder) if self._wanted(prefix + name))
        for name in names:
            path = prefix + name
            if len(self.entries) >= MOST_ENTRIES:
                raise BadEntry(".", f"has more than {MOST_ENTRIES} entries; publish it as an archive")
            if path.count("/") >= MOST_DEPTH:  # `encode` refuses it too, but here it bounds the open directories
                raise BadEntry(path, "is too deep; publish it as an archive")
            with _readable(path), looked_at(name, folder) as (found, status):
                self._take(path, found, status.st_mode)

    def _take(self, path: str, found: int, mode: int) -> None:
        if stat.S_ISDIR(mode):
            self.entries.append(Directory(path=path))
            with reading(found) as fd:
                self.folder(fd, path + "/")
        elif stat.S_ISREG(mode):
            with reading(found) as fd:
                self._file(path, fd, executable=bool(mode & _EXECUTABLE))
        elif stat.S_ISLNK(mode):
            self.entries.append(Symlink(path=path, target=os.readlink("", dir_fd=found)))
        else:
            raise BadEntry(path, f"is {kind_of(mode)}; only files, directories and symlinks are kept")

    def _file(self, path: str, fd: int, *, executable: bool) -> None:
        data = read_small(fd)
        if data is None:
            blob = self._blobs.put_fd(fd, self._on_bytes)
            digest, size, place = blob.digest, blob.size, None
        else:
            digest, size = digest_of(data), len(data)
            place = self.packer.add(digest, data) if size else None
            self._untold += size
        self.entries.append(File(path=path, digest=digest, size=size, executable=executable, place=place))

    def _keep(self, data: bytes) -> Digest:
        digest = self._blobs.put_bytes(data).digest
        if self._on_bytes is not None:
            self._on_bytes(self._untold)
        self._untold = 0
        return digest


def read_small(fd: int) -> bytes | None:
    """All of a file that may be packed; None: it is larger. IntegrityError: it changed meanwhile. OSError."""
    before = os.fstat(fd)
    if before.st_size > SMALL_BYTES:
        return None
    data = os.read(fd, before.st_size + 1)  # 1 more: growing is seen
    while 0 < len(data) < before.st_size and (more := os.read(fd, before.st_size + 1 - len(data))):
        data += more
    after = os.fstat(fd)
    if len(data) != before.st_size or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise IntegrityError("the bytes of a file changed while they were read")
    return data


@contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise OutputError(f"{path[:200]!r} went away while it was read; wait for what writes it") from None
    except IntegrityError:  # the only one of a put
        raise OutputError(f"{path[:200]!r} changed while it was read; wait for what writes it") from None
    except OSError as error:
        raise OutputError(f"{path[:200]!r} cannot be read: {error.strerror}") from error


def fetch_tree(blobs: BlobStore, digest: Digest, dest: Path, on_bytes: OnBytes | None = None) -> int:
    """Make the directory `dest` with the tree in it; it appears whole or not at all. Gives the bytes in its files.

    Files get mode 0444, or 0555 if executable; directories 0755. `dest` must not exist, but its parent must.
    InputError: not a tree, a hostile one, or `dest` exists. Else as `BlobStore.fetch`.
    """
    tree = read_tree(blobs, digest)
    if os.path.lexists(dest):
        raise InputError(f'"{dest}" exists already; choose another place for tree {digest}')
    build_tree(blobs, tree, dest, on_bytes)
    return tree.size


def read_tree(blobs: BlobStore, digest: Digest) -> Tree:
    """What is in a tree. InputError: not a tree, or a hostile one. Else as `BlobStore.read_bytes`."""
    return decode(blobs.read_bytes(digest, MOST_BYTES), digest)


def build_tree(
    blobs: BlobStore,
    tree: Tree,
    dest: Path,
    on_bytes: OnBytes | None = None,
    *,
    at_once: int = 1,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Make a directory of what `read_tree` gave; as `fetch_tree`. at_once: packs and large files that are fetched side
    by side. stopped: nobody wants it any more, which is an InputError.

    What a file has in its pack is not hashed again: which bytes of which pack they are is what the tree's digest says,
    and the pack is verified before a byte of it is written.
    """
    building = dest.parent / (PREFIX + secrets.token_hex(12))
    try:
        with local_disk(dest.parent):
            building.mkdir(mode=0o700)
        build = _Building(blobs, building, on_bytes, stopped)
        build.directories(tree)
        parts = list(build.parts(tree))
        if at_once == 1 or len(parts) <= 1:
            deque(map(build.fetch, parts), maxlen=0)
        else:
            with ThreadPoolExecutor(min(at_once, len(parts)), thread_name_prefix="fetch") as pool:
                deque(pool.map(build.fetch, parts), maxlen=0)
        build.rest(tree)
        with local_disk(dest):
            building.chmod(0o755)
            os.rename(building, dest)
    except BaseException:
        with suppress(OSError):
            remove_tree(building)
        raise


class _Building:
    """A tree in the making. Symlinks come last: nothing is ever written through one."""

    def __init__(self, blobs: BlobStore, top: Path, on_bytes: OnBytes | None, stopped: Callable[[], bool]) -> None:
        self._blobs, self._top, self._on_bytes, self._stopped = blobs, top, on_bytes, stopped

    def directories(self, tree: Tree) -> None:
        with local_disk(self._top):
            for entry in tree.entries:
                if isinstance(entry, Directory):
                    path = f"{self._top}/{entry.path}"
                    os.mkdir(path)
                    os.chmod(path, 0o755)

    def parts(self, tree: Tree) -> Iterator[_Part]:
        """Each is fetched once: a blob and the files that are in it."""
        packed: dict[Pack, list[tuple[File, int]]] = {}
        for file in tree.files:
            if file.place is not None:
                packed.setdefault(tree.packs[file.place.pack], []).append((file, file.place.at))
            elif not file.is_empty:
                yield file
        yield from packed.items()

    def fetch(self, part: _Part) -> None:
        self._go_on()
        if isinstance(part, File):
            self._blobs.fetch(part.digest, part.size, self._top / part.path, _mode(part), self._on_bytes)
        else:
            self._split(*part)

    def _split(self, pack: Pack, files: Iterable[tuple[File, int]]) -> None:
        data, done = self._blobs.read_sized(pack.digest, pack.size), 0
        with local_disk(self._top):
            for file, at in files:
                self._go_on()
                write_new(f"{self._top}/{file.path}", data[at : at + file.size], _mode(file))
                done += file.size
        if self._on_bytes is not None:
            self._on_bytes(done)

    def _go_on(self) -> None:
        if self._stopped():
            raise InputError("it was not fetched: the job was told to stop")

    def rest(self, tree: Tree) -> None:
        """What has no bytes."""
        with local_disk(self._top):
            for entry in tree.entries:
                if isinstance(entry, File) and entry.is_empty:
                    write_new(f"{self._top}/{entry.path}", memoryview(b""), _mode(entry))
                elif isinstance(entry, Symlink):
                    os.symlink(entry.target, f"{self._top}/{entry.path}")


def _mode(file: File) -> int:
    return 0o555 if file.executable else 0o444


def remove_tree(path: Path) -> None:
    """Remove a directory, also with read-only directories in it; fine if there is none."""
    for folder, _, _ in os.walk(path):
        with suppress(OSError):
            os.chmod(folder, 0o700)
    with suppress(FileNotFoundError):
        shutil.rmtree(path)
