"""A rotation of keys under jobs that put and get, killed at random points and called again: no blob is lost, no job
sees an error, and in the end all open with the new key alone.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from batchyard.broker.seal import KeyRing
from batchyard.broker.store import Yard
from batchyard.cache.rewrap import Rewrap
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.place import store_at
from yardtest.minio import S3Server

SEED = 6_2026
JOBS = 2

JOB = """
import random, sys, threading
from pathlib import Path
from batchyard.broker.keysource import KeyFile, load_ring
from batchyard.broker import keywatch
from batchyard.broker.store import Yard
from batchyard.cache.stores.place import store_at
from batchyard.cache.sealed import BlobStore

url, spec, keys, number, known = *sys.argv[1:4], int(sys.argv[4]), Path(sys.argv[5])
source = KeyFile(Path(keys))
yard = Yard(url, load_ring(source))
store = store_at(spec)
blobs = BlobStore(store, yard.ring)
there = [line.split() for line in known.read_text().splitlines()]
end, failed = threading.Event(), []

def work(dice):
    mine = []
    while not end.wait(0.05):
        data = dice.randbytes(dice.randrange(1, 200))
        digest = blobs.put_bytes(data).digest
        mine.append([digest, data.hex()])
        sys.stdout.write(f"{digest} {data.hex()}\\n")
        for digest, content in [*dice.sample(there, 2), dice.choice(mine)]:
            if blobs.read_bytes(digest, 1000).hex() != content:
                raise AssertionError(digest)

def run(dice):
    try:
        work(dice)
    except BaseException as error:
        failed.append(error)
        end.set()
        raise

keywatch.EVERY_S = 0.2
with keywatch.watching(yard, yard.ring, source, f"job {number}"):
    thread = threading.Thread(target=run, args=(random.Random(number),))
    thread.start()
    sys.stderr.write("ready\\n")
    sys.stderr.flush()
    sys.stdin.read()
    end.set()
    thread.join()
sys.exit(1 if failed else 0)
"""

ROTATION = """
import os, signal, sys, threading
from pathlib import Path
import batchyard.cache.wraps
from batchyard.broker import rotation
from batchyard.broker.functions import Functions
from batchyard.broker.keysource import KeyFile, load_ring
from batchyard.broker.seal import keyfile
from batchyard.broker.store import Yard
from batchyard.cache.stores.place import store_at
from batchyard.cache.rewrap import Rewrap

url, spec, keys, what, left, batchyard.cache.wraps.SHARD_RECORDS = *sys.argv[1:5], int(sys.argv[5]), int(sys.argv[6])
guard = threading.Lock()

def killed_in(owner, name):
    inner = getattr(owner, name)
    def outer(*args, **options):
        global left
        with guard:
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
        return inner(*args, **options)
    setattr(owner, name, staticmethod(outer) if isinstance(vars(owner).get(name), staticmethod) else outer)

source = KeyFile(Path(keys))
yard = Yard(url, load_ring(source))
store = store_at(spec)
for name in ("put_if_absent", "get", "delete", "stat", *(["first"] if hasattr(type(store), "first") else [])):
    killed_in(type(store), name)
killed_in(Functions, "call")
killed_in(Yard, "guard")
killed_in(keyfile, "_put")
act = rotation.Rotation(yard, source, lambda: Rewrap(store, yard.ring), wait_s=60)
act.rotate() if what == "rotate" else act.retire(what)
sys.stdout.write(str(-left))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the yard of a test is."""

    url: str
    spec: str
    keys: Path
    top: Path
    shard: int

    def command(self, program: str, *words: str) -> list[str]:
        return [sys.executable, "-c", program, self.url, self.spec, str(self.keys), *words]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@contextmanager
def jobs(place: Place, there: dict[str, bytes]) -> Iterator[list[str]]:
    """Jobs run meanwhile; what they had put is given to the list at the end. None of them may fail."""
    put: list[str] = []
    known = place.top / "known"
    known.write_text("".join(f"{digest} {data.hex()}\n" for digest, data in there.items()))
    running = []
    for number in range(JOBS):
        with (place.top / f"out{number}").open("wb") as out:
            one = subprocess.Popen(place.command(JOB, str(number), str(known)), stdin=subprocess.PIPE, stdout=out,
                                   stderr=subprocess.PIPE, env=environment())  # fmt: skip
        running.append(one)
    try:
        for one in running:
            assert one.stderr is not None
            assert one.stderr.readline() == b"ready\n"
        yield put
        for number, one in enumerate(running):
            _, said = one.communicate(timeout=60)
            assert one.returncode == 0, said.decode()
            put += (place.top / f"out{number}").read_text().splitlines()
    finally:
        for one in running:
            one.kill()
            one.wait()


def until_done(place: Place, what: str, dice: random.Random, *, kills: int, steps: int) -> int:
    """Calls it again and again, the first ones killed; how many steps the last one took."""
    for _ in range(kills):
        at = dice.randrange(1, steps)
        done = subprocess.run(place.command(ROTATION, what, str(at), str(place.shard)), capture_output=True,
                              env=environment(), timeout=300)  # fmt: skip
        assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
        if done.returncode == 0:
            steps = int(done.stdout) + at + 1
            if what != "rotate":
                return steps
    done = subprocess.run(place.command(ROTATION, what, "0", str(place.shard)), capture_output=True,
                          env=environment(), timeout=300)  # fmt: skip
    over = what != "rotate" and b"no key" in done.stderr  # the kill before came after all was done
    assert done.returncode == 0 or over, done.stderr.decode()
    return steps


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("kind", "count", "kills"),
    [
        ("directory", 300, 3),
        pytest.param("minio", 60, 1, marks=pytest.mark.full),
        pytest.param("directory", 10_000, 25, marks=pytest.mark.full),
        pytest.param("minio", 1_000, 12, marks=pytest.mark.full),
    ],
)
def test_all_blobs_open_with_the_new_key_alone_after_a_rotation_that_was_killed_under_jobs(
    kind: str, count: int, kills: int, fresh_redis_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    spec = str(tmp_path / "store")
    if kind == "minio":
        server: S3Server = request.getfixturevalue("minio")
        spec = server.spec(f"test-{secrets.token_hex(8)}")
    store = store_at(spec, create=True)
    place = Place(url=fresh_redis_url, spec=spec, keys=tmp_path / "keys", top=tmp_path, shard=max(8, count // 16))
    old, dice = KeyRing.create(place.keys), random.Random(SEED)
    Yard(place.url, old).prepare()
    blobs = BlobStore(store, old)
    with ThreadPoolExecutor(8) as pool:
        datas = [dice.randbytes(dice.randrange(1, 300)) for _ in range(count)]
        there = {blob.digest: data for blob, data in zip(pool.map(blobs.put_bytes, datas), datas, strict=True)}
    with jobs(place, there) as put:
        until_done(place, "rotate", dice, kills=kills, steps=count + 100)
        # the kill may have come after the last step: then there was one rotation more
        for old_id in sorted(set(KeyRing.load(place.keys).ids) - {KeyRing.load(place.keys).current}):
            until_done(place, old_id, dice, kills=max(1, kills // 2), steps=2 * count)
    new = KeyRing.load(place.keys)
    assert old.current not in new.ids
    assert new.ids == (new.current,)
    opened = BlobStore(store, new)
    expected = {**there, **{digest: bytes.fromhex(data) for digest, data in (line.split() for line in put)}}
    assert len(expected) > count
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda pair: opened.read_bytes(pair[0], 1000) == pair[1], expected.items()))
    assert opened.counters.corrupt == 0
    assert set(Rewrap(store, new).census()) == {new.current}
    own = Rewrap(store, new).own_names()
    assert set(store.names()) == own | {new.name(digest) for digest in expected}
