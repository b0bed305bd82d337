"""Where sealed objects lie, as their store sees them and as somebody does who harms them."""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import urllib3

from batchyard.broker.hints import Peer, Sought
from batchyard.cache.stores.disk import DirectoryStore
from batchyard.cache.stores.peers import Transfer
from batchyard.cache.stores.protocol import Store
from batchyard.cache.stores.s3 import S3Store
from yardtest.minio import S3Server


class Place(Protocol):
    def open(self, *, near: bool) -> Store:
        """As a node does at its start: what a killed writer has left unfinished is swept."""
        ...

    def names(self) -> list[str]: ...

    def read(self, name: str) -> bytes: ...

    def write(self, name: str, data: bytes) -> None:
        """Whatever was there."""
        ...

    def remove(self, name: str) -> None: ...

    def there(self) -> dict[str, tuple[int, int]]:
        """By name each object's bytes, and what it takes as `du` counts it; 0 where that cannot be asked."""
        ...

    def beside(self) -> list[str]:
        """What is there and is no object, after a sweep."""
        ...

    def close(self) -> None: ...


class FolderPlace:
    def __init__(self, path: Path, server: S3Server | None) -> None:
        self._path, self._objects = path, str(path / "objects")

    def open(self, *, near: bool) -> Store:
        return DirectoryStore(self._path, sweep_after_s=0)

    def _place(self, name: str) -> Path:
        return Path(self._objects, name[:2], name)

    def names(self) -> list[str]:
        return sorted(name for folder in os.listdir(self._objects) for name in os.listdir(f"{self._objects}/{folder}"))

    def read(self, name: str) -> bytes:
        return self._place(name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        self._place(name).write_bytes(data)

    def remove(self, name: str) -> None:
        self._place(name).unlink()

    def there(self) -> dict[str, tuple[int, int]]:
        looks = {name: os.lstat(self._place(name)) for name in self.names()}
        return {name: (look.st_size, look.st_blocks * 512) for name, look in looks.items()}

    def beside(self) -> list[str]:
        return os.listdir(self._path / "new")

    def close(self) -> None:
        pass


class BucketPlace:
    """A bucket of a real MinIO, over TLS."""

    def __init__(self, path: Path, server: S3Server | None) -> None:
        assert server is not None
        self._server, self._bucket = server, f"faults-{secrets.token_hex(8)}"
        self._client = server.access().client()
        self._client.make_bucket(self._bucket)

    def open(self, *, near: bool) -> Store:
        store = S3Store(self._server.access(), self._bucket, create=True, sweep_after_s=0)
        store._calls.pause = lambda seconds: None
        return store

    def names(self) -> list[str]:
        return sorted(str(found.object_name) for found in self._client.list_objects(self._bucket))

    def read(self, name: str) -> bytes:
        answer = self._client.get_object(self._bucket, name)
        try:
            return answer.read()
        finally:
            answer.close()
            answer.release_conn()

    def write(self, name: str, data: bytes) -> None:
        self._client.put_object(self._bucket, name, io.BytesIO(data), len(data))

    def remove(self, name: str) -> None:
        self._client.remove_object(self._bucket, name)

    def there(self) -> dict[str, tuple[int, int]]:
        return {str(found.object_name): (found.size or 0, 0) for found in self._client.list_objects(self._bucket)}

    def beside(self) -> list[str]:
        return [str(upload.object_name) for upload in self._client._list_multipart_uploads(self._bucket).uploads]

    def close(self) -> None:
        for name in self.names():
            self.remove(name)
        self._client.remove_bucket(self._bucket)


PLACES: Mapping[str, Callable[[Path, S3Server | None], Place]] = {"folder": FolderPlace, "bucket": BucketPlace}
"""By kind; a new kind of store is one more entry."""


class Neighbour:
    """Another node: what is in its near store, and what nodes have told each other of it."""

    _NODE = Peer(node="neighbour", address="127.0.0.1:1")

    def __init__(self, place: Place) -> None:
        self._place = place
        self._dropped: set[str] = set()

    def seek(self, name: str, *, without: Iterable[str] = ()) -> Sought:
        has = name in self._place.names() and name not in self._dropped and self._NODE.node not in without
        return Sought(peers=(self._NODE,) if has else ())

    def ask(self, peer: Peer, name: str) -> Transfer:
        data = self._place.read(name)
        return Transfer(peer, urllib3.HTTPResponse(io.BytesIO(data), preload_content=False), len(data))

    def fly(self, name: str) -> bool:
        return True

    def land(self, names: Sequence[str]) -> None:
        pass

    def drop(self, names: Sequence[str], node: str | None = None) -> None:
        self._dropped.update(names)

    def forget(self, name: str) -> None:
        self._dropped.add(name)
