"""Directories as blobs: each file a blob, and a manifest that lists them, itself a blob of kind "tree"."""

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

from batchyard.broker.errors import InputError, IntegrityError, OutputError

from .beneath import kind_of, looked_at, reading
from .digest import Blob, Digest
from .manifest import MOST_BYTES, MOST_DEPTH, MOST_ENTRIES, BadEntry, Directory, Entry, File, Symlink, decode, encode
from .newfile import PREFIX, local_disk
from .sealed import BlobStore, OnBytes

_EXECUTABLE = 0o111


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
    entries: list[Entry] = []
    try:
        _walk(blobs, root, "", entries, on_bytes, keep)
        return blobs.put_bytes(encode(entries), "tree")
    except BadEntry as error:
        raise OutputError(str(error)) from error


def _walk(
    blobs: BlobStore,
    folder: int,
    prefix: str,
    entries: list[Entry],
    on_bytes: OnBytes | None,
    keep: Callable[[str], bool],
) -> None:
    with _readable(prefix or "."):
        names = sorted(name for name in os.listdir(folder) if keep(prefix + name))
    for name in names:
        path = prefix + name
        if len(entries) >= MOST_ENTRIES:
            raise BadEntry(".", f"has more than {MOST_ENTRIES} entries; publish it as an archive")
        if path.count("/") >= MOST_DEPTH:  # `encode` refuses it too, but here it bounds the open directories
            raise BadEntry(path, "is too deep; publish it as an archive")
        with _readable(path), looked_at(name, folder) as (found, status):
            if stat.S_ISDIR(status.st_mode):
                entries.append(Directory(path=path))
                with reading(found) as fd:
                    _walk(blobs, fd, path + "/", entries, on_bytes, keep)
            elif stat.S_ISREG(status.st_mode):
                with reading(found) as fd:
                    blob = blobs.put_fd(fd, on_bytes)
                executable = bool(status.st_mode & _EXECUTABLE)
                entries.append(File(path=path, digest=blob.digest, size=blob.size, executable=executable))
            elif stat.S_ISLNK(status.st_mode):
                entries.append(Symlink(path=path, target=os.readlink("", dir_fd=found)))
            else:
                raise BadEntry(path, f"is {kind_of(status.st_mode)}; only files, directories and symlinks are kept")


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
    entries = read_tree(blobs, digest)
    if os.path.lexists(dest):
        raise InputError(f'"{dest}" exists already; choose another place for tree {digest}')
    build_tree(blobs, entries, dest, on_bytes)
    return sum(entry.size for entry in entries if isinstance(entry, File))


def read_tree(blobs: BlobStore, digest: Digest) -> tuple[Entry, ...]:
    """What is in a tree. InputError: not a tree, or a hostile one. Else as `BlobStore.read_bytes`."""
    return decode(blobs.read_bytes(digest, MOST_BYTES), digest)


def blobs_of_tree(blobs: BlobStore, digest: Digest) -> frozenset[Digest]:
    """The blobs that a tree is made of, without its manifest. As `read_tree`."""
    return frozenset(entry.digest for entry in read_tree(blobs, digest) if isinstance(entry, File))


def build_tree(
    blobs: BlobStore,
    entries: tuple[Entry, ...],
    dest: Path,
    on_bytes: OnBytes | None = None,
    *,
    at_once: int = 1,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Make a directory of what `read_tree` gave; as `fetch_tree`. at_once: files that are fetched side by side.

    stopped: nobody wants it any more, which is an InputError.
    """
    building = dest.parent / (PREFIX + secrets.token_hex(12))
    try:
        with local_disk(dest.parent):
            building.mkdir(mode=0o700)
        fetch = _fetching(blobs, building, on_bytes, stopped)
        if at_once == 1:
            _build(entries, building, lambda files: deque(map(fetch, files), maxlen=0))
        else:
            with ThreadPoolExecutor(at_once, thread_name_prefix="fetch") as pool:
                _build(entries, building, lambda files: deque(pool.map(fetch, files), maxlen=0))
        with local_disk(dest):
            building.chmod(0o755)
            os.rename(building, dest)
    except BaseException:
        with suppress(OSError):
            remove_tree(building)
        raise


def _fetching(
    blobs: BlobStore, top: Path, on_bytes: OnBytes | None, stopped: Callable[[], bool]
) -> Callable[[File], None]:
    def fetch(entry: File) -> None:
        if stopped():
            raise InputError("it was not fetched: the job was told to stop")
        mode = 0o555 if entry.executable else 0o444
        blobs.fetch(entry.digest, entry.size, top / entry.path, mode, on_bytes)

    return fetch


def _build(entries: tuple[Entry, ...], top: Path, fetch: Callable[[Iterable[File]], object]) -> None:
    # symlinks last: nothing is ever written through one
    for entry in entries:
        if isinstance(entry, Directory):
            with local_disk(top):
                (top / entry.path).mkdir()
                (top / entry.path).chmod(0o755)
    fetch(entry for entry in entries if isinstance(entry, File))
    for entry in entries:
        if isinstance(entry, Symlink):
            with local_disk(top):
                os.symlink(entry.target, top / entry.path)


def remove_tree(path: Path) -> None:
    """Remove a directory, also with read-only directories in it; fine if there is none."""
    for folder, _, _ in os.walk(path):
        with suppress(OSError):
            os.chmod(folder, 0o700)
    with suppress(FileNotFoundError):
        shutil.rmtree(path)
