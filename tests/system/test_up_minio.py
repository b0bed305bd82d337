"""`batchyard up --minio`: the yard's blobs in a MinIO of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from batchyard.broker.client import Client
from batchyard.broker.endpoints import Endpoints
from batchyard.broker.errors import StoreUnavailable
from batchyard.broker.state import State
from batchyard.cache.stores.access import S3Access
from batchyard.cache.stores.s3 import S3Store
from batchyard.worker.binaries import find
from yardtest.up import COMMAND, Up, processes
from yardtest.wait import until


class UpWithMinio(Up):
    """One `batchyard up` whose blobs are in a MinIO."""

    def minio(self) -> int:
        """The pid of its MinIO."""
        assert self.process is not None
        binary, found = str(find("minio")), []
        for line in processes():
            pid, parent, words = line.split(None, 2)
            if int(parent) == self.process.pid and words.startswith(binary):
                found.append(int(pid))
        (pid_of_it,) = found
        return pid_of_it

    def run(self, *words: str) -> str:
        """A command of the CLI on this yard; what it printed."""
        ran = subprocess.run(
            [*COMMAND, *words, "--state", str(self.state)], capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.strip()


def listening(pid: int) -> set[tuple[str, int]]:
    """Address and port of each TCP socket on which a process listens."""
    links = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            links.add(os.readlink(fd))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            place, state, inode = (line.split()[i] for i in (1, 3, 9))
            if state == "0A" and f"socket:[{inode}]" in links:
                address, port = place.split(":")
                packed = b"".join(bytes.fromhex(address)[i : i + 4][::-1] for i in range(0, len(address) // 2, 4))
                found.add((str(ip_address(packed)), int(port, 16)))
    assert found
    return found


def credentials(ends: Endpoints) -> Path:
    assert ends.store is not None
    parts = urlsplit(ends.store)
    assert (parts.scheme, parts.netloc) == ("s3", "batchyard")
    return Path(parse_qs(parts.query)["credentials"][0])


@pytest.fixture
def up(tmp_path: Path) -> Iterator[UpWithMinio]:
    made = UpWithMinio(tmp_path / "a state & more")  # a path that a URL would take apart
    yield made
    if made.process is not None and made.process.poll() is None:
        assert made.stop() == 0


def test_files_go_through_minio_to_a_job_and_back_and_the_next_up_goes_on(
    up: UpWithMinio, image: str, tmp_path: Path
) -> None:
    first = up.start("--minio")
    (tmp_path / "in").write_text("some bytes\n")
    digest = up.run("put", str(tmp_path / "in"))
    script = "cat /in/a; tr a-z A-Z </in/a >/work/out"
    with Client.connect(up.state) as client:
        job_id = client.submit(
            {"image": image, "command": ["sh", "-c", script], "vcpus": 0.1, "memory_mib": 32,
             "inputs": {"/in/a": digest}, "outputs": {"out": "/work/out"}}
        )  # fmt: skip
        (record,) = client.wait([job_id], timeout_s=60)
    assert record.state is State.SUCCEEDED, record
    assert "some bytes" in up.run("logs", job_id)
    assert record.result is not None
    out = record.result["outputs"]["out"]["digest"]
    up.run("get", out, str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "SOME BYTES\n"
    assert len(list(S3Store(S3Access.of_file(credentials(first)), "batchyard").names())) >= 3
    assert not (up.state / "store").exists()
    up.stop()

    second = up.start()
    assert (second.store, second.broker_url) == (first.store, first.broker_url)
    up.run("get", out, str(tmp_path / "again"))
    assert (tmp_path / "again").read_text() == "SOME BYTES\n"
    up.stop()

    third = up.start("--no-minio")
    assert third.store == str(up.state / "store")
    assert "blobs kept until now stay in the MinIO" in up.said()


def test_minio_is_for_this_machine_and_its_keys_are_its_owners(up: UpWithMinio) -> None:
    ends = up.start("--minio")
    file = credentials(ends)
    access = S3Access.of_file(file)
    root = json.loads((up.state / "minio" / "root").read_text())["root"]
    for path in (file, up.state / "minio" / "root", up.state / "minio" / "certs" / "private.key"):
        assert path.stat().st_mode & 0o077 == 0, path
    shown = "\n".join(processes())
    logged = "".join(path.read_text() for path in (up.state / "logs").iterdir())
    for secret in (access.secret_key, root["password"]):
        assert secret
        assert secret not in shown
        assert secret not in logged
        assert secret not in up.said()
    port = urlsplit(access.endpoint_url or "").port
    assert listening(up.minio()) <= {("127.0.0.1", port), ("::1", port)}
    # the yard's keys open one bucket and make no other; without the authority nothing is sent
    assert len(list(S3Store(access, "batchyard").names())) == 1  # its id
    with pytest.raises(StoreUnavailable, match=r"refuses us .AccessDenied"):
        S3Store(access, "other", create=True)
    with pytest.raises(StoreUnavailable, match="ca_bundle"):
        S3Store(replace(access, ca_bundle=None), "batchyard").stat("ab" * 32)


def test_a_minio_that_dies_is_started_again_and_jobs_wait_for_it(up: UpWithMinio, image: str, tmp_path: Path) -> None:
    data = tmp_path / "elsewhere"
    up.start("--minio-data", str(data))
    (tmp_path / "in").write_text("kept\n")
    digest = up.run("put", str(tmp_path / "in"))
    os.kill(up.minio(), signal.SIGKILL)
    with Client.connect(up.state) as client:
        job_id = client.submit({"image": image, "command": ["cat", "/in/a"], "vcpus": 0.1, "memory_mib": 32,
                                "inputs": {"/in/a": digest}})  # fmt: skip
        (record,) = client.wait([job_id], timeout_s=60)
    assert record.state is State.SUCCEEDED, record
    assert len(record.attempts) == 1
    assert "minio ended (SIGKILL)" in up.said()
    until(lambda: "minio is back" in up.said(), "it is back")
    assert (data / "batchyard").is_dir()


def test_a_machine_that_cannot_have_minio_says_why(tmp_path: Path) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    redis_server = subprocess.run(["sh", "-c", "command -v redis-server"], capture_output=True, text=True, check=True)
    (bare / "redis-server").symlink_to(redis_server.stdout.strip())
    environ = {**os.environ, "PATH": str(bare), "XDG_CACHE_HOME": str(tmp_path / "cache"), "PIP_NO_INDEX": "1",
               "PIP_FIND_LINKS": str(tmp_path)}  # fmt: skip
    ran = subprocess.run([*COMMAND, "up", "--minio", "--state", str(tmp_path / "state")], env=environ,
                         capture_output=True, text=True, check=False)  # fmt: skip
    assert ran.returncode == 2
    assert "error: minio cannot be had: it is not here, nor is Go" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert "ready" not in ran.stdout
