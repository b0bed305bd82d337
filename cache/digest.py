"""What names bytes: `sha256:<64 hex digits>` of the plaintext, and its size."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from batchyard.broker.errors import InputError
from batchyard.broker.seal import CHUNK_BYTES, Readable, read_full

Digest: TypeAlias = str
"""`sha256:<64 lower-case hex digits>`. What comes from outside goes through `parse_digest` first."""

Kind: TypeAlias = Literal["file", "tree"]

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def parse_digest(text: object) -> Digest:
    """The digest, unchanged. InputError: it is not one."""
    if isinstance(text, str) and _DIGEST.fullmatch(text):
        return text
    shown = repr(text)
    raise InputError(
        f"{shown if len(shown) <= 90 else shown[:87] + '...'} is not a digest; "
        'a digest is "sha256:" and 64 lower-case hex digits'
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """Bytes in the yard. A tree's bytes are its manifest: `size` is that of the manifest."""

    digest: Digest
    size: int
    kind: Kind = "file"

    def as_json(self) -> dict[str, object]:
        return {"digest": self.digest, "size": self.size, "kind": self.kind}

    @classmethod
    def from_json(cls, value: object) -> Blob:
        """The blob that `as_json` gave. InputError: not of that form."""
        if not isinstance(value, dict):
            raise InputError(f"{value!r:.80} is not a blob; give digest, size and kind")
        digest, size, kind = parse_digest(value.get("digest")), value.get("size"), value.get("kind", "file")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise InputError(f"blob {digest}: size {size!r:.40} is not a number of bytes")
        if kind != "file" and kind != "tree":
            raise InputError(f'blob {digest}: kind {kind!r:.40} must be "file" or "tree"')
        return cls(digest=digest, size=size, kind=kind)


def digest_of(data: bytes) -> Digest:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def copy_hashed(
    reader: Readable, sink: Callable[[memoryview], object] | None = None, limit: int | None = None
) -> tuple[Digest, int]:
    """Read to the end, or to `limit` bytes, giving each piece to `sink`; digest and size of what was read.

    A piece is valid during the call of `sink` only; all but the last have CHUNK_BYTES, or there is but one.
    """
    seen, size = hashlib.sha256(), 0
    view = memoryview(bytearray(CHUNK_BYTES if limit is None else max(1, min(limit, CHUNK_BYTES))))
    while limit is None or size < limit:
        count = read_full(reader, view if limit is None else view[: limit - size])
        if not count:
            break
        seen.update(view[:count])
        size += count
        if sink is not None:
            sink(view[:count])
    return "sha256:" + seen.hexdigest(), size
