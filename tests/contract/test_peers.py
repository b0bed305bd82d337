"""What nodes give each other of their near stores: real Redis, real HTTP, doors and networks that fail."""

from __future__ import annotations

import http.client
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from batchyard.broker import hints, keys
from batchyard.broker.errors import BlobMissing, StoreUnavailable
from batchyard.broker.hints import Hints, Peer
from batchyard.broker.seal import KeyRing, Readable
from batchyard.broker.store import Yard
from batchyard.cache.index import Index
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores import peerdoor, peered
from batchyard.cache.stores.bounded import Bounded
from batchyard.cache.stores.disk import DirectoryStore
from batchyard.cache.stores.memory import MemoryStore
from batchyard.cache.stores.peercall import PATH, stamp
from batchyard.cache.stores.peers import Doors, Later, Transfer
from batchyard.cache.stores.protocol import CopyLost
from yardtest.cut import CuttingRelay
from yardtest.peers import NearNode
from yardtest.redis import RedisServer
from yardtest.wait import until

MIB = 1 << 20


class Gated(MemoryStore):
    """A durable store that gives `first` bytes of an object, and more once `gate` is set; then it may be `away`."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.begun = threading.Event(), threading.Event()
        self.gate.set()
        self.first, self.away = 5 * MIB, False  # more than is collected before the near store is asked to take it

    @contextmanager
    def get(self, name: str) -> Iterator[Readable]:
        with super().get(name) as reader:
            yield _GatedReader(self, reader)


class _GatedReader:
    def __init__(self, store: Gated, reader: Readable) -> None:
        self._store, self._reader, self._left = store, reader, store.first

    def readinto(self, buffer: memoryview, /) -> int:
        if self._left <= 0 and not self._store.gate.is_set():
            self._store.begun.set()
            assert self._store.gate.wait(60)
        if self._store.away:
            raise StoreUnavailable("the durable store is away")
        count = self._reader.readinto(buffer) or 0
        self._left -= count
        return count


@pytest.fixture
def far() -> Gated:
    return Gated()


@pytest.fixture
def a(yard: Yard, far: Gated, tmp_path: Path) -> Iterator[NearNode]:
    with NearNode("a", yard, far, tmp_path) as node:
        yield node


@pytest.fixture
def b(yard: Yard, far: Gated, tmp_path: Path) -> Iterator[NearNode]:
    with NearNode("b", yard, far, tmp_path) as node:
        yield node


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as made:
        yield made


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The nodes that were asked, the moment that they are."""
    found: list[str] = []
    ask = Doors.ask

    def noting(self: Doors, peer: Peer, name: str) -> Transfer | Later | None:
        found.append(peer.node)
        return ask(self, peer, name)

    monkeypatch.setattr(Doors, "ask", noting)
    return found


def stored(yard: Yard, far: Gated, mib: int = 6) -> tuple[str, bytes]:
    """The digest and content of what is in the durable store only."""
    data = os.urandom(mib * MIB)
    return BlobStore(far, yard.ring).put_bytes(data).digest, data


def read(node: NearNode, digest: str) -> bytes:
    found = node.blobs.read_bytes(digest, 64 * MIB)
    node.settle()
    return found


def held(yard: Yard, name: str) -> set[bytes]:
    found: Any = yard.redis.zrange(keys.holders(name), 0, -1)
    return set(found)


def has_it(yard: Yard, node: NearNode, digest: str) -> bytes:
    """Read by the node, and others know."""
    data = read(node, digest)
    name = yard.ring.name(digest)
    until(lambda: node.name.encode() in held(yard, name), f"it is known that {node.name} has it")
    return data


# -- one fetches


def test_what_one_node_has_another_gets_there(yard: Yard, far: Gated, a: NearNode, b: NearNode) -> None:
    digest, data = stored(yard, far)
    size = far.stat(yard.ring.name(digest))
    assert has_it(yard, a, digest) == data
    assert read(b, digest) == data
    assert (a.far.counts.get_bytes, b.far.counts.get_bytes) == (size, 0)
    assert (b.peered.counts.bytes, b.peered.counts.failures) == (size, 0)
    until(lambda: a.peering.given_bytes == size, "a counts what it gave")
    assert read(b, digest) == data
    assert b.peered.counts.gets == 1  # it has it itself now


@pytest.mark.parametrize("size", [0, 100, 6 * MIB + 1])
def test_of_those_that_want_the_same_at_once_one_fetches(
    yard: Yard, far: Gated, tmp_path: Path, pool: ThreadPoolExecutor, size: int
) -> None:
    data = os.urandom(size)
    digest = BlobStore(far, yard.ring).put_bytes(data).digest
    nodes = [NearNode(f"n{number}", yard, far, tmp_path) for number in range(4)]
    barrier = threading.Barrier(4)

    def want(node: NearNode) -> bytes:
        barrier.wait(10)
        return read(node, digest)

    try:
        assert list(pool.map(want, nodes)) == [data] * 4
        fetched = sum(node.far.counts.get_bytes for node in nodes)
        if size > MIB:  # of less it may be more than one that does
            assert fetched == far.stat(yard.ring.name(digest))
        assert sum(node.peered.counts.failures for node in nodes) == 0
    finally:
        for node in nodes:
            node.stop()


def test_who_comes_while_another_fetches_waits_for_it(
    yard: Yard, far: Gated, a: NearNode, b: NearNode, pool: ThreadPoolExecutor, asked: list[str]
) -> None:
    digest, data = stored(yard, far)
    far.gate.clear()
    first = pool.submit(read, a, digest)
    assert far.begun.wait(30)
    second = pool.submit(read, b, digest)
    until(lambda: asked == ["a"], "b asks a")
    assert not second.done()
    far.gate.set()
    assert (first.result(30), second.result(30)) == (data, data)
    assert b.far.counts.gets == 0


def test_a_wait_that_is_longer_than_one_answer_goes_on_as_long_as_bytes_come(
    yard: Yard,
    far: Gated,
    a: NearNode,
    b: NearNode,
    pool: ThreadPoolExecutor,
    asked: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    digest, data = stored(yard, far)
    monkeypatch.setattr(peerdoor, "HOLD_S", 0.2)
    far.gate.clear()
    first = pool.submit(read, a, digest)
    assert far.begun.wait(30)
    second = pool.submit(read, b, digest)
    until(lambda: len(asked) >= 2, "b asks again")
    far.gate.set()
    assert (first.result(30), second.result(30)) == (data, data)


# -- and if it does not go well


def test_a_fetch_that_gets_no_further_is_not_waited_for(
    yard: Yard,
    far: Gated,
    a: NearNode,
    b: NearNode,
    tmp_path: Path,
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    digest, data = stored(yard, far)
    monkeypatch.setattr(peerdoor, "HOLD_S", 0.2)
    far.gate.clear()
    first = pool.submit(read, a, digest)
    assert far.begun.wait(30)
    with NearNode("c", yard, _copy_of(far), tmp_path) as c:
        assert read(c, digest) == data
        assert c.peered.counts.failures == 1
    far.gate.set()
    assert first.result(30) == data


def _copy_of(far: Gated) -> MemoryStore:
    """The same objects, behind no gate."""
    made = MemoryStore()
    for name in far.names():
        with MemoryStore.get(far, name) as reader:
            data = io.BytesIO()
            buffer = memoryview(bytearray(MIB))
            while count := reader.readinto(buffer):
                data.write(buffer[:count])
        made.put_if_absent(name, io.BytesIO(data.getvalue()), len(data.getvalue()))
    return made


def test_of_those_that_wait_for_a_node_that_dies_one_fetches(
    yard: Yard, far: Gated, a: NearNode, tmp_path: Path, pool: ThreadPoolExecutor, asked: list[str]
) -> None:
    digest, data = stored(yard, far)
    far.gate.clear()
    first = pool.submit(read, a, digest)
    assert far.begun.wait(30)
    rest = [NearNode(f"n{number}", yard, _copy_of(far), tmp_path) for number in range(3)]
    try:
        waiting = [pool.submit(read, node, digest) for node in rest]
        until(lambda: len(asked) == 3, "all ask a")
        a.stop()
        assert [one.result(60) for one in waiting] == [data] * 3
        assert sum(node.far.counts.gets for node in rest) == 1
    finally:
        for node in rest:
            node.stop()
        far.gate.set()
        first.result(30)


def test_a_fetch_that_fails_lets_the_next_one_try(
    yard: Yard, far: Gated, a: NearNode, b: NearNode, pool: ThreadPoolExecutor, asked: list[str]
) -> None:
    digest, data = stored(yard, far)
    far.gate.clear()
    first = pool.submit(read, a, digest)
    assert far.begun.wait(30)
    second = pool.submit(read, b, digest)
    until(lambda: asked == ["a"], "b asks a")
    far.away = True
    far.gate.set()
    for one in (first, second):
        with pytest.raises(StoreUnavailable, match="away"):
            one.result(30)
    assert not yard.redis.exists(keys.flight(yard.ring.name(digest)))
    far.away = False
    assert read(b, digest) == data


def test_a_transfer_that_is_cut_goes_on_from_the_durable_store(
    yard: Yard, far: Gated, a: NearNode, b: NearNode, tmp_path: Path
) -> None:
    digest, data = stored(yard, far)
    has_it(yard, a, digest)
    with CuttingRelay(int(a.peering.address.rpartition(":")[2])) as relay:
        relay.cut_down = lambda _, seen: seen > 3 * MIB
        a.beat(f"127.0.0.1:{relay.port}")
        told: list[int] = []
        b.blobs.fetch(digest, None, tmp_path / "copy", on_bytes=told.append)
        assert relay.connections == 1
    assert (tmp_path / "copy").read_bytes() == data
    assert sum(told) == len(data)
    assert (b.far.counts.gets, b.peered.counts.failures, b.blobs.counters.corrupt) == (1, 1, 0)


def test_a_node_that_does_not_answer_is_not_asked_again_for_a_while(
    yard: Yard, far: Gated, a: NearNode, b: NearNode, asked: list[str]
) -> None:
    blobs = [stored(yard, far, 2) for _ in range(3)]
    for digest, _ in blobs:
        has_it(yard, a, digest)
    a.stop()
    for digest, data in blobs:
        assert read(b, digest) == data
    assert asked == ["a"]
    assert b.far.counts.gets == 3


@pytest.mark.parametrize("harm", ["flipped", "cut", "longer", "another's", "nothing", "noise"])
def test_bytes_that_do_not_open_are_not_used_and_nothing_durable_is_deleted(
    yard: Yard, far: Gated, a: NearNode, b: NearNode, tmp_path: Path, harm: str
) -> None:
    digest, data = stored(yard, far)
    name, other = yard.ring.name(digest), yard.ring.name(stored(yard, far)[0])
    has_it(yard, a, digest)
    sealed = bytearray(raw(far, name))
    bad = {
        "flipped": bytes([*sealed[: 3 * MIB], sealed[3 * MIB] ^ 1, *sealed[3 * MIB + 1 :]]),
        "cut": bytes(sealed[: 3 * MIB]),
        "longer": bytes(sealed) + b"x",
        "another's": raw(far, other),
        "nothing": b"",
        "noise": os.urandom(len(sealed)),
    }[harm]
    a.plain.delete(name)
    a.plain.put_if_absent(name, io.BytesIO(bad), len(bad))
    b.blobs.fetch(digest, None, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    b.settle()
    assert raw(far, name) == raw(b.plain, name) == bytes(sealed)
    assert b.blobs.counters.corrupt == 0
    assert held(yard, name) <= {b"b"}  # nobody else is sent to a for it


def raw(store: MemoryStore | DirectoryStore, name: str) -> bytes:
    found, buffer = bytearray(), memoryview(bytearray(MIB))
    with MemoryStore.get(store, name) if isinstance(store, MemoryStore) else store.get(name) as reader:
        while count := reader.readinto(buffer):
            found += buffer[:count]
    return bytes(found)


def test_a_peer_with_other_keys_leads_to_the_durable_store(
    yard: Yard, far: Gated, b: NearNode, tmp_path: Path, fresh_redis_url: str
) -> None:
    digest, data = stored(yard, far)
    yard.redis.zadd(keys.holders(yard.ring.name(digest)), {"stranger": 2**48})
    with NearNode("stranger", Yard(fresh_redis_url, KeyRing.new()), MemoryStore(), tmp_path):
        assert read(b, digest) == data
    assert b.far.counts.gets == 1


def test_without_redis_the_durable_store_is_read_at_once(own_redis: RedisServer, far: Gated, tmp_path: Path) -> None:
    yard = Yard(own_redis.url(), KeyRing.new())
    yard.prepare()
    digest, data = stored(yard, far)
    with NearNode("a", yard, far, tmp_path) as a, NearNode("b", yard, far, tmp_path) as b:
        has_it(yard, a, digest)
        own_redis.kill9()
        assert read(b, digest) == data
        assert b.far.counts.gets == 1
        own_redis.start()


def test_what_is_missing_is_missing_everywhere(yard: Yard, a: NearNode, b: NearNode) -> None:
    for node in (a, b):
        with pytest.raises(BlobMissing):
            read(node, "sha256:" + "0" * 64)
    assert yard.redis.keys("by:blob:*") == []


def test_what_was_deleted_is_not_had_from_peers(yard: Yard, far: Gated, a: NearNode, b: NearNode) -> None:
    digest, _ = stored(yard, far)
    has_it(yard, a, digest)
    b.tiered.delete(yard.ring.name(digest))
    with pytest.raises(BlobMissing):
        read(b, digest)


def test_a_tenant_learns_nothing_of_anothers_objects_by_hints(
    yard: Yard, far: Gated, a: NearNode, b: NearNode, asked: list[str]
) -> None:
    one, two, data = yard.ring.of("one"), yard.ring.of("two"), os.urandom(2 * MIB)
    digest = BlobStore(far, one).put_bytes(data).digest
    assert BlobStore(a.tiered, one).read_bytes(digest, 4 * MIB) == data
    until(lambda: held(yard, one.name(digest)) == {b"a"}, "it is known that a has it")
    with pytest.raises(BlobMissing):
        BlobStore(b.tiered, two).read_bytes(digest, 4 * MIB)
    assert asked == []
    assert BlobStore(b.tiered, one).read_bytes(digest, 4 * MIB) == data
    assert asked == ["a"]
    every: Any = yard.redis.keys("*")
    assert not [key for key in every if digest[7:].encode() in key]


# -- hints


def test_hints_are_told_anew_at_a_start_and_taken_back_when_room_is_made(
    yard: Yard, far: Gated, a: NearNode, tmp_path: Path
) -> None:
    digests = [stored(yard, far, 2)[0] for _ in range(3)]
    names = [yard.ring.name(digest) for digest in digests]
    for digest in digests:
        has_it(yard, a, digest)
    a.stop()
    yard.redis.delete(*(keys.holders(name) for name in names))
    with NearNode("a", yard, far, tmp_path) as again:
        until(lambda: all(held(yard, name) == {b"a"} for name in names), "all are told anew")
        ttl = yard.redis.pttl(keys.holders(names[0]))
        assert 0 < ttl <= hints.HELD_S * 1000
        small = Bounded(again.peering.near(again.plain), Index(tmp_path), 5 * MIB)
        small.count()
        until(lambda: sum(held(yard, name) == set() for name in names) == 1, "what went is told")


def test_small_objects_are_not_told_of(yard: Yard, far: Gated, a: NearNode) -> None:
    digest = BlobStore(far, yard.ring).put_bytes(b"small").digest
    read(a, digest)
    until(lambda: not yard.redis.keys("by:blob:*"), "nothing is known of it")


def beat(yard: Yard, node: str, address: str = "10.0.0.1:1") -> None:
    yard.renew(node, {"peer": address}, {}, lease_s=30)


def test_a_search_finds_holders_before_a_flight_and_passes_over_who_cannot_be_asked(yard: Yard) -> None:
    one, two, three = (Hints(yard, node) for node in ("n1", "n2", "n3"))
    assert one.seek("x").mine
    assert two.seek("x").mine  # n1 is not known to have a door
    beat(yard, "n2")
    assert three.seek("x") == hints.Sought(peers=(Peer(node="n2", address="10.0.0.1:1"),), flies=True)
    assert (one.fly("x"), two.fly("x")) == (False, True)
    assert two.seek("x").mine
    two.hold(["x"])
    assert three.seek("x") == hints.Sought(peers=(Peer(node="n2", address="10.0.0.1:1"),))
    assert three.seek("x", without=["n2"]).mine
    assert three.fly("x")
    beat(yard, "n3", "")
    three.land(["x"])
    yard.redis.zadd(keys.NODES, {"n2": (yard.now_s() - 3600) * 1000})
    assert one.seek("x").mine
    beat(yard, "n2")
    two.drop(["x"])
    assert two.seek("x").mine


def test_a_fetch_of_which_nothing_is_heard_is_anybodys(yard: Yard) -> None:
    one, two = Hints(yard, "n1"), Hints(yard, "n2")
    beat(yard, "n1")
    assert one.seek("x").mine
    assert not two.seek("x").mine
    assert 0 < yard.redis.pttl(keys.flight("x")) <= hints.FLIGHT_S * 1000
    yard.redis.delete(keys.flight("x"))  # as its expiry does
    assert two.seek("x").mine


def test_a_hint_that_has_expired_counts_no_more(yard: Yard) -> None:
    one, two = Hints(yard, "n1"), Hints(yard, "n2")
    beat(yard, "n1")
    one.hold(["x"])
    yard.redis.zadd(keys.holders("x"), {"n1": yard.now_s() * 1000 - 1})
    assert two.seek("x").mine


def test_a_redis_without_memory_refuses_hints_and_the_durable_store_is_read(
    own_redis: RedisServer, far: Gated, tmp_path: Path
) -> None:
    yard = Yard(own_redis.url(), KeyRing.new())
    yard.prepare()
    digest, data = stored(yard, far)
    with NearNode("a", yard, far, tmp_path) as a:
        yard.redis.config_set("maxmemory", "1")
        assert read(a, digest) == data
        yard.redis.config_set("maxmemory", "0")


# -- the door


@pytest.fixture
def known(yard: Yard, far: Gated, a: NearNode) -> str:
    """The name of what node a has."""
    digest, _ = stored(yard, far, 2)
    has_it(yard, a, digest)
    return yard.ring.name(digest)


Answer = tuple[int, list[tuple[str, str]], bytes]


def ask(node: NearNode, path: str, header: str | None = None, *, method: str = "GET") -> Answer:
    host, _, port = node.peering.address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    try:
        connection.request(method, path, headers={"Authorization": header} if header else {})
        answer = connection.getresponse()
        return answer.status, sorted(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_who_has_the_yards_keys_gets_the_object_or_its_size(yard: Yard, far: Gated, a: NearNode, known: str) -> None:
    header = stamp(yard.ring, "a", known, time.time())
    assert ask(a, PATH + known, header)[::2] == (200, raw(far, known))
    status, headers, body = ask(a, PATH + known, header, method="HEAD")
    assert (status, body) == (200, b"")
    assert ("content-length", str(far.stat(known))) in headers


WRONG: dict[str, Callable[[KeyRing, str], str | None]] = {
    "nothing": lambda ring, name: None,
    "other keys": lambda ring, name: stamp(KeyRing.new(), "a", name, time.time()),
    "another object": lambda ring, name: stamp(ring, "a", "ab" * 32, time.time()),
    "another node": lambda ring, name: stamp(ring, "b", name, time.time()),
    "long ago": lambda ring, name: stamp(ring, "a", name, time.time() - 3600),
    "yet to come": lambda ring, name: stamp(ring, "a", name, time.time() + 3600),
    "another time": lambda ring, name: stamp(ring, "a", name, time.time()).replace("Batchyard 1", "Batchyard 2"),
    "no token": lambda ring, name: f"Batchyard {int(time.time())} ",
    "noise": lambda ring, name: "Basic \xff\xfe==",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_who_cannot_show_the_keys_learns_nothing(yard: Yard, a: NearNode, known: str, wrong: str) -> None:
    absent = "cd" * 32
    nothing = ask(a, PATH + absent, stamp(yard.ring, "a", absent, time.time()))
    assert (nothing[0], nothing[2]) == (404, b"")
    assert ask(a, PATH + known, WRONG[wrong](yard.ring, known)) == nothing
    assert ask(a, PATH + absent, WRONG[wrong](yard.ring, absent)) == nothing


def test_no_other_path_or_method_leads_anywhere(yard: Yard, a: NearNode, known: str) -> None:
    header = stamp(yard.ring, "a", known, time.time())
    nothing = ask(a, "/", header)
    assert nothing[0] == 404
    paths = ["/blob", "/blob/", f"/blob/{known}/", f"/blob/{known}/x", f"/blob/{known.upper()}", f"/blob/{known[:-1]}",
             f"/blob/../blob/{known}", f"//blob/{known}", f"/blob/%2e%2e/{known}", f"/blob/{known}%00", "/docs",
             f"/blob/..%2f..%2fobjects%2f{known[:2]}%2f{known}"]  # fmt: skip
    for path in paths:
        assert ask(a, path, header) == nothing, path
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "X"):
        assert ask(a, PATH + known, header, method=method) == nothing, method


def test_a_connection_that_asks_nothing_is_ended(a: NearNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peerdoor, "_REQUEST_S", 1)
    host, _, port = a.peering.address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection.connect()
    assert connection.sock is not None
    connection.sock.sendall(b"GET /blob/")
    assert connection.sock.recv(10) == b""
    connection.close()


def test_too_many_connections_are_turned_away(
    yard: Yard, a: NearNode, known: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peerdoor, "_MOST_CONNECTIONS", 0)
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        ask(a, PATH + known, stamp(yard.ring, "a", known, time.time()))


def test_more_askers_than_a_node_sends_to_at_once_have_their_turn(
    yard: Yard, far: Gated, a: NearNode, b: NearNode, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, data = stored(yard, far)
    has_it(yard, a, digest)
    name, doors = yard.ring.name(digest), Doors(yard.ring)
    peer = Peer(node="a", address=a.peering.address)
    taken = [doors.ask(peer, name) for _ in range(8)]
    assert all(isinstance(one, Transfer) for one in taken)
    monkeypatch.setattr(peerdoor, "HOLD_S", 0.2)
    assert doors.ask(peer, name) == Later()
    waiting: Future[bytes] = pool.submit(read, b, digest)
    for one in taken:
        assert isinstance(one, Transfer)
        one.close()
    assert waiting.result(30) == data
    assert b.far.counts.gets == 0


def test_a_node_that_is_always_busy_is_given_up(
    yard: Yard, far: Gated, a: NearNode, b: NearNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peered, "_BUSY_S", 0.3)
    digest, data = stored(yard, far)
    has_it(yard, a, digest)
    doors, peer = Doors(yard.ring), Peer(node="a", address=a.peering.address)
    taken = [doors.ask(peer, yard.ring.name(digest)) for _ in range(8)]
    monkeypatch.setattr(peerdoor, "HOLD_S", 0.05)
    assert read(b, digest) == data
    assert b.far.counts.gets == 1
    for one in taken:
        assert isinstance(one, Transfer)
        one.close()


def test_a_peer_that_takes_nothing_holds_no_place_for_long(
    yard: Yard, far: Gated, a: NearNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peerdoor, "_SEND_S", 0.2)
    digest, _ = stored(yard, far, 24)  # more than the system takes for it
    has_it(yard, a, digest)
    doors, peer, name = Doors(yard.ring), Peer(node="a", address=a.peering.address), yard.ring.name(digest)
    rounds = [[doors.ask(peer, name) for _ in range(8)] for _ in range(3)]
    assert all(isinstance(one, Transfer) for taken in rounds for one in taken)
    first = rounds[0][0]
    assert isinstance(first, Transfer)
    with pytest.raises(CopyLost, match="node a"):
        while first.readinto(memoryview(bytearray(MIB))):
            pass
