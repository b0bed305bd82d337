"""What a copy looks like, and that every change of it is seen."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from batchyard.cache.copies.lookover import MOST_AT_A_HIT, look_over, still_is
from yardtest.faults.damage import tick

BLOCK = 4096


def rewrite(path: Path) -> None:
    """Other bytes, and the times of before."""
    before = path.stat()
    path.write_bytes(b"X" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path: Path) -> None:
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(b"x" * before.st_size)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


CHANGES: list[Callable[[Path], object]] = [
    rewrite,
    replace,
    lambda path: os.truncate(path, 1),
    lambda path: path.chmod(0o666),
    lambda path: path.unlink(),
    lambda path: path.rename(path.with_name("renamed")),
    lambda path: os.link(path, path.with_name("linked")),
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / "sub").mkdir(parents=True)
    (top / "a").write_bytes(b"a" * (BLOCK + 1))
    (top / "sub" / "b").write_bytes(b"b" * 10)
    (top / "link").symlink_to("a")
    return top


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_is_changed_in_any_way_has_another_stamp(tmp_path: Path, change: Callable[[Path], object]) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"a" * 10)
    stamp = look_over(path).stamp
    assert still_is(path, stamp)
    tick()
    change(path)
    assert not path.exists() or not still_is(path, stamp)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["a", "sub/b"])
def test_a_tree_in_which_anything_is_changed_has_another_stamp(
    tree: Path, name: str, change: Callable[[Path], object]
) -> None:
    stamp = look_over(tree).stamp
    assert still_is(tree, stamp)
    tick()
    change(tree / name)
    assert not still_is(tree, stamp)


def test_a_tree_with_one_more_or_another_link_has_another_stamp(tree: Path) -> None:
    stamp = look_over(tree).stamp
    tick()
    (tree / "sub" / "more").mkdir()
    assert not still_is(tree, stamp)
    stamp = look_over(tree).stamp
    (tree / "link").unlink()
    (tree / "link").symlink_to("sub/b")
    assert not still_is(tree, stamp)


def test_a_tree_keeps_its_stamp_when_it_is_named_and_made_read_only(tree: Path) -> None:
    stamp = look_over(tree).stamp
    (tree / "sub").chmod(0o555)
    tree.chmod(0o555)
    named = tree.rename(tree.with_name("named"))
    assert still_is(named, stamp)


def test_each_thing_counts_whole_blocks(tree: Path) -> None:
    assert look_over(tree).bytes == (1 + 2 + 1 + 1 + 1) * BLOCK
    assert look_over(tree / "a").bytes == 2 * BLOCK


def test_of_a_large_tree_a_use_looks_at_the_top_only(tree: Path) -> None:
    for number in range(MOST_AT_A_HIT):
        (tree / "sub" / str(number)).write_bytes(b"")
    stamp = look_over(tree).stamp
    tick()
    rewrite(tree / "sub" / "7")
    assert still_is(tree, stamp)
    assert not still_is(tree, stamp, most=1 << 20)
    (tree / "more").mkdir()
    assert not still_is(tree, stamp)


@pytest.mark.parametrize("stamp", ["", "1:", "x", "-1:a:b", "99999999999:a"])
def test_what_is_no_stamp_is_nobodys(tree: Path, stamp: str) -> None:
    assert not still_is(tree, stamp)
    assert not still_is(tree / "a", stamp)
