"""Many jobs over one large input on two nodes, against as many processes that download it themselves.

Ours: two nodes with near stores and peer doors over a MinIO with TLS, from the first message to the last result. The
peer: as many downloads at once as the nodes run jobs, each a process of its own that has the SDK write the same bytes,
not sealed, into a file on the same medium; what starting a container would cost it is not counted. Bytes are those that
left the MinIO for it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import images
from batchyard.broker import keys
from batchyard.cache.digest import Blob
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.s3 import S3Store
from yardtest.minio import S3Server
from yardtest.wait import until
from yardtest.yard import TestYard, running_yard

from .noop import IMAGE
from .row import Row
from .staging import fast_server, fresh_file, timed_s

BUCKET, CLEAR = "bench-shared", "clear"
AT_ONCE = 2  # jobs of a node
FASTER, QUICK_FASTER = 3, 1
_DOWNLOAD = """
import sys
from pathlib import Path
from batchyard.cache.stores.access import S3Access
client = S3Access.of_file(Path(sys.argv[1])).client()
answer, buffer = client.get_object(sys.argv[2], sys.argv[3]), memoryview(bytearray(1 << 20))
with open(sys.argv[4], "wb", buffering=0) as out:
    while count := answer.readinto(buffer):
        out.write(buffer[:count])
"""


def rows(folder: Path, *, quick: bool) -> list[Row]:
    mib, jobs = (128, 10) if quick else (1024, 50)
    images.busybox(IMAGE)
    with fast_server(folder) as (server, fast):
        source = fresh_file(fast / "source", mib)
        S3Store(server.access(), BUCKET, create=True)
        client = server.access().client()
        client.fput_object(BUCKET, CLEAR, str(source))
        peer_s = timed_s(lambda: _download(server, fast, jobs))
        client.remove_object(BUCKET, CLEAR)
        with running_yard(folder / "yard", IMAGE, nodes=0) as yard:
            blob = BlobStore(S3Store(server.access(), BUCKET), yard.ring).put_file(source)
            source.unlink()
            ours_s, far_bytes = _run(yard, server, fast, blob, jobs)
    return _rows(mib, jobs, ours_s, peer_s, far_bytes, faster=QUICK_FASTER if quick else FASTER)


def _rows(mib: int, jobs: int, ours_s: float, peer_s: float, far_bytes: int, *, faster: int) -> list[Row]:
    what = f"{jobs} jobs over one input of {mib} MiB, 2 nodes"
    return [
        Row(
            row=what,
            ours=round(ours_s, 1),
            peer=round(peer_s, 1),
            peer_name="each downloads it by the SDK",
            unit="s",
            goal=f"ratio <= 1/{faster}",
            holds=ours_s * faster <= peer_s,
        ),
        Row(
            row=f"{what}: out of the durable store",
            ours=round(far_bytes / 2**20, 1),
            peer=float(mib * jobs),
            peer_name="each downloads it by the SDK",
            unit="MiB",
            goal="the input once",
            holds=far_bytes < 1.001 * mib * 2**20,
        ),
    ]


def _download(server: S3Server, folder: Path, jobs: int) -> None:
    def one(number: int) -> None:
        target = folder / f"target-{number}"
        words = [str(server.credentials), BUCKET, CLEAR, str(target)]
        subprocess.run([sys.executable, "-c", _DOWNLOAD, *words], check=True)
        target.unlink()

    with ThreadPoolExecutor(2 * AT_ONCE) as pool:
        list(pool.map(one, range(jobs)))


def _run(yard: TestYard, server: S3Server, fast: Path, blob: Blob, jobs: int) -> tuple[float, int]:
    """Seconds, and sealed bytes that the nodes took from the durable store."""
    names = ("a", "b")
    for name in names:
        yard.start_node(
            name, wait=False, store=server.spec(BUCKET), near=fast / f"near-{name}", scratch=fast / f"scratch-{name}",
            copies_gib=4, near_gib=4, peer_address="127.0.0.1", vcpus=AT_ONCE, memory_mib=2048,
        )  # fmt: skip
    yard.wait_ready()
    until(lambda: all(yard.redis.hget(keys.node(name), "peer") for name in names), "both tell where their doors are")

    def run() -> None:
        inputs = {"/in/x": {"digest": blob.digest, "size": blob.size}}
        sent = [yard.shell("tail -c 100 /in/x | wc -c", vcpus=1, inputs=inputs) for _ in range(jobs)]
        assert all(one.get(timeout=600)["exit_code"] == 0 for one in sent)

    def told() -> list[dict[str, int]]:
        return [json.loads(yard.redis.hget(keys.node(name), "cache") or "{}") for name in names]

    took_s = timed_s(run)
    until(lambda: sum(one["hits"] + one["misses"] for one in told()) >= jobs, "both tell of their caches", timeout_s=30)
    return took_s, sum(one["far_bytes"] for one in told())
