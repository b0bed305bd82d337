"""One random case: a small yard works, something is struck or harmed, and then all is read, put again, and counted.

What must hold, whatever was done:

- each read gives exactly the right bytes, or a BatchyardError; and only that which was harmed in the durable store, or
  of which no put has ended, may be refused;
- once what was lost is put again, all reads are right;
- after a start, which sweeps, each level holds exactly the bytes that it says.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import select
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeAlias
from unittest import mock

from batchyard.broker.errors import BatchyardError, DiskFull, Retryable
from batchyard.broker.seal import KeyRing, Readable, SealUnknown
from batchyard.cache import packs, tree
from batchyard.cache.copies.folder import charge_of
from batchyard.cache.copies.gathered import stage_gathered
from batchyard.cache.digest import Digest, Kind
from batchyard.cache.sealed import BlobStore
from batchyard.cache.tree import fetch_tree, put_tree, remove_tree
from yardtest.minio import S3Server

from .damage import levels, remember_index
from .places import PLACES, FolderPlace
from .strike import Killed, Steps, Strike
from .strike import Kind as StrikeKind
from .world import BLOCK, Content, Contents, Known, Node, World, on_disk, write_tree

_CHILD_S = 60.0
_TRIES = 3
_CHUNKS = (64, 256, 4096)
_chmod = os.chmod  # not struck
_seal_stream = KeyRing.seal_stream


@dataclass(slots=True)
class Case:
    """What a seed has made so far; `told` is for who has to find out what went wrong."""

    seed: int
    dice: random.Random
    world: World
    fresh: Contents
    told: list[str] = field(default_factory=list)
    node: Node | None = None
    """the one that is open"""

    def opened(self) -> Node:
        """As a node starts, in place of the one that was there."""
        self.ended()
        self.node = Node(self.world)
        return self.node

    def ended(self) -> None:
        node, self.node = self.node, None
        if node is not None:
            node.settle()
            node.close()

    def folder(self) -> Path:
        """A new name for what is written outside of the cache."""
        return self.world.top / f"out-{secrets.token_hex(8)}"


# -- reading

Way: TypeAlias = Callable[[Case, Node, Digest], Content]


def _staged(case: Case, node: Node, digest: Digest) -> Content:
    return on_disk(node.copies.stage(case.world.known[digest].blob, "reader").path)


def _staged_bare(case: Case, node: Node, digest: Digest) -> Content:
    return on_disk(node.copies.stage(digest, "reader").path)


def _found(case: Case, node: Node, digest: Digest) -> Content:
    path = node.copies.find(case.world.known[digest].blob.kind, digest, "reader")
    return on_disk(path) if path is not None else _staged(case, node, digest)


def _fetched(case: Case, node: Node, digest: Digest) -> Content:
    path = case.folder()
    node.blobs.fetch(digest, None, path)
    return path.read_bytes()


def _read(case: Case, node: Node, digest: Digest) -> Content:
    return node.blobs.read_bytes(digest, 1 << 20)


def _streamed(case: Case, node: Node, digest: Digest) -> Content:
    with node.blobs.open(digest) as reader:
        return reader.read()


def _tree_fetched(case: Case, node: Node, digest: Digest) -> Content:
    path = case.folder()
    fetch_tree(node.blobs, digest, path)
    return on_disk(path)


def _gathered(case: Case, node: Node, digest: Digest) -> Content:
    blob = case.world.known[digest].blob
    path = stage_gathered(node.copies, {"0": blob}, "t", "reader", stopped=lambda: False) / "0"
    return on_disk(path / "t" if blob.kind == "file" else path)


def _unpacked(case: Case, node: Node, digest: Digest) -> Content:
    return on_disk(node.copies.unpack(digest, "reader").path)


FILE_WAYS: tuple[Way, ...] = (_staged, _staged_bare, _found, _fetched, _read, _streamed, _gathered)
TREE_WAYS: tuple[Way, ...] = (_staged, _staged_bare, _found, _tree_fetched, _gathered)


def _ways(known: Known) -> tuple[Way, ...]:
    if known.blob.kind == "tree":
        return TREE_WAYS
    return FILE_WAYS if known.unpacked is None else (_unpacked, *FILE_WAYS)


def _right(case: Case, node: Node, digest: Digest, way: Way) -> None:
    """AssertionError: wrong bytes."""
    known = case.world.known[digest]
    got = way(case, node, digest)
    assert got == (known.unpacked if way is _unpacked else known.content), f"WRONG BYTES by {way.__name__} of {digest}"


def _tried(case: Case, node: Node, digest: Digest, way: Way) -> BatchyardError | None:
    """AssertionError: wrong bytes. What is said to pass is tried again. The error, if that is what there is."""
    last: BatchyardError | None = None
    for _ in range(_TRIES):
        try:
            _right(case, node, digest, way)
            return None
        except BatchyardError as error:
            last = error
            if not isinstance(error, Retryable):
                break
        finally:
            node.copies.unpin("reader")
            node.settle()
    assert last is not None
    return last


def _read_all(case: Case, node: Node, *, ways_each: int) -> dict[Digest, BatchyardError]:
    """What was refused, each as it may be."""
    refused: dict[Digest, BatchyardError] = {}
    order = sorted(case.world.known)
    case.dice.shuffle(order)
    for digest in order:
        for way in case.dice.sample(_ways(case.world.known[digest]), ways_each):
            error = _tried(case, node, digest, way)
            if error is None:
                continue
            why = f"{digest} is refused by {way.__name__}: {type(error).__name__} {error}"
            case.told.append(why)
            assert case.world.may_be_refused(digest), why
            assert not isinstance(error, DiskFull), why
            refused[digest] = error
    return refused


# -- working

Step: TypeAlias = tuple[str, Any]


def _script(case: Case, length: int) -> list[Step]:
    """What a node is to do: all that it puts is known to the world, as what may not be there."""
    dice, script = case.dice, list[Step]()
    for _ in range(length):
        known = sorted(case.world.known)
        what = dice.choice(["put", "put", "put tree", "stage", "stage", "stage", "read", "unpin", "land", "reopen"])
        if what == "put":
            content = case.fresh.archive() if dice.random() < 0.3 else case.fresh.file()
            script.append((what, case.world.add(content)))
        elif what == "put tree":
            script.append((what, case.world.add(case.fresh.tree())))
        elif what == "land":
            script.append((what, case.world.add(case.fresh.tree() if dice.random() < 0.5 else case.fresh.file())))
        elif what in ("stage", "read") and known:
            digest = dice.choice(known)
            ways = _ways(case.world.known[digest])
            script.append(("read", (digest, dice.choice(ways[:2] if what == "stage" else ways), dice.choice("ab"))))
        elif what == "unpin":
            script.append((what, dice.choice("ab")))
        elif what == "reopen" and dice.random() < 0.3:
            script.append((what, None))
    return script


def _work(case: Case, script: list[Step], kept: Callable[[Digest], None]) -> None:
    """On the node that is open. kept: hears of each put that has ended."""
    for what, about in script:
        try:
            node = case.node or case.opened()
            if what in ("put", "put tree"):
                _put(case, node, about)
                kept(about)
            elif what == "land":
                _land(case, node, about)
            elif what == "read":
                digest, way, owner = about
                with suppress(BatchyardError):
                    _right(case, node, digest, way)
                if owner == "a":
                    node.copies.unpin("reader")
            elif what == "unpin":
                node.copies.unpin("reader")
            else:
                case.opened()
        except BatchyardError as error:
            case.told.append(f"{what}: {type(error).__name__} {error}")


def _put(case: Case, node: Node, digest: Digest) -> None:
    content = case.world.known[digest].content
    if isinstance(content, bytes):
        assert node.blobs.put_bytes(content).digest == digest
        return
    source = case.folder()
    write_tree(content, source)
    assert put_tree(node.blobs, source).digest == digest


def _land(case: Case, node: Node, digest: Digest) -> None:
    """As an input from elsewhere: a copy of what the stores may not have."""
    content = case.world.known[digest].content
    kind: Kind = "file" if isinstance(content, bytes) else "tree"
    with node.copies.landing(kind, BLOCK) as path:
        if isinstance(content, bytes):
            path.write_bytes(content)
            _chmod(path, 0o444)
        else:
            write_tree(content, path)
        node.copies.adopt(kind, digest, path, charge_of(path), "reader")


# -- struck and harmed


def _struck(case: Case, strike: Strike, script: list[Step]) -> int:
    """A node is open after it, if one lives on. The steps that were taken, as far as anybody knows."""
    case.told.append(f"{strike} in {[what for what, _ in script]}")
    if strike.kind == "killed":
        case.ended()
        _killed(case, strike, script)
        return 0
    case.opened()
    steps = Steps(strike)
    try:
        with steps:
            _work(case, script, case.world.kept)
    except Killed:
        case.ended()
    return steps.taken


def _killed(case: Case, strike: Strike, script: list[Step]) -> None:
    """In a process of its own, which tells what it has put and ends with SIGKILL."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        _be_killed(case, strike, script, writing)
    os.close(writing)
    try:
        said = b"".join(_until_end(reading, child))
    finally:
        os.close(reading)
        _, status = os.waitpid(child, 0)
    lines = said.decode().splitlines()
    wrong = [line for line in lines if not line.startswith("sha256:")]
    assert not wrong, json.loads(wrong[0])
    assert os.WIFSIGNALED(status), f"the child ended with {status}"
    for digest in lines:
        case.world.kept(digest)


def _be_killed(case: Case, strike: Strike, script: list[Step], writing: int) -> NoReturn:
    write = os.write
    try:
        case.opened()
        with Steps(strike):
            _work(case, script, lambda digest: void(write(writing, f"{digest}\n".encode())))
            os.kill(os.getpid(), signal.SIGKILL)
    except BaseException:
        write(writing, (json.dumps(traceback.format_exc()) + "\n").encode())
    os._exit(1)


def void(_: object) -> None:
    """No value."""


def _until_end(reading: int, child: int) -> Iterator[bytes]:
    while True:
        ready, _, _ = select.select([reading], [], [], _CHILD_S)
        if not ready:
            os.kill(child, signal.SIGKILL)
            raise AssertionError(f"the child did nothing for {_CHILD_S:g} s")
        if not (data := os.read(reading, 1 << 16)):
            return
        yield data


def _harmed(case: Case, *, running: bool) -> None:
    table = levels(case.world, running=running)
    for _ in range(case.dice.choice([1, 1, 2, 4])):
        harm = case.dice.choice(table[case.dice.choice(sorted(table))])
        case.told.append(f"harm: {harm(case.world, case.dice)}")


def _repaired(case: Case, node: Node) -> None:
    """What is lost is put again, as by who still has it."""
    far = BlobStore(node.far, case.world.ring)
    for digest in sorted(case.world.objects()):
        try:
            far.read_bytes(digest, 1 << 20)
        except SealUnknown:  # never deleted by a node: its key file may be old
            case.world.far.remove(case.world.ring.name(digest))
        except BatchyardError as error:
            case.told.append(f"lost: {digest} {type(error).__name__}")
    for digest in sorted(case.world.known):
        _put(case, node, digest)
    case.world.doubted.clear()


# -- all of it


@contextmanager
def _made(seed: int, server: S3Server | None) -> Iterator[Case]:
    """In memory where that can be, since a thousand cases sync a hundred thousand times."""
    dice = random.Random(seed)
    memory = Path("/dev/shm")
    top = Path(tempfile.mkdtemp(prefix="faults-", dir=memory if os.access(memory, os.W_OK) else None))
    kinds = ["folder", "bucket"] if server is not None else ["folder"]
    far, near = dice.choice(kinds), dice.choice(["", *kinds, *kinds])
    if server is not None and "bucket" not in (far, near):
        far = "bucket"
    chunk = dice.choice(_CHUNKS)
    world = World(
        top=top,
        ring=KeyRing.new(),
        far=PLACES[far](top / "far", server),
        near=PLACES[near](top / "near", server) if near else None,
        peer=FolderPlace(top / "peer", None) if near and dice.random() < 0.4 else None,
        memory_bytes=BLOCK * dice.choice([1, 6, 40]),
        scratch_bytes=BLOCK * dice.choice([34, 60, 200]),
        near_bytes=BLOCK * dice.choice([8, 20, 300]),
    )
    case = Case(seed=seed, dice=dice, world=world, fresh=Contents(dice, chunk))
    if world.peer is not None:
        world.peer.open(near=True)
    case.told.append(f"far {far}, near {near or 'none'}, {'a' if world.peer else 'no'} peer, chunks of {chunk}")

    def seal_stream(ring: KeyRing, reader: Readable, digest: Digest, size: int, **_: object) -> Any:
        return _seal_stream(ring, reader, digest, size, chunk_bytes=chunk)

    try:
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(KeyRing, "seal_stream", seal_stream))
            stack.enter_context(mock.patch.object(tree, "SMALL_BYTES", dice.choice([0, 300, 1 << 18])))
            stack.enter_context(mock.patch.multiple(packs, _LEAST_BYTES=5000, _SPREAD_BYTES=5000))
            yield case
    finally:
        case.ended()
        world.close()
        shutil.rmtree(top, ignore_errors=True) if os.geteuid() == 0 else remove_tree(top)


def run(seed: int, server: S3Server | None = None) -> None:
    """AssertionError, with all that was done, if anything does not hold. server: buckets are among the places."""
    with _made(seed, server) as case, _telling(case):
        _run(case)


def run_struck(seed: int, strike: Strike) -> int:
    """A case in which nothing but this happens. How many steps it took, unless it was `killed`."""
    with _made(seed, None) as case, _telling(case):
        _work(case, _script(case, 12), case.world.kept)
        taken = _struck(case, strike, _script(case, 12))
        node = case.opened()
        node.check_accounts()
        _read_all(case, node, ways_each=1)
        _repaired(case, node)
        _read_all(case, node, ways_each=1)
        case.opened().check_accounts()
        return taken


@contextmanager
def _telling(case: Case) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        done = "\n  ".join(case.told)
        raise AssertionError(f"seed {case.seed}: {type(error).__name__} {error}\n  {done}") from error


def _run(case: Case) -> None:
    dice, world = case.dice, case.world
    case.opened()
    _work(case, _script(case, dice.randrange(3, 10)), world.kept)
    remember_index(world)
    world.visit(dice)
    kind: StrikeKind = dice.choice(["none", "none", "none", "full", "broken", "died", "killed"])
    if kind != "none":
        strike = Strike(kind=kind, at=int(dice.triangular(0, 70, 0)), lasts=dice.choice([1, 2, 8, 1000]))
        _struck(case, strike, _script(case, dice.randrange(4, 12)))
    if case.node is not None and dice.random() < 0.5:
        case.node.settle()
        case.node.copies.unpin("reader")
        if kind == "none" or dice.random() < 0.5:
            _harmed(case, running=True)
        _read_all(case, case.node, ways_each=2)
    case.ended()
    if kind == "none" or dice.random() < 0.5:
        _harmed(case, running=False)
    node = case.opened()
    node.check_accounts()
    _read_all(case, node, ways_each=3)
    _repaired(case, node)
    _read_all(case, node, ways_each=2)
    case.opened().check_accounts()
