"""`batchyard up` from outside, as a process."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

from batchyard.broker.endpoints import Endpoints

from .wait import until

COMMAND = (sys.executable, "-P", "-m", "batchyard.broker.cli")


class Up:
    """One `batchyard up`, started anew on the same state as often as wanted."""

    def __init__(self, state: Path) -> None:
        self.state, self._out, self._err = state, state.parent / "up.out", state.parent / "up.err"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *words: str) -> Endpoints:
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen([*COMMAND, "up", "--state", str(self.state), "--grace-s", "1", *words],
                                            stdout=out, stderr=err, start_new_session=True)  # fmt: skip
        until(self._ready, "the yard is ready", timeout_s=60)
        return Endpoints.load(self.state)

    def _ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.said()
        return self._out.read_text().startswith("ready")

    def said(self) -> str:
        return self._out.read_text() + self._err.read_text()

    def children(self) -> dict[str, int]:
        """Name → pid of its live processes."""
        assert self.process is not None
        found = {}
        for line in processes():
            pid, parent, words = line.split(None, 2)
            if int(parent) == self.process.pid and "<defunct>" not in words:
                name = re.search(r"(redis)-server|batchyard\.broker\.cli (\w+)", words)
                found[(name[1] or name[2]) if name else words] = int(pid)
        return found

    def stop(self, number: int = signal.SIGINT) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)


def processes() -> list[str]:
    """Pid, parent's pid and whole command line of each."""
    ran = subprocess.run(["ps", "-wweo", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
    return ran.stdout.splitlines()
