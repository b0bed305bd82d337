"""Knowing bytes again that were seen before, cheaper than by their hash."""

from __future__ import annotations

import hmac
import secrets

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

CHUNK_BYTES = 1 << 20
_SECRET_BYTES = 32


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
