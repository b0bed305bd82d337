"""The list of what is in a tree, as canonical JSON: equal trees have equal bytes, so equal digests.

    {"batchyard_tree":1,"entries":[{"path":"bin","type":"directory"},
      {"digest":"sha256:…","executable":true,"path":"bin/run","size":5,"type":"file"},
      {"path":"latest","target":"bin/run","type":"symlink"}]}

Entries are in ascending order of path and every directory is listed, so a parent comes before what is in it. Modes
are reduced to one bit, executable or not: what a job sees is read-only to every user anyway, and a umask must not
change a digest. Names that are not UTF-8 are kept (as Python's surrogateescape).

Symlinks must lead, through whatever other symlinks, to something in the tree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from batchyard.broker.errors import InputError

from .digest import Digest, parse_digest

MOST_ENTRIES = 250_000
MOST_BYTES = 64 << 20
MOST_DEPTH = 100
_MOST_PATH_BYTES = 3000
_MOST_NAME_BYTES = 255
_MOST_STEPS = 4_000_000  # of following symlinks, over all symlinks of one tree
_MOST_HOPS = 40  # as Linux
_MOST_SIZE = 1 << 53
_START = b'{"batchyard_tree":1,"entries":['


class BadEntry(ValueError):
    """`"a/../b": must not contain ".."`: an entry that no tree may have. Callers say whose fault it is."""

    def __init__(self, path: str, rule: str) -> None:
        super().__init__(f"{path[:200]!r} {rule}")


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    path: str
    digest: Digest
    size: int
    executable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Symlink:
    path: str
    target: str


Entry: TypeAlias = File | Directory | Symlink


def is_manifest(beginning: bytes) -> bool:
    """Whether a blob that begins like this is a tree's manifest (32 bytes are enough to tell)."""
    return beginning.startswith(_START)


def encode(entries: Sequence[Entry]) -> bytes:
    """The manifest of these entries, in any order. BadEntry: they are not a tree."""
    ordered = sorted(entries, key=lambda entry: entry.path)
    _check(ordered)
    data = _encode(ordered)
    if len(data) > MOST_BYTES:
        raise BadEntry(".", f"has a list of {len(data)} bytes, more than {MOST_BYTES}; publish it as an archive")
    return data


def decode(data: bytes, digest: Digest) -> tuple[Entry, ...]:
    """The entries of a manifest, checked; `digest` is for messages. InputError: it is not one, or a hostile one."""
    try:
        parsed = json.loads(data) if is_manifest(data) and len(data) <= MOST_BYTES else None
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict) or not isinstance(parsed.get("entries"), list):
        raise InputError(f"blob {digest} is not a tree; if it is a file, ask for it as one")
    try:
        entries = tuple(_entry(value) for value in parsed["entries"])
        _check(entries)
        canonical = _encode(entries) == data
    except (BadEntry, InputError, UnicodeError) as error:
        raise InputError(f"tree {digest} is refused: {error}") from error
    if not canonical:
        raise InputError(f"tree {digest} is refused: it is not in canonical form")
    return entries


def _encode(entries: Sequence[Entry]) -> bytes:
    shown = {"batchyard_tree": 1, "entries": [_shown(entry) for entry in entries]}
    return json.dumps(shown, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def _shown(entry: Entry) -> dict[str, object]:
    match entry:
        case File():
            return {
                "type": "file",
                "path": entry.path,
                "digest": entry.digest,
                "size": entry.size,
                "executable": entry.executable,
            }
        case Directory():
            return {"type": "directory", "path": entry.path}
        case Symlink():
            return {"type": "symlink", "path": entry.path, "target": entry.target}


def _entry(value: object) -> Entry:
    """What is left out or too much shows later: the bytes then differ from the canonical ones."""
    fields: Mapping[str, object] = value if isinstance(value, dict) else {}
    path, kind = fields.get("path"), fields.get("type")
    if not isinstance(path, str):
        raise BadEntry("?", "has no path")
    if kind == "directory":
        return Directory(path=path)
    if kind == "symlink":
        target = fields.get("target")
        if not isinstance(target, str):
            raise BadEntry(path, "has no target")
        return Symlink(path=path, target=target)
    size, executable = fields.get("size"), fields.get("executable")
    if kind != "file" or type(size) is not int or not 0 <= size < _MOST_SIZE or type(executable) is not bool:
        raise BadEntry(path, "is not a file, directory or symlink as a manifest has them")
    return File(path=path, digest=parse_digest(fields.get("digest")), size=size, executable=executable)


def _check(entries: Sequence[Entry]) -> None:
    if len(entries) > MOST_ENTRIES:
        raise BadEntry(".", f"has {len(entries)} entries, more than {MOST_ENTRIES}; publish it as an archive")
    kinds: dict[str, Entry] = {}
    last = ""
    for entry in entries:
        path = entry.path
        _check_path(path)
        if path <= last:
            raise BadEntry(path, "is there twice, or out of order")
        parent = path.rpartition("/")[0]
        if parent and not isinstance(kinds.get(parent), Directory):
            raise BadEntry(path, "is in something that is not a directory")
        kinds[path] = entry
        last = path
    budget = [_MOST_STEPS]
    for entry in entries:
        if isinstance(entry, Symlink):
            _check_symlink(entry, kinds, budget)


def _check_path(path: str) -> None:
    names = path.split("/")
    if path.startswith("/"):
        raise BadEntry(path, "is absolute")
    if ".." in names:
        raise BadEntry(path, 'contains ".."')
    if not all(names) or "." in names or "\0" in path:
        raise BadEntry(path, "is not a plain relative path")
    if len(names) > MOST_DEPTH:
        raise BadEntry(path, f"is deeper than {MOST_DEPTH} directories; publish it as an archive")
    try:
        raw = path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise BadEntry(path, "is not a file name") from None
    if len(raw) > _MOST_PATH_BYTES or max(map(len, raw.split(b"/"))) > _MOST_NAME_BYTES:
        raise BadEntry(path, f"is longer than {_MOST_PATH_BYTES} bytes, or a name in it than {_MOST_NAME_BYTES}")


def _check_symlink(link: Symlink, kinds: Mapping[str, Entry], budget: list[int]) -> None:
    """Walk as the kernel would, in the manifest instead of a file system."""
    hops = 0
    here = link.path.split("/")[:-1]
    todo = _target_names(link)
    while todo:
        budget[0] -= 1
        if budget[0] < 0:
            raise BadEntry(link.path, "is one symlink too many of long ones; publish the tree as an archive")
        name = todo.pop()
        if name in ("", "."):
            continue
        if name == "..":
            if not here:
                raise BadEntry(link.path, f"is a symlink to {link.target[:200]!r}, which leaves the tree")
            here.pop()
            continue
        found = kinds.get("/".join([*here, name]))
        if isinstance(found, Symlink):
            hops += 1
            if hops > _MOST_HOPS:
                raise BadEntry(link.path, "is a symlink that leads to itself")
            todo.extend(_target_names(found))
        elif isinstance(found, Directory) or (isinstance(found, File) and not todo):
            here.append(name)
        else:
            raise BadEntry(link.path, f"is a symlink to {link.target[:200]!r}, which leads to nothing in the tree")


def _target_names(link: Symlink) -> list[str]:
    """The components of the target, last first."""
    target = link.target
    try:
        length = len(target.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        length = 0
    if not 0 < length <= _MOST_PATH_BYTES or "\0" in target:
        raise BadEntry(link.path, "is a symlink to what is not a path")
    if target.startswith("/"):
        raise BadEntry(link.path, f"is a symlink to {target[:200]!r}; make it relative, or it leaves the tree")
    return target.split("/")[::-1]
