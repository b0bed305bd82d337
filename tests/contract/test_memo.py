"""What jobs made, noted in Redis: written by the settle that it is of, read by who has the keys."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from batchyard.broker import keys, memo
from batchyard.broker.errors import BrokerUnavailable
from batchyard.broker.memo import Made
from batchyard.broker.record import Attempt, Claimed
from batchyard.broker.seal import KeyRing
from batchyard.broker.state import State
from batchyard.broker.store import Free, Incoming, Yard
from yardtest.redis import RedisServer

RING = KeyRing.new()
DIGEST = "sha256:" + "a" * 64
MADE = Made(job_id="maker", outputs={"o": {"digest": DIGEST, "size": 3, "kind": "file"}})
NAME = memo.name_of(RING, '{"image": "busybox"}')

pytestmark = pytest.mark.system


@pytest.fixture
def yard(fresh_redis_url: str) -> Yard:
    made = Yard(fresh_redis_url, RING)
    made.prepare()
    return made


def claimed(yard: Yard) -> Claimed:
    sent = Incoming(
        list_key="cpu", raw=b"m", kind="job", id="maker", queue="cpu", vcpus=1, memory_mib=64, document=b"sealed"
    )
    yard.redis.lpush("cpu", b"m")
    assert yard.intake([sent]) == 1
    (job,) = yard.claim("n", "c", Free(vcpus=4, memory_mib=512, gpus=0, disk_gib=9), ["cpu"], lease_s=30)[1]
    return job


def settle(yard: Yard, job: Claimed, keep_s: int = 60) -> bool:
    attempt = Attempt(node="n", started=1.0, ended=2.0, exit_code=0, reason="")
    effects = [memo.written(RING, NAME, MADE, keep_s=keep_s)]
    return yard.settle(job, State.SUCCEEDED, attempt, {"reason": "", "reused": "other"}, effects, retention_s=60)


def test_a_note_is_written_with_the_end_that_it_is_of_and_goes_by_itself(yard: Yard) -> None:
    job = claimed(yard)
    assert memo.look_up(yard, RING, NAME) is None
    assert settle(yard, job)
    assert memo.look_up(yard, RING, NAME) == MADE
    assert 0 < yard.redis.ttl(keys.memo(NAME)) <= 60
    assert yard.record("maker").reused == "other"


def test_an_end_that_is_refused_notes_nothing(yard: Yard) -> None:
    job = claimed(yard)
    assert yard.give_back(job, None)
    assert not settle(yard, job)
    assert memo.look_up(yard, RING, NAME) is None


def test_nothing_can_be_read_from_it_without_the_keys(yard: Yard) -> None:
    assert settle(yard, claimed(yard))
    kept = yard.redis.get(keys.memo(NAME))
    assert isinstance(kept, bytes)
    assert not any(word in kept for word in (b"maker", DIGEST.encode(), b"outputs"))
    other = KeyRing.new()
    assert memo.name_of(other, '{"image": "busybox"}') != NAME
    assert memo.look_up(yard, other, NAME) is None


@pytest.mark.parametrize(
    "harm",
    [
        lambda good: b"",
        lambda good: good[:-1],
        lambda good: bytes([*good[:-1], good[-1] ^ 1]),
        lambda good: RING.seal(b"no JSON", f"memo {NAME}".encode()),
        lambda good: RING.seal(b'{"job": "maker"}', f"memo {NAME}".encode()),
        lambda good: RING.seal(b'{"job": "maker", "outputs": {"o": 3}}', f"memo {NAME}".encode()),
        lambda good: RING.seal(b'{"job": "maker", "outputs": []}', f"memo {NAME}".encode()),
        lambda good: RING.seal(b'{"job": "maker", "outputs": {}}', b"memo of something else"),
    ],
)  # fmt: skip
def test_a_damaged_note_is_no_note(yard: Yard, harm: Callable[[bytes], bytes]) -> None:
    assert settle(yard, claimed(yard))
    good = yard.redis.get(keys.memo(NAME))
    assert isinstance(good, bytes)
    yard.redis.set(keys.memo(NAME), harm(good))
    assert memo.look_up(yard, RING, NAME) is None


def test_a_note_of_one_thing_does_not_stand_for_another(yard: Yard) -> None:
    assert settle(yard, claimed(yard))
    other = memo.name_of(RING, '{"image": "other"}')
    yard.redis.copy(keys.memo(NAME), keys.memo(other))
    assert memo.look_up(yard, RING, other) is None


def test_a_redis_that_is_away_says_so(own_redis: RedisServer) -> None:
    yard = Yard(own_redis.url(), RING)
    own_redis.kill9()
    with pytest.raises(BrokerUnavailable):
        memo.look_up(yard, RING, NAME)
