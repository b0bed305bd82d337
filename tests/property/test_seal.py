"""Whatever is done to sealed bytes: the true bytes come out, or none are accepted."""

from __future__ import annotations

import hashlib
import io
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard.broker.errors import IntegrityError
from batchyard.broker.seal import HEADER_BYTES, KeyRing

RING = KeyRing.new()
HEAD = HEADER_BYTES
HEAD_CRC = HEADER_BYTES - 4


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def sealed(data: bytes) -> bytes:
    return RING.seal_stream(io.BytesIO(data), digest_of(data), len(data), chunk_bytes=64).read()


def opens_to(stream: bytes, data: bytes) -> bool:
    """Whether the stream is accepted; whatever it gives must be a true beginning, and all of it if accepted."""
    out = bytearray()
    try:
        RING.open_stream(io.BytesIO(stream), digest_of(data), None, out.extend)
    except IntegrityError:
        assert data.startswith(out)
        return False
    assert bytes(out) == data
    return True


datas = st.binary(max_size=300)


@given(datas)
def test_what_is_sealed_opens(data: bytes) -> None:
    assert opens_to(sealed(data), data)


@given(datas, st.data(), st.integers(1, 255))
def test_any_changed_byte_is_refused(data: bytes, draw: st.DataObject, mask: int) -> None:
    stream = bytearray(sealed(data))
    stream[draw.draw(st.integers(0, len(stream) - 1))] ^= mask
    assert not opens_to(bytes(stream), data)


@given(datas, st.data(), st.integers(1, 255))
def test_any_changed_byte_of_the_header_is_refused_also_with_a_right_checksum(
    data: bytes, draw: st.DataObject, mask: int
) -> None:
    stream = bytearray(sealed(data))
    stream[draw.draw(st.integers(0, HEAD_CRC - 1))] ^= mask
    stream[HEAD_CRC:HEAD] = zlib.crc32(stream[:HEAD_CRC]).to_bytes(4, "big")
    assert not opens_to(bytes(stream), data)


@given(datas, st.data())
def test_any_cut_is_refused(data: bytes, draw: st.DataObject) -> None:
    stream = sealed(data)
    assert not opens_to(stream[: draw.draw(st.integers(0, len(stream) - 1))], data)


@given(datas, st.binary(min_size=1, max_size=200))
def test_anything_after_the_end_is_refused(data: bytes, more: bytes) -> None:
    assert not opens_to(sealed(data) + more, data)


@given(datas, datas)
def test_another_blob_is_refused(data: bytes, other: bytes) -> None:
    assert opens_to(sealed(other), data) == (data == other)


@given(st.binary(min_size=65, max_size=300), st.data())
def test_pieces_of_two_streams_of_the_same_blob_do_not_mix(data: bytes, draw: st.DataObject) -> None:
    one, two = sealed(data), sealed(data)
    cut = draw.draw(st.integers(1, len(one) - 1))
    mixed = one[:cut] + two[cut:]
    assert opens_to(mixed, data) == (mixed in (one, two))


@given(st.binary(min_size=65, max_size=300), st.data())
def test_the_header_of_another_stream_of_the_same_blob_opens_no_chunk(data: bytes, draw: st.DataObject) -> None:
    one, two = sealed(data), bytearray(sealed(data))
    two[:HEAD] = one[:HEAD]
    assert not opens_to(bytes(two), data)
    later = RING.rotated()  # nor does a wrap that was made for another stream
    mixed = later.rewrapped(one[:HEAD], RING.name(digest_of(data))) + sealed(data)[HEAD:]
    with pytest.raises(IntegrityError):
        later.opening(io.BytesIO(mixed), digest_of(data))


@given(datas, st.data(), st.integers(1, 255))
def test_any_changed_byte_of_a_rewrapped_header_is_refused(data: bytes, draw: st.DataObject, mask: int) -> None:
    later, name = RING.rotated(), RING.name(digest_of(data))
    header = bytearray(later.rewrapped(sealed(data)[:HEAD], name))
    assert later.digest_in(bytes(header), name) == digest_of(data)
    header[draw.draw(st.integers(0, HEAD_CRC - 1))] ^= mask
    for crc in (header[HEAD_CRC:], zlib.crc32(header[:HEAD_CRC]).to_bytes(4, "big")):
        header[HEAD_CRC:] = crc
        with pytest.raises(IntegrityError):
            later.digest_in(bytes(header), name)


@given(st.binary(max_size=500))
def test_noise_is_refused(noise: bytes) -> None:
    assert not opens_to(noise, b"data")


@given(st.binary(max_size=200), st.binary(max_size=50), st.data(), st.integers(1, 255))
def test_any_changed_byte_of_a_message_is_refused(data: bytes, about: bytes, draw: st.DataObject, mask: int) -> None:
    message = bytearray(RING.seal(data, about))
    assert RING.open(bytes(message), about) == data
    message[draw.draw(st.integers(0, len(message) - 1))] ^= mask
    try:
        RING.open(bytes(message), about)
    except IntegrityError:
        return
    raise AssertionError("a changed message was opened")


@given(st.binary(max_size=200), st.binary(max_size=50), st.binary(max_size=50), st.data())
def test_a_message_opens_neither_cut_nor_about_another_thing(
    data: bytes, about: bytes, other: bytes, draw: st.DataObject
) -> None:
    message = RING.seal(data, about)
    attempts = [(message[: draw.draw(st.integers(0, len(message) - 1))], about)]
    if other != about:
        attempts.append((message, other))
    for attempt, told in attempts:
        try:
            RING.open(attempt, told)
        except IntegrityError:
            continue
        raise AssertionError("a wrong message was opened")
