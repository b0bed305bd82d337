"""Keys, what is derived from each, and their text: JSON of ids and secrets, one of them current.

A key's id is derived from the key: a text cannot give a wrong key under a known id.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ..errors import InvalidConfig

SECRET_BYTES = 32
_VERSION = 1


def derive(secret: bytes, purpose: bytes, length: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=b"batchyard " + purpose).derive(secret)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Key:
    """A key-encryption key: its id, in hex, and the keys for its two uses."""

    id: str
    secret: bytes
    wrapping: bytes
    messages: bytes

    @classmethod
    def of(cls, secret: bytes) -> Key:
        return cls(
            id=derive(secret, b"key id", 8).hex(),
            secret=secret,
            wrapping=derive(secret, b"object key wrapping", 64),
            messages=derive(secret, b"message keys", 32),
        )

    @classmethod
    def new(cls) -> Key:
        return cls.of(secrets.token_bytes(SECRET_BYTES))


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Keys:
    """Keys by id, the id of the current one, and the secret behind names."""

    keys: Mapping[str, Key]
    current: str
    names: Key

    @classmethod
    def new(cls) -> Keys:
        key = Key.new()
        return cls(keys={key.id: key}, current=key.id, names=Key.new())

    @property
    def newest(self) -> str:
        """The id of the key that was added last."""
        return list(self.keys)[-1]

    def added(self) -> Keys:
        """With one more random key; the current one stays so."""
        key = Key.new()
        return replace(self, keys={**self.keys, key.id: key})

    def rotated(self) -> Keys:
        """With one more random key, which is the current one."""
        more = self.added()
        return more.with_current(more.newest)

    def with_current(self, key_id: str) -> Keys:
        """KeyError: there is no such key."""
        return replace(self, current=self.keys[key_id].id)

    def without(self, key_id: str) -> Keys:
        """Without a key that is not the current one."""
        if key_id == self.current:
            raise ValueError(f"key {key_id} is the current one")
        return replace(self, keys={one: key for one, key in self.keys.items() if one != key_id})

    def dumps(self) -> str:
        shown = {
            "version": _VERSION,
            "current": self.current,
            "keys": {key.id: base64.b64encode(key.secret).decode() for key in self.keys.values()},
            "names": {self.names.id: base64.b64encode(self.names.secret).decode()},
        }
        return json.dumps(shown, indent=1) + "\n"

    @classmethod
    def loads(cls, text: str, source: str) -> Keys:
        """The keys in a text that came from `source`, as errors call it. InvalidConfig: damaged; shows no secret."""
        # json's errors carry the whole text, which is secret: so none is chained
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            data = None
        if not isinstance(data, dict):
            raise InvalidConfig(f"{source} is not JSON; restore it from its backup")
        if data.get("version") != _VERSION:
            raise InvalidConfig(f"{source} has version {data.get('version')!r:.20}, not {_VERSION}")
        keys, names = _parse(source, data.get("keys")), _parse(source, data.get("names"))
        current = data.get("current")
        if current not in keys:
            raise InvalidConfig(f"{source}: the current key {current!r:.40} is not among its keys")
        if len(names) != 1:
            raise InvalidConfig(f'{source}: "names" must hold one secret')
        return cls(keys=keys, current=current, names=next(iter(names.values())))


def _parse(source: str, value: object) -> dict[str, Key]:
    if not isinstance(value, dict):
        raise InvalidConfig(f'{source}: "keys" and "names" must map ids to secrets')
    found: dict[str, Key] = {}
    for key_id, encoded in value.items():
        try:
            secret = base64.b64decode(str(encoded), validate=True)
        except (binascii.Error, ValueError):
            secret = b""
        key = Key.of(secret) if len(secret) == SECRET_BYTES else None
        if key is None or key.id != key_id:
            raise InvalidConfig(f"{source}: key {key_id!r:.40} is damaged; restore it from its backup")
        found[key.id] = key
    return found
