"""What a node does beside its jobs, one step at a time."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from batchyard.broker import keys
from batchyard.broker.config import single_machine
from batchyard.broker.errors import BrokerUnavailable
from batchyard.broker.expiry import Expiry
from batchyard.broker.puts import Puts
from batchyard.broker.store import Yard
from batchyard.worker.levels import Levels, open_levels
from batchyard.worker.options import NodeOptions
from batchyard.worker.upkeep import AGAIN_S, LOOK_S, Upkeep
from yardtest.wait import until

MIB = 1 << 20

pytestmark = pytest.mark.system


@pytest.fixture
def levels(yard: Yard, tmp_path: Path) -> Levels:
    options = NodeOptions(
        name="n",
        state=tmp_path / "n",
        store=str(tmp_path / "store"),
        near=str(tmp_path / "near"),
        queues=(),
        vcpus=1,
        memory_mib=100,
        disk_gib=1,
        copies_gib=10 / 1024,
    )
    return open_levels(options, yard)


@pytest.fixture
def upkeep(yard: Yard, levels: Levels) -> Upkeep:
    return Upkeep(yard, levels, lambda: single_machine(1, 100, 0, 1), 4.0)


def put(yard: Yard, levels: Levels) -> str:
    """By a person who unpins it: it is due at once."""
    puts = Puts(Expiry(yard), "put:1")
    blob = levels.blobs.telling(puts.before).put_bytes(b"x")
    puts.pin()
    Expiry(yard).unpin(puts.names[0], puts.names)
    return blob.digest


def test_a_node_looks_seldom_while_nothing_may_expire_and_deletes_what_has(
    yard: Yard, levels: Levels, upkeep: Upkeep
) -> None:
    assert upkeep.collect() == LOOK_S
    digest = put(yard, levels)
    yard.redis.set(keys.BLOBS_LOCK, "another", ex=60)
    assert upkeep.collect() == AGAIN_S
    assert levels.blobs.has(digest)
    yard.redis.delete(keys.BLOBS_LOCK)
    assert upkeep.collect() < AGAIN_S
    assert not levels.blobs.has(digest)
    assert upkeep.collect() == LOOK_S


def test_a_node_looks_again_when_the_next_object_expires(yard: Yard, upkeep: Upkeep) -> None:
    yard.redis.zadd(keys.BLOBS_UNTIL, {"0" * 64: (yard.now_s() + 50) * 1000})
    assert 40 < upkeep.collect() < 51
    yard.redis.zadd(keys.BLOBS_UNTIL, {"0" * 64: (yard.now_s() + 5000) * 1000})
    assert upkeep.collect() == LOOK_S


def test_a_node_makes_room_ahead_by_itself(levels: Levels, upkeep: Upkeep) -> None:
    upkeep.start()
    for n in range(10):
        levels.copies.stage(levels.blobs.put_bytes(bytes([n]) * (MIB - 4096)).digest, "job")
    assert levels.copies.counts.evictions == 0
    levels.copies.unpin("job")
    until(lambda: levels.facts().held_bytes <= 9 * MIB, "there is room for one more")
    assert levels.copies.counts.evictions == 1
    upkeep.close()


def test_a_node_checks_its_copies_by_itself(levels: Levels, upkeep: Upkeep) -> None:
    path = levels.copies.stage(levels.blobs.put_bytes(b"right"), "job").path
    levels.copies.unpin("job")
    path.chmod(0o600)
    path.write_bytes(b"wrong")
    upkeep.start()
    until(lambda: levels.facts().scrub_bad, "it is found")
    assert not path.exists()
    assert levels.facts().scrubbed_bytes >= 5
    upkeep.close()


def test_a_redis_that_is_away_stops_no_thread(
    yard: Yard, levels: Levels, upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = threading.Semaphore(0)

    def away() -> None:
        looked.release()
        raise BrokerUnavailable("away")

    monkeypatch.setattr(upkeep._expiry, "wait_s", away)
    monkeypatch.setattr("batchyard.worker.upkeep.AGAIN_S", 0.01)
    monkeypatch.setattr(upkeep._closing, "wait", lambda s: upkeep._closing.is_set())
    thread = threading.Thread(target=upkeep._collect)
    thread.start()
    for _ in range(3):
        assert looked.acquire(timeout=10)
    upkeep.close()
    thread.join(10)
    assert not thread.is_alive()


def test_what_nobody_has_thought_of_stops_no_scrub(
    levels: Levels, upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, failed = levels.scrub.step, list[bool]()

    def failing(*args: Any) -> bool:
        if not failed:
            failed.append(True)
            raise MemoryError
        return step(*args)

    monkeypatch.setattr(levels.scrub, "step", failing)
    levels.copies.stage(levels.blobs.put_bytes(b"right"), "job")
    upkeep.start()
    until(lambda: levels.facts().scrubbed_bytes, "it goes on")
    upkeep.close()
