"""A process that stages, evicts and puts is killed at any point, again and again: what is left is whole."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from batchyard.broker.seal import KeyRing
from batchyard.cache.copies.folder import Folder, charge_of
from batchyard.cache.copies.local import LocalCopies
from batchyard.cache.digest import Digest
from batchyard.cache.index import Index
from batchyard.cache.sealed import BlobStore
from batchyard.cache.shelf import charge
from batchyard.cache.stores.bounded import Bounded
from batchyard.cache.stores.disk import DirectoryStore
from batchyard.cache.stores.tiered import Tiered
from batchyard.cache.tree import put_tree

ROUNDS = 12
SEED = 20260
MEMORY, SCRATCH, NEAR = 600_000, 1_500_000, 2_000_000

NODE = f"""
import os, random, sys, threading
from pathlib import Path
from batchyard.broker.errors import DiskFull
from batchyard.broker.seal import KeyRing
from batchyard.cache.stores.bounded import Bounded
from batchyard.cache.copies.local import LocalCopies
from batchyard.cache.stores.disk import DirectoryStore
from batchyard.cache.copies.folder import Folder
from batchyard.cache.index import Index
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.tiered import Tiered

top, seed, wanted = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
index = Index(top)
near = Bounded(DirectoryStore(top / "near"), index, {NEAR})
near.count()
blobs = BlobStore(Tiered(near, DirectoryStore(top / "far")), KeyRing.load(top / "keys"))
folders = [Folder(top / "memory", {MEMORY}, place="memory"), Folder(top / "scratch", {SCRATCH})]
copies = LocalCopies(blobs, index, folders)
copies.keep_pins([])

def work(number):
    dice = random.Random(seed * 10 + number)
    while True:
        owner = str(dice.random())
        try:
            for digest in dice.sample(wanted, 2):
                copies.stage(digest, owner)
        except DiskFull:
            pass
        copies.unpin(owner)
        kept = blobs.put_bytes(dice.randbytes(dice.randrange(200_000))).digest
        os.write(1, (kept + chr(10)).encode())

os.write(1, b"ready" + chr(10).encode())
threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()  # an interpreter whose main thread has ended starts no pools
"""


def content_of(path: Path) -> dict[str, bytes]:
    return {str(found.relative_to(path)): found.read_bytes() for found in path.rglob("*") if found.is_file()}


def run_and_kill(top: Path, seed: int, wanted: list[Digest], after_s: float) -> list[Digest]:
    """What it had put when it was killed so long after it had begun."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", NODE, str(top), str(seed), *wanted]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as node:
        assert node.stdout is not None
        assert node.stdout.readline() == b"ready\n"
        try:
            node.wait(after_s)
        except subprocess.TimeoutExpired:
            node.send_signal(signal.SIGKILL)
        lines = node.stdout.read().decode().split("\n")
    assert node.returncode == -signal.SIGKILL
    return lines[:-1]


def test_a_cache_killed_anywhere_leaves_no_orphan_and_no_wrong_byte(tmp_path: Path) -> None:
    dice = random.Random(SEED)
    ring = KeyRing.create(tmp_path / "keys")
    far = DirectoryStore(tmp_path / "far")
    blobs = BlobStore(far, ring)
    files = [blobs.put_bytes(dice.randbytes(dice.randrange(400_000))).digest for _ in range(8)]
    trees: dict[Digest, dict[str, bytes]] = {}
    for number in range(4):
        folder = tmp_path / f"in-{number}"
        (folder / "sub").mkdir(parents=True)
        for name in ("a", "b", "sub/c", "sub/d"):
            (folder / name).write_bytes(dice.randbytes(dice.randrange(100_000)))
        if number == 0:
            (folder / "large").write_bytes(dice.randbytes(300_000))  # a blob of its own, beside the pack
        trees[put_tree(blobs, folder).digest] = content_of(folder)
    put: list[Digest] = []
    for number in range(ROUNDS):
        put += run_and_kill(tmp_path, number, [*files, *trees], dice.uniform(0.01, 0.4))
        look_at(tmp_path, ring, trees)
    assert len(put) > ROUNDS
    for digest in put:
        data = blobs.read_bytes(digest, 1 << 20)
        assert "sha256:" + hashlib.sha256(data).hexdigest() == digest


def look_at(top: Path, ring: KeyRing, trees: dict[Digest, dict[str, bytes]]) -> None:
    """As a restarted node finds it."""
    index = Index(top)
    store = DirectoryStore(top / "near", sweep_after_s=0)
    near = Bounded(store, index, NEAR)
    near.count()
    folders = [Folder(top / "memory", MEMORY, place="memory"), Folder(top / "scratch", SCRATCH)]
    copies = LocalCopies(BlobStore(Tiered(near, DirectoryStore(top / "far")), ring), index, folders)
    copies.keep_pins([])
    for folder in folders:
        here = [path for kind in ("file", "tree") for path in (folder.root / kind).iterdir()]
        assert sum(map(charge_of, here)) == folder.shelf.held_bytes <= folder.shelf.limit_bytes
        assert os.listdir(folder.root / "trash") == []
        for path in here:
            if path.is_dir():
                assert content_of(path) == {ring.name(digest): tree for digest, tree in trees.items()}[path.name]
            else:
                assert ring.name(f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}") == path.name
    held = {name: store.stat(name) or 0 for name in store.names()}
    assert sum(map(charge, held.values())) == near.held_bytes <= NEAR
    assert os.listdir(top / "near" / "new") == []
    far = DirectoryStore(top / "far")
    for name in held:  # bit by bit what the far store has
        with store.get(name) as one, far.get(name) as two:
            ours, theirs = memoryview(bytearray(1 << 20)), memoryview(bytearray(1 << 20))
            assert one.readinto(ours) == two.readinto(theirs)
            assert ours == theirs
    copies.close()
    index.close()
