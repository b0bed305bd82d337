"""Processes that belong to one parent: started in order, watched, started again, stopped in order.

They die with the parent, also when it is killed: the kernel sends them SIGKILL (PR_SET_PDEATHSIG). It does so when the
*thread* that started them ends, so all of this runs on the main thread.
"""

from __future__ import annotations

import ctypes
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from batchyard.broker.errors import BatchyardError

FIRST_DELAY_S, LAST_DELAY_S, LIVED_WELL_S = 0.5, 30.0, 60.0
LOG_BYTES = 16 << 20
SLOW_S = 5.0
_PR_SET_PDEATHSIG = 1
_POLL_S = 0.05
_TAIL_BYTES = 8192


class DidNotStart(BatchyardError):
    """`redis did not start: …; see …/redis.log`."""


class Stopped(Exception):
    """A signal came while something was waited for."""


def delay_after(previous_s: float, lived_s: float) -> float:
    """Seconds to wait before a part that died is started again: doubled, from the first if it had lived well."""
    if lived_s >= LIVED_WELL_S or previous_s <= 0:
        return FIRST_DELAY_S
    return min(LAST_DELAY_S, previous_s * 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A process to be. ready: what a line of its output says when it works. stop_s: from SIGTERM to SIGKILL."""

    name: str
    argv: Sequence[str]
    ready: str
    environ: Mapping[str, str]
    start_s: float = 60.0
    stop_s: float = 15.0


class Child:
    """One part, running or not. Its output goes to the end of `<logs>/<name>.log`."""

    def __init__(self, part: Part, logs: Path, keep_fd: int) -> None:
        self.part, self.log = part, logs / f"{part.name}.log"
        self._keep_fd, self._from = keep_fd, 0
        self._process: subprocess.Popen[bytes] | None = None
        self.started = self.delay_s = 0.0
        self.again_at: float | None = None
        self.was_ready = False

    def start(self) -> None:
        """Starts the process. Raises DidNotStart."""
        with suppress(FileNotFoundError):
            if self.log.stat().st_size > LOG_BYTES:
                os.replace(self.log, self.log.with_suffix(".log.1"))
        with self.log.open("ab") as out:
            self._from = out.tell()
            try:
                self._process = subprocess.Popen(
                    list(self.part.argv),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=dict(self.part.environ),
                    start_new_session=True,  # a Ctrl-C is the parent's to hand on, in order
                    pass_fds=(self._keep_fd,),
                    preexec_fn=tie_to(os.getpid()),  # noqa: PLW1509 (this process has one thread)
                )
            except OSError as error:
                raise DidNotStart(f"{self.part.name} did not start: {self.part.argv[0]}: {error.strerror}") from None
        self.started, self.again_at, self.was_ready = time.monotonic(), None, False

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def ended(self) -> int | None:
        """Its exit code once it is gone, negative for a signal."""
        return None if self._process is None else self._process.poll()

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def ready(self) -> bool:
        """Whether it has said since its start that it works."""
        if not self.was_ready:
            with self.log.open("rb") as file:
                file.seek(self._from)
                self.was_ready = re.search(self.part.ready.encode(), file.read(LOG_BYTES), re.MULTILINE) is not None
        return self.was_ready

    def signal(self, number: int) -> None:
        """Nothing if it is gone."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def last_words(self) -> str:
        """The last line of its output since its start."""
        with self.log.open("rb") as file:
            file.seek(max(self._from, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


class Family:
    """Children in the order of their start. say: tells a person. keep_fd: a descriptor that all of them hold open."""

    def __init__(self, logs: Path, keep_fd: int, say: Callable[[str], None]) -> None:
        self._logs, self._keep_fd, self._say = logs, keep_fd, say
        self.children: list[Child] = []
        self._signals: list[int] = []
        self._wake, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda n, _: self._signals.append(n))
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    def start(self, *parts: Part) -> None:
        """Starts parts side by side; returns when all work. Raises DidNotStart, Stopped."""
        new = [Child(part, self._logs, self._keep_fd) for part in parts]
        self.children += new
        for child in new:
            child.start()
        began, told = time.monotonic(), False
        while not all(child.ready() for child in new):
            self._sleep(_POLL_S)
            if not told and time.monotonic() - began > SLOW_S:
                told = True
                for child in new:
                    if not child.was_ready:
                        self._say(f"{child.part.name} is not ready yet: {child.last_words()}")
            if self._signals:
                raise Stopped
            for child in new:
                self._check_start(child)

    def watch(self) -> None:
        """Starts again what dies, until a signal comes."""
        while not self._signals:
            waits = [self._look_after(child, time.monotonic()) for child in self.children]
            self._sleep(min([1.0, *waits]))

    def stop(self, *groups: Sequence[str]) -> None:
        """Ends the children, group after group. A third signal kills them at once; those that are left go last."""
        self._signals.clear()
        named = {name for group in groups for name in group}
        rest = [child.part.name for child in self.children if child.part.name not in named]
        for group in [*groups, rest]:
            self._stop([child for child in self.children if child.part.name in group])

    def _stop(self, group: Sequence[Child]) -> None:
        began = time.monotonic()
        for child in group:
            child.signal(signal.SIGTERM)
        told = 0
        while any(child.running() for child in group):
            self._sleep(0.2)
            if len(self._signals) > told:
                told = len(self._signals)
                self._say("stopping already; once more kills at once" if told == 1 else "killing what is left")
            for child in group:
                if told > 1 or time.monotonic() - began > child.part.stop_s:
                    child.signal(signal.SIGKILL)

    def _check_start(self, child: Child) -> None:
        code = child.ended()
        if code is not None:
            raise DidNotStart(f"{child.part.name} did not start: {child.last_words()}; see {child.log}")
        if time.monotonic() - child.started > child.part.start_s:
            raise DidNotStart(f"{child.part.name} is not ready after {child.part.start_s:g} s: {child.last_words()}; "
                              f"see {child.log}")  # fmt: skip

    def _look_after(self, child: Child, now: float) -> float:
        """Seconds until this child wants to be looked at again."""
        code = child.ended()
        if code is None:
            if not child.was_ready and child.ready():
                self._say(f"{child.part.name} is back")
            return 1.0 if child.was_ready else _POLL_S
        if child.again_at is None:
            child.delay_s = delay_after(child.delay_s, now - child.started)
            child.again_at = now + child.delay_s
            self._say(f"{child.part.name} ended ({_how(code)}); it is started again in {child.delay_s:g} s, "
                      f"see {child.log}")  # fmt: skip
        if now >= child.again_at:
            try:
                child.start()
            except DidNotStart as error:
                child.again_at = now + LAST_DELAY_S
                self._say(str(error))
            return _POLL_S
        return child.again_at - now

    def _sleep(self, seconds: float) -> None:
        """Until the time is over, a signal came or a child ended."""
        if select.select([self._wake], [], [], max(0.0, seconds))[0]:
            with suppress(BlockingIOError):
                os.read(self._wake, 4096)


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def tie_to(parent: int, number: int = signal.SIGKILL) -> Callable[[], None]:
    """For `preexec_fn`: the kernel sends this signal when the thread of `parent` that starts the process ends."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up here: nothing is loaded between fork and exec

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    return tie
