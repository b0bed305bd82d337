from __future__ import annotations

import hashlib
import io
import json
import os
import re
import threading
import time
from pathlib import Path

import pytest

from batchyard.broker.errors import IntegrityError, InvalidConfig
from batchyard.broker.seal import CHUNK_BYTES, HEADER_BYTES, KeyRing, SealUnknown, Witness


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def sealed(ring: KeyRing, data: bytes, *, chunk_bytes: int = 64) -> bytes:
    return ring.seal_stream(io.BytesIO(data), digest_of(data), len(data), chunk_bytes=chunk_bytes).read()


def opened(ring: KeyRing, stream: bytes, digest: str, size: int | None = None) -> bytes:
    out = bytearray()
    ring.open_stream(io.BytesIO(stream), digest, size, out.extend)
    return bytes(out)


# Key files


def test_a_created_key_file_loads_and_opens_what_was_sealed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "keys.json"
    made = KeyRing.create(path)
    loaded = KeyRing.load(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert loaded.open(made.seal(b"spec", b"job-1"), b"job-1") == b"spec"
    assert loaded.name(digest_of(b"x")) == made.name(digest_of(b"x"))
    assert os.listdir(path.parent) == ["keys.json"]


def test_create_keeps_an_existing_key_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    KeyRing.create(path)
    before = path.read_bytes()
    with pytest.raises(InvalidConfig, match="exists already"):
        KeyRing.create(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o620, 0o644, 0o666])
def test_a_key_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keys.json"
    KeyRing.create(path)
    path.chmod(mode)
    for use in (KeyRing.load, KeyRing.load_or_create, KeyRing.rotate):
        with pytest.raises(InvalidConfig, match=f"mode {mode:04o}, open to others; run chmod 600"):
            use(path)


def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r'key file ".*keys.json" is missing'):
        KeyRing.load(tmp_path / "keys.json")


def test_many_at_once_load_or_create_one_ring(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    barrier = threading.Barrier(8)
    currents: list[str] = []

    def start() -> None:
        barrier.wait(10)
        currents.append(KeyRing.load_or_create(path).current)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(currents) == 8
    assert len(set(currents)) == 1
    assert os.listdir(tmp_path) == ["keys.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 2}', "\x00", "[" * 100_000])
def test_a_damaged_key_file_is_refused_without_showing_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(InvalidConfig, match="key file"):
        KeyRing.load(path)


def test_a_changed_key_does_not_load_under_its_old_id(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    KeyRing.create(path)
    data = json.loads(path.read_text())
    other = KeyRing.new()
    [(key_id, secret)] = data["keys"].items()
    data["keys"][key_id] = ("A" if secret[0] != "A" else "B") + secret[1:]
    path.write_text(json.dumps(data))
    with pytest.raises(InvalidConfig, match="is damaged") as caught:
        KeyRing.load(path)
    assert secret[1:20] not in str(caught.value)
    assert other.current != key_id


def test_rotation_seals_under_a_new_key_opens_the_old_and_keeps_names(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    before = KeyRing.create(path)
    message, stream = before.seal(b"m", b"a"), sealed(before, b"data")
    after = KeyRing.rotate(path)
    assert after.current != before.current
    assert KeyRing.load(path).current == after.current
    assert after.open(message, b"a") == b"m"
    assert opened(after, stream, digest_of(b"data")) == b"data"
    assert after.name(digest_of(b"data")) == before.name(digest_of(b"data"))
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_ring_shows_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    ring = KeyRing.create(path)
    for secret in [*json.loads(path.read_text())["keys"].values(), *json.loads(path.read_text())["names"].values()]:
        assert secret[:10] not in repr(ring)


# Names


def test_names_are_64_hex_digits_that_depend_on_ring_and_digest() -> None:
    ring, other = KeyRing.new(), KeyRing.new()
    one, two = digest_of(b"1"), digest_of(b"2")
    assert re.fullmatch("[0-9a-f]{64}", ring.name(one))
    assert len({ring.name(one), ring.name(two), other.name(one), one.removeprefix("sha256:")}) == 4


# Messages


def test_a_message_opens_only_about_the_same_thing() -> None:
    ring = KeyRing.new()
    message = ring.seal(b"spec", b"job-1")
    assert b"spec" not in message
    assert ring.open(message, b"job-1") == b"spec"
    with pytest.raises(IntegrityError, match="does not open"):
        ring.open(message, b"job-2")


def test_a_message_under_a_missing_key_names_the_key() -> None:
    ring = KeyRing.new()
    later = ring.rotated()
    with pytest.raises(SealUnknown, match=later.current):
        ring.open(later.seal(b"spec", b"job-1"), b"job-1")


def test_a_lasting_message_opens_after_a_rotation_and_passes_for_no_other_one() -> None:
    ring = KeyRing.new()
    message = ring.seal(b"id", b"a", lasting=True)
    assert ring.rotated().open(message, b"a", lasting=True) == b"id"
    for sealed_so, lasting in ((True, False), (False, True)):
        with pytest.raises(SealUnknown):
            ring.open(ring.seal(b"id", b"a", lasting=sealed_so), b"a", lasting=lasting)


def test_two_seals_of_one_message_differ() -> None:
    ring = KeyRing.new()
    assert ring.seal(b"spec", b"a") != ring.seal(b"spec", b"a")


# Streams


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 128, 1000, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_000_000])
def test_a_stream_opens_to_what_was_sealed(size: int) -> None:
    ring, data = KeyRing.new(), os.urandom(size)
    for chunk_bytes in (1 << 12, 1 << 20):
        sealing = ring.seal_stream(io.BytesIO(data), digest_of(data), size, chunk_bytes=chunk_bytes)
        stream = sealing.read()
        assert len(stream) == sealing.length
        assert opened(ring, stream, digest_of(data), size) == data
        with io.BufferedReader(ring.opening(io.BytesIO(stream), digest_of(data)), 1000) as reader:
            assert reader.read() == data


def test_the_size_is_authentic_before_the_first_read() -> None:
    ring = KeyRing.new()
    stream = sealed(ring, b"x" * 1000)
    assert ring.opening(io.BytesIO(stream), digest_of(b"x" * 1000)).size == 1000
    with pytest.raises(IntegrityError, match="1000 bytes, not 999"):
        opened(ring, stream, digest_of(b"x" * 1000), 999)


def test_a_swapped_blob_is_refused() -> None:
    ring = KeyRing.new()
    one, two = sealed(ring, b"a" * 100), sealed(ring, b"b" * 100)
    with pytest.raises(IntegrityError, match="or is another object"):
        opened(ring, one, digest_of(b"b" * 100))
    with pytest.raises(IntegrityError, match="does not open at chunk 0"):
        opened(ring, two[:HEADER_BYTES] + one[HEADER_BYTES:], digest_of(b"b" * 100))


def test_a_blob_under_another_ones_name_is_refused_though_all_of_it_opens() -> None:
    class OneName(KeyRing):
        def name(self, digest: str) -> str:
            return "0" * 64

    ring = OneName.new()
    stream = sealed(ring, b"a" * 100)
    assert opened(ring, stream, digest_of(b"a" * 100)) == b"a" * 100
    with pytest.raises(IntegrityError, match=f"is another blob, {digest_of(b'a' * 100)}"):
        opened(ring, stream, digest_of(b"b" * 100))


def test_an_object_tells_its_digest_to_who_knows_its_name_and_has_the_key() -> None:
    ring, data = KeyRing.new(), os.urandom(300)
    stream, digest = sealed(ring, data), digest_of(data)
    name = ring.name(digest)
    opening = ring.opening_of(io.BytesIO(stream), name)
    assert (opening.digest, opening.size, opening.read()) == (digest, 300, data)
    assert ring.digest_in(stream[:HEADER_BYTES], name) == digest
    with pytest.raises(IntegrityError, match="or is another object"):
        ring.digest_in(stream[:HEADER_BYTES], ring.name(digest_of(b"other")))
    with pytest.raises(IntegrityError, match="cut short"):
        ring.digest_in(stream[: HEADER_BYTES - 1], name)
    with pytest.raises(SealUnknown, match=ring.current):
        KeyRing.new().digest_in(stream[:HEADER_BYTES], name)
    assert bytes.fromhex(digest[7:39]) not in stream


def test_a_new_wrap_opens_the_same_chunks_under_the_new_key_alone(tmp_path: Path) -> None:
    old, data = KeyRing.create(tmp_path / "keys"), os.urandom(300)
    stream, digest = sealed(old, data), digest_of(data)
    both = KeyRing.rotate(tmp_path / "keys")
    header = both.rewrapped(stream[:HEADER_BYTES], old.name(digest))
    kept = json.loads((tmp_path / "keys").read_text())
    del kept["keys"][old.current]
    (tmp_path / "keys").write_text(json.dumps(kept))
    new = KeyRing.load(tmp_path / "keys")
    assert new.ids == (both.current,)
    assert opened(new, header + stream[HEADER_BYTES:], digest) == data
    with pytest.raises(SealUnknown, match=old.current):
        opened(new, stream, digest)
    found = new.opening(io.BytesIO(stream), digest, lambda name, head: header)
    assert found.read() == data
    assert new.rewrapped(stream[:HEADER_BYTES], old.name(digest), lambda name, head: header)[:21] == stream[:21]
    with pytest.raises(SealUnknown, match="put again since"):
        new.opening(io.BytesIO(sealed(old, data)), digest, lambda name, head: header)


def test_reordered_chunks_are_refused() -> None:
    ring, data = KeyRing.new(), os.urandom(64 * 4)
    stream = sealed(ring, data)
    head = len(stream) - 4 * 80
    chunks = [stream[at : at + 80] for at in range(head, len(stream), 80)]
    chunks[1], chunks[2] = chunks[2], chunks[1]
    with pytest.raises(IntegrityError, match="does not open at chunk 1"):
        opened(ring, stream[:head] + b"".join(chunks), digest_of(data))


def test_a_stream_cut_at_a_chunk_is_refused_and_gave_only_its_true_beginning() -> None:
    ring, data = KeyRing.new(), os.urandom(64 * 4)
    out = bytearray()
    with pytest.raises(IntegrityError, match="cut short in chunk 3"):
        ring.open_stream(io.BytesIO(sealed(ring, data)[:-80]), digest_of(data), None, out.extend)
    assert data.startswith(out)


def test_bytes_after_the_end_are_refused() -> None:
    ring = KeyRing.new()
    with pytest.raises(IntegrityError, match="after its end"):
        opened(ring, sealed(ring, b"data") + b"x", digest_of(b"data"))


def test_a_stream_under_a_missing_key_names_the_key() -> None:
    ring = KeyRing.new()
    later = ring.rotated()
    with pytest.raises(SealUnknown, match=later.current):
        opened(ring, sealed(later, b"data"), digest_of(b"data"))


@pytest.mark.parametrize("now", [b"dat", b"datb", b"data+"])
def test_bytes_that_changed_since_they_were_hashed_never_make_a_whole_stream(now: bytes) -> None:
    ring = KeyRing.new()
    sealing = ring.seal_stream(io.BytesIO(now), digest_of(b"data"), 4)
    with pytest.raises(IntegrityError, match="while they were read"):
        sealing.read()


def test_a_size_that_was_forged_into_the_header_allocates_and_gives_nothing() -> None:
    ring = KeyRing.new()
    stream = bytearray(sealed(ring, b"data"))
    stream[6:14] = (1 << 40).to_bytes(8, "big")
    with pytest.raises(IntegrityError, match="damaged header"):
        opened(ring, bytes(stream), digest_of(b"data"))


@pytest.mark.parametrize("chunk_bytes", [0, 1, 32, 100, 1 << 25])
def test_a_chunk_size_out_of_range_is_refused(chunk_bytes: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        KeyRing.new().seal_stream(io.BytesIO(), digest_of(b""), 0, chunk_bytes=chunk_bytes)


# A witness instead of a second hash


def witnessed(data: bytes) -> tuple[str, Witness]:
    witness = Witness()
    for start in range(0, len(data), CHUNK_BYTES):
        witness.see(memoryview(data)[start : start + CHUNK_BYTES])
    return "sha256:" + hashlib.sha256(data).hexdigest(), witness


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_what_a_witness_saw_is_sealed_and_opens(size: int) -> None:
    ring, data = KeyRing.new(), os.urandom(size)
    digest, witness = witnessed(data)
    stream = ring.seal_stream(io.BytesIO(data), digest, size, witness=witness).read()
    assert opened(ring, stream, digest, size) == data


@pytest.mark.parametrize("at", [0, CHUNK_BYTES, 2 * CHUNK_BYTES + 4])
def test_a_chunk_that_is_not_as_it_was_seen_is_refused_before_it_is_given_out(at: int) -> None:
    ring, data = KeyRing.new(), bytearray(os.urandom(2 * CHUNK_BYTES + 5))
    digest, witness = witnessed(bytes(data))
    data[at] ^= 1
    given = 0
    with pytest.raises(IntegrityError, match="changed while"):
        for piece in ring.seal_stream(io.BytesIO(data), digest, len(data), witness=witness).chunks():
            given += len(piece)
    assert given < at + 200


@pytest.mark.parametrize("change", [-5, -1, 1])
def test_a_source_that_is_longer_or_shorter_than_it_was_seen_is_refused(change: int) -> None:
    ring, data = KeyRing.new(), os.urandom(CHUNK_BYTES + 5)
    digest, witness = witnessed(data)
    other = (data + b"x")[: len(data) + change]
    with pytest.raises(IntegrityError):
        for _ in ring.seal_stream(io.BytesIO(other), digest, len(data), witness=witness).chunks():
            pass
    with pytest.raises(IntegrityError):  # of what was seen only a part, or more
        for _ in ring.seal_stream(io.BytesIO(other), digest, len(other), witness=witness).chunks():
            pass


def test_a_witness_sees_whole_chunks_in_order() -> None:
    witness = Witness()
    witness.see(memoryview(bytes(10)))
    assert witness.knows(0, memoryview(bytes(10)), last=True)
    assert not witness.knows(0, memoryview(bytes(10)), last=False)
    assert not witness.knows(1, memoryview(bytes(10)), last=True)
    witness.see(memoryview(bytes(10)))  # it grew while it was read
    assert not witness.knows(0, memoryview(bytes(10)), last=True)
    assert not witness.knows(1, memoryview(bytes(10)), last=True)
    with pytest.raises(ValueError, match="a chunk has at most"):
        witness.see(memoryview(bytes(CHUNK_BYTES + 1)))
    with pytest.raises(ValueError, match="a witness sees chunks of"):
        KeyRing.new().seal_stream(io.BytesIO(), "sha256:" + "a" * 64, 0, chunk_bytes=64, witness=witness)


def test_a_stream_is_poured_to_offsets_by_two_threads_where_one_is_late() -> None:
    ring, data = KeyRing.new(), os.urandom(30 * CHUNK_BYTES + 5)
    opening = ring.opening(io.BytesIO(sealed(ring, data, chunk_bytes=CHUNK_BYTES)), digest_of(data))
    got, threads, told = bytearray(len(data)), set[int](), list[int]()

    def sink(at: int, piece: memoryview) -> None:
        if threading.get_ident() != threading.main_thread().ident:
            time.sleep(0.005)
        threads.add(threading.get_ident())
        got[at : at + len(piece)] = piece

    opening.pour(sink, told.append)
    assert got == data
    assert len(threads) >= 2
    assert sum(told) == len(data)


@pytest.mark.parametrize("calls", [1, 2, 9, 20])
def test_a_sink_that_fails_ends_the_pouring_and_is_called_no_more(calls: int) -> None:
    ring, data = KeyRing.new(), os.urandom(30 * CHUNK_BYTES)
    opening = ring.opening(io.BytesIO(sealed(ring, data, chunk_bytes=CHUNK_BYTES)), digest_of(data))
    called = list[int]()

    def sink(at: int, _: memoryview) -> None:
        called.append(at)
        if len(called) == calls:
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        opening.pour(sink, lambda _: None)
    count = len(called)
    time.sleep(0.05)
    assert count == len(called) < 31
    assert opening.failure is None


def test_what_does_not_open_ends_the_pouring_and_the_sink_is_called_no_more() -> None:
    ring, data = KeyRing.new(), os.urandom(9 * CHUNK_BYTES)
    stream = bytearray(sealed(ring, data, chunk_bytes=CHUNK_BYTES))
    stream[HEADER_BYTES + 5 * CHUNK_BYTES + 5 * 16 + 7] ^= 1
    opening = ring.opening(io.BytesIO(stream), digest_of(data))
    called = list[int]()
    with pytest.raises(IntegrityError, match="chunk 5"):
        opening.pour(lambda at, _: called.append(at), lambda _: None)
    time.sleep(0.02)
    assert set(called) <= {n * CHUNK_BYTES for n in range(5)}
