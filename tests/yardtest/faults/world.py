"""A small random yard: what its blobs are, where they are kept, and a node on them that can be opened and closed."""

from __future__ import annotations

import io
import os
import random
import secrets
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from batchyard.broker.seal import KeyRing
from batchyard.cache.copies.folder import KINDS, Folder, charge_of
from batchyard.cache.copies.local import LocalCopies
from batchyard.cache.digest import Blob, Digest, digest_of
from batchyard.cache.index import Index
from batchyard.cache.sealed import BlobStore
from batchyard.cache.shelf import charge
from batchyard.cache.stores.bounded import Bounded
from batchyard.cache.stores.memory import MemoryStore
from batchyard.cache.stores.peered import Peered
from batchyard.cache.stores.protocol import Store, sizes_of
from batchyard.cache.stores.tiered import Tiered
from batchyard.cache.tree import put_tree, read_tree

from .places import Neighbour, Place

BLOCK = 4096
_mkdir, _chmod, _symlink = os.mkdir, os.chmod, os.symlink  # not struck: they are no part of what is tested
_OWN = {"lock", "boot", *KINDS, "trash"}


@dataclass(frozen=True, slots=True)
class Leaf:
    """What is at a path of a tree: a file's bytes, or where a symlink leads."""

    data: bytes = b""
    executable: bool = False
    target: str | None = None


Content: TypeAlias = bytes | Mapping[str, Leaf]


def folders(tree: Mapping[str, Leaf]) -> set[str]:
    return {str(parent) for path in tree for parent in Path(path).parents if str(parent) != "."}


def write_tree(tree: Mapping[str, Leaf], path: Path) -> None:
    _mkdir(path)
    for name in sorted(folders(tree)):
        _mkdir(path / name)
    for name, leaf in tree.items():
        if leaf.target is not None:
            _symlink(leaf.target, path / name)
        else:
            (path / name).write_bytes(leaf.data)
            _chmod(path / name, 0o555 if leaf.executable else 0o444)


def on_disk(path: Path) -> Content:
    """What a job would read there. Empty directories are told by a path that ends in /."""
    if not path.is_dir():
        return path.read_bytes()
    found: dict[str, Leaf] = {}
    for folder, names, files in os.walk(path):
        here = Path(folder)
        if not names and not files and here != path:
            found[f"{here.relative_to(path)}/"] = Leaf()
        for name in [*files, *(name for name in names if (here / name).is_symlink())]:
            at = here / name
            shown = str(at.relative_to(path))
            if at.is_symlink():
                found[shown] = Leaf(target=os.readlink(at))
            else:
                found[shown] = Leaf(data=at.read_bytes(), executable=bool(at.stat().st_mode & 0o111))
    return found


def archive_of(tree: Mapping[str, Leaf]) -> bytes:
    """As a tar."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for path, leaf in tree.items():
            member = tarfile.TarInfo(path)
            member.mode = 0o755 if leaf.executable else 0o644
            if leaf.target is not None:
                member.type, member.linkname = tarfile.SYMTYPE, leaf.target
            member.size = len(leaf.data)
            tar.addfile(member, io.BytesIO(leaf.data))
    return made.getvalue()


def unpacked_of(data: bytes) -> Content | None:
    """None: it is no archive of ours."""
    if data[257:262] != b"ustar":
        return None
    found: dict[str, Leaf] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            body = tar.extractfile(member) if member.isreg() else None
            if body is None:
                found[member.name] = Leaf(target=member.linkname)
            else:
                found[member.name] = Leaf(data=body.read(), executable=bool(member.mode & 0o111))
    return found


class Contents:
    """Contents of random size around the edges of a chunk and a block."""

    def __init__(self, dice: random.Random, chunk_bytes: int) -> None:
        self._dice = dice
        c = chunk_bytes
        self._sizes = [0, 1, c - 1, c, c + 1, 2 * c, 3 * c + 7, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 300]

    def file(self) -> bytes:
        return self._dice.randbytes(self._dice.choice(self._sizes))

    def archive(self) -> bytes:
        return archive_of(self.tree())

    def tree(self) -> dict[str, Leaf]:
        paths = self._dice.sample(["a", "b", "sub/a", "sub/b", "sub/deep/c", "z"], self._dice.randrange(5))
        tree = {path: Leaf(data=self.file(), executable=self._dice.random() < 0.3) for path in paths}
        if paths and self._dice.random() < 0.4:
            tree["link"] = Leaf(target=paths[0])
        return tree


@dataclass(frozen=True, slots=True)
class Known:
    """A blob as it must be. objects: all that it needs in a store, itself too, by digest. unpacked: of an archive, what
    is in it.
    """

    blob: Blob
    content: Content
    objects: Mapping[Digest, bytes]
    unpacked: Content | None = None


@dataclass(slots=True)
class World:
    """doubted: digests whose object in the durable store was harmed, or of which no put has ended: a clear refusal is
    as right as the content.
    """

    top: Path
    ring: KeyRing
    far: Place
    near: Place | None
    peer: Place | None
    memory_bytes: int
    scratch_bytes: int
    near_bytes: int
    known: dict[Digest, Known] = field(default_factory=dict)
    doubted: set[Digest] = field(default_factory=set)

    def add(self, content: Content) -> Digest:
        """Doubted until it is `kept`."""
        new = self._known(content)
        if new.blob.digest not in self.known:
            self.doubted |= new.objects.keys() - self.objects().keys()
            self.known[new.blob.digest] = new
        return new.blob.digest

    def _known(self, content: Content) -> Known:
        """By putting it elsewhere."""
        if isinstance(content, bytes):
            digest = digest_of(content)
            return Known(Blob(digest=digest, size=len(content)), content, {digest: content}, unpacked_of(content))
        elsewhere = BlobStore(MemoryStore(), self.ring)
        source = self.top / f"in-{secrets.token_hex(8)}"
        write_tree(content, source)
        blob = put_tree(elsewhere, source)
        digests = [blob.digest, *read_tree(elsewhere, blob.digest).blobs]
        return Known(blob, content, {digest: elsewhere.read_bytes(digest, 1 << 24) for digest in digests})

    def objects(self) -> dict[Digest, bytes]:
        """All that may lie in a store."""
        return {digest: data for known in self.known.values() for digest, data in known.objects.items()}

    def kept(self, digest: Digest) -> None:
        self.doubted -= self.known[digest].objects.keys()

    def doubt(self, name: str) -> None:
        """Something was done to this object of the durable store."""
        self.doubted |= {digest for digest in self.objects() if self.ring.name(digest) == name}

    def may_be_refused(self, digest: Digest) -> bool:
        return not self.doubted.isdisjoint(self.known[digest].objects)

    def visit(self, dice: random.Random) -> None:
        """The neighbour reads some of what is there."""
        if self.peer is not None:
            for name in self.far.names():
                if dice.random() < 0.6:
                    self.peer.write(name, self.far.read(name))

    def close(self) -> None:
        self.far.close()
        if self.near is not None:
            self.near.close()


class Node:
    """A node's cache, opened as at its start."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.folders: list[Folder] = []
        try:
            self.folders.append(Folder(world.top / "memory", world.memory_bytes, place="memory"))
            self.folders.append(Folder(world.top / "scratch", world.scratch_bytes))
            self.index = Index(world.top / "scratch")
            self.far: Store = world.far.open(near=False)
            self.store: Store = self.far
            self.bounded: Bounded | None = None
            self.tiered: Tiered | None = None
            if world.near is not None:
                self.bounded = Bounded(world.near.open(near=True), self.index, world.near_bytes)
                self.bounded.count()
                far = self.far
                if world.peer is not None:
                    neighbour = Neighbour(world.peer)
                    far = Peered(self.far, neighbour, neighbour)
                self.store = self.tiered = Tiered(self.bounded, far)
            self.blobs = BlobStore(self.store, world.ring)
            self.copies = LocalCopies(self.blobs, self.index, self.folders)
            self.copies.keep_pins([])
        except BaseException:
            self.close()
            raise

    def settle(self) -> None:
        """Waits for what is on its way into the near store."""
        if self.tiered is not None:
            assert self.tiered.settle(10), "a fill of the near store does not end"

    def close(self) -> None:
        for folder in self.folders:
            folder.close()
        if hasattr(self, "index"):
            self.index.close()

    def check_accounts(self) -> None:
        """AssertionError: a level holds other bytes than it says. Right after the start, or with nothing on its way.

        Each thing counts whole blocks of 4 KiB, so that what is said is exact, and `du` never finds more.
        """
        for folder in self.folders:
            strange = {name for name in os.listdir(folder.root) if name not in _OWN and not name.startswith("index-")}
            assert not strange, f"{folder.root} has {strange}"
            assert os.listdir(folder.root / "trash") == []
            copies = [path for kind in KINDS for path in (folder.root / kind).iterdir()]
            counted = sum(map(charge_of, copies))
            assert counted == folder.shelf.held_bytes, f"{folder.place} has {counted}, says {folder.shelf.held_bytes}"
            assert folder.shelf.held_bytes <= folder.shelf.limit_bytes
            taken = sum(os.lstat(p).st_blocks * 512 for path in copies for p in (path, *path.rglob("*")))
            assert taken <= counted, f"{folder.place}: du says {taken}, it says {counted}"
        if self._world.near is not None and self.bounded is not None:
            said = self.bounded.held_bytes
            _check_place(self._world.near, dict.fromkeys(self.bounded.names(), 0), said, "near")
            assert said <= self._world.near_bytes
        listed = {name: charge(size) for name, size in sizes_of(self.far)}
        _check_place(self._world.far, listed, sum(listed.values()), "far")


def _check_place(place: Place, listed: Mapping[str, int], said: int, what: str) -> None:
    assert place.beside() == [], f"{what} has unfinished objects"
    there = place.there()
    assert set(listed) == set(there), f"{what} lists {set(listed)}, has {set(there)}"
    counted = sum(charge(size) for size, _ in there.values())
    assert counted == said, f"{what} has {counted}, says {said}"
    taken = sum(taken for _, taken in there.values())
    assert taken <= said, f"{what}: du says {taken}, it says {said}"
