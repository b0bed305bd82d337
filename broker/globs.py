"""Patterns of paths, as a shell has them. Pure.

`*`, `?` and `[…]` match within one name, and no dot at its beginning; `**` matches any number of directories. A walk
goes down with a `Pattern` and never looks into what cannot match:

    at = pattern.start
    at = pattern.below(at, "a")      # for the name "a" in it: where the pattern is then, nothing if it does not match
    pattern.matches(at)              # whether what was reached is meant itself
"""

from __future__ import annotations

import fnmatch
import re
from typing import TypeAlias

At: TypeAlias = frozenset[int]
"""How much of the pattern the path so far may have used up: each number of its parts that is possible."""

_SIGN = re.compile(r"[*?\[]")
_DIRECTORIES = "**"


def is_pattern(path: str) -> bool:
    """Whether it means what it matches, and not the path itself."""
    return _SIGN.search(path) is not None


def split(path: str) -> tuple[str, Pattern]:
    """The path before the first name with a pattern in it ('' where that is the first), and the rest."""
    names = path.split("/")
    first = next((n for n, name in enumerate(names) if is_pattern(name)), len(names))
    return "/".join(names[:first]), Pattern("/".join(names[first:]))


class Pattern:
    """`part-*/**/*.csv`, relative to some directory. '' matches that directory."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._parts = [name for name in text.split("/") if name not in {"", "."}]
        self._names = [re.compile(fnmatch.translate(name)) for name in self._parts]
        self.start = self._closed({0})

    def below(self, at: At, name: str) -> At:
        """Where it is at this name in a directory where it was `at`."""
        found: set[int] = set()
        hidden = name.startswith(".")
        for n in at:
            if n == len(self._parts):
                continue
            part = self._parts[n]
            if part == _DIRECTORIES:
                if not hidden:
                    found.add(n)
            elif (not hidden or part.startswith(".")) and self._names[n].match(name):
                found.add(n + 1)
        return self._closed(found)

    def matches(self, at: At) -> bool:
        return len(self._parts) in at

    def _closed(self, at: set[int]) -> At:
        """`**` may also stand for no directory."""
        for n, part in enumerate(self._parts):
            if n in at and part == _DIRECTORIES:
                at.add(n + 1)
        return frozenset(at)
