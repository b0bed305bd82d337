"""Real S3 servers for tests: MinIO and versitygw on loopback, over TLS, with random keys and an authority of their own.

`make test` has their binaries built before (`python -m batchyard.worker.binaries`). A server dies with the process that
started it, also when that is killed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from batchyard.broker.certificate import write_server_certificate
from batchyard.cache.stores.access import S3Access
from batchyard.worker.binaries import find
from batchyard.worker.supervise import tie_to

from .redis import free_port
from .wait import until

Kind = Literal["minio", "versitygw"]


class S3Server:
    """A server process of ours, on one port and one folder for all its lives; `kill9()` and `start()` is a crash.

    `credentials` is the file that a store's spec names; `data` is where the server keeps its bytes.
    """

    def __init__(self, kind: Kind, folder: Path, *, data: Path | None = None) -> None:
        found = find(kind)
        assert found is not None, f"{kind} is not here: run `.venv/bin/python -m batchyard.worker.binaries {kind}`"
        self.kind, self.folder, self._binary = kind, folder, found
        self.port = free_port()
        self.data = data or folder / "data"
        self.data.mkdir(parents=True, exist_ok=True)
        self.ca = write_server_certificate(folder / "certs")
        self._user, self._password = secrets.token_hex(10), secrets.token_hex(20)
        self.credentials = folder / "credentials"
        self.credentials.write_text(
            f"[default]\naws_access_key_id = {self._user}\naws_secret_access_key = {self._password}\n"
            f"endpoint_url = https://127.0.0.1:{self.port}\nca_bundle = {self.ca}\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid

    def access(self) -> S3Access:
        return S3Access.of_file(self.credentials)

    def spec(self, bucket: str) -> str:
        """What --store takes."""
        return f"s3://{bucket}?credentials={self.credentials}"

    def start(self, *, timeout_s: float = 30.0) -> None:
        """Start it and return when it answers. AssertionError with the end of its log otherwise."""
        if self._process is not None and self._process.poll() is None:
            return
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=tie_to(os.getpid()),
            )
        until(self._answers, f"{self.kind} answers on port {self.port}", timeout_s=timeout_s)

    def _command(self) -> list[str]:
        here, certs = f"127.0.0.1:{self.port}", self.ca.parent
        if self.kind == "minio":
            return [str(self._binary), "server", "--certs-dir", str(certs), "--address", here, str(self.data)]
        return [str(self._binary), "--quiet", "--keep-alive", "--health", "/health", "--port", here, "--cert",
                str(certs / "public.crt"), "--key", str(certs / "private.key"), "posix", *self._metadata(),
                str(self.data)]  # fmt: skip

    def _metadata(self) -> list[str]:
        """Where versitygw keeps it on a file system without extended attributes."""
        try:
            os.setxattr(self.data, "user.batchyard", b"1")
        except OSError:
            (self.folder / "metadata").mkdir(exist_ok=True)
            return ["--sidecar", str(self.folder / "metadata")]
        return []

    def _environment(self) -> Mapping[str, str]:
        mine = {"MINIO_ROOT_USER": self._user, "MINIO_ROOT_PASSWORD": self._password, "MINIO_BROWSER": "off",
                "MINIO_UPDATE": "off", "ROOT_ACCESS_KEY_ID": self._user, "ROOT_SECRET_ACCESS_KEY": self._password,
                "ROOT_ACCESS_KEY": self._user, "ROOT_SECRET_KEY": self._password}  # fmt: skip
        return {**os.environ, **mine}

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            said = (self.folder / "log").read_text(errors="replace")
            raise AssertionError(f"{self.kind} ended at once; the end of its log:\n{said[-2000:]}")
        path = "/minio/health/cluster" if self.kind == "minio" else "/health"
        try:
            context = ssl.create_default_context(cafile=str(self.ca))
            with urlopen(f"https://127.0.0.1:{self.port}{path}", timeout=2, context=context):
                return True
        except (HTTPError, URLError, OSError):
            return False

    def kill9(self) -> None:
        """End it as a crash would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in order; killed when that takes over 10 s. May be called twice."""
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def remove(self) -> None:
        """Stop it and remove its bytes."""
        self.stop()
        shutil.rmtree(self.data, ignore_errors=True)


@contextmanager
def running_server(kind: Kind, folder: Path, *, data: Path | None = None) -> Iterator[S3Server]:
    """A server that answers; it and its bytes are gone at the end."""
    server = S3Server(kind, folder, data=data)
    try:
        server.start()
        yield server
    finally:
        server.remove()
