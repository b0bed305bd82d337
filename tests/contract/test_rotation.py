"""A rotation on a real Redis: who has which keys, what is sealed anew, and the commands."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from batchyard.broker import keys, memo
from batchyard.broker.blobs import LazyBlobs, open_rewrapping
from batchyard.broker.cli import run
from batchyard.broker.client import Client
from batchyard.broker.config import single_machine
from batchyard.broker.deadletters import DeadLetters, seal
from batchyard.broker.errors import BrokerUnavailable, InvalidConfig, NotEnded, NotFound, StoreUnavailable
from batchyard.broker.keysource import KeyCommand, KeyFile, KeySource, KeyText, load_ring
from batchyard.broker.keywatch import KeyWatch, holder_name, holders, watching
from batchyard.broker.resealing import reseal
from batchyard.broker.rotation import Rotation
from batchyard.broker.schedule import parse
from batchyard.broker.seal import KeyRing, SealUnknown, keyfile
from batchyard.broker.store import Incoming, Yard
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.disk import DirectoryStore
from yardtest.wait import until

pytestmark = pytest.mark.system
JOB = "11111111-1111-1111-1111-111111111111"


@pytest.fixture
def yard(yard: Yard) -> Yard:
    yard.configure(single_machine(vcpus=4, memory_mib=4096, gpus=0, disk_gib=10))
    return yard


@pytest.fixture
def store(tmp_path: Path) -> Path:
    DirectoryStore(tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def blobs(store: Path, yard: Yard) -> BlobStore:
    return BlobStore(DirectoryStore(store), yard.ring)


@pytest.fixture
def rotation(yard: Yard, key_file: Path, store: Path) -> Rotation:
    return rotation_of(yard, KeyFile(key_file), store)


def rotation_of(yard: Yard, source: KeySource, store: Path, *, wait_s: float = 0) -> Rotation:
    mine = Yard(yard.url, load_ring(source))
    return Rotation(mine, source, lambda: open_rewrapping(str(store), mine.ring), wait_s=wait_s)


def take_in(yard: Yard, job_id: str, document: bytes) -> None:
    raw = f"message of {job_id}".encode()
    yard.redis.lpush("cpu", raw)
    one = Incoming(list_key="cpu", raw=raw, kind="job", id=job_id, queue="cpu", vcpus=1, memory_mib=1,
                   document=document)  # fmt: skip
    assert yard.intake([one]) == 1


def doc_of(yard: Yard) -> bytes:
    found: Any = yard.redis.hget(keys.job(JOB), "doc")
    assert isinstance(found, bytes)
    return found


def fill(yard: Yard, client: Client) -> None:
    """One of each that is kept sealed, and one that nobody can open."""
    take_in(yard, JOB, yard.ring.seal(b"the job", JOB.encode()))
    take_in(yard, JOB.replace("1", "2"), KeyRing.new().seal(b"foreign", b"x"))
    client.definitions.register("a", {"image": "one"})
    client.definitions.register("a", {"image": "two"})
    client.schedule(parse({"name": "s", "rate": "10m", "job": {"image": "busybox"}, "queue": "cpu"}))
    _, (key, sealed, *expiry) = memo.written(yard.ring, "name", memo.Made(job_id="maker", outputs={}), keep_s=1000)
    yard.redis.execute_command("SET", key, sealed, *expiry)  # type: ignore[no-untyped-call]
    raw = b'no job \xff / " of anybody'
    yard.redis.lpush("cpu", raw)
    yard.intake([Incoming(list_key="cpu", raw=raw, kind="dead", reason='it "is" none', document=seal(raw, yard.ring))])


def test_all_that_redis_keeps_sealed_opens_with_the_new_key_alone(yard: Yard, key_file: Path) -> None:
    with Client(yard.url, key_file=key_file) as client:
        fill(yard, client)
        before = client.dead_letters.list()
    old = yard.ring.current
    yard.ring.renew(KeyRing.rotate(key_file)._keys)
    done = reseal(yard)
    assert (done.changed, done.left, done.unreadable) == (6, 0, 1)
    again = reseal(yard)
    assert (again.changed, again.left, again.unreadable) == (0, 0, 1)
    kept = json.loads(key_file.read_text())
    del kept["keys"][old]
    key_file.write_text(json.dumps(kept))
    new = KeyRing.load(key_file)
    assert new.open(doc_of(yard), JOB.encode()) == b"the job"
    with Client(yard.url, key_file=key_file) as client:
        templates: list[Any] = [client.definitions.show(f"a:{n}").template for n in (1, 2)]
        assert [template["image"] for template in templates] == ["one", "two"]
        made = memo.look_up(yard, new, "name")
        assert made is not None
        assert made.job_id == "maker"
        assert 0 < int(yard.guard(lambda: yard.redis.ttl(keys.memo("name")))) <= 1000
        assert client.schedules.show("s").job == {"image": "busybox"}
        letters = DeadLetters(yard, lambda: new)
        assert letters.list() == before
        (number,) = before
        assert letters.show(number)["raw"] == 'no job \ufffd / " of anybody'


def test_what_changes_while_it_is_sealed_anew_stays_as_it_was_changed(yard: Yard) -> None:
    take_in(yard, JOB, yard.ring.seal(b"one", JOB.encode()))
    later = yard.ring.rotated()

    class Changing(KeyRing):
        def seal(self, data: bytes, about: bytes, *, lasting: bool = False) -> bytes:
            yard.redis.hset(keys.job(JOB), "doc", b"changed")
            return super().seal(data, about, lasting=lasting)

    yard.ring = Changing(later._keys)
    done = reseal(yard)
    assert (done.changed, done.left) == (0, 1)
    assert yard.redis.hget(keys.job(JOB), "doc") == b"changed"
    yard.redis.delete(keys.job(JOB))
    assert reseal(yard).changed == 0
    assert not yard.redis.exists(keys.job(JOB))


# Processes and their keys


def test_a_process_follows_its_key_file_and_says_which_keys_it_has(yard: Yard, key_file: Path) -> None:
    old = yard.ring.current
    watch = KeyWatch(yard, yard.ring, KeyFile(key_file), "node a")
    watch.look()
    assert [(one.name, one.current, one.ids, one.in_use) for one in holders(yard)] == [("node a", old, (old,), (old,))]
    new = KeyRing.rotate(key_file).current
    watch.look()
    (told,) = holders(yard)
    assert (told.current, set(told.ids), yard.ring.current) == (new, {old, new}, new)
    watch.leave()
    assert holders(yard) == []


@pytest.mark.parametrize("text", ["", "{", "{}"])
def test_a_key_file_that_is_damaged_or_another_yards_changes_nothing(yard: Yard, key_file: Path, text: str) -> None:
    watch = KeyWatch(yard, yard.ring, KeyFile(key_file), "node a")
    current, whole = yard.ring.current, key_file.read_text()
    for wrong in (text, KeyRing.new()._keys.dumps()):
        key_file.write_text(wrong)
        watch.look()
        assert holders(yard)[0].current == yard.ring.current == current
    key_file.write_text(whole)
    new = KeyRing.rotate(key_file).current
    watch.look()
    assert yard.ring.current == new


def test_a_stream_that_is_still_being_sealed_under_the_old_key_is_told(yard: Yard, key_file: Path) -> None:
    old, digest = yard.ring.current, "sha256:" + "a" * 64
    watch = KeyWatch(yard, yard.ring, KeyFile(key_file), "node a")
    sealing: Any = yard.ring.of("tenant").seal_stream(open(os.devnull, "rb", buffering=0), digest, 5)  # noqa: SIM115
    new = KeyRing.rotate(key_file).current
    watch.look()
    assert set(holders(yard)[0].in_use) == {old, new}
    del sealing
    watch.look()
    assert holders(yard)[0].in_use == (new,)


def test_a_command_is_asked_again_only_while_a_rotation_wants_another_key(
    yard: Yard, key_file: Path, tmp_path: Path
) -> None:
    now, calls = 0.0, tmp_path / "calls"
    script = tmp_path / "kms"
    script.write_text(f"#!/bin/sh\necho >>'{calls}'\ncat '{key_file}'\n")
    script.chmod(0o755)
    watch = KeyWatch(yard, yard.ring, KeyCommand(str(script)), "node a", clock=lambda: now)
    new = KeyRing.rotate(key_file).current
    now = 100.0
    watch.look()
    assert not calls.exists()
    yard.redis.hset(keys.KEY_STATE, "rotating", new)
    now = 101.0
    watch.look()
    watch.look()
    assert (yard.ring.current, calls.read_text()) == (new, "\n")


def test_who_was_away_during_a_rotation_and_a_retirement_asks_for_other_keys_or_says_that_it_needs_some(
    yard: Yard, key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, now = yard.ring.current, 0.0
    other = Yard(yard.url, KeyRing.load(key_file))
    asks = KeyWatch(yard, yard.ring, KeyCommand(f"cat {key_file}"), "node a", clock=lambda: now)
    keeps = KeyWatch(other, other.ring, None, "node b", clock=lambda: now)
    new = KeyRing.rotate(key_file).current
    keyfile.change(key_file, lambda found: found.without(old))
    yard.redis.hset(keys.KEY_STATE, f"retired:{old}", 1)
    now = 100.0
    asks.look()
    assert yard.ring.ids == (new,)
    assert caplog.messages == []
    for _ in range(2):
        keeps.look()
    [said] = caplog.messages
    assert f"key {old}, under which this process seals, was retired" in said


def test_who_has_a_retired_key_only_seals_nothing_until_it_has_another_one(
    yard: Yard, key_file: Path, store: Path
) -> None:
    old = yard.ring.current
    other = Yard(yard.url, KeyRing.load(key_file))
    watch, blobs = KeyWatch(other, other.ring, None, "node b"), BlobStore(DirectoryStore(store), other.ring.of("alice"))
    before = blobs.put_bytes(b"before")
    yard.redis.hset(keys.KEY_STATE, f"retired:{old}", 1)
    watch.look()
    with pytest.raises(StoreUnavailable, match=f"key {old}, under which this process seals, was retired"):
        blobs.put_bytes(b"after")
    with pytest.raises(BrokerUnavailable, match="was retired"):
        other.ring.seal(b"job", b"id")
    assert blobs.read_bytes(before.digest, 10) == b"before"
    other.ring.renew(keyfile.found(key_file).rotated())
    watch.look()
    assert blobs.read_bytes(blobs.put_bytes(b"after").digest, 10) == b"after"


def test_who_puts_is_a_holder_of_keys_meanwhile(yard: Yard, key_file: Path, store: Path, tmp_path: Path) -> None:
    seen: list[str] = []
    (tmp_path / "data").write_text("data")
    with Client(yard.url, key_file=key_file, blobs=LazyBlobs(str(store), key_file)) as client:
        client.put(tmp_path / "data", on_bytes=lambda n: seen.extend(one.name for one in holders(yard)))
    assert seen[0].startswith("client of ")
    assert holders(yard) == []


def test_who_has_old_keys_puts_nothing(yard: Yard, key_file: Path, store: Path, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("data")
    yard.redis.hset(keys.KEY_STATE, f"retired:{yard.ring.current}", "1")
    with Client(yard.url, key_file=key_file, blobs=LazyBlobs(str(store), key_file)) as client:
        with pytest.raises(InvalidConfig, match="was retired"):
            client.put(tmp_path / "data")
        with pytest.raises(InvalidConfig, match="was retired"):
            client.definitions.register("a", {"image": "one"})
    assert list(DirectoryStore(store).names()) == []


# Rotating and retiring


def test_a_rotation_and_a_retirement_leave_one_key_that_opens_all(
    rotation: Rotation, yard: Yard, blobs: BlobStore, key_file: Path, store: Path
) -> None:
    old = yard.ring.current
    take_in(yard, JOB, yard.ring.seal(b"the job", JOB.encode()))
    digests = [blobs.put_bytes(os.urandom(10)).digest for _ in range(5)]
    digests.append(blobs.of("tenant").put_bytes(b"a tenant's").digest)
    done = rotation.rotate()
    assert (done.others, done.blobs.wrapped, done.records.changed) == ((old,), 6, 1)
    assert done.current == KeyRing.load(key_file).current != old
    done = rotation.retire(old)
    assert (done.others, done.blobs.wrapped, done.records.changed) == ((), 0, 0)
    new = KeyRing.load(key_file)
    assert new.ids == (done.current,)
    opened = BlobStore(DirectoryStore(store), new)
    assert [opened.read_bytes(digest, 100) != b"" for digest in digests[:5]] == [True] * 5
    assert opened.of("tenant").read_bytes(digests[5], 100) == b"a tenant's"
    assert new.open(doc_of(yard), JOB.encode()) == b"the job"


def test_the_new_key_seals_nothing_before_all_processes_have_it(
    yard: Yard, key_file: Path, store: Path, rotation: Rotation, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.write_text(key_file.read_text())
    copy.chmod(0o600)
    node = Yard(yard.url, load_ring(copy))
    watch = KeyWatch(node, node.ring, KeyFile(copy), "node far")
    watch.look()
    for _ in range(2):  # the second call goes on with the key that the first one added
        with pytest.raises(NotEnded, match=r"has key [0-9a-f]{16} yet: node far; give them the keys of key file"):
            rotation.rotate()
    assert len(KeyRing.load(key_file).ids) == 2
    assert KeyRing.load(key_file).current == yard.ring.current
    copy.write_text(key_file.read_text())
    watch.look()
    with pytest.raises(NotEnded, match="seals under key"):
        rotation.rotate()
    copy.write_text(key_file.read_text())
    watch.look()
    done = rotation.rotate()
    assert (done.current, len(done.others)) == (node.ring.current, 1)
    assert rotation.lagging() == []


def test_retiring_waits_for_who_seals_under_the_old_key_and_refuses_the_current_and_unknown_ones(
    yard: Yard, rotation: Rotation, key_file: Path
) -> None:
    old = yard.ring.current
    with pytest.raises(InvalidConfig, match="is the current one"):
        rotation.retire(old)
    new = rotation.rotate().current
    with pytest.raises(NotFound, match="no key 00"):
        rotation.retire("00")
    late = Yard(yard.url, load_ring(key_file))
    late.ring.renew(late.ring._keys.with_current(old))
    KeyWatch(late, late.ring, None, "node late").look()
    with pytest.raises(NotEnded, match=f"seals under key {new} yet: node late"):
        rotation.retire(old)
    assert set(KeyRing.load(key_file).ids) == {old, new}
    with pytest.raises(InvalidConfig, match=f"key {old}, the current one here, was retired"):
        late.prepare()
    KeyWatch(late, late.ring, None, "node late").leave()
    assert rotation.retire(old).others == ()


def test_a_retirement_finds_what_was_put_under_the_old_key_since(
    yard: Yard, rotation: Rotation, blobs: BlobStore, key_file: Path, store: Path
) -> None:
    old = yard.ring.current
    rotation.rotate()
    late = blobs.put_bytes(b"late").digest
    take_in(yard, JOB, yard.ring.seal(b"late", JOB.encode()))
    rotation.retire(old)
    new = KeyRing.load(key_file)
    assert BlobStore(DirectoryStore(store), new).read_bytes(late, 10) == b"late"
    assert new.open(doc_of(yard), JOB.encode()) == b"late"
    with pytest.raises(SealUnknown):
        yard.ring.open(doc_of(yard), JOB.encode())


def test_an_unfinished_rotation_is_gone_on_with_before_a_key_is_retired(
    yard: Yard, key_file: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def killed() -> Any:
        raise Killed

    old = yard.ring.current
    mine = Yard(yard.url, load_ring(key_file))
    with pytest.raises(Killed):
        Rotation(mine, KeyFile(key_file), killed, wait_s=0).rotate()
    rotation = rotation_of(yard, KeyFile(key_file), store)
    with pytest.raises(InvalidConfig, match="is unfinished"):
        rotation.retire(old)
    assert rotation.rotate().current == mine.ring.current
    assert len(rotation.retire(old).others) == 0


def test_keys_that_are_in_no_file_are_rotated_by_hand(
    yard: Yard, key_file: Path, store: Path, blobs: BlobStore, tmp_path: Path
) -> None:
    old, digest = yard.ring.current, blobs.put_bytes(b"data").digest
    here = KeyText(key_file.read_text())
    with pytest.raises(InvalidConfig, match="BATCHYARD_KEYS is no file that could be changed: put there what"):
        rotation_of(yard, here, store).rotate()
    added = here.load().added()
    with pytest.raises(NotFound, match=f"no key {added.newest} in BATCHYARD_KEYS; add it there first"):
        rotation_of(yard, here, store).rotate(added.newest)
    node = KeyWatch(yard, yard.ring, None, "node a")
    node.look()
    with pytest.raises(NotEnded, match="a variable takes a restart"):
        rotation_of(yard, KeyText(added.dumps()), store).rotate(added.newest)
    yard.ring.renew(added.with_current(added.newest))
    node.look()
    done = rotation_of(yard, KeyText(added.with_current(added.newest).dumps()), store).rotate(added.newest)
    assert done.blobs.wrapped == 1
    rotation_of(yard, KeyText(added.with_current(added.newest).dumps()), store).retire(old)
    last = KeyRing(added.with_current(added.newest).without(old))
    assert BlobStore(DirectoryStore(store), last).read_bytes(digest, 10) == b"data"


# Commands


@pytest.fixture
def keys_command(
    yard: Yard, key_file: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    def call(*words: str) -> tuple[int, str, str]:
        named = ["--broker", yard.url, "--key-file", str(key_file), "--store", str(store)]
        code = run(["keys", *words, *named])
        out, err = capsys.readouterr()
        return code, out, err

    with watching(yard, yard.ring, KeyFile(key_file), holder_name("node", "a")):
        yield call


def test_keys_are_rotated_listed_and_retired_by_commands_while_a_node_runs(
    keys_command: Callable[..., tuple[int, str, str]], yard: Yard, blobs: BlobStore
) -> None:
    old = yard.ring.current
    for _ in range(3):
        blobs.put_bytes(os.urandom(10))
    code, out, _ = keys_command("list", "--count")
    assert (code, out.split()) == (0, ["KEY", "STATE", "BLOBS", old, "current", "3"])
    code, out, err = keys_command("rotate")
    assert code == 0, err
    new = yard.ring.current
    assert f"key {new} is the current one" in out
    assert f"`batchyard keys retire {old}` takes it away" in out
    blobs.put_bytes(b"new")
    found = json.loads(keys_command("list", "--count", "--json")[1])
    assert found == {
        "keys": [
            {"id": new, "current": True, "here": True, "blobs": 4},
            {"id": old, "current": False, "here": True, "blobs": 0},
        ],
        "processes": 1, "lagging": [], "rotating": None,
    }  # fmt: skip
    code, out, err = keys_command("retire", old)
    assert (code, out) == (0, f"key {new} is the current one\n"), err
    assert [row["id"] for row in json.loads(keys_command("list", "--json")[1])["keys"]] == [new]
    until(lambda: yard.ring.ids == (new,), "the node drops the key too")


def test_a_process_that_lags_is_named_and_the_exit_code_says_that_it_failed(
    keys_command: Callable[..., tuple[int, str, str]], yard: Yard
) -> None:
    other = Yard(yard.url, KeyRing(yard.ring._keys))
    KeyWatch(other, other.ring, None, "node far").look()
    code, _, err = keys_command("rotate", "--wait-s", "0")
    assert code == 1
    assert "node far; give them the keys of key file" in err
    out = keys_command("list")[1]
    assert "is unfinished" in out


def test_keys_are_printed_as_they_would_be_and_nothing_is_changed(
    keys_command: Callable[..., tuple[int, str, str]], key_file: Path
) -> None:
    before = key_file.read_text()
    code, out, _ = keys_command("print")
    assert (code, out) == (0, before)
    added = KeyText(keys_command("print", "--add")[1]).load()
    assert (len(added.keys), added.current) == (2, KeyRing.load(key_file).current)
    assert keys_command("print", "--without", added.current)[0] == 2
    assert keys_command("print", "--current", added.newest)[0] == 1
    assert key_file.read_text() == before
    assert base64.b64decode(json.loads(before)["keys"][added.current])


def test_rotations_at_once_all_end_well(yard: Yard, key_file: Path, store: Path) -> None:
    barrier, found = threading.Barrier(4), []

    def rotate() -> None:
        mine = rotation_of(yard, KeyFile(key_file), store, wait_s=5)
        barrier.wait(10)
        found.append(mine.rotate().current)

    threads = [threading.Thread(target=rotate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 4
    left = KeyRing.load(key_file)
    assert set(found) <= set(left.ids)
    rotation = rotation_of(yard, KeyFile(key_file), store)
    for old in set(left.ids) - {left.current}:
        rotation.retire(old)
    assert KeyRing.load(key_file).ids == (left.current,)
