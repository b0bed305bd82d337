"""What an input costs a job: when the node has it, against `cp`; and the first time, against the bare SDK.

Hit: `LocalCopies.stage` of a copy that is there, which becomes a read-only bind. What that bind adds to a container's
start is the median of the differences of interleaved pairs, with and without. Cold: from MinIO over TLS to a verified
file (opened, hashed, complete), beside `get_object` and `readinto` of the same object into a file on the same medium, a
tmpfs, so that no disk is measured.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import docker

import images
from batchyard.broker.seal import KeyRing
from batchyard.cache.copies.folder import Folder
from batchyard.cache.copies.local import LocalCopies
from batchyard.cache.digest import Blob
from batchyard.cache.index import Index
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.s3 import S3Store
from batchyard.cache.tree import put_tree
from yardtest.minio import S3Server, running_server

from .noop import IMAGE
from .row import Row

MIB, PIECE = 256, 1 << 20
BUCKET = "bench"
FASTER, ADDED_MS, OF_RAW = 50, 20.0, 0.78
HIT_MS, FILES, INDEX_US = 5.0, 10_000, 100.0
SHARED_MEMORY = Path("/dev/shm")


def rows(folder: Path, *, quick: bool) -> list[Row]:
    with fast_server(folder) as (server, fast):
        store = S3Store(server.access(), BUCKET, create=True)
        ring = KeyRing.new()
        blobs = BlobStore(store, ring)
        source = fresh_file(fast / "source", MIB)
        blob = blobs.put_file(source)
        found = [_cold(server, blobs, blob, ring.name(blob.digest), fast, pairs=3 if quick else 15)]
        copies = LocalCopies(blobs, Index(folder), [Folder(folder / "copies", 4 << 30)])
        copy = copies.stage(blob, "bench").path
        found.append(_hit(copies, blob, source, folder, rounds=3 if quick else 9))
        found.append(_start(copy, pairs=10 if quick else 50))
        found.append(_hit_of_tree(copies, folder))
        found.append(_index(copies, blob))
        copies.close()
    return found


@contextmanager
def fast_server(folder: Path) -> Iterator[tuple[S3Server, Path]]:
    """A MinIO whose bytes are in memory where that can be, and an empty folder on the same medium."""
    medium = SHARED_MEMORY if SHARED_MEMORY.is_dir() else folder
    with tempfile.TemporaryDirectory(prefix="batchyard-bench-", dir=medium) as fast:
        with running_server("minio", folder / "minio", data=Path(fast) / "minio") as server:
            yield server, Path(fast)


def fresh_file(path: Path, mib: int) -> Path:
    """Random bytes."""
    with Path("/dev/urandom").open("rb", buffering=0) as source, path.open("wb", buffering=0) as out:
        for _ in range(mib):
            out.write(source.read(PIECE))
    return path


def timed_s(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def pairs_of(one: Callable[[], float], other: Callable[[], float], pairs: int) -> list[tuple[float, float]]:
    """What each took, round by round, after one round that does not count; who goes first changes."""
    found = []
    for number in range(pairs + 1):
        took = (one(), other()) if number % 2 else (other(), one())[::-1]
        found.append(took)
    return found[1:]


def interleaved(one: Callable[[], float], other: Callable[[], float], pairs: int) -> tuple[float, float]:
    """Medians of `pairs_of`."""
    found = pairs_of(one, other, pairs)
    return statistics.median(a for a, _ in found), statistics.median(b for _, b in found)


def _cold(server: S3Server, blobs: BlobStore, blob: Blob, name: str, folder: Path, *, pairs: int) -> Row:
    sdk, buffer, target = server.access().client(), memoryview(bytearray(PIECE)), folder / "target"

    def ours() -> float:
        target.unlink(missing_ok=True)
        return timed_s(lambda: blobs.fetch(blob.digest, blob.size, target))

    def get_raw() -> None:
        answer = sdk.get_object(BUCKET, name)
        with target.open("wb", buffering=0) as out:
            while count := answer.readinto(buffer):
                out.write(buffer[:count])
        answer.close()
        answer.release_conn()

    def raw() -> float:
        target.unlink(missing_ok=True)
        return timed_s(get_raw)

    ours_s, raw_s = interleaved(ours, raw, pairs)
    target.unlink()
    return Row(
        row=f"staging {MIB} MiB, cold, verified",
        ours=round(MIB / ours_s),
        peer=round(MIB / raw_s),
        peer_name="SDK's get_object into a file",
        unit="MiB/s",
        goal=f"ratio >= {OF_RAW}",
        holds=raw_s / ours_s >= OF_RAW,
    )


def _hit(copies: LocalCopies, blob: Blob, source: Path, folder: Path, *, rounds: int) -> Row:
    target = folder / "copied"

    def stage_100() -> float:
        return timed_s(lambda: [copies.stage(blob, "bench") for _ in range(100)]) / 100

    def cp() -> float:
        target.unlink(missing_ok=True)
        return timed_s(lambda: _cp(source, target))

    ours_s, cp_s = interleaved(stage_100, cp, rounds)
    target.unlink()
    return Row(
        row=f"staging {MIB} MiB, hit",
        ours=round(ours_s * 1000, 3),
        peer=round(cp_s * 1000, 1),
        peer_name="cp",
        unit="ms",
        goal=f"ratio <= 1/{FASTER}",
        holds=ours_s * FASTER <= cp_s,
    )


def _hit_of_tree(copies: LocalCopies, folder: Path) -> Row:
    source = folder / "many"
    for n in range(FILES):
        path = source / str(n // 100) / str(n)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % n)
    tree = put_tree(copies.blobs, source)
    copies.stage(tree, "bench")
    took_ms = statistics.median(timed_s(lambda: copies.stage(tree, "bench")) for _ in range(100)) * 1000
    return Row(
        row=f"staging a directory of {FILES:,} files, hit",
        ours=round(took_ms, 3),
        unit="ms",
        goal=f"<= {HIT_MS:g}",
        holds=took_ms <= HIT_MS,
    )


def _index(copies: LocalCopies, blob: Blob) -> Row:
    """What a job's use of a copy takes with the pin that it writes down, and with the end of that."""
    owners = [f"job {n}" for n in range(1000)]

    def median_us(act: Callable[[str], object]) -> float:
        return statistics.median([timed_s(partial(act, owner)) for owner in owners]) * 1e6

    worst = max(median_us(lambda owner: copies.stage(blob, owner)), median_us(copies.unpin))
    return Row(
        row="the index: a use with its pin, or an unpin",
        ours=round(worst, 1),
        unit="us",
        goal=f"<= {INDEX_US:g}",
        holds=worst <= INDEX_US,
    )


def _cp(source: Path, target: Path) -> None:
    """As `cp` does, without the start of a process."""
    buffer = memoryview(bytearray(PIECE))
    with source.open("rb", buffering=0) as from_, target.open("wb", buffering=0) as to:
        while count := from_.readinto(buffer):
            to.write(buffer[:count])


def _start(copy: Path, *, pairs: int) -> Row:
    images.busybox(IMAGE)
    engine = docker.APIClient(version="auto")
    found = pairs_of(lambda: _bare_ms(engine, copy), lambda: _bare_ms(engine, None), pairs)
    engine.close()
    added_ms = statistics.median(with_ms - without_ms for with_ms, without_ms in found)
    return Row(
        row="a bound input, added to a container's start",
        ours=round(added_ms, 1),
        unit="ms",
        goal=f"<= {ADDED_MS:g}",
        holds=added_ms <= ADDED_MS,
    )


def _bare_ms(engine: Any, copy: Path | None) -> float:
    """To create and start a container, with that copy bound or not."""
    binds = [f"{copy}:/in/a:ro"] if copy else []
    began = time.perf_counter()
    host = engine.create_host_config(network_mode="none", init=True, binds=binds)
    container = engine.create_container_from_config(
        engine.create_container_config(IMAGE, ["true"], host_config=host, volumes=["/in/a"] if copy else [])
    )["Id"]
    engine.start(container)
    took_s = time.perf_counter() - began
    engine.wait(container)
    engine.remove_container(container, v=True)
    return took_s * 1000
