"""Everything that is encrypted, and every name derived from a secret. Nothing else encrypts.

Two envelopes, both AES-256-GCM:

    message   magic "BYSM" | version | key id 8 | salt 16 | nonce 12 | ciphertext and tag
              for small things held whole in memory: job specs, secrets; the key of one message is HMAC(key, salt)

    stream    magic "BYSB" | version | log2 of the chunk | key id 8 | size 8 | wrapped object key 40 | nonce prefix 7
              | crc32 4 || chunk … each with its tag of 16
              for blobs; nonce = prefix + counter 4 + last flag 1, associated data = header + digest

A stream is sealed in a second pass over bytes whose digest and size the first pass found. The second pass compares each
chunk with what a `Witness` saw in the first, or hashes again and keeps the last chunk back until the hash agrees: bytes
that changed in between never make a whole stream.

A key's id is derived from the key: a key file cannot give a wrong key under a known id.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import hashlib
import hmac
import io
import json
import os
import secrets
import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from .errors import IntegrityError, InvalidConfig
from .sidehash import AHEAD, SideHash

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CHUNK_BYTES = 1 << 20
_TAG_BYTES = 16
_SECRET_BYTES = 32
_VERSION = 1
_MESSAGE_MAGIC = b"BYSM"
_STREAM_MAGIC = b"BYSB"
_MESSAGE = struct.Struct(">4sB8s16s12s")
_STREAM = struct.Struct(">4sBB8sQ40s7s")
_CRC = struct.Struct(">I")
_NONCE_TAIL = struct.Struct(">IB")
_HEADER_BYTES = _STREAM.size + _CRC.size
_CHUNK_LOG2 = range(6, 25)  # 64 bytes (tests) to 16 MiB: bounds what a forged header can make us allocate
_MOST_CHUNKS = 1 << 32


class SealUnknown(IntegrityError):
    """Whole as far as can be told, but this ring lacks the key or this version the format: not a reason to delete."""


class Readable(Protocol):
    """Where bytes come from: files, `BytesIO`, HTTP bodies. `readinto` fills some of the buffer, 0 at the end."""

    def readinto(self, buffer: memoryview, /) -> int | None: ...


def _derive(secret: bytes, purpose: bytes, length: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=b"batchyard " + purpose).derive(secret)


def read_full(reader: Readable, view: memoryview) -> int:
    """Fill `view` unless the reader ends before; the number of bytes read."""
    done = 0
    while done < len(view):
        count = reader.readinto(view[done:])
        if not count:
            break
        done += count
    return done


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class _Key:
    id: str
    secret: bytes
    wrapping: bytes
    messages: bytes

    @classmethod
    def of(cls, secret: bytes) -> _Key:
        return cls(
            id=_derive(secret, b"key id", 8).hex(),
            secret=secret,
            wrapping=_derive(secret, b"object key wrapping", 32),
            messages=_derive(secret, b"message keys", 32),
        )


class KeyRing:
    """The yard's key-encryption keys by id, one of them current, and the secret behind object names. Immutable.

    New things are sealed under the current key; old ones open as long as their key is in the ring. Object names do
    not depend on the keys, so they survive a rotation. May be shared by threads.
    """

    __slots__ = ("_keys", "_names", "current")

    def __init__(self, *, keys: Mapping[str, _Key], current: str, names: _Key) -> None:
        self._keys = dict(keys)
        self._names = names
        self.current = current

    def __repr__(self) -> str:
        return f"KeyRing(current={self.current!r}, keys={sorted(self._keys)!r})"

    @classmethod
    def new(cls) -> KeyRing:
        """A ring of one random key, in memory only."""
        key = _Key.of(secrets.token_bytes(_SECRET_BYTES))
        return cls(keys={key.id: key}, current=key.id, names=_Key.of(secrets.token_bytes(_SECRET_BYTES)))

    def rotated(self) -> KeyRing:
        """The same ring with one more random key, which is the current one."""
        key = _Key.of(secrets.token_bytes(_SECRET_BYTES))
        return KeyRing(keys={**self._keys, key.id: key}, current=key.id, names=self._names)

    @classmethod
    def load(cls, path: Path) -> KeyRing:
        """The ring in a key file. InvalidConfig: missing, damaged, or open to others than its owner."""
        text = _read_key_file(path)
        if text is None:
            raise InvalidConfig(f'key file "{path}" is missing; create one, or name the one that this yard uses')
        return _parse_key_file(path, text)

    @classmethod
    def create(cls, path: Path) -> KeyRing:
        """A new ring in a new file of mode 0600, there whole or not at all. InvalidConfig: the file exists."""
        ring = cls.new()
        if not ring._write(path, replace=False):
            raise InvalidConfig(f'key file "{path}" exists already; its keys open what this yard stored, so keep it')
        return ring

    @classmethod
    def load_or_create(cls, path: Path) -> KeyRing:
        """The ring in the file, made first if it is not there. Of several processes at once one makes it."""
        if _read_key_file(path) is None:
            cls.new()._write(path, replace=False)
        return cls.load(path)

    @classmethod
    def rotate(cls, path: Path) -> KeyRing:
        """Add a key to the file and make it current. Old keys stay, so that what they sealed still opens."""
        cls.load(path)  # says what is wrong before anything is locked
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # two rotations at once must not lose one of the new keys
            ring = cls.load(path).rotated()
            ring._write(path, replace=True)
        finally:
            os.close(folder)
        return ring

    def _write(self, path: Path, *, replace: bool) -> bool:
        shown = {
            "version": _VERSION,
            "current": self.current,
            "keys": {key.id: base64.b64encode(key.secret).decode() for key in self._keys.values()},
            "names": {self._names.id: base64.b64encode(self._names.secret).decode()},
        }
        try:
            return _write_key_file(path, json.dumps(shown, indent=1) + "\n", replace=replace)
        except OSError as error:
            raise InvalidConfig(f'key file "{path}" cannot be written: {error.strerror}') from error

    @property
    def mark(self) -> str:
        """Tells one yard's keys from another's, and nothing of them; the same after a rotation."""
        return self.name("sha256:" + "0" * 64)

    def name(self, digest: str) -> str:
        """The name of a blob's object in a store: 64 hex digits that tell nothing without this ring."""
        return hmac.new(self._names.secret, b"blob\0" + digest.encode(), hashlib.sha256).hexdigest()

    def of(self, tenant: str) -> KeyRing:
        """This ring as one tenant's blobs have it: the same keys, and names that no other tenant's have. '' is the
        yard's own.
        """
        if not tenant:
            return self
        names = _Key.of(_derive(self._names.secret, b"names of tenant " + tenant.encode(), _SECRET_BYTES))
        return KeyRing(keys=self._keys, current=self.current, names=names)

    def seal(self, data: bytes, about: bytes) -> bytes:
        """Seal a small message. It opens only with the same `about`, such as the id of the job that it belongs to."""
        key = self._keys[self.current]
        salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
        header = _MESSAGE.pack(_MESSAGE_MAGIC, _VERSION, bytes.fromhex(key.id), salt, nonce)
        cipher = AESGCM(hmac.digest(key.messages, salt, "sha256"))
        return header + cipher.encrypt(nonce, data, header + about)

    def open(self, sealed: bytes, about: bytes) -> bytes:
        """The message. IntegrityError: changed, cut, about something else, or (SealUnknown) its key is not here."""
        what = f"sealed message about {about.decode(errors='replace')[:80]!r}"
        if len(sealed) < _MESSAGE.size + _TAG_BYTES:
            raise IntegrityError(f"{what} is cut short")
        header = sealed[: _MESSAGE.size]
        magic, version, key_id, salt, nonce = _MESSAGE.unpack(header)
        if magic != _MESSAGE_MAGIC:
            raise IntegrityError(f"{what} is not a sealed message")
        key = self._key(what, version, key_id)
        cipher = AESGCM(hmac.digest(key.messages, salt, "sha256"))
        try:
            return cipher.decrypt(nonce, sealed[_MESSAGE.size :], header + about)
        except InvalidTag:
            raise IntegrityError(f"{what} does not open: it was changed, or is about something else") from None

    def seal_stream(
        self,
        reader: Readable,
        digest: str,
        size: int,
        *,
        chunk_bytes: int = CHUNK_BYTES,
        witness: Witness | None = None,
    ) -> Sealing:
        """The sealed form of `size` bytes with this digest (`sha256:…`), to be read with `readinto`.

        `reader` stands at the first byte. Reading raises IntegrityError if the bytes are not those of the digest, or
        not those that `witness` saw when the digest was found, which costs a twentieth of hashing them again.
        """
        if witness is not None and chunk_bytes != CHUNK_BYTES:
            raise ValueError(f"chunk_bytes = {chunk_bytes}: a witness sees chunks of {CHUNK_BYTES}")
        key = self._keys[self.current]
        object_key = secrets.token_bytes(_SECRET_BYTES)
        wrapped = aes_key_wrap(key.wrapping, object_key)
        head = _StreamHead(
            key_id=bytes.fromhex(key.id), size=size, wrapped=wrapped,
            prefix=secrets.token_bytes(7), chunk_bytes=chunk_bytes,
        )  # fmt: skip
        return Sealing(reader, digest, head, object_key, witness)

    def opening(self, reader: Readable, digest: str) -> Opening:
        """The plaintext of a sealed stream, to be read with `readinto` or `chunks()`; `.size` is already verified."""
        what = f"blob {digest}"
        raw = bytearray(_HEADER_BYTES)
        if read_full(reader, memoryview(raw)) < _HEADER_BYTES:
            raise IntegrityError(f"{what} is cut short in its header")
        if _CRC.unpack_from(raw, _STREAM.size)[0] != zlib.crc32(raw[: _STREAM.size]):
            raise IntegrityError(f"{what} has a damaged header")
        magic, version, chunk_log2, key_id, size, wrapped, prefix = _STREAM.unpack_from(raw)
        if magic != _STREAM_MAGIC:
            raise IntegrityError(f"{what} is not a sealed stream")
        key = self._key(what, version, key_id)
        if chunk_log2 not in _CHUNK_LOG2:
            raise IntegrityError(f"{what} has a damaged header")
        try:
            object_key = aes_key_unwrap(key.wrapping, wrapped)
        except InvalidUnwrap:
            raise IntegrityError(f"{what} has a damaged key") from None
        head = _StreamHead(key_id=key_id, size=size, wrapped=wrapped, prefix=prefix, chunk_bytes=1 << chunk_log2)
        return Opening(reader, digest, head, object_key)

    def open_stream(self, reader: Readable, digest: str, size: int | None, sink: Callable[[memoryview], object]) -> int:
        """Give the plaintext to `sink`, piece by piece, each authenticated first; the size in bytes.

        A piece is valid during the call only. IntegrityError at anything wrong, also a size other than asked for:
        what the sink has had by then is a true beginning of the blob, to be thrown away.
        """
        opening = self.opening(reader, digest)
        if size is not None and size != opening.size:
            raise IntegrityError(f"blob {digest} has {opening.size} bytes, not {size}")
        for piece in opening.chunks():
            sink(piece)
        return opening.size

    def _key(self, what: str, version: int, key_id: bytes) -> _Key:
        if version != _VERSION:
            raise SealUnknown(f"{what} is sealed in version {version}, this program knows {_VERSION}; upgrade it")
        key = self._keys.get(key_id.hex())
        if key is None:
            raise SealUnknown(f"{what} is sealed under key {key_id.hex()}, which is not in the key file; add that key")
        return key


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class _StreamHead:
    key_id: bytes
    size: int
    wrapped: bytes
    prefix: bytes
    chunk_bytes: int

    def __post_init__(self) -> None:
        if self.chunk_bytes.bit_length() - 1 not in _CHUNK_LOG2 or self.chunk_bytes.bit_count() != 1:
            raise ValueError(f"chunk_bytes = {self.chunk_bytes}: must be a power of two from 64 bytes to 16 MiB")
        if self.size < 0:
            raise ValueError(f"size = {self.size}: must not be negative")
        if self.chunk_count > _MOST_CHUNKS:
            raise IntegrityError(f"a stream of {self.size} bytes has too many chunks of {self.chunk_bytes} bytes")

    @property
    def chunk_count(self) -> int:
        return max(1, -(-self.size // self.chunk_bytes))

    def plain_bytes(self, index: int) -> int:
        return min(self.chunk_bytes, self.size - index * self.chunk_bytes)

    def nonce(self, index: int) -> bytes:
        return self.prefix + _NONCE_TAIL.pack(index, index == self.chunk_count - 1)

    def packed(self) -> bytes:
        chunk_log2 = self.chunk_bytes.bit_length() - 1
        raw = _STREAM.pack(_STREAM_MAGIC, _VERSION, chunk_log2, self.key_id, self.size, self.wrapped, self.prefix)
        return raw + _CRC.pack(zlib.crc32(raw))


class Witness:
    """What a first pass over bytes remembers of each chunk, to know it again in a second: its GMAC under a key that is
    made up here and kept nowhere. 30 GB a CPU second, where sha256 does 1.4.
    """

    def __init__(self) -> None:
        self._cipher = AESGCM(secrets.token_bytes(_SECRET_BYTES))
        self._marks: list[bytes] = []
        self._ended = False

    def see(self, chunk: memoryview) -> None:
        """The next chunk: CHUNK_BYTES, only the last may be shorter. After that the source grew: nothing is known."""
        if len(chunk) > CHUNK_BYTES:
            raise ValueError(f"a chunk has at most {CHUNK_BYTES} bytes")
        self._marks.append(b"" if self._ended else self._mark(len(self._marks), chunk))
        self._ended = self._ended or len(chunk) < CHUNK_BYTES

    def knows(self, index: int, chunk: memoryview, *, last: bool) -> bool:
        """Whether the chunk at this index was the same, and the last one if this is; nothing has one empty chunk."""
        if not len(chunk):
            return not self._marks
        if index >= len(self._marks) or last != (index == len(self._marks) - 1):
            return False
        return hmac.compare_digest(self._marks[index], self._mark(index, chunk))

    def _mark(self, index: int, chunk: memoryview) -> bytes:
        return self._cipher.encrypt(index.to_bytes(12, "big"), b"", chunk)


class _Chunked(io.RawIOBase):
    """A readable made of chunks: `_next_chunk` gives one at a time in a buffer that is used again."""

    def __init__(self, reader: Readable, digest: str, head: _StreamHead, object_key: bytes) -> None:
        super().__init__()
        self._reader, self._digest, self._head = reader, digest, head
        self._cipher = AESGCM(object_key)
        self._hash = SideHash()
        self._index = 0
        largest = head.plain_bytes(0)
        # in turn: some are hashed while the next is filled
        self._plains = [memoryview(bytearray(largest)) for _ in range(min(AHEAD + 1, head.chunk_count))]
        self._sealed = memoryview(bytearray(largest + _TAG_BYTES))
        self._about = head.packed() + digest.encode()
        self._pending: memoryview = memoryview(b"")

    def _next_chunk(self) -> memoryview:
        raise NotImplementedError

    def _at_end(self) -> bool:
        return read_full(self._reader, memoryview(bytearray(1))) == 0

    def _hash_agrees(self) -> bool:
        return hmac.compare_digest("sha256:" + self._hash.hexdigest(), self._digest)

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


class Sealing(_Chunked):
    """A sealed stream in the making; `length` is its size in bytes, header and tags included."""

    def __init__(
        self, reader: Readable, digest: str, head: _StreamHead, object_key: bytes, witness: Witness | None
    ) -> None:
        super().__init__(reader, digest, head, object_key)
        self._witness = witness
        self.length = _HEADER_BYTES + head.size + head.chunk_count * _TAG_BYTES
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
        plain = self._plains[self._index % len(self._plains)][: len(sealed) - _TAG_BYTES]
        if read_full(self._reader, plain) < len(plain):
            raise IntegrityError(f"the bytes of {self._digest} became fewer while they were read")
        if not self._is_as_seen(plain):
            raise IntegrityError(f"the bytes of {self._digest} changed while they were read")
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

    Once made, `size` is authentic. `failure` is what a read raised, if it did.
    """

    def __init__(self, reader: Readable, digest: str, head: _StreamHead, object_key: bytes) -> None:
        super().__init__(reader, digest, head, object_key)
        self.size = head.size
        self.failure: IntegrityError | None = None
        self._pending = self._next_chunk()

    def _next_chunk(self) -> memoryview:
        if self.failure is not None:
            raise self.failure
        count = self._head.plain_bytes(self._index)
        plain, sealed = self._plains[self._index % len(self._plains)][:count], self._sealed[: count + _TAG_BYTES]
        if read_full(self._reader, sealed) < len(sealed):
            raise self._failed(f"blob {self._digest} is cut short in chunk {self._index}")
        try:
            self._cipher.decrypt_into(self._head.nonce(self._index), sealed, self._about, plain)
        except InvalidTag:
            raise self._failed(f"blob {self._digest} does not open at chunk {self._index}") from None
        self._hash.update(plain)
        if self._index == self._head.chunk_count - 1:
            if not self._at_end():
                raise self._failed(f"blob {self._digest} has bytes after its end")
            if not self._hash_agrees():
                raise self._failed(f"blob {self._digest} has other content than its digest says")
        self._index += 1
        return plain

    def _failed(self, text: str) -> IntegrityError:
        self.failure = IntegrityError(text)
        return self.failure


def _read_key_file(path: Path) -> str | None:
    """The text of a key file, None if there is none. InvalidConfig: others than its owner may touch it."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise InvalidConfig(f'key file "{path}" is not a file')
            if mode & 0o077:
                shown = stat.S_IMODE(mode)
                raise InvalidConfig(f'key file "{path}" has mode {shown:04o}, open to others; run chmod 600 "{path}"')
            return file.read(1 << 20)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidConfig(f'key file "{path}" cannot be read: {error.strerror}') from error


def _write_key_file(path: Path, text: str, *, replace: bool) -> bool:
    """Whether the text is the file's now; without `replace` it is not if there was one. Durable either way."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    written = True
    try:
        with open(fd, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(fd)
        if replace:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)  # unlike a rename, refuses to replace
    except FileExistsError:
        written = False
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)  # also after losing: whoever made it may not have come so far
    finally:
        os.close(folder)
    return written


def _parse_key_file(path: Path, text: str) -> KeyRing:
    # json's errors carry the whole text, which is secret: so none is chained
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise InvalidConfig(f'key file "{path}" is not JSON; restore it from its backup')
    if data.get("version") != _VERSION:
        raise InvalidConfig(f'key file "{path}" has version {data.get("version")!r:.20}, not {_VERSION}')
    keys, names = _parse_keys(path, data.get("keys")), _parse_keys(path, data.get("names"))
    current = data.get("current")
    if current not in keys:
        raise InvalidConfig(f'key file "{path}": the current key {current!r:.40} is not among its keys')
    if len(names) != 1:
        raise InvalidConfig(f'key file "{path}": "names" must hold one secret')
    return KeyRing(keys=keys, current=current, names=next(iter(names.values())))


def _parse_keys(path: Path, value: object) -> dict[str, _Key]:
    if not isinstance(value, dict):
        raise InvalidConfig(f'key file "{path}": "keys" and "names" must map ids to secrets')
    found: dict[str, _Key] = {}
    for key_id, encoded in value.items():
        try:
            secret = base64.b64decode(str(encoded), validate=True)
        except (binascii.Error, ValueError):
            secret = b""
        key = _Key.of(secret) if len(secret) == _SECRET_BYTES else None
        if key is None or key.id != key_id:
            raise InvalidConfig(f'key file "{path}": key {key_id!r:.40} is damaged; restore it from its backup')
        found[key.id] = key
    return found
