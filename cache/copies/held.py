"""Which copies a node has, in which folder, for whom they are pinned, and what goes when room is needed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from batchyard.broker.errors import BatchyardError, DiskFull

from ..index import Index
from ..shelf import Entry, Pins
from .folder import Folder
from .lookover import Look, still_is

log = logging.getLogger(__name__)
LEVEL = "copies"
"""What the index calls this level."""


class CopiesPinned(DiskFull):
    """There would be room, but for what running jobs have pinned: it may be there in a moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyCounts:
    """Since start, but for what is held now. Fetched bytes are plaintext; held ones are what copies count."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    fetched_bytes: int = 0
    held_bytes: int = 0
    limit_bytes: int = 0


class Held:
    """May be shared by threads. `folders`: the one to be filled first comes first. Evicting and giving out a copy are
    decided under one lock, `guard`, which a caller may hold over several calls.
    """

    def __init__(self, index: Index, folders: Sequence[Folder]) -> None:
        self.guard = threading.RLock()
        self.folders = tuple(folders)
        self._index = index
        self._pins = Pins(index.pins())
        self.crowded = threading.Event()
        """set when there is more than the soft limit, for who makes room ahead by `tidy`"""
        self._aside: dict[str, list[Path | None]] = {}
        self._used = 0
        self._counts = CopyCounts()
        self._recall()
        self.trim()
        self._note_crowd()

    def _recall(self) -> None:
        """What is there, in the order of use that the index knows."""
        rows = {(place, entry.key): entry for place, entry in self._index.load(LEVEL)}
        seen: set[str] = set()
        for folder in self.folders:
            for key, found in folder.found().items():
                row = rows.get((folder.place, key))
                if key in seen or (row is not None and row.bytes != found.bytes):
                    log.warning("%s is not as it was written and is removed", folder.path(key))
                    folder.remove([folder.discard(key)])
                    continue
                seen.add(key)
                used, stamp = (row.used, row.stamp) if row is not None else (0, "")
                as_it_was = stamp if stamp == found.stamp else ""
                folder.shelf.put(Entry(key=key, bytes=found.bytes, used=used, stamp=as_it_was))
            folder.shelf.sort()
        held = [(folder.place, entry) for folder in self.folders for entry in folder.shelf]
        if self._index.is_new and held:
            log.warning("the index of %d copies was lost; it is made anew from what is there", len(held))
        self._used = max((entry.used for _, entry in held), default=0)
        self._index.save_all(LEVEL, held)

    @property
    def counts(self) -> CopyCounts:
        with self.guard:
            return replace(
                self._counts,
                held_bytes=sum(folder.shelf.held_bytes for folder in self.folders),
                limit_bytes=sum(folder.shelf.limit_bytes for folder in self.folders),
            )

    def count(self, *, hits: int = 0, misses: int = 0, evictions: int = 0, fetched_bytes: int = 0) -> None:
        with self.guard:
            now = self._counts
            self._counts = CopyCounts(
                hits=now.hits + hits,
                misses=now.misses + misses,
                evictions=now.evictions + evictions,
                fetched_bytes=now.fetched_bytes + fetched_bytes,
            )

    # -- pins
    def pin(self, owner: str, keys: Iterable[str]) -> None:
        """Keep these, here or to come, until `unpin`."""
        with self.guard:
            new = [key for key in keys if self._pins.add(owner, key)]
            if new:
                self._index.pin(owner, new)

    def unpin(self, owners: Iterable[str]) -> None:
        """All pins of these owners; fine if there are none."""
        gone = list(owners)
        with self.guard:
            for owner in gone:
                self._pins.drop(owner)
            self._index.unpin(gone)
            over = [self._aside.pop(key) for key in list(self._aside) if key not in self._pins]
            self._note_crowd()
        for trash in over:
            _try_to_remove(self.folders[0], trash)

    def owners(self) -> set[str]:
        with self.guard:
            return self._pins.owners()

    def is_pinned(self, key: str) -> bool:
        with self.guard:
            return key in self._pins

    # -- copies
    def use(self, key: str, owner: str) -> Path | None:
        """Where the copy is, if it is here: it is the last one used from now on, and pinned for the owner. None also
        of one that is `doubtful`.
        """
        with self.guard:
            found = self._here(key)
            if found is None or not found[1].stamp:
                return None
            folder, entry = found
            path = folder.path(key)
            try:
                whole = still_is(path, entry.stamp)
            except OSError:
                log.warning("%s is gone; somebody else has removed it", path)
                self._forget(folder, key)
                return None
            if not whole:
                log.warning("%s was changed by somebody else", path)
                folder.shelf.put(replace(entry, stamp=""))
                return None
            used = folder.shelf.use(key, self._used + 1)
            assert used is not None
            self._keep(folder, used, owner)
            return path

    def _here(self, key: str) -> tuple[Folder, Entry] | None:
        for folder in self.folders:
            entry = folder.shelf.get(key)
            if entry is not None and entry.here:
                return folder, entry
        return None

    def _forget(self, folder: Folder, key: str) -> None:
        folder.shelf.remove(key)
        self._index.remove(LEVEL, [key])

    def doubtful(self, key: str) -> tuple[Folder, Entry] | None:
        """A copy that is here and is not given out: it was changed, or nobody knows what it was like."""
        with self.guard:
            found = self._here(key)
            return found if found is not None and not found[1].stamp else None

    def vouch(self, folder: Folder, key: str, look: Look) -> None:
        """A doubtful copy was found to be right, and looked so before."""
        with self.guard:
            found = self.doubtful(key)
            if found is not None and found[0] is folder:
                entry = replace(found[1], bytes=look.bytes, stamp=look.stamp)
                folder.shelf.put(entry)
                self._index.save(LEVEL, folder.place, entry, stamped=True)

    def drop_doubtful(self, key: str) -> None:
        """A copy that is not what it should be takes no name and no room any more; fine if there is none. What running
        jobs have mounted is removed once nobody has it pinned.
        """
        with self.guard:
            found = self.doubtful(key)
            if found is None:
                return
            folder, _ = found
            trash = folder.discard(key)
            self._forget(folder, key)
            if key in self._pins:
                self._aside.setdefault(key, []).append(trash)
                return
        folder.remove([trash])

    def settle(self, folder: Folder, entry: Entry, owner: str) -> None:
        """The copy stands in its place, whole and with this stamp; what was reserved under its key becomes what it
        counts.
        """
        with self.guard:
            entry = replace(entry, here=True, used=self._used + 1)
            folder.shelf.put(entry)
            self._keep(folder, entry, owner, stamped=True)
            self._note_crowd()

    def _keep(self, folder: Folder, entry: Entry, owner: str, *, stamped: bool = False) -> None:
        self._used = max(self._used, entry.used)
        new = self._pins.add(owner, entry.key)
        self._index.save(LEVEL, folder.place, entry, pin_for=owner if new else None, stamped=stamped)

    def last_used(self, most: int) -> list[str]:
        """Keys of copies that are here, the last used first."""
        with self.guard:
            found = [entry for folder in self.folders for entry in folder.shelf.last(most)]
        return [entry.key for entry in sorted(found, key=lambda entry: -entry.used)[:most]]

    # -- room
    def reserve(self, key: str, bytes_: int, usable: Sequence[Folder], what: str) -> Folder:
        """A folder in which so many bytes are kept under this key. What is evicted for them is gone when it returns.

        DiskFull, about `what`: it is larger than the cache. CopiesPinned: too much is pinned.
        """
        with self.guard:
            able = [(f, v) for f in usable if (v := f.shelf.victims(bytes_, self._pins.__contains__)) is not None]
            if not able:
                raise self._no_room(bytes_, what)
            # where nothing has to go, else where what goes was not used for longest
            folder, victims = min(able, key=lambda one: one[1][0].used if one[1] else -1)
            trash = self._take_out(folder, victims)
            folder.shelf.put(Entry(key=key, bytes=bytes_, used=self._used, here=False))
        try:
            folder.remove(trash)
        except BaseException:
            self.release(folder, key)
            raise
        return folder

    def grow(self, folder: Folder, key: str, bytes_: int, what: str) -> None:
        """What is reserved under this key becomes so many bytes, if it is less. DiskFull, CopiesPinned as `reserve`."""
        with self.guard:
            entry = folder.shelf.get(key)
            assert entry is not None
            if bytes_ <= entry.bytes:
                return
            victims = folder.shelf.victims(bytes_ - entry.bytes, self._pins.__contains__)
            if victims is None:
                raise self._no_room(bytes_, what)
            trash = self._take_out(folder, victims)
            folder.shelf.put(replace(entry, bytes=bytes_))
        folder.remove(trash)

    def release(self, folder: Folder, key: str) -> None:
        """Nothing came of what was reserved."""
        with self.guard:
            entry = folder.shelf.get(key)
            if entry is not None and not entry.here:
                folder.shelf.remove(key)

    def evict(self, folder: Folder, bytes_: int) -> bool:
        """Frees so much of the disk, or as much as is not pinned; whether there was anything."""
        with self.guard:
            least = folder.shelf.least_used(bytes_, self._pins.__contains__)
            trash = self._take_out(folder, least)
        folder.remove(trash)
        return bool(least)

    def tidy(self) -> None:
        """Makes room down to the soft limit, as far as nothing is pinned. DiskFull, StoreUnavailable."""
        self.crowded.clear()
        for folder in self.folders:
            with self.guard:
                trash = self._take_out(folder, folder.shelf.surplus(self._pins.__contains__))
            folder.remove(trash)

    def _note_crowd(self) -> None:
        if any(folder.shelf.is_crowded for folder in self.folders):
            self.crowded.set()

    def copies(self) -> list[tuple[Path, str]]:
        """Path and key of each copy that is here."""
        with self.guard:
            return [(folder.path(e.key), e.key) for folder in self.folders for e in folder.shelf if e.here]

    def stamp(self, path: Path, key: str) -> str | None:
        """Of the copy that is at this path now; None: there is none. "" of one that is `doubtful`."""
        with self.guard:
            found = self._here(key)
            return found[1].stamp if found is not None and found[0].path(key) == path else None

    def condemn(self, path: Path, key: str, stamp: str | None = None) -> Literal["removed", "in use", "gone"]:
        """A copy that is damaged is given to nobody any more. It is removed; what running jobs have mounted, once they
        have all ended. stamp: what it had when it was found so; one that was made since has another.
        """
        with self.guard:
            found = self._here(key)
            if found is None or found[0].path(key) != path or (stamp is not None and found[1].stamp not in {"", stamp}):
                return "gone"
            folder, _ = found
            trash = folder.discard(key)
            self._forget(folder, key)
            if key in self._pins:
                self._aside.setdefault(key, []).append(trash)
                return "in use"
        folder.remove([trash])
        return "removed"

    def _take_out(self, folder: Folder, victims: Iterable[Entry]) -> list[Path | None]:
        """Under the guard, so that nobody is given, or makes, a copy that goes. The bytes are freed by the caller."""
        trash: list[Path | None] = []
        try:
            for entry in victims:
                trash.append(folder.discard(entry.key))
                folder.shelf.remove(entry.key)
                self._index.remove(LEVEL, [entry.key])
                self.count(evictions=1)
        except BaseException:
            _try_to_remove(folder, trash)
            raise
        return trash

    def trim(self) -> None:
        """Back to the budgets, which may be smaller than at the last start."""
        for folder in self.folders:
            over = folder.shelf.held_bytes - folder.shelf.limit_bytes
            try:
                if over > 0:
                    self.evict(folder, over)
            except BatchyardError as error:
                log.warning("the copies stay above their budget: %s", error)

    def _no_room(self, bytes_: int, what: str) -> DiskFull:
        largest = max(folder.shelf.limit_bytes for folder in self.folders)
        if bytes_ > largest:
            return DiskFull(
                f"{what} takes {_gib(bytes_)} GiB here; the cache of this node has {_gib(largest)} GiB; "
                "give it more with --copies-gib"
            )
        held = sum(e.bytes for f in self.folders for e in f.shelf if not e.here or e.key in self._pins)
        limit = sum(folder.shelf.limit_bytes for folder in self.folders)
        return CopiesPinned(
            f"no room for the {_gib(bytes_)} GiB of {what}: {_gib(held)} GiB of copies are pinned by running jobs; "
            f"the cache of this node has {_gib(limit)} GiB; give it more with --copies-gib"
        )


def _try_to_remove(folder: Folder, trash: Iterable[Path | None]) -> None:
    """Where whoever comes by has nothing to do with it; what stays is removed at the next start."""
    try:
        folder.remove(trash)
    except BatchyardError as error:
        log.warning("removed copies still take room: %s", error)


def _gib(bytes_: int) -> str:
    return f"{bytes_ / 2**30:.3g}"
