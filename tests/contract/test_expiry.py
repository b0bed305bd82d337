"""Objects that expire, on a real Redis: who may delete what, in every order of putting, settling and deleting."""

from __future__ import annotations

import base64
import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batchyard.broker import keys
from batchyard.broker.errors import StoreUnavailable
from batchyard.broker.expiry import MOST_SETTLED, Expiry, Unpinned, owner_of, told
from batchyard.broker.message import Document, Message
from batchyard.broker.needs import Needs
from batchyard.broker.puts import Puts
from batchyard.broker.record import Attempt, Claimed
from batchyard.broker.seal import KeyRing
from batchyard.broker.state import State
from batchyard.broker.store import Free, Incoming, Yard
from batchyard.cache import collect
from batchyard.cache.collect import Busy, Collector, Freed
from batchyard.cache.digest import Blob
from batchyard.cache.packs import SMALL_BYTES
from batchyard.cache.parts import parts_of
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.memory import MemoryStore
from batchyard.cache.tree import fetch_tree, put_tree

ALL = Free(vcpus=1000, memory_mib=1 << 20, gpus=8, disk_gib=1 << 20)
DAY_MS = 86_400_000

pytestmark = pytest.mark.system
_numbers = itertools.count(1)


@pytest.fixture
def yard(fresh_redis_url: str) -> Yard:
    made = Yard(fresh_redis_url, KeyRing.new())
    made.prepare()
    return made


class World:
    """A yard, its store, and what nodes and people do with them. `age` moves the clock by making all older."""

    def __init__(self, yard: Yard) -> None:
        self.yard, self.store = yard, MemoryStore()
        self.blobs = BlobStore(self.store, yard.ring)
        self.expiry = Expiry(yard)
        self.collector = Collector(yard, self.blobs, lambda: {"cpu": ""})

    def take_in(self, job_id: str, **fields: Any) -> str:
        """A job that waits."""
        headers = {"id": job_id, "task": "batchyard.run", **fields.pop("headers", {})}
        job = {"image": "x", "inputs": fields.pop("inputs", {})}
        sent = Message(headers=headers, properties={}, body="[[], {}, {}]")
        document = Document(message=sent, job=job, tenant=fields.pop("tenant", ""))
        one = Incoming(list_key="cpu", raw=job_id.encode(), kind="job", id=job_id, queue="cpu", vcpus=1, memory_mib=1,
                       document=self.yard.ring.seal(document.dumps(), job_id.encode()), **fields)  # fmt: skip
        self.yard.redis.lpush("cpu", one.raw)
        assert self.yard.intake([one]) == 1
        return job_id

    def claimed(self, job_id: str | None = None, **fields: Any) -> Claimed:
        """A job that a node holds."""
        wanted = self.take_in(job_id or f"j{next(_numbers)}", **fields)
        _, (job,) = self.yard.claim("n", f"c{next(_numbers)}", ALL, ["cpu"], lease_s=30)
        assert job.id == wanted
        return job

    def puts(self, job: Claimed) -> tuple[Puts, BlobStore]:
        made = Puts(self.expiry, owner_of(job))
        return made, self.blobs.telling(made.before)

    def put(self, job: Claimed, data: bytes) -> tuple[Puts, Blob]:
        puts, blobs = self.puts(job)
        return puts, blobs.put_bytes(data)

    def settle(self, job: Claimed, puts: Puts, expire_s: int | None, **outputs: Blob) -> None:
        result = {"outputs": {name: blob.as_json() for name, blob in outputs.items()}}
        fields = {"result": json.dumps(result), **told(expire_s, puts.names)}
        assert self.yard.settle(job, State.SUCCEEDED, attempt(), fields, [], retention_s=1000)

    def run(self, data: bytes, expire_s: int | None) -> Blob:
        """A job from its claim to its end, with one output."""
        job = self.claimed()
        puts, blob = self.put(job, data)
        self.settle(job, puts, expire_s, out=blob)
        return blob

    def age(self, ms: int) -> None:
        redis: Any = self.yard.redis
        for name, score in redis.zrange(keys.BLOBS_UNTIL, 0, -1, withscores=True):
            redis.zadd(keys.BLOBS_UNTIL, {name: score - ms})
        for key in (keys.BLOBS_MADE, keys.BLOBS_PINNED):
            for name, text in redis.hgetall(key).items():
                if text:
                    known = json.loads(text)
                    known["u"] = max(0, known["u"] - ms)
                    known["f"] = {owner: at - ms for owner, at in known["f"].items()}
                    redis.hset(key, name, json.dumps(known))

    def has(self, *blobs: Blob) -> list[bool]:
        return [self.blobs.has(blob.digest) for blob in blobs]

    def nothing_known(self) -> None:
        assert self.yard.redis.keys("by:blobs:*") == []


@pytest.fixture
def world(yard: Yard) -> World:
    return World(yard)


def large(text: str) -> bytes:
    """Of a file that is a blob of its own, also in a tree."""
    return text.encode() * (SMALL_BYTES + 1)


def attempt() -> Attempt:
    return Attempt(node="n", started=1.0, ended=2.0, exit_code=0, reason="")


def test_an_output_goes_when_its_queue_says_so_and_no_sooner(world: World) -> None:
    blob = world.run(b"a", 100)
    assert world.collector.round() == Freed()
    world.age(101_000)
    size = world.store.stat(world.blobs.name(blob.digest)) or 0
    assert world.collector.round() == Freed(objects=1, bytes=size)
    assert world.has(blob) == [False]
    world.nothing_known()


def test_outputs_of_a_queue_without_a_policy_stay_and_nothing_is_known_of_them(world: World) -> None:
    blob = world.run(b"a", None)
    world.nothing_known()
    assert world.collector.round() == Freed()
    assert world.has(blob) == [True]


@pytest.mark.parametrize("order", [(100, None), (None, 100), (100, 5000), (5000, 100)])
def test_what_two_jobs_have_made_stays_as_long_as_either_wants(world: World, order: tuple[int | None, ...]) -> None:
    blobs = {world.run(b"same", expire_s) for expire_s in order}
    assert len(blobs) == 1
    world.age(101_000)
    assert world.collector.round().objects == 0
    assert world.has(*blobs) == [True]
    world.age(5_000_000)
    world.collector.round()
    assert world.has(*blobs) == [None in order]
    world.nothing_known()


def test_the_same_bytes_put_just_before_they_would_go_stay(world: World) -> None:
    blob = world.run(b"a", 100)
    world.age(101_000)
    again = world.claimed()
    puts, _ = world.put(again, b"a")
    assert world.collector.round() == Freed()
    world.settle(again, puts, 100, out=blob)
    assert world.collector.round() == Freed()
    assert world.has(blob) == [True]
    world.age(101_000)
    assert world.collector.round().objects == 1


def test_the_same_bytes_put_while_they_go_wait_and_are_put_again(world: World) -> None:
    blob = world.run(b"a", 100)
    world.age(101_000)
    name = world.blobs.name(blob.digest)
    assert list(world.expiry.mark([name])) == [name]
    again = world.claimed()
    waited: list[str] = []

    def wait(error: Exception) -> None:
        waited.append(str(error))
        world.collector.round()  # whoever marked it was killed

    puts = Puts(world.expiry, owner_of(again), wait)
    blobs = world.blobs.telling(puts.before)
    blobs.put_bytes(b"a")
    assert [f"object {name} is just being deleted; try again in a moment"] == waited
    assert blobs.counters.puts == 2
    world.settle(again, puts, 100, out=blob)
    assert world.has(blob) == [True]


def test_what_is_put_between_a_look_and_the_mark_is_not_marked(world: World) -> None:
    blob = world.run(b"a", 100)
    world.age(101_000)
    due = world.expiry.due()
    world.put(world.claimed(), b"a")
    assert world.expiry.mark(due) == {}
    assert world.has(blob) == [True]


def test_a_killed_round_is_finished_by_the_next_one(world: World) -> None:
    blobs = [world.run(data, 100) for data in (b"a", b"b", b"c")]
    world.age(101_000)
    marked = world.expiry.mark(world.expiry.due())
    first, *_ = marked
    world.store.delete(first)  # and killed before it could say so
    assert world.expiry.wait_s() == 0
    assert world.collector.round().objects == 2
    assert world.has(*blobs) == [False] * 3
    world.nothing_known()


def test_an_object_that_was_there_before_is_not_deleted_for_a_job_that_made_the_same(world: World) -> None:
    blob = world.blobs.put_bytes(b"a")  # by whom, nobody knows
    assert world.run(b"a", 100) == blob
    world.age(101_000)
    assert world.collector.round() == Freed(others=1)
    assert world.has(blob) == [True]
    world.nothing_known()


def test_an_attempt_that_lives_keeps_what_it_puts_however_long_it_takes(world: World) -> None:
    job = world.claimed()
    puts, blob = world.put(job, b"slow")
    world.age(10 * DAY_MS)
    assert world.collector.round(early_s=86_400) == Freed()
    world.settle(job, puts, None, out=blob)
    world.age(10 * DAY_MS)
    assert world.collector.round() == Freed()
    assert world.has(blob) == [True]


@pytest.mark.parametrize("expire_s", [None, 100])
def test_what_a_lost_attempt_has_put_goes_and_what_its_job_put_then_does_not(
    world: World, expire_s: int | None
) -> None:
    job = world.claimed()
    _, orphan = world.put(job, b"only the first")
    _, both = world.put(job, b"both")
    world.yard.redis.hset(keys.job(job.id), "token", "9:another")  # leased by another node
    retried = replace(job, token="9:another")
    puts, _ = world.put(retried, b"both")
    assert world.collector.round() == Freed()
    world.settle(retried, puts, expire_s, out=both)
    assert world.collector.round() == Freed()
    world.age(DAY_MS - 200_000)
    assert world.collector.round() == Freed() or expire_s
    world.age(200_001)
    world.collector.round()
    assert world.has(orphan, both) == [False, expire_s is None]
    world.nothing_known()


def test_orphans_may_go_sooner_but_nothing_that_a_job_has_ended_with(world: World) -> None:
    kept = world.run(b"kept", 5000)
    job = world.claimed()
    _, orphan = world.put(job, b"orphan")
    world.yard.redis.hdel(keys.job(job.id), "token")
    assert world.collector.round(early_s=86_400 - 3600) == Freed()
    world.age(3_600_001)
    assert world.collector.round(early_s=86_400 - 3600).objects == 1
    assert world.has(kept, orphan) == [True, False]


def test_the_log_of_an_attempt_stays_until_its_job_has_ended_and_expired(world: World) -> None:
    job = world.claimed()
    puts, log = world.put(job, b"log of the first attempt")
    assert world.yard.give_back(job, attempt(), fields={"reason": "again", **told(100, puts.names)})
    world.age(2 * DAY_MS)
    assert world.collector.round() == Freed()
    assert world.has(log) == [True]
    _, (second,) = world.yard.claim("n", "again", ALL, ["cpu"], lease_s=30)
    puts, out = world.put(second, b"out")
    world.settle(second, puts, 100, out=out)
    assert world.yard.redis.hget(keys.job(job.id), "reason") == b"again"
    assert world.collector.round() == Freed()
    world.age(101_000)
    assert world.collector.round().objects == 2
    world.nothing_known()


def test_a_settle_that_is_repeated_or_stale_changes_nothing(world: World) -> None:
    job = world.claimed()
    puts, blob = world.put(job, b"a")
    world.settle(job, puts, 100, out=blob)
    before = (
        world.yard.redis.hgetall(keys.BLOBS_MADE),
        world.yard.redis.zrange(keys.BLOBS_UNTIL, 0, -1, withscores=True),
    )
    fields = told(None, puts.names)
    assert world.yard.settle(job, State.SUCCEEDED, attempt(), fields, [], retention_s=1000)
    stale = replace(job, token="0:x")
    assert not world.yard.settle(stale, State.SUCCEEDED, attempt(), fields, [], retention_s=1000)
    after = world.yard.redis.hgetall(keys.BLOBS_MADE), world.yard.redis.zrange(keys.BLOBS_UNTIL, 0, -1, withscores=True)
    assert before == after
    assert world.yard.redis.hexists(keys.job(job.id), "blobs") == 0


@pytest.mark.parametrize("expire_s", [None, 5000])
def test_an_output_that_a_later_job_reuses_stays_as_long_as_that_ones_queue_says(
    world: World, expire_s: int | None
) -> None:
    blob = world.run(b"a", 100)
    name = world.blobs.name(blob.digest)
    world.age(101_000)
    again = world.claimed()
    puts, _ = world.puts(again)
    assert puts.use([name]) == []
    assert world.collector.round() == Freed()
    world.settle(again, puts, expire_s, out=blob)
    assert world.collector.round() == Freed()
    world.age(5_000_001)
    world.collector.round()
    assert world.has(blob) == [expire_s is None]
    world.nothing_known()


def test_an_output_that_is_being_deleted_or_was_is_not_reused(world: World) -> None:
    blob = world.run(b"a", 100)
    name = world.blobs.name(blob.digest)
    world.age(101_000)
    world.expiry.mark([name])
    puts, _ = world.puts(world.claimed())
    assert puts.use([name]) == [name]
    world.collector.round()
    assert puts.use([name]) == []
    assert world.has(blob) == [False]
    world.nothing_known()  # that it was asked for makes it no object


# -- people
def person(world: World, data: bytes) -> Blob:
    puts = Puts(world.expiry, "put:1")
    blob = world.blobs.telling(puts.before).put_bytes(data)
    puts.pin()
    return blob


@pytest.mark.parametrize("first", ["person", "job"])
def test_what_a_person_put_stays_though_a_job_made_the_same(world: World, first: str) -> None:
    acts: list[Callable[[], Blob]] = [lambda: person(world, b"a"), lambda: world.run(b"a", 100)]
    blob, _ = [act() for act in (acts if first == "person" else acts[::-1])]
    world.age(10 * DAY_MS)
    assert world.collector.round() == Freed()
    name = world.blobs.name(blob.digest)
    assert [(f.pinned, f.expires) for f in world.expiry.fates([name])] == [(True, None)]
    assert world.expiry.unpin(name, [name]) == {name: Unpinned.MAY_EXPIRE}
    assert world.collector.round().objects == 1
    world.nothing_known()


def test_what_was_unpinned_stays_where_a_queue_keeps_it(world: World) -> None:
    blob = person(world, b"a")
    world.run(b"a", None)
    name = world.blobs.name(blob.digest)
    assert world.expiry.unpin(name, [name, "0" * 64]) == {name: Unpinned.STAYS}
    world.age(10 * DAY_MS)
    assert world.collector.round() == Freed()
    assert world.has(blob) == [True]
    world.nothing_known()


def test_a_file_of_two_pinned_trees_stays_with_either(world: World, tmp_path: Path) -> None:
    trees = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "shared").write_bytes(large("shared"))
        (folder / "own").write_bytes(large(str(number)))
        puts = Puts(world.expiry, f"put:{number}")
        trees.append(put_tree(world.blobs.telling(puts.before), folder))
        puts.pin()
    one, other = trees
    names = [world.blobs.name(digest) for digest in parts_of(world.blobs, one.digest)]
    assert Counter(world.expiry.unpin(names[0], names).values()) == {Unpinned.MAY_EXPIRE: 2, Unpinned.PINNED: 1}
    assert world.expiry.unpin(names[0], names) == {}
    assert world.collector.round().objects == 2
    fetch_tree(world.blobs, other.digest, tmp_path / "out")
    names = [world.blobs.name(digest) for digest in parts_of(world.blobs, other.digest)]
    assert set(world.expiry.unpin(names[0], names).values()) == {Unpinned.MAY_EXPIRE}
    world.collector.round()
    assert list(world.store.names()) == []
    world.nothing_known()


def test_what_was_pinned_while_it_goes_is_said_to_go(world: World) -> None:
    blob = world.run(b"a", 100)
    world.age(101_000)
    name = world.blobs.name(blob.digest)
    world.expiry.mark([name])
    assert world.expiry.pin(name, [name]) == [name]
    puts = Puts(world.expiry, "put:1")
    puts._marks[name] = "00"
    with pytest.raises(StoreUnavailable, match="put it again"):
        puts.pin()


def test_who_has_put_for_longer_than_a_day_is_told_that_it_is_gone(world: World) -> None:
    puts = Puts(world.expiry, "put:1")
    blob = world.blobs.telling(puts.before).put_bytes(b"a")
    world.age(DAY_MS)
    assert world.collector.round().objects == 1
    with pytest.raises(StoreUnavailable, match="put it again"):
        puts.pin()
    slower = world.claimed()
    world.puts(slower)[0].before(world.blobs.name(blob.digest), "m")  # another one is about to put it
    with pytest.raises(StoreUnavailable, match="put it again"):
        puts.pin()


def test_a_put_of_a_person_who_was_killed_goes_after_a_day(world: World) -> None:
    puts = Puts(world.expiry, "put:1")
    blob = world.blobs.telling(puts.before).put_bytes(b"a")
    assert world.collector.round() == Freed()
    world.age(DAY_MS + 1)
    assert world.collector.round().objects == 1
    assert world.has(blob) == [False]


@pytest.mark.parametrize("expire_s", [1000, None])
def test_an_attempt_with_more_objects_than_one_settle_has_keeps_all(world: World, expire_s: int | None) -> None:
    job, redis = world.claimed(), world.yard.redis
    puts, _ = world.puts(job)
    names = [f"{n:064x}" for n in range(MOST_SETTLED + 3)]
    for name in names:
        puts.before(name, "mark")
    world.expiry.keep(expire_s, puts.names[MOST_SETTLED:])
    fields = told(expire_s, puts.names[:MOST_SETTLED])
    assert world.yard.settle(job, State.SUCCEEDED, attempt(), fields, [], retention_s=1000)
    assert redis.zcard(keys.BLOBS_UNTIL) == (0 if expire_s is None else len(names))
    world.age(900_000)
    assert world.expiry.due() == []
    world.age(200_000)
    assert sorted(world.expiry.due()) == ([] if expire_s is None else names[:MOST_SETTLED])
    world.age(DAY_MS)
    assert sorted(world.expiry.due()) == ([] if expire_s is None else names)


# -- what waiting jobs need
def test_what_waiting_jobs_need_is_kept_however_late_they_run(world: World) -> None:
    by_digest, member, of_job, of_child, of_failed, in_chord, unneeded = (
        world.run(data, 100) for data in (b"1", b"2", b"3", b"4", b"5", b"6", b"7")
    )
    results = [json.dumps({"outputs": {"o": blob.as_json()}}) for blob in (of_job, of_child)]
    world.yard.redis.hset(keys.job("made"), mapping={"state": "SUCCEEDED", "result": results[0]})
    kept = json.dumps({"o": of_failed.as_json()})
    world.yard.redis.hset(keys.job("failed"), mapping={"state": "FAILED", "outputs": kept})
    world.yard.redis.hset(keys.job("array"), mapping={"state": "SUCCEEDED", "array": 2})
    world.yard.redis.hset(keys.job("array:1"), "result", results[1])
    world.yard.redis.rpush("celery-taskset-meta-g.j", json.dumps(in_chord.as_json()))
    members = [{"name": "o", **member.as_json()}]
    eta = int(world.yard.now_s() * 1000) + 10 * DAY_MS
    world.take_in("delayed", eta_ms=eta, inputs={"/in": {"digest": by_digest.digest}, "/m": {"members": members}})
    named = {f"/{job}": {"job": job, "from": "o"} for job in ("made", "array", "failed")}
    world.take_in("ready", inputs=named)
    world.take_in("member", headers={"group": "g"})
    world.age(10 * DAY_MS)
    freed = world.collector.round()
    assert (freed.objects, freed.spared) == (1, 6)
    needed = (by_digest, member, of_job, of_child, of_failed, in_chord)
    assert world.has(*needed, unneeded) == [True] * 6 + [False]
    for record in world.yard.recent(100):
        world.yard.redis.hset(keys.job(record.id), "state", "FAILED")
    world.age(10 * DAY_MS)
    assert world.collector.round().objects == 6
    world.nothing_known()


def test_a_tree_that_a_job_waits_for_is_kept_with_all_that_is_in_it(world: World, tmp_path: Path) -> None:
    for name in ("shared", "own"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(large(name))
    job = world.claimed()
    puts, blobs = world.puts(job)
    tree = put_tree(blobs, tmp_path / "in")
    other = blobs.put_bytes(b"other")
    world.settle(job, puts, 100, out=tree, other=other)
    world.take_in("waits", inputs={"/in": tree.digest})
    world.age(10 * DAY_MS)
    freed = world.collector.round()
    assert (freed.objects, freed.spared) == (1, 3)
    fetch_tree(world.blobs, tree.digest, tmp_path / "out")
    assert (tmp_path / "out" / "shared").read_bytes() == large("shared")


def test_a_file_that_a_longer_lived_tree_shares_stays(world: World, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "shared").write_bytes(large("shared"))
    job = world.claimed()
    puts, blobs = world.puts(job)
    tree = put_tree(blobs, tmp_path / "in")
    world.settle(job, puts, 5000, out=tree)
    file = world.run(large("shared"), 100)
    world.age(101_000)
    assert world.collector.round() == Freed()
    world.age(5_000_000)
    assert world.collector.round().objects == 2
    assert world.has(file, tree) == [False, False]


def test_what_a_needed_tree_shares_with_one_that_expires_later_is_kept_too(world: World, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "shared").write_bytes(large("shared"))
    job = world.claimed()
    puts, blobs = world.puts(job)
    tree = put_tree(blobs, tmp_path / "in")
    world.settle(job, puts, 100, out=tree)
    world.run(large("shared"), 200)
    world.take_in("waits", inputs={"/in": tree.digest})
    world.age(101_000)
    assert world.collector.round() == Freed(spared=1)  # the tree alone: of what is in it, it is not time yet
    name = world.blobs.name(tree.digest)
    until = world.yard.redis.zscore(keys.BLOBS_UNTIL, name)
    assert until is not None
    world.age(101_000)
    world.yard.redis.zadd(keys.BLOBS_UNTIL, {name: until})
    assert world.collector.round() == Freed(spared=1)
    fetch_tree(world.blobs, tree.digest, tmp_path / "out")


def test_a_job_that_is_sent_while_objects_are_marked_keeps_what_it_needs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = world.run(b"a", 100)
    world.age(101_000)
    real = world.collector._expiry.mark

    def mark(*args: Any, **more: Any) -> Any:
        found = real(*args, **more)
        world.take_in("late", inputs={"/in": blob.digest})
        return found

    monkeypatch.setattr(world.collector._expiry, "mark", mark)
    assert world.collector.round() == Freed(spared=1)
    assert world.has(blob) == [True]
    assert world.yard.redis.hlen(keys.BLOBS_GOING) == 0


def test_a_message_that_was_not_taken_in_yet_keeps_what_it_names(world: World) -> None:
    blob = world.run(b"a", 100)
    world.age(101_000)
    body = json.dumps([[], {"job": {"inputs": {"/in": blob.digest}}}, {}]).encode()
    sent = {"headers": {"id": "m"}, "properties": {"body_encoding": "base64"}, "content-type": "application/json",
            "content-encoding": "utf-8", "body": base64.b64encode(body).decode()}  # fmt: skip
    world.yard.redis.lpush(keys.priority_list("cpu", 3), json.dumps(sent))
    assert world.collector.round() == Freed(spared=1)


def test_a_job_keeps_the_blobs_of_its_tenant_and_not_what_others_have_of_the_same_content(world: World) -> None:
    ours, theirs = world.claimed(), world.claimed()
    puts = {}
    for job, tenant in ((ours, ""), (theirs, "lab")):
        puts[tenant], _ = world.puts(job)
        blob = world.blobs.of(tenant).telling(puts[tenant].before).put_bytes(b"a")
        world.settle(job, puts[tenant], 100, out=blob)
    world.take_in("waits", inputs={"/in": blob.digest}, tenant="lab")
    world.age(101_000)
    freed = world.collector.round()
    assert (freed.objects, freed.spared) == (1, 1)
    assert world.has(blob) == [False]
    assert world.blobs.of("lab").has(blob.digest)


def test_a_round_that_takes_long_keeps_its_turn(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for data in (b"a", b"b", b"c"):
        world.run(data, 100)
    world.age(101_000)
    monkeypatch.setattr(collect, "KEEP_S", 0.0)
    stat, lived = world.store.stat, Counter[int]()

    def slow(name: str) -> int | None:
        lived[world.yard.redis.ttl(keys.BLOBS_LOCK)] += 1
        world.yard.redis.expire(keys.BLOBS_LOCK, 5)  # as if it had taken that long
        return stat(name)

    monkeypatch.setattr(world.store, "stat", slow)
    assert world.collector.round().objects == 3
    assert min(lived) > 5


def test_who_has_lost_its_turn_deletes_nothing_more_and_leaves_the_rest_to_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = [world.run(data, 100) for data in (b"a", b"b")]
    world.age(101_000)
    stat, looks = world.store.stat, itertools.count()

    def stalled(name: str) -> int | None:
        if next(looks):  # just before the second one goes
            world.yard.redis.set(keys.BLOBS_LOCK, "another", ex=60)
        return stat(name)

    monkeypatch.setattr(world.store, "stat", stalled)
    with pytest.raises(Busy):
        world.collector.round()
    monkeypatch.undo()
    assert sorted(world.has(*blobs)) == [False, True]
    assert world.yard.redis.hlen(keys.BLOBS_GOING) == 2  # whoever has the turn says what is gone
    world.yard.redis.delete(keys.BLOBS_LOCK)
    assert world.collector.round().objects == 1
    world.nothing_known()


def test_a_look_that_takes_long_keeps_its_turn(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.run(b"a", 100)
    world.age(101_000)
    monkeypatch.setattr(collect, "KEEP_S", 0.0)
    records, lived = Needs._records, Counter[int]()

    def slow(needs: Needs, ids: Sequence[str]) -> None:
        lived[world.yard.redis.ttl(keys.BLOBS_LOCK)] += 1
        world.yard.redis.expire(keys.BLOBS_LOCK, 5)
        records(needs, ids)

    monkeypatch.setattr(Needs, "_records", slow)
    assert world.collector.round().objects == 1
    assert min(lived) > 5


def test_only_one_deletes_at_a_time(world: World) -> None:
    world.yard.redis.set(keys.BLOBS_LOCK, "another", ex=60)
    with pytest.raises(Busy):
        world.collector.round()
    world.yard.redis.delete(keys.BLOBS_LOCK)
    assert world.collector.round() == Freed()
    assert world.yard.redis.exists(keys.BLOBS_LOCK) == 0


def test_a_round_whose_store_went_away_is_finished_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = [world.run(data, 100) for data in (b"a", b"b")]
    world.age(101_000)
    real, calls = world.store.delete, itertools.count()

    def delete(name: str) -> None:
        if next(calls):
            raise StoreUnavailable("away")
        real(name)

    monkeypatch.setattr(world.store, "delete", delete)
    with pytest.raises(StoreUnavailable):
        world.collector.round()
    assert sorted(world.has(*blobs)) == [False, True]
    monkeypatch.undo()
    assert world.collector.round().objects == 1
    world.nothing_known()
