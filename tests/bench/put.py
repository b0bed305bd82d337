"""What the seal costs a put of 256 MiB to MinIO over TLS: sealed, against the same bytes clear through the same store.

Both come after the pass that finds the digest, which content addressing needs with or without a seal. Sealing compares
the bytes with those of the first pass and encrypts. The second row is the whole of `batchyard put`, that first pass
included, beside what the SDK offers, which neither hashes, seals, nor leaves a name alone that is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from secrets import token_hex

from batchyard.broker.seal import KeyRing, Witness
from batchyard.cache.digest import copy_hashed
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.s3 import S3Store
from batchyard.cache.stores.s3upload import PART_BYTES
from yardtest.minio import S3Server

from .row import Row
from .staging import BUCKET, MIB, fast_server, fresh_file, interleaved, timed_s

GOAL, WHOLE_GOAL = 1.05, 1.25


def rows(folder: Path, *, quick: bool) -> list[Row]:
    with fast_server(folder) as (server, fast):
        return _rows(server, fresh_file(fast / "source", MIB), pairs=3 if quick else 15)


def _rows(server: S3Server, source: Path, *, pairs: int) -> list[Row]:
    store, ring = S3Store(server.access(), BUCKET, create=True), KeyRing.new()
    blobs, sdk = BlobStore(store, ring), server.access().client()
    size = source.stat().st_size
    with source.open("rb", buffering=0) as file:
        witness = Witness()
        digest, _ = copy_hashed(file, witness.see)

    def sealed(name: str) -> None:
        with source.open("rb", buffering=0) as file:
            sealing = ring.seal_stream(file, digest, size, witness=witness)
            assert store.put_if_absent(name, sealing, sealing.length)

    def clear(name: str) -> None:
        with source.open("rb", buffering=0) as file:
            assert store.put_if_absent(name, file, size)

    def whole(_: str) -> None:
        blobs.put_file(source)
        store.delete(ring.name(digest))

    def by_sdk(name: str) -> None:
        with source.open("rb") as file:
            sdk.put_object(BUCKET, name, file, size, part_size=PART_BYTES)

    def one(put: Callable[[str], None]) -> Callable[[], float]:
        def act() -> float:
            name = token_hex(32)
            took_s = timed_s(lambda: put(name))
            store.delete(name)
            return took_s

        return act

    sealed_s, clear_s = interleaved(one(sealed), one(clear), pairs)
    whole_s, sdk_s = interleaved(one(whole), one(by_sdk), pairs)
    return [
        _row(f"PUT of {MIB} MiB, sealed", sealed_s, clear_s, "clear", GOAL),
        _row(f"put of a file of {MIB} MiB, whole", whole_s, sdk_s, "SDK's put_object", WHOLE_GOAL),
    ]


def _row(row: str, ours_s: float, peer_s: float, peer_name: str, goal: float) -> Row:
    return Row(
        row=row,
        ours=round(ours_s * 1000),
        peer=round(peer_s * 1000),
        peer_name=peer_name,
        unit="ms",
        goal=f"ratio <= {goal:.2f}",
        holds=ours_s / peer_s <= goal,
    )
