"""Rings for tests of rotation."""

from __future__ import annotations

from batchyard.broker.seal import KeyRing


def rotated(ring: KeyRing) -> KeyRing:
    """Another ring with one more key, which is the current one."""
    return ring.rotated()


def retired(ring: KeyRing, *key_ids: str) -> KeyRing:
    """Another ring without these keys."""
    keys = ring._keys
    for key_id in key_ids:
        keys = keys.without(key_id)
    return KeyRing(keys)
