"""A private Redis for tests: loopback, a free port, every write synced, no keyspace events until somebody asks."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import redis

from .wait import until

DATABASES = 512
_SETTINGS = {
    "--bind": "127.0.0.1",
    "--appendonly": "yes",
    "--appendfsync": "always",
    "--save": "",
    "--notify-keyspace-events": "",
    "--databases": str(DATABASES),
    "--daemonize": "no",
}


def free_port() -> int:
    """A loopback TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RedisServer:
    """A redis-server process of ours, on one port and one directory for all its lives.

    `kill9()` and then `start()` is a crash and a restart on the same data. `stop()` and `kill9()` may be called twice,
    and only ever touch the process that this object started.
    """

    def __init__(self, port: int, directory: Path) -> None:
        self.port, self.directory = port, directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, timeout_s: float = 20.0) -> None:
        """Start it and return when it answers, its data loaded. `AssertionError` with the end of its log otherwise."""
        if self._process is not None and self._process.poll() is None:
            return
        settings = [word for pair in _SETTINGS.items() for word in pair]
        where = ["--port", str(self.port), "--dir", str(self.directory)]
        with (self.directory / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["redis-server", *settings, *where], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        until(self._answers, f"redis-server answers on port {self.port}", timeout_s=timeout_s)

    def kill9(self) -> None:
        """End it as a crash would."""
        self._end(kill=True)

    def stop(self) -> None:
        """End it in order; killed when that takes over 10 s."""
        self._end(kill=False)

    def url(self, db: int = 0) -> str:
        """`redis://127.0.0.1:<port>/<db>`, 0 <= db < `DATABASES`."""
        return f"redis://127.0.0.1:{self.port}/{db}"

    def _answers(self) -> bool:
        process = self._process
        if process is None or process.poll() is not None:
            log = (self.directory / "redis.log").read_text(errors="replace")
            raise AssertionError(f"redis-server ended at once; the end of its log:\n{log[-2000:]}")
        client = redis.Redis.from_url(self.url(), socket_timeout=1)
        try:
            # Another server may have taken the port: ours is the one that says our pid.
            return int(client.info("server")["process_id"]) == process.pid
        except redis.RedisError:
            return False  # not listening yet, or still loading its data
        finally:
            client.close()

    def _end(self, *, kill: bool) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if kill:
            process.kill()
        else:
            process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
