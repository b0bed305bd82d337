"""Where a process has the yard's keys from: a file, an environment variable, or what a command prints (a KMS's hook).

All three give the same text, JSON as `batchyard controller` writes it into a new key file; the last two also base64 of
it. No error and no log shows any of it.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, TypeAlias

from .errors import InvalidConfig
from .seal import KeyRing, Keys, keyfile

VARIABLE = "BATCHYARD_KEYS"
FILE_VARIABLE = "BATCHYARD_KEY_FILE"
COMMAND_VARIABLE = "BATCHYARD_KEY_COMMAND"
VARIABLES = frozenset({VARIABLE, FILE_VARIABLE, COMMAND_VARIABLE})
NO_KEYS = f"no keys were named; give --key-file or --key-command ({FILE_VARIABLE}, {COMMAND_VARIABLE}, {VARIABLE})"
_COMMAND_S = 30.0
_MOST_BYTES = 1 << 20
_MOST_SAID = 300
_SECRET_LIKE = re.compile(r"[A-Za-z0-9+/=_-]{24,}")


class KeySource(Protocol):
    """Asked once at the start, and again when it may have other keys."""

    @property
    def path(self) -> Path | None:
        """The file, where the keys are in one that may be changed."""
        ...

    @property
    def stamp(self) -> object:
        """Differs from what it was once there may be other keys; None: only `load` can tell."""
        ...

    @property
    def environ(self) -> Mapping[str, str]:
        """What names it to a child process."""
        ...

    def load(self) -> Keys:
        """Raises InvalidConfig: missing, damaged, open to others, or a command that failed."""
        ...

    def __str__(self) -> str:
        """As people are told of it."""
        ...


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A file of mode 0600; see `seal.keyfile`."""

    path: Path

    @property
    def stamp(self) -> object:
        return keyfile.stamp(self.path)

    @property
    def environ(self) -> Mapping[str, str]:
        return {FILE_VARIABLE: str(self.path)}

    def load(self) -> Keys:
        return keyfile.found(self.path)

    def __str__(self) -> str:
        return f'key file "{self.path}"'


@dataclass(frozen=True, slots=True, repr=False)
class KeyText:
    """A variable of the environment. It is the same as long as the process lives."""

    text: str

    @property
    def path(self) -> None:
        return None

    @property
    def stamp(self) -> object:
        return 0

    @property
    def environ(self) -> Mapping[str, str]:
        return {VARIABLE: self.text}

    def load(self) -> Keys:
        return Keys.loads(_decoded(self.text, str(self)), str(self))

    def __str__(self) -> str:
        return VARIABLE

    def __repr__(self) -> str:
        return f"KeyText({VARIABLE})"


@dataclass(frozen=True, slots=True)
class KeyCommand:
    """What a command line prints, split into words as a shell would, and run without one. within_s: how long it may
    take.
    """

    command: str
    within_s: float = _COMMAND_S

    @property
    def path(self) -> None:
        return None

    @property
    def stamp(self) -> object:
        return None

    @property
    def environ(self) -> Mapping[str, str]:
        return {COMMAND_VARIABLE: self.command}

    def load(self) -> Keys:
        return Keys.loads(_decoded(_output(self.command, self.within_s, str(self)), str(self)), str(self))

    def __str__(self) -> str:
        return f'key command "{_printable(self.command.partition(" ")[0])}"'


AnySource: TypeAlias = KeySource | Path


def as_source(given: AnySource) -> KeySource:
    """A path is a key file."""
    return KeyFile(given) if isinstance(given, Path) else given


def source_of(
    *, file: Path | None = None, command: str | None = None, environ: Mapping[str, str] = os.environ
) -> KeySource | None:
    """The one that was named: file or command by option, else one by the environment; None: none was named.

    Raises InvalidConfig: several were named in one place, so that nobody can say which counts.
    """
    if file is not None or command:
        return _only({
            "--key-file": None if file is None else KeyFile(_absolute(file)),
            "--key-command": KeyCommand(command) if command else None,
        })  # fmt: skip
    path, line, text = (environ.get(name) for name in (FILE_VARIABLE, COMMAND_VARIABLE, VARIABLE))
    return _only({
        FILE_VARIABLE: KeyFile(_absolute(Path(path))) if path else None,
        COMMAND_VARIABLE: KeyCommand(line) if line else None,
        VARIABLE: KeyText(text) if text else None,
    })  # fmt: skip


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _only(named: Mapping[str, KeySource | None]) -> KeySource | None:
    found = {name: source for name, source in named.items() if source is not None}
    if len(found) > 1:
        raise InvalidConfig(f"{' and '.join(found)} name the yard's keys, each of them; leave one")
    return next(iter(found.values()), None)


def load_ring(source: AnySource) -> KeyRing:
    """Raises InvalidConfig."""
    return KeyRing(as_source(source).load())


def load_or_create_ring(source: AnySource) -> KeyRing:
    """As `load_ring`; a key file that is missing is made."""
    source = as_source(source)
    return KeyRing.load_or_create(source.path) if source.path is not None else load_ring(source)


def _decoded(text: str, what: str) -> str:
    """JSON, or base64 of it, as text of JSON. InvalidConfig: it is neither."""
    text = text.strip()
    if text.startswith("{"):
        return text
    try:
        return base64.b64decode("".join(text.split()), validate=True).decode()
    except (binascii.Error, ValueError):
        raise InvalidConfig(f"{what} gives neither JSON nor base64 of it; see that it gives the yard's keys") from None


def _output(command: str, within_s: float, what: str) -> str:
    """What the command prints. InvalidConfig: it fails, hangs, or prints more than keys can be."""
    try:
        words = shlex.split(command)
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            env={name: value for name, value in os.environ.items() if name != VARIABLE},
        )  # fmt: skip
    except (OSError, ValueError, IndexError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no command line"
        raise InvalidConfig(f"{what} cannot be run: {why}; correct --key-command") from None
    try:
        out, said, code = _ended(process, within_s)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if code is None:
        raise InvalidConfig(f"{what} did not end within {within_s:g} s; run it by hand to see why")
    if code != 0:
        raise InvalidConfig(f"{what} failed with {code}{_told(said)}; run it by hand to see why")
    if len(out) > _MOST_BYTES:
        raise InvalidConfig(f"{what} prints more than {_MOST_BYTES >> 20} MiB; let it print the yard's keys alone")
    return out.decode("utf-8", "replace")


def _ended(process: subprocess.Popen[bytes], within_s: float) -> tuple[bytes, bytes, int | None]:
    """stdout and the beginning of stderr, and the exit code; None: it, or somebody who has its stdout, goes on."""
    end = time.monotonic() + within_s
    kept: dict[str, bytes] = {}
    threads = []
    for name, stream, most in (("out", process.stdout, _MOST_BYTES), ("said", process.stderr, 1 << 16)):
        assert stream is not None
        thread = threading.Thread(target=_keep, args=(stream, most, kept, name), daemon=True)
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    if threads[0].is_alive():
        return b"", b"", None
    try:
        code = process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        return b"", b"", None
    return kept.get("out", b""), kept.get("said", b""), code


def _keep(stream: IO[bytes], most: int, kept: dict[str, bytes], name: str) -> None:
    """The beginning; the rest is read and thrown away, so that the command ends."""
    found = bytearray()
    with suppress(OSError, ValueError), stream:
        while piece := stream.read1(1 << 16):  # type: ignore[attr-defined]
            if len(found) <= most:
                found += piece
    kept[name] = bytes(found)


def _told(stderr: bytes) -> str:
    """The last line of what it said, without what could be a secret."""
    lines = [line for line in stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    return f': "{_printable(lines[-1])}"' if lines else ""


def _printable(text: str) -> str:
    shown = "".join(c if c.isprintable() else "?" for c in text.strip())
    return _SECRET_LIKE.sub("…", shown)[:_MOST_SAID]
