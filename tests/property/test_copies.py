"""Copies in tiny budgets against a model: whatever is staged, pinned, evicted, restarted or killed in between."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from batchyard.broker.errors import DiskFull
from batchyard.broker.seal import KeyRing
from batchyard.cache.copies.folder import Folder, charge_of
from batchyard.cache.copies.local import LocalCopies
from batchyard.cache.digest import Blob
from batchyard.cache.index import Index
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.memory import MemoryStore
from batchyard.cache.tree import put_tree

BLOCK = 4096
MEMORY, SCRATCH = 3 * BLOCK, 5 * BLOCK
OWNERS = ["a", "b", "c"]
# what each blob counts in blocks is told by its sizes: of a file, or of the files in a tree
FILES = [0, 1, BLOCK, BLOCK + 1, 3 * BLOCK, 5 * BLOCK, 6 * BLOCK]
TREES = [[], [1], [1, BLOCK + 1], [1] * 4]


class Killed(BaseException):
    """The process ends here."""


def content(number: int, size: int) -> bytes:
    return bytes([number + 1]) * size


def on_disk(path: Path) -> object:
    """A copy's content."""
    if path.is_dir():
        return {child.name: on_disk(child) for child in path.iterdir()}
    return path.read_bytes()


def taken(path: Path) -> int:
    """As `du`: blocks that the file system uses, directories too."""
    return sum(os.lstat(found).st_blocks * 512 for found in path.rglob("*"))


class Copies(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.top = Path(tempfile.mkdtemp(prefix="copies-"))
        self.blobs = BlobStore(MemoryStore(), KeyRing.new())
        self.wanted: list[tuple[Blob, object]] = []
        for number, size in enumerate(FILES):
            self.wanted.append((self.blobs.put_bytes(content(number, size)), content(number, size)))
        for number, sizes in enumerate(TREES):
            folder = self.top / f"in-{number}"
            folder.mkdir()
            whole = {str(at): content(10 * number + at, size) for at, size in enumerate(sizes)}
            for name, data in whole.items():
                (folder / name).write_bytes(data)
            self.wanted.append((put_tree(self.blobs, folder), whole))
        self.pinned: dict[str, dict[Path, object]] = {}
        self.start(set())

    def start(self, adopted: set[str]) -> None:
        self.folders = [
            Folder(self.top / "memory", MEMORY, place="memory"),
            Folder(self.top / "scratch", SCRATCH),
        ]
        self.index = Index(self.top)
        self.copies = LocalCopies(self.blobs, self.index, self.folders)
        self.copies.keep_pins(adopted)
        self.pinned = {owner: paths for owner, paths in self.pinned.items() if owner in adopted}
        counted = sum(charge_of(path) for folder in self.folders for path in self.here(folder))
        assert self.copies.counts.held_bytes == counted
        for folder in self.folders:
            assert os.listdir(folder.root / "trash") == []
            assert folder.shelf.held_bytes >= sum(taken(path) + on_its_own(path) for path in self.here(folder))

    def here(self, folder: Folder) -> list[Path]:
        return [path for kind in ("file", "tree") for path in (folder.root / kind).iterdir()]

    def stop(self) -> None:
        self.copies.close()
        self.index.close()

    @rule(number=st.integers(0, len(FILES) + len(TREES) - 1), owner=st.sampled_from(OWNERS), bare=st.booleans())
    def stage(self, number: int, owner: str, bare: bool) -> None:
        blob, whole = self.wanted[number]
        try:
            path = self.copies.stage(blob.digest if bare else blob, owner).path
        except DiskFull:
            return
        assert on_disk(path) == whole
        self.pinned.setdefault(owner, {})[path] = whole

    @rule(owner=st.sampled_from(OWNERS))
    def unpin(self, owner: str) -> None:
        self.copies.unpin(owner)
        self.pinned.pop(owner, None)

    @rule(number=st.integers(0, len(FILES) - 1), owner=st.sampled_from(OWNERS), told=st.booleans())
    def land(self, number: int, owner: str, told: bool) -> None:
        blob, whole = self.wanted[number]
        assert isinstance(whole, bytes)
        bytes_ = max(1, -(-len(whole) // BLOCK)) * BLOCK
        try:
            with self.copies.landing("file", bytes_ if told else None) as path:
                path.write_bytes(whole)
                path.chmod(0o444)
                placed = self.copies.adopt("file", blob.digest, path, bytes_, owner)
        except DiskFull:
            return
        assert placed.read_bytes() == whole
        self.pinned.setdefault(owner, {})[placed] = whole

    @rule(adopted=st.sets(st.sampled_from(OWNERS)))
    def restart(self, adopted: set[str]) -> None:
        self.stop()
        self.start(adopted)

    @rule(
        number=st.integers(0, len(FILES) + len(TREES) - 1),
        owner=st.sampled_from(OWNERS),
        after=st.integers(0, 12),
        adopted=st.sets(st.sampled_from(OWNERS)),
    )
    def killed_while_staging(self, number: int, owner: str, after: int, adopted: set[str]) -> None:
        """At one of the calls that change the disk; what runs then to tidy up does not run."""
        left = [after]
        with pytest.MonkeyPatch.context() as patch:
            for name in ("rename", "replace", "write", "pwrite", "unlink", "mkdir", "rmdir", "chmod", "fchmod"):
                patch.setattr(os, name, dying(getattr(os, name), left))
            with suppress(Killed, DiskFull):
                self.copies.stage(self.wanted[number][0], owner)
        self.stop()
        self.start(adopted)

    @precondition(lambda self: self.pinned)
    @rule()
    def lose_the_index(self) -> None:
        """With all pins, as if no container were left."""
        self.stop()
        for path in self.top.glob("index-*"):
            path.write_bytes(b"garbage" * 1000)
        self.start(set())

    @invariant()
    def no_folder_is_above_its_budget(self) -> None:
        for folder in self.folders:
            counted = sum(charge_of(path) for path in self.here(folder))
            assert counted == folder.shelf.held_bytes <= folder.shelf.limit_bytes

    @invariant()
    def what_is_pinned_is_there_and_right(self) -> None:
        for paths in self.pinned.values():
            for path, whole in paths.items():
                assert on_disk(path) == whole
                assert not path.stat().st_mode & 0o222

    def teardown(self) -> None:
        self.stop()
        shutil.rmtree(self.top)


def dying(call: object, left: list[int]) -> object:
    def act(*words: object, **more: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return call(*words, **more)  # type: ignore[operator]

    return act


def on_its_own(path: Path) -> int:
    return os.lstat(path).st_blocks * 512


TestCopies = Copies.TestCase
TestCopies.settings = settings(
    max_examples=30,
    stateful_step_count=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
