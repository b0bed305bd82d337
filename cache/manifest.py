"""The list of what is in a tree, as canonical JSON: equal trees have equal bytes, so equal digests.

    {"batchyard_tree":1,"entries":[{"path":"bin","type":"directory"},
      {"at":0,"digest":"sha256:…","executable":true,"pack":0,"path":"bin/run","size":5,"type":"file"},
      {"path":"latest","target":"bin/run","type":"symlink"}],
      "packs":[{"digest":"sha256:…","size":5}]}

A directory is followed by what is in it, by name, and every one is listed. Modes are reduced to one bit, executable or
not: what a job sees is read-only to every user anyway, and a umask must not change a digest. Names that are not UTF-8
are kept (as Python's surrogateescape).

A file with `pack` and `at` is these bytes of that pack; one without is a blob of its own, or empty. In the order of the
entries packs are filled one after the other without a gap, each digest once, and what comes again names the same place.

Symlinks must lead, through whatever other symlinks, to something in the tree.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeGuard

from batchyard.broker.errors import InputError

from .digest import Digest, digest_of, parse_digest
from .packs import MOST_PACK_BYTES, Pack, Place

MOST_ENTRIES = 250_000
MOST_BYTES = 64 << 20
MOST_DEPTH = 100
_MOST_PATH_BYTES = 3000
_MOST_NAME_BYTES = 255
_MOST_STEPS = 4_000_000  # of following symlinks, over all symlinks of one tree
_MOST_HOPS = 40  # as Linux
_MOST_SIZE = 1 << 53
_START = b'{"batchyard_tree":1,"entries":['
EMPTY = digest_of(b"")
"""Of every empty file: its bytes are kept nowhere."""


class BadEntry(ValueError):
    """`"a/../b": must not contain ".."`: an entry that no tree may have. Callers say whose fault it is."""

    def __init__(self, path: str, rule: str) -> None:
        super().__init__(f"{path[:200]!r} {rule}")


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """place: in one of the tree's packs; without one the file is a blob of its own, or empty."""

    path: str
    digest: Digest
    size: int
    executable: bool = False
    place: Place | None = None

    @property
    def is_empty(self) -> bool:
        return not self.size and self.digest == EMPTY


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Symlink:
    path: str
    target: str


Entry: TypeAlias = File | Directory | Symlink


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """What is in a directory, and the packs that its files name by number."""

    entries: tuple[Entry, ...]
    packs: tuple[Pack, ...] = ()

    @property
    def files(self) -> Iterator[File]:
        return (entry for entry in self.entries if isinstance(entry, File))

    @property
    def size(self) -> int:
        """Bytes in its files."""
        return sum(file.size for file in self.files)

    @property
    def blobs(self) -> dict[Digest, int]:
        """Digest and size of each blob that holds bytes of its files: with the manifest, all that the tree needs."""
        alone = {file.digest: file.size for file in self.files if file.place is None and not file.is_empty}
        return alone | {pack.digest: pack.size for pack in self.packs}


def is_manifest(beginning: bytes) -> bool:
    """Whether a blob that begins like this is a tree's manifest (32 bytes are enough to tell)."""
    return beginning.startswith(_START)


def in_order(entry: Entry) -> str:
    """The key that sorts entries: a directory, what is in it, then what comes after it."""
    return entry.path.replace("/", "\0")


def encode(entries: Iterable[Entry], packs: Sequence[Pack] = ()) -> bytes:
    """The manifest of these entries, in any order. BadEntry: they are not a tree."""
    tree = Tree(entries=tuple(sorted(entries, key=in_order)), packs=tuple(packs))
    check(tree.entries)
    _check_places(tree)
    data = _encode(tree)
    if len(data) > MOST_BYTES:
        raise BadEntry(".", f"has a list of {len(data)} bytes, more than {MOST_BYTES}; publish it as an archive")
    return data


def decode(data: bytes, digest: Digest) -> Tree:
    """What is in a manifest, checked; `digest` is for messages. InputError: it is not one, or a hostile one."""
    try:
        parsed = json.loads(data) if is_manifest(data) and len(data) <= MOST_BYTES else None
    except (ValueError, RecursionError):
        parsed = None
    entries, packs = (parsed.get("entries"), parsed.get("packs")) if isinstance(parsed, dict) else (None, None)
    if not isinstance(entries, list) or not isinstance(packs, list):
        raise InputError(f"blob {digest} is not a tree; if it is a file, ask for it as one")
    try:
        tree = Tree(entries=tuple(map(_entry, entries)), packs=tuple(map(_pack, packs)))
        check(tree.entries)
        _check_places(tree)
        canonical = _encode(tree) == data
    except (BadEntry, InputError, UnicodeError) as error:
        raise InputError(f"tree {digest} is refused: {error}") from error
    if not canonical:
        raise InputError(f"tree {digest} is refused: it is not in canonical form")
    return tree


def _encode(tree: Tree) -> bytes:
    shown = {
        "batchyard_tree": 1,
        "entries": [_shown(entry) for entry in tree.entries],
        "packs": [{"digest": pack.digest, "size": pack.size} for pack in tree.packs],
    }
    return json.dumps(shown, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def _shown(entry: Entry) -> dict[str, object]:
    match entry:
        case File():
            place = {} if entry.place is None else {"pack": entry.place.pack, "at": entry.place.at}
            return {
                "type": "file",
                "path": entry.path,
                "digest": entry.digest,
                "size": entry.size,
                "executable": entry.executable,
                **place,
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
    if kind != "file" or not _is_size(size) or type(executable) is not bool:
        raise BadEntry(path, "is not a file, directory or symlink as a manifest has them")
    return File(
        path=path,
        digest=parse_digest(fields.get("digest")),
        size=size,
        executable=executable,
        place=_place(path, fields),
    )


def _place(path: str, fields: Mapping[str, object]) -> Place | None:
    pack, at = fields.get("pack"), fields.get("at")
    if pack is None and at is None:
        return None
    if not _is_size(pack) or not _is_size(at):
        raise BadEntry(path, "is in no pack as a manifest has them")
    return Place(pack=pack, at=at)


def _pack(value: object) -> Pack:
    size = value.get("size") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not _is_size(size) or not 0 < size <= MOST_PACK_BYTES:
        raise BadEntry("packs", f"has what is no pack of 1 to {MOST_PACK_BYTES} bytes")
    return Pack(digest=parse_digest(value.get("digest")), size=size)


def _is_size(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < _MOST_SIZE


def check(entries: Sequence[Entry]) -> None:
    """BadEntry unless these, in order, are a directory, wherever the bytes of its files are."""
    if len(entries) > MOST_ENTRIES:
        raise BadEntry(".", f"has {len(entries)} entries, more than {MOST_ENTRIES}; publish it as an archive")
    kinds: dict[str, Entry] = {}
    last = ""
    for entry in entries:
        path = entry.path
        _check_path(path)
        if (here := in_order(entry)) <= last:
            raise BadEntry(path, "is there twice, or out of order")
        parent = path.rpartition("/")[0]
        if parent and not isinstance(kinds.get(parent), Directory):
            raise BadEntry(path, "is in something that is not a directory")
        kinds[path] = entry
        last = here
    budget = [_MOST_STEPS]
    for entry in entries:
        if isinstance(entry, Symlink):
            _check_symlink(entry, kinds, budget)


def _check_places(tree: Tree) -> None:
    """Every byte of every pack is one of exactly one content, and no file reaches beyond its pack."""
    known: dict[Digest, File] = {}
    pack, filled = 0, 0
    for file in tree.files:
        if not file.size:
            if file.digest != EMPTY or file.place is not None:
                raise BadEntry(file.path, "is empty, and has a digest or a place of something that is not")
            continue
        before = known.setdefault(file.digest, file)
        if before is not file:
            if (before.place, before.size) != (file.place, file.size):
                raise BadEntry(file.path, f"has the digest of {before.path[:200]!r}, and another size or place")
            continue
        if file.place is None:
            continue
        if pack < len(tree.packs) and filled == tree.packs[pack].size:
            pack, filled = pack + 1, 0
        if file.place != Place(pack=pack, at=filled):
            raise BadEntry(file.path, f"is not at byte {filled} of pack {pack}, where the one before it ends")
        filled += file.size
        if pack >= len(tree.packs) or filled > tree.packs[pack].size:
            raise BadEntry(file.path, f"ends after the end of pack {pack}")
    if tree.packs and (pack, filled) != (len(tree.packs) - 1, tree.packs[-1].size):
        raise BadEntry("packs", "has bytes that are in no file")


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
