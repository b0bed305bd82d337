"""Level 1: verified, decrypted, read-only copies on this node, to be bind-mounted read-only into containers.

    <root>/lock            held by the one node that uses this root
    <root>/boot            which boot of the machine the copies are from: copies are not synced
    <root>/file/<hex>      0444
    <root>/tree/<hex>/…    directories 0555, files 0444 or 0555

`<root>` has mode 0700: other users of the host see nothing, while a bind mount shows its content to any user of the
container. Only read-only binds are safe: root in a container can write through a hard link.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from batchyard.broker.errors import InputError, InvalidConfig

from .digest import Blob, Digest, Kind, parse_digest
from .manifest import is_manifest
from .newfile import PREFIX, local_disk
from .sealed import BlobStore
from .tree import fetch_tree, remove_tree


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class LocalCopies:
    """One node's copies under `root`. Share it between threads; a second process on the same root is refused.

    `boot_id` names the machine's boot; copies from another boot are thrown away.
    """

    def __init__(self, root: Path, blobs: BlobStore, *, boot_id: Callable[[], str] = _boot_id) -> None:
        self._root, self._blobs = root, blobs
        self._guard = threading.Lock()
        self._flights: dict[tuple[Kind, Digest], Future[Path]] = {}
        self._pins: Counter[Digest] = Counter()
        self.bytes_staged = 0
        """plaintext bytes written since start"""
        self.hits = 0
        """calls of `stage` that found the copy there"""
        with local_disk(root):
            root.mkdir(parents=True, exist_ok=True)
            root.chmod(0o700)
            self._lock_fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self._take_lock()
            with local_disk(root):
                self._clean(boot_id())
        except BaseException:
            self.close()
            raise

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidConfig(
                f'"{self._root}" is in use by another node; give each node a directory of its own'
            ) from None

    def _clean(self, boot_id: str) -> None:
        mark = self._root / "boot"
        same_boot = mark.exists() and mark.read_text(errors="replace") == boot_id
        for folder in (self._root / "file", self._root / "tree"):
            folder.mkdir(exist_ok=True, mode=0o700)
            for entry in list(folder.iterdir()):
                if same_boot and not entry.name.startswith(PREFIX):
                    continue
                if entry.is_dir() and not entry.is_symlink():
                    remove_tree(entry)
                else:
                    entry.unlink()
        if not same_boot:  # a full disk must not stop a restart
            mark.write_text(boot_id)

    def close(self) -> None:
        """Let another process have the root. The copies stay. May be called twice."""
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            os.close(fd)

    def stage(self, blob: Blob | Digest) -> Path:
        """The path of a verified copy, fetched if it is not here: a file, or for a tree a directory.

        Of a bare digest the content tells whether it is a tree. Threads that want the same blob share one fetch and
        its failure. Pin the digest first, or the copy may be evicted. NotFound, InputError, IntegrityError, DiskFull,
        StoreUnavailable.
        """
        if isinstance(blob, Blob):
            parse_digest(blob.digest)
            path = self._one(blob.kind, blob.digest)
            if blob.kind == "file" and (size := path.stat().st_size) != blob.size:
                raise InputError(f"blob {blob.digest} has {size} bytes, not {blob.size}; correct the size")
            return path
        parse_digest(blob)
        if not self._place("tree", blob).exists():
            file = self._one("file", blob)
            with file.open("rb") as opened:
                if not is_manifest(opened.read(64)):
                    return file
        return self._one("tree", blob)

    def _place(self, kind: Kind, digest: Digest) -> Path:
        return self._root / kind / digest.removeprefix("sha256:")

    def _one(self, kind: Kind, digest: Digest) -> Path:
        path = self._place(kind, digest)
        with self._guard:
            if path.exists():
                self.hits += 1
                return path
            flight = self._flights.get((kind, digest))
            mine = flight is None
            if flight is None:
                flight = self._flights[kind, digest] = Future()
        if mine:
            self._fly(kind, digest, path, flight)
        return flight.result()

    def _fly(self, kind: Kind, digest: Digest, path: Path, flight: Future[Path]) -> None:
        try:
            staged = self._fetch_file(digest, path) if kind == "file" else self._fetch_tree(digest, path)
        except BaseException as error:
            self._land(kind, digest)
            flight.set_exception(error)
        else:
            self._land(kind, digest, staged)
            flight.set_result(path)

    def _land(self, kind: Kind, digest: Digest, staged: int = 0) -> None:
        with self._guard:
            del self._flights[kind, digest]
            self.bytes_staged += staged

    def _fetch_file(self, digest: Digest, path: Path) -> int:
        # the size that one job declares is compared after: a wrong one must not fail others that share the fetch
        self._blobs.fetch(digest, None, path)
        return path.stat().st_size

    def _fetch_tree(self, digest: Digest, path: Path) -> int:
        # built beside, made read-only there, and only then given its name
        building = path.with_name(f"{PREFIX}{path.name}")
        try:
            staged = fetch_tree(self._blobs, digest, building)
            with local_disk(path):
                for folder, _, _ in os.walk(building):
                    os.chmod(folder, 0o555)
                os.rename(building, path)
        except BaseException:
            remove_tree(building)
            raise
        return staged

    def pin(self, digest: Digest) -> None:
        """Keep a copy, here or to come, from eviction until `unpin`. Counted: two pins need two unpins."""
        with self._guard:
            self._pins[parse_digest(digest)] += 1

    def unpin(self, digest: Digest) -> None:
        """Undo one `pin`. ValueError: there is none."""
        with self._guard:
            if self._pins[digest] <= 0:
                del self._pins[digest]
                raise ValueError(f"{digest} is not pinned")
            self._pins[digest] -= 1
            if not self._pins[digest]:
                del self._pins[digest]

    def is_pinned(self, digest: Digest) -> bool:
        with self._guard:
            return digest in self._pins

    @contextmanager
    def pinned(self, digests: Iterable[Digest]) -> Iterator[None]:
        """Pin for the length of the body."""
        held: list[Digest] = []
        try:
            for digest in digests:
                self.pin(digest)
                held.append(digest)
            yield
        finally:
            for digest in held:
                self.unpin(digest)
