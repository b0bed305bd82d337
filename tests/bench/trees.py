"""What 2,000 files of 64 KiB cost as a tree, against one object each: CPU seconds of the client and of MinIO, over TLS.

Both are sealed, hashed and verified, and end as files on the same tmpfs; nothing of a round is known from another one.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from secrets import token_bytes

from batchyard.broker.seal import KeyRing
from batchyard.cache.digest import Blob
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.s3 import S3Store
from batchyard.cache.tree import fetch_tree, put_tree, remove_tree
from yardtest.minio import S3Server

from .row import Row
from .staging import BUCKET, fast_server, interleaved

FILES, FILE_KIB = 2000, 64
TIMES_LESS = 5
_TICKS = os.sysconf("SC_CLK_TCK")


def rows(folder: Path, *, quick: bool) -> list[Row]:
    with fast_server(folder) as (server, fast):
        source = fast / "source"
        for number in range(FILES):
            path = source / f"{number // 100:02d}" / f"{number:04d}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(token_bytes(FILE_KIB << 10))
        return _rows(server, source, fast / "target", pairs=1 if quick else 5)


def _rows(server: S3Server, source: Path, target: Path, *, pairs: int) -> list[Row]:
    store = S3Store(server.access(), BUCKET, create=True)
    files = sorted(path for path in source.rglob("*") if path.is_file())
    kept: list[tuple[BlobStore, Blob]] = []
    alone: list[tuple[BlobStore, list[Blob]]] = []

    def new() -> BlobStore:
        """Other keys: other names, so that nothing is there yet."""
        return BlobStore(store, KeyRing.new())

    def put_packed() -> None:
        blobs = new()
        kept.append((blobs, put_tree(blobs, source)))

    def put_alone() -> None:
        blobs = new()
        alone.append((blobs, [blobs.put_file(path) for path in files]))

    def fetch_packed() -> None:
        blobs, blob = kept[-1]
        fetch_tree(blobs, blob.digest, target)

    def fetch_alone() -> None:
        blobs, found = alone[-1]
        target.mkdir()
        for number, blob in enumerate(found):
            blobs.fetch(blob.digest, blob.size, target / str(number))

    def one(act: Callable[[], None]) -> Callable[[], float]:
        def spent() -> float:
            before_s = _cpu_s(server)
            act()
            spent_s = _cpu_s(server) - before_s
            remove_tree(target)
            return spent_s

        return spent

    put_s, put_alone_s = interleaved(one(put_packed), one(put_alone), pairs)
    fetch_s, fetch_alone_s = interleaved(one(fetch_packed), one(fetch_alone), pairs)
    whole = f"{FILES:,} files of {FILE_KIB} KiB as a tree"
    return [
        _row(f"put and fetch of {whole}", put_s + fetch_s, put_alone_s + fetch_alone_s, 1 / TIMES_LESS),
        _row(f"put of {whole}", put_s, put_alone_s, 1 / TIMES_LESS),
    ]


def _cpu_s(server: S3Server) -> float:
    """Of this process and the server's, all threads."""
    fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    return time.process_time() + sum(map(int, itertools.islice(fields, 11, 13))) / _TICKS


def _row(row: str, ours_s: float, peer_s: float, most: float) -> Row:
    return Row(
        row=row,
        ours=round(ours_s, 2),
        peer=round(peer_s, 2),
        peer_name="one object each",
        unit="CPU s, client and MinIO",
        goal=f"ratio <= {most:g}",
        holds=ours_s / peer_s <= most,
    )
