"""A folder of copies: whole ones under their names, none that is half written, within a budget of bytes.

    <root>/lock            held by the one node that uses this root
    <root>/boot            which boot of the machine the copies are from: copies are not synced
    <root>/file/<hex>      0444
    <root>/tree/<hex>/…    directories 0555, files 0444 or 0555
    <root>/unpacked/<hex>/…  the same, of what is in the archive of that digest
    <root>/trash/…         what is being removed

`<root>` has mode 0700: other users of the host see nothing, while a bind mount shows its content to any user of the
container. Each file, directory and symlink counts its size rounded up to whole blocks of 4 KiB (`shelf.charge`), which
is known before it is written, and not less than what a disk takes for it; a folder's own few files do not count.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeAlias

from batchyard.broker.errors import InvalidConfig

from ..digest import Kind
from ..index import this_boot
from ..manifest import Entry as TreeEntry
from ..manifest import File
from ..newfile import local_disk
from ..shelf import Shelf, charge
from ..stores.protocol import is_name
from ..tree import remove_tree
from .lookover import Look, look_over

CopyKind: TypeAlias = Kind | Literal["unpacked"]
KINDS: tuple[CopyKind, ...] = ("file", "tree", "unpacked")


def key_of(kind: CopyKind, name: str) -> str:
    """`file/<hex>`, `tree/<hex>` or `unpacked/<hex>`: what a copy is called in a folder and in the index. name:
    `BlobStore.name`.
    """
    return f"{kind}/{name}"


def tree_charge(entries: Iterable[TreeEntry]) -> int:
    """What a directory with these entries will count."""
    return charge(0) + sum(charge(entry.size if isinstance(entry, File) else 0) for entry in entries)


def charge_of(path: Path) -> int:
    """What a copy counts, by looking at it. OSError."""
    return look_over(path).bytes


class Folder:
    """`place` is its name in the index and in messages. A second process on the same root is refused (InvalidConfig).

    `boot_id` names the machine's boot; copies from another boot are thrown away. `shelf` says what is in it: the
    caller keeps it, under a lock of its own.
    """

    def __init__(self, root: Path, limit_bytes: int, *, place: str = "scratch", boot_id: str | None = None) -> None:
        self.root, self.place, self.shelf = root, place, Shelf(limit_bytes)
        with local_disk(root):
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            root.chmod(0o700)
            self._lock_fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self._take_lock()
            with local_disk(root):
                self._clean(boot_id or this_boot())
        except BaseException:
            self.close()
            raise

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidConfig(
                f'"{self.root}" is in use by another node; give each node a directory of its own'
            ) from None

    def _clean(self, boot_id: str) -> None:
        """What is there and is no whole copy of this boot goes."""
        mark = self.root / "boot"
        same_boot = mark.exists() and mark.read_text(errors="replace") == boot_id
        for name in (*KINDS, "trash"):
            folder = self.root / name
            folder.mkdir(exist_ok=True, mode=0o700)
            for entry in list(folder.iterdir()):
                whole = name in KINDS and is_name(entry.name) and entry.is_dir() == (name != "file")
                if not (same_boot and whole and not entry.is_symlink()):
                    _remove(entry)
        if not same_boot:  # a full disk must not stop a restart
            mark.write_text(boot_id)

    def close(self) -> None:
        """Let another process have the root. The copies stay. May be called twice."""
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            os.close(fd)

    def free_bytes(self) -> int:
        """What the disk has left for anybody, whatever the budget says."""
        with local_disk(self.root):
            there = os.statvfs(self.root)
        return there.f_bavail * there.f_frsize

    def path(self, key: str) -> Path:
        return self.root / key

    def look(self, key: str) -> Look:
        """StoreUnavailable: it is not there."""
        with local_disk(self.root):
            return look_over(self.root / key)

    def found(self) -> dict[str, Look]:
        """What each copy that is there looks like. Takes as long as `du`: for the start."""
        with local_disk(self.root):
            return {
                f"{kind}/{name}": look_over(self.root / kind / name)
                for kind in KINDS
                for name in os.listdir(self.root / kind)
            }

    def discard(self, key: str) -> Path | None:
        """Take a copy out of its place at once; what `remove` has to be given then. None: there is none."""
        trash = self.root / "trash" / secrets.token_hex(12)
        with local_disk(self.root):
            try:
                _writable(self.path(key))
                os.rename(self.path(key), trash)
            except FileNotFoundError:
                return None
        return trash

    def remove(self, trash: Iterable[Path | None]) -> None:
        """Free the bytes of what was discarded."""
        for path in trash:
            if path is not None:
                with local_disk(self.root):
                    _remove(path)

    def close_off(self, building: Path) -> None:
        """Make what was made read-only, if it is a directory: one chmod for each directory in it."""
        with local_disk(self.root):
            for folder, _, _ in os.walk(building):
                os.chmod(folder, 0o555)

    def name(self, key: str, building: Path) -> None:
        """Give what was made beside it, and closed off, a copy's name. What stands in its way goes."""
        self.remove([self.discard(key)])
        with local_disk(self.root):
            os.rename(building, self.path(key))


def _writable(path: Path) -> None:
    """A directory can be moved into another one only by root, or by an owner who may write into it."""
    if os.geteuid() != 0 and stat.S_ISDIR(os.lstat(path).st_mode):
        os.chmod(path, 0o755)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        with suppress(FileNotFoundError):
            path.unlink()
