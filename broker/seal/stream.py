"""A blob's sealed form, and both ways through it.

    magic "BYSB" | version | log2 of the chunk | size 8 | nonce prefix 7 | key id 8 | wrapped 80 | crc32 4
    || chunk … each AES-256-GCM with its tag of 16

The first five are the *fixed part*. The wrapped part is the object key and the digest under the key of that id, by
AES-256-SIV (RFC 5297) with the fixed part and the object's name as associated data; a chunk's associated data is the
same, its nonce = prefix + counter 4 + last flag 1. So a header tells which digest the object is of, an object under
another one's name does not open, and wrapping under another key touches no chunk.

A stream is sealed in a second pass over bytes whose digest and size the first pass found. The second pass compares each
chunk with what a `Witness` saw in the first, or hashes again and keeps the last chunk back until the hash agrees: bytes
that changed in between never make a whole stream.
"""

from __future__ import annotations

import hmac
import io
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV

from ..errors import IntegrityError
from ..sidehash import SideHash
from .key import SECRET_BYTES, Key
from .reading import Readable, read_full
from .witness import Witness

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

STREAM_VERSION = 2
STREAM_MAGIC = b"BYSB"
_TAG_BYTES = 16
_FIXED = struct.Struct(">4sBBQ7s")
_WRAP = struct.Struct(">8s80s")
_CRC = struct.Struct(">I")
_NONCE_TAIL = struct.Struct(">IB")
HEADER_BYTES = _FIXED.size + _WRAP.size + _CRC.size
_CHUNK_LOG2 = range(6, 25)  # 64 bytes (tests) to 16 MiB: bounds what a forged header can make us allocate
_MOST_CHUNKS = 1 << 32
_POURED_AHEAD, _LATE = 12, 4
"""Chunks. Where threads are more than cores each waits for its turn, some milliseconds at a time: 3 chunks are not
enough then. The thread that hashes and pours is late when more than so many are on the way to it.
"""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class StreamHead:
    """What stands before the chunks. Its parts are authentic only once `unwrapped` was a success."""

    version: int = STREAM_VERSION
    chunk_bytes: int
    size: int
    prefix: bytes
    key_id: bytes = b""
    wrapped: bytes = b""

    def __post_init__(self) -> None:
        if self.chunk_bytes.bit_length() - 1 not in _CHUNK_LOG2 or self.chunk_bytes.bit_count() != 1:
            raise ValueError(f"chunk_bytes = {self.chunk_bytes}: must be a power of two from 64 bytes to 16 MiB")
        if self.size < 0:
            raise ValueError(f"size = {self.size}: must not be negative")
        if self.chunk_count > _MOST_CHUNKS:
            raise IntegrityError(f"a stream of {self.size} bytes has too many chunks of {self.chunk_bytes} bytes")

    @classmethod
    def parse(cls, raw: bytes | bytearray, what: str) -> StreamHead:
        """The head of what begins with `raw`. IntegrityError: cut short, damaged, no sealed stream."""
        if len(raw) < HEADER_BYTES:
            raise IntegrityError(f"{what} is cut short in its header")
        if _CRC.unpack_from(raw, HEADER_BYTES - _CRC.size)[0] != zlib.crc32(raw[: HEADER_BYTES - _CRC.size]):
            raise IntegrityError(f"{what} has a damaged header")
        magic, version, chunk_log2, size, prefix = _FIXED.unpack_from(raw)
        if magic != STREAM_MAGIC:
            raise IntegrityError(f"{what} is not a sealed stream")
        if chunk_log2 not in _CHUNK_LOG2:
            raise IntegrityError(f"{what} has a damaged header")
        key_id, wrapped = _WRAP.unpack_from(raw, _FIXED.size)
        return cls(
            version=version, chunk_bytes=1 << chunk_log2, size=size, prefix=prefix, key_id=key_id, wrapped=wrapped
        )

    @property
    def chunk_count(self) -> int:
        return max(1, -(-self.size // self.chunk_bytes))

    def plain_bytes(self, index: int) -> int:
        return min(self.chunk_bytes, self.size - index * self.chunk_bytes)

    def nonce(self, index: int) -> bytes:
        return self.prefix + _NONCE_TAIL.pack(index, index == self.chunk_count - 1)

    @property
    def fixed(self) -> bytes:
        """The part that is the same whatever key the object key is wrapped under."""
        log2 = self.chunk_bytes.bit_length() - 1
        return _FIXED.pack(STREAM_MAGIC, self.version, log2, self.size, self.prefix)

    def packed(self) -> bytes:
        raw = self.fixed + _WRAP.pack(self.key_id, self.wrapped)
        return raw + _CRC.pack(zlib.crc32(raw))

    def wrapped_under(self, key: Key, object_key: bytes, digest: str, name: str) -> StreamHead:
        """The same head with an object key and a digest (`sha256:…`) in it, to be opened by `key`."""
        inside = object_key + bytes.fromhex(digest.removeprefix("sha256:"))
        return StreamHead(
            version=self.version, chunk_bytes=self.chunk_bytes, size=self.size, prefix=self.prefix,
            key_id=bytes.fromhex(key.id),
            wrapped=AESSIV(key.wrapping).encrypt(inside, [self.fixed, bytes.fromhex(name)]),
        )  # fmt: skip

    def unwrapped(self, key: Key, name: str, what: str) -> tuple[bytes, str]:
        """The object key and the digest. IntegrityError: this is not the head of the object of that name."""
        try:
            inside = AESSIV(key.wrapping).decrypt(self.wrapped, [self.fixed, bytes.fromhex(name)])
        except InvalidTag:
            raise IntegrityError(f"{what} has a damaged header, or is another object") from None
        return inside[:SECRET_BYTES], "sha256:" + inside[SECRET_BYTES:].hex()


class _Chunked(io.RawIOBase):
    """A readable made of chunks: `_next_chunk` gives one at a time in a buffer that is used again."""

    def __init__(self, reader: Readable, digest: str, name: str, head: StreamHead, object_key: bytes) -> None:
        super().__init__()
        self.digest = digest
        self._reader, self._head = reader, head
        self._cipher = AESGCM(object_key)
        self._hash = SideHash()
        self._index = 0
        self._plains: deque[memoryview] = deque()
        self._sealed = memoryview(bytearray(head.plain_bytes(0) + _TAG_BYTES))
        self._about = head.fixed + bytes.fromhex(name)
        self._pending: memoryview = memoryview(b"")

    def _next_chunk(self) -> memoryview:
        raise NotImplementedError

    def _plain(self) -> memoryview:
        """Where the plaintext of this chunk goes: the room of the chunk that is longest done, or one more."""
        done = len(self._plains) > self._hash.on_the_way
        room = self._plains.popleft() if done else memoryview(bytearray(self._head.plain_bytes(0)))
        self._plains.append(room)
        return room[: self._head.plain_bytes(self._index)]

    def _at_end(self) -> bool:
        return read_full(self._reader, memoryview(bytearray(1))) == 0

    def _hash_agrees(self) -> bool:
        return hmac.compare_digest("sha256:" + self._hash.hexdigest(), self.digest)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        if not len(view):
            return 0
        while not self._pending:
            if self._index == self._head.chunk_count:
                return 0
            self._pending = self._next_chunk()
        count = min(len(view), len(self._pending))
        view[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count

    def chunks(self) -> Iterator[memoryview]:
        """What is left, in pieces that are valid until the next one is asked for."""
        while True:
            if self._pending:
                piece, self._pending = self._pending, memoryview(b"")
                yield piece
            if self._index == self._head.chunk_count:
                return
            self._pending = self._next_chunk()


def mark_of(beginning: bytes) -> str | None:
    """What tells this very sealed stream from all others, also of one blob, by its first bytes, whatever key it is
    under. None: not a sealed stream.
    """
    if len(beginning) < _FIXED.size or not beginning.startswith(STREAM_MAGIC):
        return None
    prefix: bytes = _FIXED.unpack_from(beginning)[-1]
    return prefix.hex()


class Sealing(_Chunked):
    """A sealed stream in the making; `length` is its size in bytes, header and tags included; `key_id`, in hex, tells
    the key that it is sealed under. mark: see `mark_of`.
    """

    def __init__(
        self,
        reader: Readable,
        digest: str,
        name: str,
        head: StreamHead,
        object_key: bytes,
        witness: Witness | None,
    ) -> None:
        super().__init__(reader, digest, name, head, object_key)
        self._witness = witness
        self.key_id = head.key_id.hex()
        self.mark = head.prefix.hex()
        self.length = HEADER_BYTES + head.size + head.chunk_count * _TAG_BYTES
        self._pending = memoryview(head.packed())

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        if not self._pending and self._index < self._head.chunk_count:
            count = self._head.plain_bytes(self._index) + _TAG_BYTES
            if len(view) >= count:  # no copy for a reader with room for a chunk
                self._seal_into(view[:count])
                return count
        return super().readinto(view)

    def _next_chunk(self) -> memoryview:
        sealed = self._sealed[: self._head.plain_bytes(self._index) + _TAG_BYTES]
        self._seal_into(sealed)
        return sealed

    def _seal_into(self, sealed: memoryview) -> None:
        plain = self._plain()
        if read_full(self._reader, plain) < len(plain):
            raise IntegrityError(f"the bytes of {self.digest} became fewer while they were read")
        if not self._is_as_seen(plain):
            raise IntegrityError(f"the bytes of {self.digest} changed while they were read")
        self._cipher.encrypt_into(self._head.nonce(self._index), plain, self._about, sealed)
        self._index += 1

    def _is_as_seen(self, plain: memoryview) -> bool:
        """Of a chunk; of the last one also whether all is, and no more is there."""
        last = self._index == self._head.chunk_count - 1
        if self._witness is not None:
            return self._witness.knows(self._index, plain, last=last) and (not last or self._at_end())
        self._hash.update(plain)
        return not last or (self._at_end() and self._hash_agrees())


class Opening(_Chunked):
    """The plaintext of a sealed stream. Each chunk is authenticated before any byte of it is given out, and the last
    one is kept back until the stream has ended where it should and the sha256 of the whole agrees.

    Once made, `digest` and `size` are authentic. `failure` is what a read raised, if it did.
    """

    def __init__(self, reader: Readable, digest: str, name: str, head: StreamHead, object_key: bytes) -> None:
        super().__init__(reader, digest, name, head, object_key)
        self.size = head.size
        self.failure: IntegrityError | None = None
        self._sink: Callable[[int, memoryview], None] | None = None
        self._pending = self._next_chunk()

    def pour(self, sink: Callable[[int, memoryview], None], told: Callable[[int], None]) -> None:
        """Give what is left to `sink`, in pieces with the offset of each, from this thread and another, in any order.
        Only once this has returned is all of it authentic; once it has ended in any way, `sink` is called no more.
        Raises what `sink` does.

        told: hears in this thread of how many bytes each piece was.
        """
        first, self._pending = self._pending, memoryview(b"")
        self._sink, self._hash.ahead = sink, _POURED_AHEAD
        try:
            sink(min(self._index * self._head.chunk_bytes, self.size) - len(first), first)
            told(len(first))
            while self._index < self._head.chunk_count:
                told(len(self._next_chunk()))
        finally:
            self._hash.rest()
            self._sink = None

    def _pass_on(self, plain: memoryview) -> None:
        """To be hashed, and poured where that is wanted."""
        if self._sink is None:
            self._hash.update(plain)
            return
        at = self._index * self._head.chunk_bytes
        if self._hash.on_the_way <= _LATE:
            self._hash.update(plain, partial(self._sink, at))
        else:
            self._hash.update(plain)
            self._sink(at, plain)

    def _next_chunk(self) -> memoryview:
        if self.failure is not None:
            raise self.failure
        plain = self._plain()
        sealed = self._sealed[: len(plain) + _TAG_BYTES]
        if read_full(self._reader, sealed) < len(sealed):
            raise self._failed(f"blob {self.digest} is cut short in chunk {self._index}")
        try:
            self._cipher.decrypt_into(self._head.nonce(self._index), sealed, self._about, plain)
        except InvalidTag:
            raise self._failed(f"blob {self.digest} does not open at chunk {self._index}") from None
        self._pass_on(plain)
        if self._index == self._head.chunk_count - 1:
            if not self._at_end():
                raise self._failed(f"blob {self.digest} has bytes after its end")
            if not self._hash_agrees():
                raise self._failed(f"blob {self.digest} has other content than its digest says")
        self._index += 1
        return plain

    def _failed(self, text: str) -> IntegrityError:
        self.failure = IntegrityError(text)
        return self.failure
