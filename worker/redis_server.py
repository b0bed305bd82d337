"""A Redis for `batchyard up` alone: loopback only, with a password, every write on disk before it is answered."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
from pathlib import Path

from batchyard.broker.errors import InvalidConfig

OLDEST = 7
READY = r"Ready to accept connections"
_CONF = """\
# Written by `batchyard up` at each start.
bind 127.0.0.1
protected-mode yes
port {port}
requirepass {password}
dir {folder}
daemonize no
appendonly yes
appendfsync always
save ""
maxmemory-policy noeviction
notify-keyspace-events Kl
"""


def redis_binary() -> str:
    """The path of redis-server. Raises InvalidConfig: missing or too old."""
    found = shutil.which("redis-server")
    if found is None:
        raise InvalidConfig(
            'there is no redis-server here; install the package "redis-server" (Debian, Ubuntu) or "redis", '
            f"version {OLDEST} or later"
        )
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"v=(\d+)\.", said)
    if version is None or int(version[1]) < OLDEST:
        shown = version[0].strip("v=.") if version else "unknown"
        raise InvalidConfig(f"redis-server is version {shown}; Batchyard needs {OLDEST} or later: install a later one")
    return found


def write_conf(folder: Path, port: int) -> tuple[Path, str]:
    """The configuration file (0600) and the password, which stays the same for this folder."""
    folder.mkdir(mode=0o700, exist_ok=True)
    kept = folder / "password"
    try:
        password = kept.read_text().strip()
    except FileNotFoundError:
        password = secrets.token_hex(24)
        write_private(kept, password)
    conf = folder / "redis.conf"
    write_private(conf, _CONF.format(port=port, password=password, folder=f'"{folder}"'))
    return conf, password


def write_private(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)


def pick_port(what: str, told: int | None, earlier: int | None) -> int:
    """The port that was told, else the earlier one if it is free, else a free one. Raises InvalidConfig."""
    if told is not None:
        if not _is_free(told):
            raise InvalidConfig(f"port {told} for {what} is in use; choose another, or leave it out")
        return told
    if earlier is not None and _is_free(earlier):
        return earlier
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as those do that will listen there
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
