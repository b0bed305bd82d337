"""Lines that jobs write outside of the yard, counted without it: a named pipe that is read by the test.

An input `file://…` is a read-only bind, and a pipe on a read-only file system can be written to: so a job of any
profile needs no network to say that it ran. Each line up to 4 KiB arrives whole.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from pathlib import Path

_MARK = b"\0mark "
UNTIL_LET_GO = "until [ -e /count/go ]; do sleep 0.1; done"


class LineCounter:
    """Appends what jobs write to `folder/line` to the file `kept`. `folder` must be one that the node allows.

    A job with `inputs` whose script has `UNTIL_LET_GO` goes no further before `let_go`.
    """

    def __init__(self, folder: Path, kept: Path) -> None:
        folder.mkdir(parents=True)
        folder.chmod(0o755)
        self.folder, self.pipe, self.kept = folder, folder / "line", kept
        os.mkfifo(self.pipe)
        self.pipe.chmod(0o666)
        self.inputs = {"/count": f"file://{folder}"}
        self._fd = os.open(self.pipe, os.O_RDWR)  # read and write: it never ends, and no writer waits for a reader
        os.open(self.pipe, os.O_RDWR)  # open as long as this process: a late writer must not wait either
        self._at: list[tuple[float, str]] = []
        self._changed = threading.Condition()
        self._mark = self._passed = 0  # lines of ours: what was written before one has been read when that has
        threading.Thread(target=self._read, name="line-counter", daemon=True).start()

    def _read(self) -> None:
        with os.fdopen(self._fd, "rb", buffering=0) as pipe, self.kept.open("ab", buffering=0) as kept:
            rest = b""
            while not rest.endswith(b"stop\n"):
                *lines, rest = (rest + pipe.read(65536)).split(b"\n")
                for line in lines:
                    if line == b"stop":
                        return
                    if line.startswith(_MARK):
                        with self._changed:
                            self._passed = int(line[len(_MARK) :])
                            self._changed.notify_all()
                        continue
                    kept.write(line + b"\n")
                    self._at.append((time.monotonic(), line.decode()))

    def lines(self) -> list[str]:
        """What has been written so far, in order."""
        with self._changed:
            self._mark += 1
            self._write(b"%s%d\n" % (_MARK, self._mark))
            assert self._changed.wait_for(lambda: self._passed >= self._mark, 30), "the pipe is not read"
        return self.kept.read_text().splitlines() if self.kept.exists() else []

    def counts(self) -> Counter[str]:
        """How often each line was written."""
        return Counter(self.lines())

    def times(self, text: str) -> list[float]:
        """When (`time.monotonic()`) lines with this text came."""
        return [at for at, line in list(self._at) if text in line]

    def let_go(self) -> None:
        """Jobs that wait for it, now and later, go on."""
        (self.folder / "go").touch()

    def close(self) -> None:
        """May be called twice."""
        self._write(b"stop\n")

    def _write(self, line: bytes) -> None:
        fd = os.open(self.pipe, os.O_WRONLY | os.O_NONBLOCK)
        os.write(fd, line)
        os.close(fd)
