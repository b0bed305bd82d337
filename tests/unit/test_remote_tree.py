"""What a listing of a bucket becomes as a directory, and which listings are refused."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from batchyard.broker.errors import InputError
from batchyard.broker.uri import S3Uri
from batchyard.cache.remote.deliver import AttemptMark
from batchyard.cache.remote.object import Found
from batchyard.cache.remote.tree import Plan, plan

PLACE = S3Uri(bucket="b", key="dir/")


def planned(keys: Sequence[str], sizes: dict[str, int] | None = None) -> Plan:
    found = [
        Found(key=f"dir/{key}", size=(sizes or {}).get(key, 0 if key.endswith("/") else 1), etag="e") for key in keys
    ]
    return plan(PLACE, found)


def test_keys_become_paths_and_their_folders() -> None:
    made = planned(["a", "b/c/d", "b/e", "empty/", "with blank/ü"])
    assert sorted(made.files) == ["a", "b/c/d", "b/e", "with blank/ü"]
    assert made.directories == ["b", "b/c", "empty", "with blank"]
    assert made.files["b/c/d"].key == "dir/b/c/d"
    assert made.size == 4


def test_a_folder_comes_before_what_is_in_it() -> None:
    folders = planned([f"{'x/' * depth}f" for depth in range(1, 9)]).directories
    assert list(folders) == sorted(folders)


def test_the_prefix_itself_and_what_waits_beside_outputs_are_no_part() -> None:
    waiting = AttemptMark.of("yard", "job", "1:claim").folder + "0/12"
    keys = ["", waiting, f"deep/{waiting}", "a", "a.batchyard", ".batchyard/node/lock"]
    assert sorted(planned(keys).files) == [".batchyard/node/lock", "a", "a.batchyard"]


def test_names_that_differ_in_case_are_two_files() -> None:
    assert sorted(planned(["A", "a"]).files) == ["A", "a"]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["../up"], '".."'),
        (["a/../../up"], '".."'),
        (["/etc/passwd"], "absolute"),
        (["//etc/passwd"], "absolute"),
        (["a//b"], "not a plain relative path"),
        (["./a"], "not a plain relative path"),
        (["a\0b"], "not a plain relative path"),
        (["a", "a/b"], "'a' is an object, and so is something below it"),
        (["a", "a/"], "'a' is an object, and so is something below it"),
        (["x" * 256], "longer than"),
        (["x/" * 101 + "y"], "deeper than"),
        ([], "holds no object"),
        ([AttemptMark.of("yard", "job", "1:claim").folder + "0/0"], "holds no object"),
    ],
)
def test_a_listing_that_cannot_be_a_directory_is_refused(keys: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        planned(keys)


def test_a_folder_with_bytes_is_refused() -> None:
    with pytest.raises(InputError, match='"a/" has bytes'):
        planned(["a/"], {"a/": 3})


def test_any_change_of_an_object_changes_the_mark() -> None:
    def mark(*objects: tuple[str, int, str]) -> str:
        return plan(PLACE, [Found(key=f"dir/{key}", size=size, etag=etag) for key, size, etag in objects]).mark

    one = mark(("a", 1, "x"), ("b", 1, "y"))
    assert one == mark(("b", 1, "y"), ("a", 1, "x"))
    others = [mark(("a", 1, "x")), mark(("a", 1, "x"), ("b", 1, "z")), mark(("a", 2, "x"), ("b", 1, "y")),
              mark(("a", 1, "x"), ("c", 1, "y")), mark(("a", 1, "x"), ("b", 1, "y"), ("e/", 0, ""))]  # fmt: skip
    assert len({one, *others}) == 6
