"""Level 1: verified, decrypted, read-only copies on this node, to be bind-mounted read-only into containers.

They lie in folders with a budget each, the first one usually in memory; see `folder.py` for what is in them. Only
read-only binds are safe: root in a container can write through a hard link.

What is staged for an owner is pinned, and what is pinned is not evicted. Pins outlive this process, as containers do.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

from batchyard.broker.errors import DiskFull, InputError

from ..digest import Blob, Digest, parse_digest
from ..index import Index
from ..manifest import is_manifest
from ..newfile import PREFIX
from ..sealed import BlobStore
from ..shelf import Entry, charge
from ..tree import AT_ONCE, build_tree, read_tree, remove_tree
from .flight import Flight, OnMoved, Stopped, Unwanted
from .folder import KINDS, CopyKind, Folder, key_of, tree_charge
from .genuine import is_genuine
from .held import CopyCounts, Held
from .lookover import look_over
from .unpack import unpack

log = logging.getLogger(__name__)


def _wanted() -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A copy. fetched_bytes: plaintext that this call moved. here: it found the copy, or another call's fetch of it."""

    path: Path
    fetched_bytes: int = 0
    here: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What an owner's copies took: their number, how many of them were here, and the content fetched for the others."""

    copies: int
    here: int
    fetched_bytes: int


class LocalCopies:
    """One node's copies. Share it between threads. `folders`: the one to be filled first comes first."""

    def __init__(self, blobs: BlobStore, index: Index, folders: Sequence[Folder]) -> None:
        self._blobs, self._held = blobs, Held(index, folders)
        self._guard = self._held.guard
        self._flights: dict[str, Flight] = {}
        self._landings: dict[Path, tuple[Folder, str]] = {}
        self._moved: dict[str, dict[Digest, int | None]] = {}

    def close(self) -> None:
        """Let another process have the folders. The copies stay. May be called twice."""
        for folder in self._held.folders:
            folder.close()

    @property
    def blobs(self) -> BlobStore:
        """Where what is not here is fetched from."""
        return self._blobs

    @property
    def held(self) -> Held:
        """The copies of all tenants, for who looks after them."""
        return self._held

    @property
    def counts(self) -> CopyCounts:
        return self._held.counts

    def of(self, tenant: str) -> LocalCopies:
        """One tenant's, in the same folders and budgets; no tenant is given, or learns of, a copy of another's."""
        scoped = copy(self)
        scoped._blobs = self._blobs.of(tenant)
        return scoped

    def _key(self, kind: CopyKind, digest: Digest) -> str:
        return key_of(kind, self._blobs.name(parse_digest(digest)))

    def last_used(self, most: int) -> list[str]:
        """Names (`BlobStore.name`) of all tenants' copies that are here, the last used first, each once."""
        keys = self._held.last_used(most)
        return list(dict.fromkeys(key.partition("/")[2] for key in keys))

    # -- pins
    def pin(self, owner: str, digests: Iterable[Digest], *, unpacked: Iterable[Digest] = ()) -> None:
        """Keep copies, here or to come, from eviction until `unpin`; unpacked: of archives, what was in them.
        InputError: no digest.
        """
        keys = [self._key(kind, d) for d in digests for kind in KINDS if kind != "unpacked"]
        self._held.pin(owner, [*keys, *(self._key("unpacked", d) for d in unpacked)])

    def unpin(self, owner: str) -> None:
        """Undo what was pinned and staged for an owner; fine if that is nothing."""
        self._held.unpin([owner])
        with self._guard:
            self._moved.pop(owner, None)

    def moved(self, owner: str) -> Moved:
        """Of what was staged for an owner since it was last unpinned."""
        with self._guard:
            each = list(self._moved.get(owner, {}).values())
        fetched = [bytes_ for bytes_ in each if bytes_ is not None]
        return Moved(copies=len(each), here=len(each) - len(fetched), fetched_bytes=sum(fetched))

    def _note(self, owner: str, digest: Digest, fetched_bytes: int | None) -> None:
        """None: it was here; a second try finds here what the first one has fetched."""
        with self._guard:
            moved = self._moved.setdefault(owner, {})
            if fetched_bytes is not None or digest not in moved:
                moved[digest] = fetched_bytes

    def is_pinned(self, digest: Digest) -> bool:
        return any(self._held.is_pinned(self._key(kind, digest)) for kind in KINDS)

    @contextmanager
    def pinned(self, owner: str, digests: Iterable[Digest], *, unpacked: Iterable[Digest] = ()) -> Iterator[None]:
        """Pin for the length of the body, and at its end unpin also what was staged for this owner in it."""
        try:
            self.pin(owner, digests, unpacked=unpacked)
            yield
        finally:
            self.unpin(owner)

    def keep_pins(self, owners: Iterable[str]) -> None:
        """All other owners are gone: what an earlier process pinned for them may be evicted. Once, after a start."""
        self._held.unpin(sorted(self._held.owners() - set(owners)))
        self._held.trim()

    # -- staging
    def stage(
        self, blob: Blob | Digest, owner: str, on_moved: OnMoved | None = None, stopped: Stopped = _wanted
    ) -> Staged:
        """A verified copy, fetched if it is not here: a file, or for a tree a directory. It is pinned for the owner.

        Of a bare digest the content tells whether it is a tree. Threads that want the same blob share one fetch and
        its failure; each hears of it. stopped: this one does not want it any more; the fetch goes on while another
        does. NotFound, InputError, IntegrityError, StoreUnavailable; DiskFull, CopiesPinned when that is only for a
        while.
        """
        staged = self._stage(blob, owner, on_moved, stopped)
        digest = blob.digest if isinstance(blob, Blob) else blob
        self._note(owner, digest, None if staged.here else staged.fetched_bytes)
        return staged

    def unpack(self, digest: Digest, owner: str, on_moved: OnMoved | None = None, stopped: Stopped = _wanted) -> Staged:
        """What is in the archive of this digest, as a directory; else as `stage`. The archive itself is fetched for it,
        and may go again.
        """
        staged = self._one("unpacked", digest, owner, on_moved, stopped)
        self._note(owner, digest, None if staged.here else staged.fetched_bytes)
        return staged

    def _stage(self, blob: Blob | Digest, owner: str, on_moved: OnMoved | None, stopped: Stopped) -> Staged:
        if isinstance(blob, Blob):
            staged = self._one(blob.kind, blob.digest, owner, on_moved, stopped)
            if blob.kind == "file" and (size := staged.path.stat().st_size) != blob.size:
                raise InputError(f"blob {blob.digest} has {size} bytes, not {blob.size}; correct the size")
            return staged
        if (tree := self._hit(self._key("tree", blob), owner)) is not None:
            return tree
        file = self._one("file", blob, owner, on_moved, stopped)
        with file.path.open("rb") as opened:
            if not is_manifest(opened.read(64)):
                return file
        staged = self._one("tree", blob, owner, on_moved, stopped)
        return replace(staged, fetched_bytes=staged.fetched_bytes + file.fetched_bytes)

    def _hit(self, key: str, owner: str) -> Staged | None:
        path = self._held.use(key, owner)
        if path is None:
            return None
        self._held.count(hits=1)
        return Staged(path=path)

    def _one(self, kind: CopyKind, digest: Digest, owner: str, on_moved: OnMoved | None, stopped: Stopped) -> Staged:
        key = self._key(kind, digest)
        while True:
            with self._guard:
                if (hit := self._hit(key, owner)) is not None:
                    return hit
                flight = self._flights.get(key)
                if flight is None:
                    mine = self._flights[key] = Flight()
                    break
            flight.join(on_moved, stopped)
            try:
                flight.wait(stopped)  # and look again: it may be evicted by now
            except Unwanted:  # by those who joined it before this one did
                if stopped():
                    raise
        mine.join(on_moved, stopped)
        return self._fly(kind, digest, owner, mine)

    def _fly(self, kind: CopyKind, digest: Digest, owner: str, flight: Flight) -> Staged:
        key = self._key(kind, digest)
        try:
            self._resolve_doubt(kind, digest)
            with self._guard:
                staged = self._hit(key, owner)
            if staged is None:
                room, fetched = self._fetch(kind, digest, flight)
                staged = Staged(path=room.path, fetched_bytes=fetched, here=False)
                with self._guard:
                    self._held.settle(room.folder, room.entry, owner)
                    self._held.count(misses=1, fetched_bytes=fetched)
        except BaseException as error:
            with self._guard:
                del self._flights[key]
            flight.land(error)
            raise
        with self._guard:
            del self._flights[key]
        flight.land()
        return staged

    def _resolve_doubt(self, kind: CopyKind, digest: Digest) -> None:
        """A copy of which nobody knows whether it is as it was made is read, and is known again or gone."""
        key = self._key(kind, digest)
        if (doubtful := self._held.doubtful(key)) is None:
            return
        folder, _ = doubtful
        with suppress(OSError):
            look = look_over(folder.path(key))  # before: what changes while it is read is seen at its next use
            if is_genuine(self._blobs, kind, digest, folder.path(key)):
                self._held.vouch(folder, key, look)
                return
        log.warning("%s is not what it was made as, and is removed", folder.path(key))
        self._held.drop_doubtful(key)

    def _fetch(self, kind: CopyKind, digest: Digest, flight: Flight) -> tuple[_Room, int]:
        """Where the copy is now, and the bytes that were fetched for it. A folder whose disk others have filled is left
        out, and what may grow goes to the last one.
        """
        makers = {"file": self._fetch_file, "tree": self._fetch_tree, "unpacked": self._unpack}
        usable, helped = list(self._held.folders)[-1 if kind == "unpacked" else 0 :], False
        while True:
            room = _Room(self._held, self._key(kind, digest), usable, f"blob {digest}")
            try:
                fetched = makers[kind](digest, room, flight)
                room.made()
                return room, fetched
            except DiskFull:
                room.give_back()
                if room.taken is None or room.over:  # of the budget, not of the disk
                    raise
                if len(usable) > 1:
                    usable.remove(room.taken)
                elif helped or not self._held.evict(room.taken, room.entry.bytes):
                    raise
                else:
                    helped = True
            except BaseException:
                room.give_back()
                raise

    def _fetch_file(self, digest: Digest, room: _Room, flight: Flight) -> int:
        def sink(size: int) -> Path:
            flight.expect(size)
            return room.take(charge(size))

        # the size that one job declares is compared after: a wrong one must not fail others that share the fetch
        self._blobs.fetch(digest, None, sink, on_bytes=flight.more)
        return room.path.stat().st_size

    def _fetch_tree(self, digest: Digest, room: _Room, flight: Flight) -> int:
        tree = read_tree(self._blobs, digest)
        flight.expect(tree.size)
        with self._building(room.take(tree_charge(tree.entries)), room) as building:
            build_tree(self._blobs, tree, building, flight.more, at_once=AT_ONCE)
        return tree.size

    def _unpack(self, digest: Digest, room: _Room, flight: Flight) -> int:
        holder = f"unpack?{secrets.token_hex(8)}"

        def grow(bytes_: int) -> None:
            flight.go_on()
            room.grow(bytes_)

        try:
            archive = self._one("file", digest, holder, flight.at, flight.is_unwanted)
            with archive.path.open("rb") as opened:
                if is_manifest(opened.read(64)):
                    raise InputError(f"blob {digest} is a directory already; leave out unpack")
            with self._building(room.take(charge(0)), room) as building:
                try:
                    made = unpack(archive.path, building, room=grow)
                except Unwanted:
                    raise
                except InputError as error:
                    raise InputError(f"blob {digest} cannot be unpacked: {error}") from error
            room.entry = replace(room.entry, bytes=made.charge)  # less, where a later file took the place of another
        finally:
            self._held.unpin([holder])
        return archive.fetched_bytes

    @contextmanager
    def _building(self, path: Path, room: _Room) -> Iterator[Path]:
        """Where to make a directory that takes its place when the body ends well."""
        building = path.with_name(f"{PREFIX}{path.name}")
        try:
            yield building
            room.folder.close_off(building)
            room.folder.name(room.key, building)
        except BaseException:
            with suppress(OSError):
                remove_tree(building)
            raise

    # -- copies that others make
    def find(self, kind: CopyKind, digest: Digest, owner: str) -> Path | None:
        """The copy, pinned for the owner, if it is here. StoreUnavailable: one is, but it cannot be told what it is."""
        self._resolve_doubt(kind, digest)
        found = self._hit(self._key(kind, digest), owner)
        if found is None:
            return None
        self._note(owner, digest, None)
        return found.path

    def look(self, kind: CopyKind, digest: Digest, owner: str) -> bool:
        """Whether the copy is here; if so, it stays until this owner is unpinned. No use of it that is counted. Else as
        `find`.
        """
        self._resolve_doubt(kind, digest)
        return self._held.use(self._key(kind, digest), owner) is not None

    @contextmanager
    def landing(self, kind: CopyKind, bytes_: int | None) -> Iterator[Path]:
        """A new path to make a copy at, which will count so much (None: nobody knows). What is left there at the end
        goes away. DiskFull.

        What may grow goes to the last folder, the roomiest one; so does what others left no room for in the first ones.
        """
        mark = f"{PREFIX}{secrets.token_hex(12)}"
        last = self._held.folders[-1]
        usable = [last] if bytes_ is None else list(self._held.folders)
        folder = self._held.reserve(mark, bytes_ or charge(0), usable, "an input")
        while folder is not last and folder.free_bytes() < (bytes_ or 0):
            self._held.release(folder, mark)
            usable.remove(folder)
            folder = self._held.reserve(mark, bytes_ or charge(0), usable, "an input")
        path = folder.path(f"{kind}/{mark}")
        with self._guard:
            self._landings[path] = folder, mark
        try:
            yield path
        finally:
            with self._guard:
                del self._landings[path]
            self._held.release(folder, mark)
            with suppress(OSError):
                remove_tree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def adopt(self, kind: CopyKind, digest: Digest, path: Path, bytes_: int, owner: str) -> Path:
        """Makes what was made at a landing, whose digest was verified, the copy of its digest, pinned for the owner.

        bytes_: what it counts. DiskFull: that is more than was said before, and there is no room for it.
        """
        folder, mark = self._landings[path]
        folder.close_off(path)  # here, and not under the guard: of a large tree it takes long
        # of a tree before it is named, since that takes long too; of a file after, since naming changes its stamp
        stamp = folder.look(f"{kind}/{path.name}").stamp if kind != "file" else ""
        key, more = self._key(kind, digest), f"{mark}+"
        kept = folder.shelf.get(mark)
        assert kept is not None
        if bytes_ > kept.bytes:
            self._held.reserve(more, bytes_ - kept.bytes, [folder], f"blob {digest}")
        try:
            while True:
                with self._guard:
                    flight = self._flights.get(key)
                    if flight is None:
                        entry = Entry(key=key, bytes=bytes_, used=0, stamp=stamp)
                        return self._adopted(folder, mark, entry, path, digest, owner)
                with suppress(Exception):
                    flight.wait()
        finally:
            self._held.release(folder, more)

    def _adopted(self, folder: Folder, mark: str, entry: Entry, path: Path, digest: Digest, owner: str) -> Path:
        if (there := self._held.use(entry.key, owner)) is not None:
            return there
        self._held.drop_doubtful(entry.key)
        folder.name(entry.key, path)
        self._held.release(folder, mark)
        self._held.settle(folder, replace(entry, stamp=entry.stamp or folder.look(entry.key).stamp), owner)
        placed = folder.path(entry.key)
        fetched = entry.bytes if placed.is_dir() else placed.stat().st_size
        self._held.count(misses=1, fetched_bytes=fetched)
        self._note(owner, digest, fetched)
        return placed


class _Room:
    """The place of a copy that is being made, once its size is known. what: for messages."""

    def __init__(self, held: Held, key: str, usable: Sequence[Folder], what: str) -> None:
        self._held, self.key, self._usable, self._what = held, key, usable, what
        self.taken: Folder | None = None
        self.over = False
        self.entry = Entry(key=key, bytes=0, used=0, here=False)

    def take(self, bytes_: int) -> Path:
        """Its path; the same one when asked again."""
        if self.taken is None:
            self.taken = self._held.reserve(self.key, bytes_, self._usable, self._what)
            self.entry = replace(self.entry, bytes=bytes_)
        return self.path

    def grow(self, bytes_: int) -> None:
        """It will count so much. DiskFull, and `over` says that it is the budget's fault."""
        try:
            self._held.grow(self.folder, self.key, bytes_, self._what)
        except DiskFull:
            self.over = True
            raise
        self.entry = replace(self.entry, bytes=bytes_)

    @property
    def folder(self) -> Folder:
        assert self.taken is not None
        return self.taken

    @property
    def path(self) -> Path:
        return self.folder.path(self.key)

    def made(self) -> None:
        """The copy stands in its place."""
        self.entry = replace(self.entry, stamp=self.folder.look(self.key).stamp)

    def give_back(self) -> None:
        if self.taken is not None:
            self._held.release(self.taken, self.key)
