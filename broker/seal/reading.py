"""What sealing reads from."""

from __future__ import annotations

from typing import Protocol


class Readable(Protocol):
    """Where bytes come from: files, `BytesIO`, HTTP bodies. `readinto` fills some of the buffer, 0 at the end."""

    def readinto(self, buffer: memoryview, /) -> int | None: ...


def read_full(reader: Readable, view: memoryview) -> int:
    """Fill `view` unless the reader ends before; the number of bytes read."""
    done = 0
    while done < len(view):
        count = reader.readinto(view[done:])
        if not count:
            break
        done += count
    return done
