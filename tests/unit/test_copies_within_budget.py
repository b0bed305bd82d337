"""What is evicted from a node's copies, what is not, and what a restart finds."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from batchyard.broker.errors import DiskFull, IntegrityError, StoreUnavailable
from batchyard.broker.seal import KeyRing
from batchyard.cache.copies.folder import Folder
from batchyard.cache.copies.held import CopiesPinned
from batchyard.cache.copies.local import LocalCopies
from batchyard.cache.digest import Blob
from batchyard.cache.index import Index, held_bytes
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.memory import MemoryStore
from batchyard.cache.tree import put_tree

KIB = 1024
BLOCK = 4096


@pytest.fixture
def blobs() -> BlobStore:
    return BlobStore(MemoryStore(), KeyRing.new())


class Node:
    """Copies in `top`, opened again at will."""

    def __init__(self, top: Path, blobs: BlobStore) -> None:
        self.top, self.blobs = top, blobs

    def start(self, blocks: int, *, memory_blocks: int | None = None) -> LocalCopies:
        folders = [Folder(self.top / "scratch", blocks * BLOCK)]
        if memory_blocks is not None:
            folders.insert(0, Folder(self.top / "memory", memory_blocks * BLOCK, place="memory"))
        return LocalCopies(self.blobs, Index(self.top), folders)

    def there(self, place: str = "scratch") -> int:
        return sum(len(os.listdir(self.top / place / kind)) for kind in ("file", "tree", "trash"))


@pytest.fixture
def node(tmp_path: Path, blobs: BlobStore) -> Node:
    return Node(tmp_path, blobs)


def blob(blobs: BlobStore, number: int, size: int = 10) -> Blob:
    return blobs.put_bytes(bytes([number]) * size)


def in_turn(copies: LocalCopies, *wanted: Blob) -> None:
    """Staged and unpinned one after the other."""
    for one in wanted:
        copies.stage(one, "passing")
        copies.unpin("passing")


def is_here(copies: LocalCopies, one: Blob) -> bool:
    hits = copies.counts.hits
    copies.find(one.kind, one.digest, "look")
    copies.unpin("look")
    return copies.counts.hits > hits


def test_the_least_recently_used_goes_first(node: Node, blobs: BlobStore) -> None:
    one, two, three, four = (blob(blobs, n) for n in range(4))
    copies = node.start(3)
    in_turn(copies, one, two, three, one, four)
    assert [is_here(copies, b) for b in (one, two, three, four)] == [True, False, True, True]
    assert copies.counts.evictions == 1
    assert copies.counts.held_bytes == 3 * BLOCK
    assert node.there() == 3


def test_what_was_used_last_is_told_without_what_is_gone(node: Node, blobs: BlobStore) -> None:
    one, two, three, four = (blob(blobs, n) for n in range(4))
    copies = node.start(3)
    in_turn(copies, one, two, three, one, four)
    assert copies.last_used(2) == [copies.blobs.name(blob.digest) for blob in (four, one)]
    assert copies.last_used(9) == [copies.blobs.name(blob.digest) for blob in (four, one, three)]


def test_a_tree_counts_each_thing_in_it(node: Node, blobs: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "big").write_bytes(b"x" * (BLOCK + 1))
    (tmp_path / "in" / "link").symlink_to("sub")
    tree = put_tree(blobs, tmp_path / "in")
    copies = node.start(5)
    copies.stage(tree, "job")
    assert copies.counts.held_bytes == 5 * BLOCK  # two directories, a symlink, two blocks
    copies.close()
    with pytest.raises(DiskFull, match="takes"):
        Node(tmp_path / "other", blobs).start(4).stage(tree, "job")


def test_what_is_pinned_stays_and_a_full_cache_says_so(node: Node, blobs: BlobStore) -> None:
    one, two = blob(blobs, 1, 600 * KIB), blob(blobs, 2, 600 * KIB)
    copies = node.start(256)
    path = copies.stage(one, "a").path
    with pytest.raises(CopiesPinned, match=r"are pinned by running jobs; .* give it more with --copies-gib"):
        copies.stage(two, "b")
    assert path.exists()
    copies.unpin("b")
    copies.unpin("a")
    copies.stage(two, "b")
    assert not path.exists()


def test_what_is_larger_than_the_cache_says_so_and_evicts_nothing(node: Node, blobs: BlobStore) -> None:
    small, large = blob(blobs, 1), blob(blobs, 2, 1 << 20)
    copies = node.start(10)
    in_turn(copies, small)
    with pytest.raises(DiskFull, match="give it more with --copies-gib") as raised:
        copies.stage(large, "job")
    assert not isinstance(raised.value, CopiesPinned)
    assert is_here(copies, small)


def test_memory_is_filled_first_then_scratch_and_then_the_older_goes(node: Node, blobs: BlobStore) -> None:
    one, two, three, four, five = (blob(blobs, n) for n in range(5))
    copies = node.start(2, memory_blocks=2)
    in_turn(copies, one, two, three, four)
    assert (node.there("memory"), node.there("scratch")) == (2, 2)
    in_turn(copies, one, two, five)  # three is the one that was not used for longest, on scratch
    assert [is_here(copies, b) for b in (one, two, three, four, five)] == [True, True, False, True, True]
    large = blob(blobs, 9, 2 * BLOCK)
    copies.pin("job", [one.digest])
    assert copies.stage(large, "job").path.is_relative_to(node.top / "scratch")


def test_a_memory_that_others_have_filled_is_left_out(
    node: Node, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite

    def full(fd: int, data: memoryview, at: int) -> int:
        if "/memory/" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(28, "No space left on device")
        return pwrite(fd, data, at)

    monkeypatch.setattr(os, "pwrite", full)
    copies = node.start(100, memory_blocks=100)
    assert copies.stage(blob(blobs, 1), "job").path.is_relative_to(node.top / "scratch")
    assert node.there("memory") == 0
    assert copies.counts.held_bytes == BLOCK


def test_a_disk_that_others_have_filled_is_helped_by_evicting(
    node: Node, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = blob(blobs, 1), blob(blobs, 2)
    copies = node.start(100)
    in_turn(copies, one)
    pwrite = os.pwrite

    def full(fd: int, data: memoryview, at: int) -> int:
        if node.there() > 1:  # the first copy, and the one being made
            raise OSError(28, "No space left on device")
        return pwrite(fd, data, at)

    monkeypatch.setattr(os, "pwrite", full)
    assert copies.stage(two, "job").path.exists()
    assert not is_here(copies, one)


def test_a_restart_knows_the_order_of_use_and_the_pins(node: Node, blobs: BlobStore) -> None:
    one, two, three, four = (blob(blobs, n) for n in range(4))
    copies = node.start(3)
    in_turn(copies, one, two, three, one)
    copies.stage(two, "adopted")
    copies.stage(three, "gone")
    copies.close()
    copies = node.start(3)
    assert copies.is_pinned(two.digest)
    copies.keep_pins({"adopted"})
    assert not copies.is_pinned(three.digest)
    in_turn(copies, four)
    assert [is_here(copies, b) for b in (one, two, three, four)] == [False, True, True, True]


def test_a_smaller_budget_takes_effect_at_the_start_but_spares_the_pinned(node: Node, blobs: BlobStore) -> None:
    one, two, three = (blob(blobs, n) for n in range(3))
    copies = node.start(3)
    copies.stage(one, "adopted")
    copies.stage(two, "gone")
    in_turn(copies, three)
    copies.close()
    copies = node.start(1)
    assert [is_here(copies, b) for b in (one, two, three)] == [True, True, False]
    copies.keep_pins({"adopted"})
    assert [is_here(copies, b) for b in (one, two, three)] == [True, False, False]


@pytest.mark.parametrize("damage", ["lost", "garbage", "cut"])
def test_an_index_that_is_lost_or_damaged_is_made_anew_from_the_files(
    node: Node, blobs: BlobStore, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    one = blob(blobs, 1)
    copies = node.start(3)
    in_turn(copies, one)
    copies.close()
    for path in node.top.glob("index-*"):
        if damage == "lost" or not path.name.endswith(".sqlite"):
            path.unlink()
        else:
            path.write_bytes(os.urandom(100_000) if damage == "garbage" else path.read_bytes()[:5000])
    copies = node.start(3)
    assert is_here(copies, one)
    assert copies.counts.held_bytes == BLOCK
    assert "made anew" in caplog.text
    copies.stage(one, "job")
    assert held_bytes(node.top, "copies", "scratch") == BLOCK


def test_an_index_that_breaks_while_it_is_used_stops_nothing(
    node: Node, blobs: BlobStore, caplog: pytest.LogCaptureFixture
) -> None:
    index = Index(node.top)
    copies = LocalCopies(blobs, index, [Folder(node.top / "scratch", 3 * BLOCK)])
    index.close()
    in_turn(copies, *(blob(blobs, n) for n in range(5)))
    assert copies.counts.evictions == 2
    assert caplog.text.count("does not work") == 1


def test_a_copy_whose_size_is_not_what_was_written_is_thrown_away(node: Node, blobs: BlobStore) -> None:
    one = blob(blobs, 1, 2 * BLOCK)
    copies = node.start(3)
    path = copies.stage(one, "job").path
    copies.close()
    path.chmod(0o600)
    os.truncate(path, BLOCK)
    copies = node.start(3)
    assert node.there() == 0
    assert copies.stage(one, "job").path.stat().st_size == 2 * BLOCK


def test_what_is_no_copy_is_swept_at_the_start(node: Node, blobs: BlobStore) -> None:
    node.start(3).close()
    scratch = node.top / "scratch"
    (scratch / "file" / ".new-123").write_bytes(b"half")
    (scratch / "file" / "readme").write_bytes(b"not ours")
    (scratch / "file" / ("ab" * 32)).mkdir()
    (scratch / "tree" / ("ab" * 32)).write_bytes(b"no directory")
    (scratch / "tree" / ("cd" * 32)).symlink_to("/etc")
    (scratch / "trash" / "x" / "y").mkdir(parents=True)
    copies = node.start(3)
    assert node.there() == 0
    assert copies.counts.held_bytes == 0
    assert Path("/etc/passwd").exists()


def test_a_copy_that_somebody_removed_is_fetched_again(node: Node, blobs: BlobStore) -> None:
    one = blob(blobs, 1)
    copies = node.start(3)
    copies.stage(one, "job").path.unlink()
    assert copies.stage(one, "job").path.read_bytes() == bytes([1]) * 10
    assert copies.counts.held_bytes == BLOCK


def test_a_failed_fetch_gives_its_room_back(node: Node) -> None:
    store = MemoryStore()
    blobs = BlobStore(store, KeyRing.new())
    data = os.urandom(3 << 20)
    one = blobs.put_bytes(data)
    [name] = store.names()
    whole = store._objects[name]
    node.blobs = blobs
    copies = node.start(1000)
    store._objects[name] = whole[: len(whole) // 2]
    with pytest.raises(IntegrityError):
        copies.stage(one, "job")
    assert copies.counts.held_bytes == 0
    assert node.there() == 0
    blobs.put_bytes(data)
    assert copies.stage(one, "job").path.stat().st_size == 3 << 20


def test_what_moved_is_told_for_each_owner(node: Node, blobs: BlobStore) -> None:
    one, two = blob(blobs, 1, 100), blob(blobs, 2, 50)
    copies = node.start(100)
    copies.stage(one, "a")
    copies.stage(one, "b")
    copies.stage(two, "b")
    copies.stage(two, "b")
    moved = copies.moved("b")
    assert (moved.copies, moved.here, moved.fetched_bytes) == (2, 1, 50)
    assert copies.moved("a").fetched_bytes == 100
    copies.unpin("b")
    assert copies.moved("b").copies == 0


# -- copies that others make


def test_what_is_made_at_a_landing_becomes_a_copy(node: Node, blobs: BlobStore) -> None:
    one, two = blob(blobs, 1), blob(blobs, 2)
    copies = node.start(2)
    in_turn(copies, two)
    with copies.landing("file", BLOCK) as path:
        path.write_bytes(bytes([1]) * 10)
        placed = copies.adopt("file", one.digest, path, BLOCK, "job")
    assert placed.read_bytes() == bytes([1]) * 10
    assert copies.is_pinned(one.digest)
    assert copies.counts.held_bytes == 2 * BLOCK
    assert copies.stage(one, "other").here
    copies.close()
    assert node.start(2).find("file", one.digest, "job") == placed


def test_a_landing_that_grew_beyond_its_room_evicts_or_is_refused(node: Node, blobs: BlobStore) -> None:
    one, large, two = blob(blobs, 1), blob(blobs, 2, 2 * BLOCK), blob(blobs, 3)
    copies = node.start(3)
    in_turn(copies, one, two)
    with copies.landing("file", None) as path:
        path.write_bytes(bytes([2]) * 2 * BLOCK)
        copies.adopt("file", large.digest, path, 2 * BLOCK, "job")
    assert copies.counts.held_bytes == 3 * BLOCK
    other = blob(blobs, 4, 2 * BLOCK)
    with pytest.raises(DiskFull), copies.landing("file", None) as path:
        path.write_bytes(bytes([4]) * 2 * BLOCK)
        copies.adopt("file", other.digest, path, 2 * BLOCK, "job")
    assert copies.counts.held_bytes <= 3 * BLOCK
    assert node.there() == copies.counts.held_bytes // BLOCK - 1


def test_what_may_grow_lands_in_the_last_folder(node: Node) -> None:
    copies = node.start(3, memory_blocks=3)
    with copies.landing("file", None) as unknown, copies.landing("file", BLOCK) as known:
        assert unknown.is_relative_to(node.top / "scratch")
        assert known.is_relative_to(node.top / "memory")


def test_a_landing_leaves_out_memory_that_others_have_filled(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = node.start(3, memory_blocks=3)
    free = Folder.free_bytes
    monkeypatch.setattr(Folder, "free_bytes", lambda self: BLOCK if self.place == "memory" else free(self))
    with copies.landing("file", BLOCK) as small, copies.landing("file", 2 * BLOCK) as large:
        assert small.is_relative_to(node.top / "memory")
        assert large.is_relative_to(node.top / "scratch")
        assert copies.counts.held_bytes == 3 * BLOCK
    assert copies.counts.held_bytes == 0


def test_a_look_keeps_a_copy_until_it_is_over_and_counts_nothing(node: Node, blobs: BlobStore) -> None:
    one = blob(blobs, 1)
    copies = node.start(3)
    assert not copies.look("file", one.digest, "look")
    in_turn(copies, one)
    counts = copies.counts
    assert copies.look("file", one.digest, "look")
    assert copies.is_pinned(one.digest)
    copies.unpin("look")
    assert not copies.is_pinned(one.digest)
    assert copies.counts == counts


def test_a_landing_that_is_left_leaves_nothing(node: Node) -> None:
    copies = node.start(3)
    with copies.landing("tree", 2 * BLOCK) as path:
        (path / "sub").mkdir(parents=True)
        assert copies.counts.held_bytes == 2 * BLOCK
    assert copies.counts.held_bytes == 0
    assert node.there() == 0


def test_a_landing_of_what_is_here_gives_the_copy_that_is_here(node: Node, blobs: BlobStore) -> None:
    one = blob(blobs, 1)
    copies = node.start(3)
    there = copies.stage(one, "a").path
    inode = there.stat().st_ino
    with copies.landing("file", BLOCK) as path:
        path.write_bytes(bytes([1]) * 10)
        assert copies.adopt("file", one.digest, path, BLOCK, "b") == there
    assert there.stat().st_ino == inode
    assert copies.counts.held_bytes == BLOCK


def test_many_threads_in_a_small_cache_are_all_given_the_right_bytes(node: Node, blobs: BlobStore) -> None:
    wanted = [blob(blobs, n) for n in range(12)]
    copies = node.start(6)
    errors: list[str] = []

    def run(seed: int) -> None:
        for number in range(60):
            one = (number * seed + number // 7) % 12
            owner = f"{seed}.{number}"
            try:
                data = copies.stage(wanted[one], owner).path.read_bytes()
                if data != bytes([one]) * 10:
                    errors.append(f"{one}: {data!r}")
            except Exception as error:
                errors.append(repr(error))
            finally:
                copies.unpin(owner)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in (1, 5, 7, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert copies.counts.held_bytes <= 6 * BLOCK
    assert node.there() == copies.counts.held_bytes // BLOCK


def test_others_are_given_copies_while_a_damaged_one_is_removed(
    node: Node, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = node.start(9)
    path = copies.stage(blob(blobs, 1), "a").path
    copies.unpin("a")
    monkeypatch.setattr(Folder, "remove", lambda folder, trash: seen.append(is_free(copies)))
    seen: list[bool] = []
    assert copies.held.condemn(path, f"file/{path.name}") == "removed"
    assert seen == [True]


def test_others_are_given_copies_while_a_large_directory_is_made_read_only(
    node: Node, blobs: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = node.start(9)
    chmod, seen = os.chmod, list[bool]()

    def looking(path: str, mode: int) -> None:
        seen.append(is_free(copies))
        chmod(path, mode)

    with copies.landing("tree", BLOCK) as path:
        path.mkdir()
        monkeypatch.setattr(os, "chmod", looking)
        placed = copies.adopt("tree", "sha256:" + "1" * 64, path, BLOCK, "job")
        monkeypatch.undo()
    assert placed.stat().st_mode & 0o777 == 0o555
    assert seen == [True]


def is_free(copies: LocalCopies) -> bool:
    """Whether another thread can have the guard."""
    free: list[bool] = []

    def look() -> None:
        free.append(copies.held.guard.acquire(timeout=0.2))
        if free[0]:
            copies.held.guard.release()

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return free[0]


def test_a_job_ends_well_though_what_it_held_cannot_be_removed(
    node: Node, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    copies = node.start(9)
    path = copies.stage(blob(blobs, 1), "a").path
    assert copies.held.condemn(path, f"file/{path.name}") == "in use"

    def broken(folder: Folder, trash: object) -> None:
        raise StoreUnavailable("cannot write")

    monkeypatch.setattr(Folder, "remove", broken)
    copies.unpin("a")
    assert "still take room" in caplog.text
