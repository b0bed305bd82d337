"""One suite for every store: what `cache/stores/protocol.py` says that a store must do."""

from __future__ import annotations

import errno
import io
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from batchyard.broker.errors import DiskFull, IntegrityError, InvalidConfig, NotFound, StoreUnavailable
from batchyard.broker.seal import KeyRing, Readable
from batchyard.broker.store import Yard
from batchyard.cache.index import Index
from batchyard.cache.stores.bounded import Bounded
from batchyard.cache.stores.disk import DirectoryStore
from batchyard.cache.stores.memory import MemoryStore
from batchyard.cache.stores.protocol import Store, sizes_of
from batchyard.cache.stores.s3 import S3Store
from batchyard.cache.stores.tiered import Tiered
from yardtest.minio import S3Server, running_server
from yardtest.peers import NearNode
from yardtest.redis import free_port

NAME = "ab" * 32
OTHER = "cd" * 32


PLAIN = ["memory", "directory", "minio", "minio in parts", "versitygw", "versitygw in parts"]
MADE_OF_OTHERS = ["bounded", "tiered", "tiered directories"]
AMONG_PEERS = "tiered, among peers"


@pytest.fixture(params=[*PLAIN, *MADE_OF_OTHERS, AMONG_PEERS])
def store(request: pytest.FixtureRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """In parts: what is not empty is uploaded so, in parts of the least size that S3 allows."""
    if request.param == "memory":
        yield MemoryStore()
    elif request.param == "directory":
        yield DirectoryStore(tmp_path / "store")
    elif request.param in MADE_OF_OTHERS:
        yield made_of_others(request.param, tmp_path, tmp_path_factory.mktemp("near"))
    elif request.param == AMONG_PEERS:
        yard, far = Yard(request.getfixturevalue("fresh_redis_url"), KeyRing.new()), DirectoryStore(tmp_path / "store")
        yard.prepare()
        near = tmp_path_factory.mktemp("near")
        with NearNode("peer", yard, far, near), NearNode("node", yard, far, near) as node:
            yield node.tiered
    else:
        server: S3Server = request.getfixturevalue(request.param.split()[0])
        yield bucket_of(server, in_parts=request.param.endswith("in parts"))


def made_of_others(name: str, far: Path, near: Path) -> Store:
    """near: where things may be left for a moment after a put that failed."""
    if name == "tiered":
        return Tiered(MemoryStore(), MemoryStore())
    bounded = Bounded(DirectoryStore(near / "store"), Index(near), 1 << 30)
    bounded.count()
    return bounded if name == "bounded" else Tiered(bounded, DirectoryStore(far / "store"))


def bucket_of(server: S3Server, *, in_parts: bool = False) -> S3Store:
    bucket = f"test-{secrets.token_hex(8)}"
    if in_parts:
        return S3Store(server.access(), bucket, "a/b/", create=True, one_put_bytes=0, part_bytes=5 << 20)
    return S3Store(server.access(), bucket, create=True)


def put(store: Store, name: str, data: bytes) -> bool:
    return store.put_if_absent(name, io.BytesIO(data), len(data))


def read(store: Store, name: str) -> bytes:
    pieces, buffer = bytearray(), bytearray(1000)
    with store.get(name) as reader:
        while count := reader.readinto(memoryview(buffer)):
            pieces += buffer[:count]
    return bytes(pieces)


class Source:
    """Gives pieces; calls what is between them."""

    def __init__(self, *steps: bytes | Callable[[], None]) -> None:
        self._steps = list(steps)
        self.was_read = False

    def readinto(self, buffer: memoryview, /) -> int:
        self.was_read = True
        while self._steps:
            step = self._steps.pop(0)
            if isinstance(step, bytes):
                buffer[: len(step)] = step
                return len(step)
            step()
        return 0


@pytest.mark.parametrize("size", [0, 1, 999, 1 << 20, (1 << 20) + 1, 3_000_001, (8 << 20) + 1, 11 << 20])
def test_what_was_put_can_be_read(store: Store, size: int) -> None:
    data = os.urandom(size)
    assert put(store, NAME, data)
    assert read(store, NAME) == data
    assert store.stat(NAME) == size


def test_the_first_put_of_a_name_stays_and_the_second_source_is_not_read(store: Store) -> None:
    second = Source(b"second")
    assert put(store, NAME, b"first")
    assert not store.put_if_absent(NAME, second, 6)
    assert not second.was_read
    assert read(store, NAME) == b"first"


def test_what_is_absent_is_not_found(store: Store) -> None:
    put(store, OTHER, b"x")
    with pytest.raises(NotFound), store.get(NAME):
        pass
    assert store.stat(NAME) is None


def test_delete_removes_once_and_is_fine_twice(store: Store) -> None:
    put(store, NAME, b"x")
    put(store, OTHER, b"y")
    store.delete(NAME)
    store.delete(NAME)
    assert store.stat(NAME) is None
    assert list(store.names()) == [OTHER]
    assert put(store, NAME, b"again")
    assert read(store, NAME) == b"again"


def test_names_are_those_of_all_objects(store: Store) -> None:
    names = {f"{number:064x}" for number in range(20)} | {NAME, OTHER}
    for name in names:
        put(store, name, b"x")
    assert sorted(store.names()) == sorted(names)


def test_sizes_are_those_of_all_objects(store: Store) -> None:
    for number in range(3):
        put(store, f"{number:064x}", b"x" * number)
    assert sorted(sizes_of(store)) == [(f"{number:064x}", number) for number in range(3)]


@pytest.mark.parametrize("name", ["", "ab", "AB" * 32, "../" + "a" * 61, "a" * 65, "a" * 64 + "\n", "/" + "a" * 63])
def test_a_name_that_is_not_64_hex_digits_is_refused(store: Store, name: str) -> None:
    with pytest.raises(ValueError, match="not an object name"):
        put(store, name, b"x")
    with pytest.raises(ValueError, match="not an object name"):
        store.stat(name)
    with pytest.raises(ValueError, match="not an object name"):
        store.delete(name)
    with pytest.raises(ValueError, match="not an object name"), store.get(name):
        pass


def test_a_source_that_raises_leaves_nothing(store: Store, tmp_path: Path) -> None:
    def fail() -> None:
        raise IntegrityError("changed")

    with pytest.raises(IntegrityError, match="changed"):
        store.put_if_absent(NAME, Source(b"half", fail), 8)
    assert list(store.names()) == []
    assert files_under(tmp_path) == []


def test_an_oserror_of_the_source_is_not_taken_for_the_stores(store: Store) -> None:
    failure = OSError(errno.EIO, "the disk of the source")

    def fail() -> None:
        raise failure

    with pytest.raises(OSError, match="the disk of the source") as raised:
        store.put_if_absent(NAME, Source(b"half", fail), 8)
    assert raised.value is failure
    assert list(store.names()) == []


@pytest.mark.parametrize("size", [3, 5])
def test_a_source_of_another_size_leaves_nothing(store: Store, tmp_path: Path, size: int) -> None:
    with pytest.raises(IntegrityError, match="gave"):
        store.put_if_absent(NAME, io.BytesIO(b"four"), size)
    assert list(store.names()) == []
    assert files_under(tmp_path) == []


def test_nothing_is_visible_before_the_put_is_whole(store: Store) -> None:
    seen: list[object] = []

    def look() -> None:
        seen.extend([store.stat(NAME), list(store.names())])

    assert store.put_if_absent(NAME, Source(b"half", look, b"more"), 8)
    assert seen == [None, []]
    assert read(store, NAME) == b"halfmore"


def test_one_of_two_puts_at_once_makes_the_object(store: Store) -> None:
    made: list[bool] = []
    assert store.put_if_absent(NAME, Source(b"out", lambda: made.append(put(store, NAME, b"in!")), b"er"), 5) is False
    assert made == [True]
    assert read(store, NAME) == b"in!"


def test_many_threads_putting_one_name_make_it_once(store: Store) -> None:
    barrier = threading.Barrier(8)
    made: list[bool] = []

    def putting(number: int) -> None:
        barrier.wait(10)
        made.append(put(store, NAME, bytes([number]) * 100_000))

    threads = [threading.Thread(target=putting, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(made) == [False] * 7 + [True]
    assert len(set(read(store, NAME))) == 1


def test_a_read_that_has_begun_gives_only_its_own_object(store: Store) -> None:
    put(store, NAME, b"a" * 3_000_000)
    buffer = memoryview(bytearray(1000))
    with store.get(NAME) as reader:
        reader.readinto(buffer)
        store.delete(NAME)
        put(store, NAME, b"b" * 3_000_000)
        rest = rest_of(reader)
    assert set(rest) <= {ord("a")}


def rest_of(reader: Readable) -> bytes:
    pieces, buffer = bytearray(), bytearray(1 << 16)
    while count := reader.readinto(memoryview(buffer)):
        pieces += buffer[:count]
    return bytes(pieces)


# What only a directory can show


def files_under(path: Path) -> list[Path]:
    return [found for found in path.rglob("*") if not found.is_dir()]


WRITER = """
import sys
from pathlib import Path
from batchyard.cache.stores.disk import DirectoryStore

class Stuck:
    def readinto(self, buffer):
        if not hasattr(self, "begun"):
            self.begun = True
            buffer[:4] = b"half"
            return 4
        print("half", flush=True)
        sys.stdin.read()
        return 0

DirectoryStore(Path(sys.argv[1])).put_if_absent("ab" * 32, Stuck(), 1 << 20)
"""


def test_a_writer_killed_in_the_middle_leaves_nothing_visible_and_is_swept_when_old(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"half\n"
        writer.send_signal(signal.SIGKILL)
    [left] = files_under(tmp_path)
    written_s = left.stat().st_mtime

    young = DirectoryStore(tmp_path, sweep_after_s=60, now_s=written_s + 59)
    assert list(young.names()) == []
    assert young.stat(NAME) is None
    assert files_under(tmp_path) == [left]

    old = DirectoryStore(tmp_path, sweep_after_s=60, now_s=written_s + 61)
    assert files_under(tmp_path) == []
    assert put(old, NAME, b"whole")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("a small tmpfs needs root")
    disk = tmp_path / "small"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("mount of a tmpfs is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_named_and_leaves_nothing(small_disk: Path) -> None:
    store = DirectoryStore(small_disk)
    with pytest.raises(DiskFull, match="no space left for"):
        put(store, NAME, os.urandom(4 << 20))
    assert files_under(small_disk) == []
    assert put(store, NAME, os.urandom(1 << 20))


def test_an_object_survives_a_new_store_on_the_same_directory(tmp_path: Path) -> None:
    put(DirectoryStore(tmp_path), NAME, b"x")
    assert read(DirectoryStore(tmp_path), NAME) == b"x"


def test_a_planted_fifo_does_not_block_a_read(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    os.mkfifo(tmp_path / "objects" / "ab" / NAME)
    assert read(store, NAME) == b""


def test_a_planted_directory_is_no_object(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    (tmp_path / "objects" / "ab" / NAME).mkdir()
    open_files = os.listdir("/proc/self/fd")
    with pytest.raises(StoreUnavailable, match="Is a directory"):
        read(store, NAME)
    assert len(os.listdir("/proc/self/fd")) == len(open_files)


# What only an S3 can show

S3_WRITER = """
import sys
from pathlib import Path
from batchyard.cache.stores.access import S3Access
from batchyard.cache.stores.s3 import S3Store

class Stuck:
    begun = 0
    def readinto(self, buffer):
        if self.begun < 6 << 20:
            self.begun += len(buffer)
            return len(buffer)
        print("half", flush=True)
        sys.stdin.read()
        return 0

store = S3Store(S3Access.of_file(Path(sys.argv[1])), sys.argv[2], one_put_bytes=0, part_bytes=5 << 20)
store.put_if_absent("ab" * 32, Stuck(), 12 << 20)
"""


@pytest.fixture(params=["minio", "versitygw"])
def server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(request.param)
    return found


def uploads(server: S3Server, bucket: str) -> list[str]:
    return [str(u.object_name) for u in server.access().client()._list_multipart_uploads(bucket).uploads]


def test_a_writer_killed_in_an_upload_leaves_nothing_visible_and_is_swept_when_old(server: S3Server) -> None:
    bucket = f"test-{secrets.token_hex(8)}"
    young = S3Store(server.access(), bucket, create=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", S3_WRITER, str(server.credentials), bucket],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"half\n"
        writer.send_signal(signal.SIGKILL)
    assert list(young.names()) == []
    assert young.stat(NAME) is None
    S3Store(server.access(), bucket, create=True)
    assert uploads(server, bucket) == [NAME]
    old = S3Store(server.access(), bucket, create=True, now_s=time.time() + 25 * 3600)
    assert uploads(server, bucket) == []
    assert put(old, NAME, b"whole")


@pytest.mark.parametrize("size", [10 << 20, (12 << 20) + 1])
def test_an_upload_that_fails_is_aborted(server: S3Server, size: int) -> None:
    bucket = f"test-{secrets.token_hex(8)}"
    store = S3Store(server.access(), bucket, create=True, one_put_bytes=0, part_bytes=5 << 20)
    with pytest.raises(IntegrityError, match="gave"):
        store.put_if_absent(NAME, io.BytesIO(bytes(12 << 20)), size)
    assert put(store, OTHER, b"x")
    assert uploads(server, bucket) == []
    assert list(store.names()) == [OTHER]


def test_a_bucket_that_is_not_there_keys_that_are_wrong_and_a_server_that_is_away_say_so(server: S3Server) -> None:
    access = server.access()
    with pytest.raises(StoreUnavailable, match="there is no such bucket; make it"):
        put(S3Store(access, "nosuch"), NAME, b"x")
    with pytest.raises(StoreUnavailable, match=r"refuses us .*correct the keys in .*credentials \[default\]"):
        S3Store(replace(access, secret_key="wrong"), "any").stat(NAME)
    with pytest.raises(StoreUnavailable, match=r"does not answer.*refused"):
        S3Store(replace(access, endpoint_url=f"https://127.0.0.1:{free_port()}"), "any").stat(NAME)
    with pytest.raises(StoreUnavailable, match="name the authority that signed its certificate as ca_bundle"):
        S3Store(replace(access, ca_bundle=None), "any").stat(NAME)
    with pytest.raises(InvalidConfig, match="cannot be a bucket"):
        S3Store(access, "Not_A_Bucket!")


def test_a_put_over_a_connection_that_the_server_has_closed_meanwhile_is_made(tmp_path: Path) -> None:
    with running_server("minio", tmp_path / "own") as server:
        store = bucket_of(server)
        assert put(store, NAME, b"x")
        server.stop()  # with kept-alive connections
        server.start()
        assert put(store, OTHER, b"y")
        assert read(store, NAME) == b"x"
