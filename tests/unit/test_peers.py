"""The small parts of what nodes give each other: addresses, stamps, the pace of a transfer, what a node is told."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from batchyard.broker.errors import InvalidConfig, StoreUnavailable
from batchyard.broker.hints import Peer
from batchyard.broker.seal import KeyRing
from batchyard.broker.store import Yard
from batchyard.cache.stores.announced import Announced
from batchyard.cache.stores.memory import MemoryStore
from batchyard.cache.stores.peercall import is_stamped, join_address, split_address, stamp
from batchyard.cache.stores.peers import Doors, Transfer
from batchyard.cache.stores.protocol import CopyLost, sizes_of
from batchyard.worker.levels import open_levels
from batchyard.worker.options import NodeOptions
from batchyard.worker.peering import Peering

NAME, PEER = "ab" * 32, Peer(node="a", address="127.0.0.1:1")


@pytest.mark.parametrize(
    ("text", "found"),
    [("10.0.0.1", ("10.0.0.1", 0)), ("node-1.lan:7070", ("node-1.lan", 7070)), ("[::1]:70", ("::1", 70)),
     ("[::1]", ("::1", 0))],
)  # fmt: skip
def test_an_address_is_a_host_and_perhaps_a_port(text: str, found: tuple[str, int]) -> None:
    assert split_address(text) == found
    assert split_address(join_address(*found)) == found


@pytest.mark.parametrize(
    "text", ["", ":70", "a:b", "a:70000", "http://a:70", "a:70/x", "u@a:70", "u:p@a", "a?x", "[::1", "a#"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        split_address(text)


def test_a_stamp_is_of_one_ring_one_node_one_object_and_one_time() -> None:
    ring = KeyRing.new()
    header = stamp(ring, "a", NAME, 1_000_000.5)
    assert is_stamped(ring, "a", NAME, header, 1_000_000)
    assert is_stamped(ring.rotated(), "a", NAME, header, 1_000_299)
    assert not is_stamped(ring, "a", NAME, header, 1_000_301)
    assert not is_stamped(ring, "a", NAME, header, 999_699)
    assert not is_stamped(ring, "b", NAME, header, 1_000_000)
    assert not is_stamped(ring, "a", "cd" * 32, header, 1_000_000)
    assert not is_stamped(KeyRing.new(), "a", NAME, header, 1_000_000)
    assert not is_stamped(ring, "a", NAME, header + "0", 1_000_000)
    assert NAME not in header


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Dripping(io.RawIOBase):
    """Some bytes a read, each of which takes some seconds."""

    def __init__(self, clock: Clock, piece: int, took_s: float) -> None:
        super().__init__()
        self._clock, self._piece, self._took_s = clock, piece, took_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        self._clock.now_s += self._took_s
        return min(len(buffer), self._piece)


def transfer(clock: Clock, piece: int, took_s: float, size: int) -> Transfer:
    return Transfer(
        PEER,
        urllib3.HTTPResponse(io.BufferedReader(Dripping(clock, piece, took_s)), preload_content=False),
        size,
        clock,
    )


def read(one: Transfer) -> int:
    done, buffer = 0, memoryview(bytearray(1 << 20))
    while count := one.readinto(buffer):
        done += count
    return done


def test_a_transfer_that_is_too_slow_is_given_up() -> None:
    clock = Clock()
    with pytest.raises(CopyLost, match="node a is too slow, at byte 22000 of 1048576"):
        read(transfer(clock, 2000, 1.0, 1 << 20))
    assert clock.now_s == 11


def test_a_transfer_that_keeps_the_pace_may_take_long() -> None:
    clock = Clock()
    assert read(transfer(clock, 200_000, 1.0, 20 << 20)) == 20 << 20
    assert clock.now_s > 100


def test_the_time_that_the_reader_takes_is_not_the_peers() -> None:
    clock = Clock()
    slow = transfer(clock, 1000, 0.1, 50_000)
    buffer, done = memoryview(bytearray(1000)), 0
    while count := slow.readinto(buffer):
        done += count
        clock.now_s += 60
    assert done == 50_000


def test_a_transfer_that_ends_early_says_where() -> None:
    one = Transfer(PEER, urllib3.HTTPResponse(io.BytesIO(b"four"), preload_content=False), 5)
    with pytest.raises(CopyLost, match="ended early, at byte 4 of 5"):
        read(one)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nosuch.invalid:1", "x y", "a/../b:1", ""])
def test_a_peer_that_cannot_be_asked_is_said_to_be_away(address: str) -> None:
    with pytest.raises(StoreUnavailable, match="node a does not answer"):
        Doors(KeyRing.new()).ask(Peer(node="a", address=address), NAME)


def test_what_comes_into_a_store_and_what_leaves_it_is_told() -> None:
    told: list[object] = []
    store = Announced(MemoryStore(), kept=lambda name, size: told.append((name, size)), gone=told.append)
    for _ in range(2):
        store.put_if_absent(NAME, io.BytesIO(b"x"), 1)
    store.delete(NAME)
    assert told == [(NAME, 1), (NAME, 1), NAME]


def test_what_is_told_of_is_listed_with_its_sizes_by_a_store_that_can() -> None:
    class Listing(MemoryStore):
        def sizes(self) -> Iterator[tuple[str, int]]:
            yield NAME, 7

    store = Listing()
    told = Announced(store, kept=lambda name, size: None, gone=lambda name: None)
    assert list(sizes_of(told)) == [(NAME, 7)]


# -- what a node is told


def options(tmp_path: Path, **more: Any) -> NodeOptions:
    return NodeOptions(name="a", state=tmp_path, store=str(tmp_path / "store"), queues=(), vcpus=1, memory_mib=64,
                       disk_gib=1, **more)  # fmt: skip


@pytest.fixture
def yard() -> Yard:
    return Yard("redis://127.0.0.1:1", KeyRing.new())


def test_a_door_needs_a_near_store(tmp_path: Path, yard: Yard) -> None:
    with pytest.raises(InvalidConfig, match="give that too"):
        open_levels(options(tmp_path, peer_address="127.0.0.1"), yard)


def test_an_address_that_cannot_be_listened_on_is_said(tmp_path: Path, yard: Yard) -> None:
    with pytest.raises(InvalidConfig, match=r"--peer-address .* is no address"):
        Peering(options(tmp_path, near="near", peer_address="http://x"), yard)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(InvalidConfig, match=r"cannot be listened on \(Address already in use\)"):
            Peering(options(tmp_path, near="near", peer_address=f"127.0.0.1:{taken.getsockname()[1]}"), yard)
    with pytest.raises(InvalidConfig, match="give an address of this machine"):
        Peering(options(tmp_path, near="near", peer_address="192.0.2.1"), yard)


def test_a_node_that_listens_everywhere_tells_its_own_address(tmp_path: Path, yard: Yard) -> None:
    made = Peering(options(tmp_path, near="near", peer_address="0.0.0.0", address="10.1.2.3"), yard)
    assert split_address(made.address)[0] == "10.1.2.3"
    assert split_address(made.address)[1] > 0
    made.close()
