"""Patterns of paths."""

from __future__ import annotations

import pytest

from batchyard.broker.globs import Pattern, is_pattern, split


def matches(pattern: str, path: str) -> bool:
    """Name by name, as a walk would go; False as soon as it would not look further."""
    one = Pattern(pattern)
    at = one.start
    for name in path.split("/") if path else []:
        at = one.below(at, name)
    return one.matches(at)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*.csv", ["a.csv", "ä b.csv", "\udcff.csv", "a\nb.csv"], ["a.tsv", "x/a.csv", ".csv", ".a.csv", ""]),
        ("?", ["a"], ["", "ab", "."]),
        ("part-[0-9]", ["part-7"], ["part-x", "part-77"]),
        ("[!a]*", ["b", "ba"], ["a", "ab", ".b"]),
        ("[*]", ["*"], ["a"]),
        (".*", [".a"], ["a"]),
        ("*/t", ["a/t"], ["t", "a/b/t", ".a/t"]),
        ("**/t", ["t", "a/t", "a/b/t"], ["a/tt", ".a/t", "a/.b/t", ""]),
        ("a/**/b/*.c", ["a/b/x.c", "a/1/2/b/x.c", "a/b/b/x.c"], ["b/x.c", "a/x.c"]),
        ("**", ["", "a", "a/b"], [".a", "a/.b"]),
        ("a**b", ["ab", "axxb"], ["a/b"]),
        ("[", ["["], ["a"]),
        ("a+(b)|c", ["a+(b)|c"], ["aab"]),
    ],
)
def test_a_pattern_matches(pattern: str, yes: list[str], no: list[str]) -> None:
    assert [path for path in yes if not matches(pattern, path)] == []
    assert [path for path in no if matches(pattern, path)] == []


def test_a_walk_does_not_look_into_what_cannot_match() -> None:
    one = Pattern("a/*.csv")
    assert not one.below(one.start, "b")
    at = one.below(one.start, "a")
    assert at
    assert not one.matches(at)
    assert not one.below(one.below(at, "x.csv"), "y.csv")


def test_the_path_before_the_first_pattern_is_plain() -> None:
    assert [(base, pattern.text) for base, pattern in map(split, ["a/b", "a/*/c", "*.x", "a/[b]"])] == [
        ("a/b", ""), ("a", "*/c"), ("", "*.x"), ("a", "[b]"),
    ]  # fmt: skip
    assert [is_pattern(path) for path in ("a/b", "a/*", "?", "a[", "a]")] == [False, True, True, True, False]


def test_a_hostile_pattern_takes_no_long_time() -> None:
    assert not matches("*a" * 100 + "b", "a" * 250)
    assert not matches("/".join(["**"] * 300) + "/x", "/".join("a" * 99))
