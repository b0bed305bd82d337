"""A store in memory: for tests, and the plainest statement of what a store does."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager

from batchyard.broker.errors import IntegrityError, NotFound
from batchyard.broker.seal import Readable

from ..digest import copy_hashed
from .protocol import check_name


class MemoryStore:
    """Use in tests. Durable only as long as the process."""

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def put_if_absent(self, name: str, source: Readable, size: int) -> bool:
        check_name(name)
        if name in self._objects:
            return False
        data = bytearray()
        copy_hashed(source, data.extend)
        if len(data) != size:
            raise IntegrityError(f"object {name}: the source gave {len(data)} bytes, not {size}")
        with self._lock:
            if name in self._objects:
                return False
            self._objects[name] = bytes(data)
            return True

    def get(self, name: str) -> AbstractContextManager[Readable]:
        try:
            return io.BytesIO(self._objects[check_name(name)])
        except KeyError:
            raise NotFound(f"object {name} is not in the store") from None

    def stat(self, name: str) -> int | None:
        data = self._objects.get(check_name(name))
        return None if data is None else len(data)

    def delete(self, name: str) -> None:
        self._objects.pop(check_name(name), None)

    def names(self) -> Iterator[str]:
        with self._lock:
            return iter(list(self._objects))
