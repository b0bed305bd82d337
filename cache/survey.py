"""A look at all that a durable store holds, many objects at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Literal, TypeVar

from batchyard.broker.errors import IntegrityError, NotFound
from batchyard.broker.seal import SealUnknown

from .digest import Digest
from .sealed import BlobStore, OnBytes
from .stores.protocol import Store, Unreadable, sizes_of

T = TypeVar("T")
R = TypeVar("R")
AT_ONCE = 8
_AHEAD = 256

State = Literal["whole", "damaged", "unknown key", "missing", "not a blob"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """An object. bytes: as stored. digest: None if it does not tell."""

    name: str
    bytes: int
    digest: Digest | None = None
    state: State = "whole"
    why: str = ""


class Survey:
    """blobs: in this store, the durable one."""

    def __init__(self, store: Store, blobs: BlobStore) -> None:
        self._store, self._blobs = store, blobs

    def sizes(self) -> Iterator[int]:
        """Bytes of each object. StoreUnavailable."""
        return (size for _, size in sizes_of(self._store))

    def headers(self, names: Iterable[str] | None = None) -> Iterator[Seen]:
        """Each object by its first bytes alone: what follows may be damaged. StoreUnavailable."""
        return _each(self._header, self._store.names() if names is None else names)

    def contents(self, names: Iterable[str], on_bytes: OnBytes | None = None) -> Iterator[Seen]:
        """Each object read and opened. on_bytes hears of content, from several threads. StoreUnavailable."""
        return _each(lambda name: self._content(name, on_bytes), names)

    def _header(self, name: str) -> Seen:
        return self._seen(name, lambda: self._blobs.tell(name))

    def _content(self, name: str, on_bytes: OnBytes | None) -> Seen:
        seen = self._header(name)
        if seen.state != "whole":
            return seen

        def read() -> Digest:
            with self._store.get(name) as reader:
                return self._blobs.check(name, reader, on_bytes)[0]

        return self._seen(name, read)

    def _seen(self, name: str, look: Callable[[], Digest | None]) -> Seen:
        size = self._store.stat(name)
        if size is None:
            return Seen(name=name, bytes=0, state="missing")
        try:
            digest = look()
        except SealUnknown as error:
            return Seen(name=name, bytes=size, state="unknown key", why=str(error))
        except (IntegrityError, Unreadable) as error:
            return Seen(name=name, bytes=size, state="damaged", why=str(error))
        except NotFound:
            return Seen(name=name, bytes=0, state="missing")
        return Seen(name=name, bytes=size, digest=digest, state="whole" if digest else "not a blob")


def _each(act: Callable[[T], R], values: Iterable[T]) -> Iterator[R]:
    """In order, some ahead."""
    left = iter(values)
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="survey") as pool:
        while some := list(islice(left, _AHEAD)):
            yield from pool.map(act, some)
