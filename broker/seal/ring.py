"""The yard's keys, and what is sealed under them.

Small things held whole in memory (job specs, secrets) are sealed as a *message*:

    magic "BYSM" | version | key id 8 | salt 16 | nonce 12 | AES-256-GCM ciphertext and tag

under a key of its own, HMAC(key, salt). Blobs are sealed as a *stream*, see `stream.py`.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias
from weakref import WeakSet

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ..errors import BrokerUnavailable, IntegrityError, InvalidConfig, StoreUnavailable
from . import keyfile
from .key import SECRET_BYTES, Keys, derive
from .reading import Readable, read_full
from .stream import HEADER_BYTES, STREAM_VERSION, Opening, Sealing, StreamHead
from .witness import CHUNK_BYTES, Witness

_TAG_BYTES = 16
_MESSAGE_VERSION = 1
MESSAGE_MAGIC = b"BYSM"
_MESSAGE = struct.Struct(">4sB8s16s12s")

FindWrap: TypeAlias = Callable[[str, bytes], "bytes | None"]
"""Given an object's name and a header under a key that is not here: the same header under one that may be."""


class SealUnknown(IntegrityError):
    """Whole as far as can be told, but this ring lacks the key or this version the format: not a reason to delete."""


class _Held:
    """The keys that are in use now, the one that is not to be used any more, and the streams that are being sealed."""

    __slots__ = ("guard", "keys", "retired", "sealings")

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.retired = ""
        self.guard = threading.Lock()
        self.sealings: WeakSet[Sealing] = WeakSet()


class KeyRing:
    """The yard's key-encryption keys by id, one of them current, and the secret behind object names.

    New things are sealed under the current key; old ones open as long as their key is in the ring. Object names do
    not depend on the keys, so they survive a rotation. A process has one ring, which gets other keys by `renew` while
    it is in use. May be shared by threads.
    """

    __slots__ = ("_held", "_scope")

    def __init__(self, keys: Keys) -> None:
        self._held = _Held(keys)
        self._scope = keys.names.secret

    def __repr__(self) -> str:
        return f"KeyRing(current={self.current!r}, keys={list(self.ids)!r})"

    @classmethod
    def new(cls) -> KeyRing:
        """A ring of one random key, in memory only."""
        return cls(Keys.new())

    def rotated(self) -> KeyRing:
        """Another ring with one more random key, which is the current one."""
        return KeyRing(self._keys.rotated())

    @classmethod
    def load(cls, path: Path) -> KeyRing:
        """The ring in a key file. InvalidConfig: missing, damaged, or open to others than its owner."""
        return cls(keyfile.found(path))

    @classmethod
    def create(cls, path: Path) -> KeyRing:
        """A new ring in a new file of mode 0600, there whole or not at all. InvalidConfig: the file exists."""
        keys = Keys.new()
        if not keyfile.write_new(path, keys):
            raise InvalidConfig(f'key file "{path}" exists already; its keys open what this yard stored, so keep it')
        return cls(keys)

    @classmethod
    def load_or_create(cls, path: Path) -> KeyRing:
        """The ring in the file, made first if it is not there. Of several processes at once one makes it."""
        if keyfile.load(path) is None:
            keyfile.write_new(path, Keys.new())
        return cls.load(path)

    @classmethod
    def rotate(cls, path: Path) -> KeyRing:
        """Add a key to the file and make it current. Old keys stay, so that what they sealed still opens."""
        return cls(keyfile.change(path, Keys.rotated))

    def of(self, tenant: str) -> KeyRing:
        """This ring as one tenant's blobs have it: the same keys, and names that no other tenant's have. '' is the
        yard's own.
        """
        if not tenant:
            return self
        scoped = KeyRing(self._keys)
        scoped._held = self._held
        scoped._scope = derive(self._keys.names.secret, b"names of tenant " + tenant.encode(), SECRET_BYTES)
        return scoped

    @property
    def _keys(self) -> Keys:
        return self._held.keys

    @property
    def current(self) -> str:
        """The id of the key that seals."""
        return self._keys.current

    def renew(self, keys: Keys) -> None:
        """These keys from now on; what is being sealed goes on under the key it began with. InvalidConfig: they are
        another yard's.
        """
        if keys.names.id != self._keys.names.id:
            raise InvalidConfig("the new keys are those of another yard: its names would not be found; restore the old")
        self._held.keys = keys

    def retire(self, key_id: str) -> None:
        """Nothing more is sealed under this key, which others do not have any more, until there is another current one:
        who seals is told that the store or Redis is away, and waits.
        """
        self._held.retired = key_id

    def _sealing(self, away: type[StoreUnavailable | BrokerUnavailable]) -> Keys:
        """The keys, if something may be sealed under the current one."""
        keys = self._keys
        if keys.current == self._held.retired:
            raise away(
                f"key {keys.current}, under which this process seals, was retired: nobody else could open that; give "
                "it the keys as they are now, or add that key again"
            )
        return keys

    @property
    def in_use(self) -> frozenset[str]:
        """The ids of the current key and of those under which streams are still being sealed."""
        with self._held.guard:
            return frozenset({self.current, *(one.key_id for one in self._held.sealings)})

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all keys, sorted."""
        return tuple(sorted(self._keys.keys))

    @property
    def mark(self) -> str:
        """Tells one yard's keys from another's, and nothing of them; the same after a rotation."""
        return self._named(self._keys.names.secret, b"blob\0sha256:" + b"0" * 64)

    def name(self, digest: str) -> str:
        """The name of a blob's object in a store: 64 hex digits that tell nothing without this ring."""
        return self._named(self._scope, b"blob\0" + digest.encode())

    def yard_name(self, what: str) -> str:
        """The name of an object that the yard itself keeps in a store; no blob has it."""
        return self._named(self._keys.names.secret, b"yard\0" + what.encode())

    def token(self, about: str) -> str:
        """Shows who has the yard's keys that whoever says this has them too: 64 hex digits. The same after a rotation,
        and in the views of all tenants.
        """
        return self._named(derive(self._keys.names.secret, b"tokens", SECRET_BYTES), about.encode())

    @staticmethod
    def _named(secret: bytes, what: bytes) -> str:
        return hmac.new(secret, what, hashlib.sha256).hexdigest()

    def seal(self, data: bytes, about: bytes, *, lasting: bool = False) -> bytes:
        """Seal a small message. It opens only with the same `about`, such as the id of the job that it belongs to.
        lasting: under what a rotation does not change; only for what is no secret to those who once had a key.
        BrokerUnavailable: see `retire`.
        """
        if lasting:
            key = self._keys.names
        else:
            keys = self._sealing(BrokerUnavailable)
            key = keys.keys[keys.current]
        salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
        header = _MESSAGE.pack(MESSAGE_MAGIC, _MESSAGE_VERSION, bytes.fromhex(key.id), salt, nonce)
        cipher = AESGCM(hmac.digest(key.messages, salt, "sha256"))
        return header + cipher.encrypt(nonce, data, header + about)

    def open(self, sealed: bytes, about: bytes, *, lasting: bool = False) -> bytes:
        """The message. IntegrityError: changed, cut, about something else, or (SealUnknown) its key is not here."""
        what = f"sealed message about {about.decode(errors='replace')[:80]!r}"
        if len(sealed) < _MESSAGE.size + _TAG_BYTES:
            raise IntegrityError(f"{what} is cut short")
        header = sealed[: _MESSAGE.size]
        magic, version, key_id, salt, nonce = _MESSAGE.unpack(header)
        if magic != MESSAGE_MAGIC:
            raise IntegrityError(f"{what} is not a sealed message")
        if version != _MESSAGE_VERSION:
            raise _version_unknown(what, version, _MESSAGE_VERSION)
        keys = self._keys
        key = ({keys.names.id: keys.names} if lasting else keys.keys).get(key_id.hex())
        if key is None:
            raise _key_unknown(what, key_id)
        cipher = AESGCM(hmac.digest(key.messages, salt, "sha256"))
        try:
            return cipher.decrypt(nonce, sealed[_MESSAGE.size :], header + about)
        except InvalidTag:
            raise IntegrityError(f"{what} does not open: it was changed, or is about something else") from None

    @staticmethod
    def same_object(one: bytes, other: bytes) -> bool:
        """Whether two headers are of one object, whatever key each is under; needs no key, and proves nothing."""
        return StreamHead.parse(one, "a header").fixed == StreamHead.parse(other, "a header").fixed

    @staticmethod
    def key_of(sealed: bytes) -> str:
        """The id of the key that a message, or the beginning of a stream, says it is under. IntegrityError: neither."""
        if len(sealed) >= _MESSAGE.size and sealed.startswith(MESSAGE_MAGIC):
            return str(_MESSAGE.unpack_from(sealed)[2].hex())
        return StreamHead.parse(sealed, "what was given").key_id.hex()

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
        StoreUnavailable: see `retire`.
        """
        if witness is not None and chunk_bytes != CHUNK_BYTES:
            raise ValueError(f"chunk_bytes = {chunk_bytes}: a witness sees chunks of {CHUNK_BYTES}")
        name, object_key = self.name(digest), secrets.token_bytes(SECRET_BYTES)
        bare = StreamHead(size=size, prefix=secrets.token_bytes(7), chunk_bytes=chunk_bytes)
        with self._held.guard:  # so that `in_use` misses none that begins under a key that was current just now
            keys = self._sealing(StoreUnavailable)
            head = bare.wrapped_under(keys.keys[keys.current], object_key, digest, name)
            sealing = Sealing(reader, digest, name, head, object_key, witness)
            self._held.sealings.add(sealing)
        return sealing

    def opening(self, reader: Readable, digest: str, find: FindWrap | None = None) -> Opening:
        """The plaintext of a sealed stream, to be read with `readinto` or `chunks()`; `.size` is already verified.

        find: asked for another wrap of the object's key if the one in its header is under a key that is not here.
        """
        what = f"blob {digest}"
        opening = self._opening(reader, self.name(digest), what, find)
        if opening.digest != digest:
            raise IntegrityError(f"{what} is another blob, {opening.digest}")
        return opening

    def opening_of(self, reader: Readable, name: str, find: FindWrap | None = None) -> Opening:
        """As `opening`, of an object of which only the name is known; `.digest` tells the rest."""
        return self._opening(reader, name, f"object {name}", find)

    def _opening(self, reader: Readable, name: str, what: str, find: FindWrap | None) -> Opening:
        raw = bytearray(HEADER_BYTES)
        count = read_full(reader, memoryview(raw))
        head, object_key, digest = self._unwrapped(bytes(raw[:count]), name, what, find)
        return Opening(reader, digest, name, head, object_key)

    def digest_in(self, header: bytes, name: str, find: FindWrap | None = None) -> str:
        """The digest of the blob that the object of this name is, by its first HEADER_BYTES alone: authentic, while
        what follows them may still be damaged. IntegrityError, SealUnknown.
        """
        return self._unwrapped(header, name, f"object {name}", find)[2]

    def rewrapped(self, header: bytes, name: str, find: FindWrap | None = None) -> bytes:
        """The header of the object of this name as it is under the current key. IntegrityError, SealUnknown."""
        keys = self._keys
        head, object_key, digest = self._unwrapped(header, name, f"object {name}", find)
        return head.wrapped_under(keys.keys[keys.current], object_key, digest, name).packed()

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

    def _unwrapped(self, raw: bytes, name: str, what: str, find: FindWrap | None) -> tuple[StreamHead, bytes, str]:
        """The head, the object key and the digest in it."""
        head = StreamHead.parse(raw, what)
        if head.version != STREAM_VERSION:
            raise _version_unknown(what, head.version, STREAM_VERSION)
        key = self._keys.keys.get(head.key_id.hex())
        if key is None:
            other = None if find is None else find(name, raw[:HEADER_BYTES])
            if other is not None:
                return self._unwrapped(_same_object(head, other, what), name, what, None)
            raise _key_unknown(what, head.key_id)
        return head, *head.unwrapped(key, name, what)


def _same_object(head: StreamHead, other: bytes, what: str) -> bytes:
    if StreamHead.parse(other, what).fixed != head.fixed:
        raise SealUnknown(f"{what} is sealed under key {head.key_id.hex()}, and was put again since its last rotation")
    return other


def _version_unknown(what: str, version: int, known: int) -> SealUnknown:
    return SealUnknown(f"{what} is sealed in version {version}, this program knows {known}; upgrade it")


def _key_unknown(what: str, key_id: bytes) -> SealUnknown:
    return SealUnknown(f"{what} is sealed under key {key_id.hex()}, which is not in the key file; add that key")
