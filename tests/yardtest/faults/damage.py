"""What is done to bytes at rest, level by level: each harm is an entry of a table."""

from __future__ import annotations

import io
import os
import random
import shutil
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from batchyard.broker.seal import KeyRing
from batchyard.cache.copies.folder import KINDS
from batchyard.cache.tree import remove_tree

from .places import Place
from .world import World

_COARSE = 5  # CLOCK_REALTIME_COARSE, which `time` does not name

Harm: TypeAlias = Callable[[World, random.Random], str | None]
"""Does it, and says what it did; None: there is nothing to do it to."""


# -- sealed objects


@dataclass(frozen=True, slots=True)
class Objects:
    """Those of one level. durable: who reads may be refused what was harmed there."""

    world: World
    place: Place
    durable: bool

    def write(self, name: str, data: bytes) -> None:
        self.place.write(name, data)
        self._touched(name)

    def remove(self, name: str) -> None:
        self.place.remove(name)
        self._touched(name)

    def _touched(self, name: str) -> None:
        if self.durable:
            self.world.doubt(name)

    def sealed_anew(self, name: str, ring: KeyRing) -> bytes | None:
        """The same blob under another seal."""
        for digest, data in self.world.objects().items():
            if self.world.ring.name(digest) == name:
                return ring.seal_stream(io.BytesIO(data), digest, len(data)).read()
        return None


Change: TypeAlias = Callable[[Objects, str, bytes, random.Random], None]


def _flip(objects: Objects, name: str, data: bytes, dice: random.Random) -> None:
    anywhere, header, end = dice.randrange(len(data)), dice.randrange(min(120, len(data))), len(data) - 1
    at = dice.choice([anywhere, anywhere, header, end])
    objects.write(name, data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :])


def _truncate(objects: Objects, name: str, data: bytes, dice: random.Random) -> None:
    objects.write(name, data[: dice.choice([0, 1, len(data) - 16, len(data) - 1, dice.randrange(len(data))])])


def _extend(objects: Objects, name: str, data: bytes, dice: random.Random) -> None:
    objects.write(name, data + dice.choice([b"\0", data[-16:], data, dice.randbytes(9000)]))


def _noise(objects: Objects, name: str, data: bytes, dice: random.Random) -> None:
    objects.write(name, dice.choice([dice.randbytes(len(data)), bytes(len(data))]))


def _replace(objects: Objects, name: str, data: bytes, dice: random.Random) -> None:
    objects.write(name, objects.place.read(dice.choice(objects.place.names())))


def _swap(objects: Objects, name: str, data: bytes, dice: random.Random) -> None:
    other = dice.choice(objects.place.names())
    theirs = objects.place.read(other)
    objects.write(other, data)
    objects.write(name, theirs)


def _move_inside(objects: Objects, name: str, data: bytes, dice: random.Random) -> None:
    """A piece is put in another's place, or left out."""
    size, start, to = (dice.randrange(1, len(data) + 1) for _ in range(3))
    piece = data[start : start + size]
    objects.write(name, data[:to] + dice.choice([piece, b""]) + data[to + len(piece) :])


def _mix_two_seals(objects: Objects, name: str, data: bytes, dice: random.Random) -> None:
    """The beginning of one seal of a blob and the end of another one."""
    other = objects.sealed_anew(name, objects.world.ring)
    if other is not None:
        at = dice.randrange(min(len(data), len(other)))
        objects.write(name, data[:at] + other[at:])


def _seal_anew(objects: Objects, name: str, data: bytes, dice: random.Random) -> None:
    """By one who may: nothing is wrong with it."""
    other = objects.sealed_anew(name, objects.world.ring)
    if other is not None:
        objects.place.write(name, other)


def _unknown_key(objects: Objects, name: str, data: bytes, dice: random.Random) -> None:
    other = objects.sealed_anew(name, KeyRing.new())
    if other is not None:
        objects.write(name, other)


def _remove(objects: Objects, name: str, data: bytes, dice: random.Random) -> None:
    objects.remove(name)


CHANGES: tuple[Change, ...] = (
    _flip, _truncate, _extend, _noise, _replace, _swap, _move_inside, _mix_two_seals, _seal_anew, _unknown_key, _remove,
)  # fmt: skip


def _to_objects(change: Change, level: Literal["far", "near", "peer"]) -> Harm:
    def harm(world: World, dice: random.Random) -> str | None:
        place: Place | None = getattr(world, level)
        names = place.names() if place is not None else []
        if place is None or not names:
            return None
        name = dice.choice(names)
        if data := place.read(name):
            change(Objects(world, place, level == "far"), name, data, dice)
        return f"{level} {change.__name__} {name[:8]}"

    return harm


# -- copies

CopyChange: TypeAlias = Callable[[Path, list[Path], random.Random], None]
"""Of a file that is a copy or is in one. The list: all such files."""


def _write(path: Path, data: bytes | bytearray) -> None:
    """Into the file that is there, which keeps its mode."""
    mode = path.stat().st_mode
    path.chmod(0o600)
    path.write_bytes(data)
    path.chmod(mode)


def _copy_flip(path: Path, every: list[Path], dice: random.Random) -> None:
    data = bytearray(path.read_bytes()) or bytearray(1)
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    _write(path, data)


def _copy_flip_unseen(path: Path, every: list[Path], dice: random.Random) -> None:
    """With the times of before, as far as these can be set."""
    before = path.stat()
    _copy_flip(path, every, dice)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _copy_truncate(path: Path, every: list[Path], dice: random.Random) -> None:
    data = path.read_bytes()
    _write(path, data[: dice.randrange(len(data))] if data else b"x")


def _copy_extend(path: Path, every: list[Path], dice: random.Random) -> None:
    _write(path, path.read_bytes() + dice.randbytes(dice.choice([1, 9000])))


def _copy_anew(path: Path, every: list[Path], dice: random.Random) -> None:
    """Another file of the same size and times takes its place."""
    before = path.stat()
    new = path.with_name("x")
    with _writable(path.parent):
        new.write_bytes(dice.randbytes(before.st_size))
        new.chmod(before.st_mode)
        os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
        os.replace(new, path)


def _copy_swap(path: Path, every: list[Path], dice: random.Random) -> None:
    other = dice.choice(every)
    between = path.with_name("x")
    with _writable(path.parent), _writable(other.parent):
        os.rename(path, between)
        if other.exists():
            os.rename(other, path)
        os.rename(between, other)


def _copy_link(path: Path, every: list[Path], dice: random.Random) -> None:
    """A symlink to another one takes its place."""
    other = dice.choice(every)
    with _writable(path.parent):
        path.unlink()
        path.symlink_to(other)


def _copy_remove(path: Path, every: list[Path], dice: random.Random) -> None:
    with _writable(path.parent):
        path.unlink()


def _copy_mode(path: Path, every: list[Path], dice: random.Random) -> None:
    path.chmod(path.stat().st_mode ^ 0o111)


def _copy_folder(path: Path, every: list[Path], dice: random.Random) -> None:
    """A directory in a file's place."""
    with _writable(path.parent):
        path.unlink()
        path.mkdir()


def _copy_beside(path: Path, every: list[Path], dice: random.Random) -> None:
    """A file more, where that is a tree, or one that looks like a copy."""
    with _writable(path.parent):
        path.with_name(dice.randbytes(32).hex()).write_bytes(b"more")


class _writable:
    """A folder of a tree, which is read-only to who is not root."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        self._mode = self._folder.stat().st_mode
        self._folder.chmod(0o700)

    def __exit__(self, *_: object) -> None:
        self._folder.chmod(self._mode)


COPY_CHANGES: tuple[CopyChange, ...] = (
    _copy_flip, _copy_flip_unseen, _copy_truncate, _copy_extend, _copy_anew, _copy_swap, _copy_link, _copy_remove,
    _copy_mode, _copy_folder, _copy_beside,
)  # fmt: skip


def _to_copies(change: CopyChange) -> Harm:
    def harm(world: World, dice: random.Random) -> str | None:
        every = files_of_copies(world)
        if not every:
            return None
        path = dice.choice(every)
        tick()
        change(path, every, dice)
        return f"copies {change.__name__} {path.relative_to(world.top)}"

    return harm


def files_of_copies(world: World) -> list[Path]:
    return [
        found
        for folder in ("memory", "scratch")
        for kind in KINDS
        for found in sorted((world.top / folder / kind).rglob("*"))
        if found.is_file() and not found.is_symlink()
    ]


def tick() -> None:
    """Until the clock of file times has moved on: what happens within one tick of it has one time."""
    began = time.clock_gettime_ns(_COARSE)
    while time.clock_gettime_ns(_COARSE) == began:
        time.sleep(0.0005)


def _swap_whole_trees(world: World, dice: random.Random) -> str | None:
    trees = sorted(found for folder in ("memory", "scratch") for found in (world.top / folder / "tree").iterdir())
    if len(trees) < 2:
        return None
    one, two = dice.sample(trees, 2)
    tick()
    between = one.with_name("x")
    os.rename(one, between)
    os.rename(two, one)
    os.rename(between, two)
    return f"copies swap {one.name[:8]} {two.name[:8]}"


def _remove_whole_tree(world: World, dice: random.Random) -> str | None:
    trees = sorted(found for folder in ("memory", "scratch") for found in (world.top / folder / "tree").iterdir())
    if not trees:
        return None
    gone = dice.choice(trees)
    remove_tree(gone)
    return f"copies remove {gone.name[:8]}"


def _plant(world: World, dice: random.Random) -> str | None:
    """What looks like the copy of a blob, and has other bytes. A node that runs never looks there."""
    if not world.known:
        return None
    name = world.ring.name(dice.choice(sorted(world.known)))
    where = world.top / dice.choice(["memory", "scratch"]) / "file" / name
    if where.exists():
        return None
    where.write_bytes(dice.randbytes(20))
    where.chmod(0o444)
    return f"copies plant {name[:8]}"


# -- the index; a node that runs has it open


def _indexes(world: World) -> list[Path]:
    return sorted((world.top / "scratch").glob("index-*"))


def _index_bytes(world: World, dice: random.Random) -> str | None:
    paths = [path for path in _indexes(world) if path.stat().st_size]
    if not paths:
        return None
    path = dice.choice(paths)
    data = bytearray(path.read_bytes())
    for _ in range(dice.choice([1, 1, 3, 50])):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)
    return f"index flip {path.name[-12:]}"


def _index_cut(world: World, dice: random.Random) -> str | None:
    paths = _indexes(world)
    if not paths:
        return None
    path = dice.choice(paths)
    path.write_bytes(path.read_bytes()[: dice.choice([0, dice.randrange(path.stat().st_size + 1)])])
    return f"index cut {path.name[-12:]}"


def _index_gone(world: World, dice: random.Random) -> str | None:
    paths = _indexes(world)
    if not paths:
        return None
    gone = dice.choice(paths)
    gone.unlink()
    return f"index gone {gone.name[-12:]}"


def remember_index(world: World) -> None:
    """For `_index_old`."""
    for path in _indexes(world):
        shutil.copy(path, world.top / f"old-{path.name}")


def _index_old(world: World, dice: random.Random) -> str | None:
    """As it was some time ago."""
    old = list(world.top.glob("old-*"))
    for path in _indexes(world):
        path.unlink()
    for path in old:
        shutil.copy(path, world.top / "scratch" / path.name.removeprefix("old-"))
    return f"index {len(old)} old files"


def _index_lies(world: World, dice: random.Random) -> str | None:
    """Sound as a file, and with a value in it that is not so."""
    for path in (world.top / "scratch").glob("index-*.sqlite"):
        value = dice.choice([0, -4096, 1 << 40, 2**63 - 1, "x", "4096", None, b"\xff", 1.5])
        column = dice.choice(["bytes", "used", "place", "key"])
        db = sqlite3.connect(path, isolation_level=None)
        try:
            rows = db.execute("SELECT level, key FROM entries ORDER BY level, key").fetchall()
            if not rows:
                return None
            row = dice.choice(rows)
            db.execute(f"UPDATE OR IGNORE entries SET {column} = ? WHERE level = ? AND key = ?", (value, *row))
        except sqlite3.Error as error:  # harmed before
            return f"index lies: {error}"
        finally:
            db.close()
        return f"index {column} = {value!r} of {row}"
    return None


def levels(world: World, *, running: bool) -> dict[str, list[Harm]]:
    """What may be done, by level. running: to a node that does."""
    found: dict[str, list[Harm]] = {
        "far": [_to_objects(change, "far") for change in CHANGES],
        "copies": [*map(_to_copies, COPY_CHANGES), _swap_whole_trees, _remove_whole_tree],
    }
    if world.near is not None:
        found["near"] = [_to_objects(change, "near") for change in CHANGES]
    if world.peer is not None:
        found["peer"] = [_to_objects(change, "peer") for change in CHANGES]
    if not running:
        found["copies"].append(_plant)
        found["index"] = [_index_bytes, _index_cut, _index_gone, _index_old, _index_lies]
    return found
