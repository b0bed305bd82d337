"""How far the inputs or outputs of an attempt are, said now and then: never on the thread that moves the bytes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from rich.filesize import decimal

EVERY_S, FIRST_LINE_S = 1.0, 1.0


class Progress:
    """Use it around the staging, or the uploads, of one attempt. `tell` hears at most once in `every_s` what is done
    (it may block); `log`, which is for good, after a second and then ever more seldom. words: of what was heard.
    """

    def __init__(
        self,
        tell: Callable[[str], None],
        log: Callable[[str], None] = lambda text: None,
        *,
        words: Callable[[str, int, int], str] | None = None,
        every_s: float = EVERY_S,
    ) -> None:
        self._tell, self._log, self._every_s = tell, log, every_s
        self._words = words or fetched
        self._now: tuple[str, int, int] | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def hear(self, what: str, done: int, total: int) -> None:
        """Bytes of an input, or the image; from any thread, any number of times. What is here already says nothing."""
        self._now = (what, done, total)
        if self._thread is None:
            with self._lock:
                if self._thread is None and not self._over.is_set():
                    self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
                    self._thread.start()

    def _run(self) -> None:
        began, line_after_s, told = time.monotonic(), FIRST_LINE_S, ""
        while not self._over.wait(self._every_s):
            assert self._now is not None
            text = self._words(*self._now)
            if text == told:
                continue
            told = text
            self._tell(text)
            if time.monotonic() - began >= line_after_s:
                self._log(text)
                line_after_s = max(10.0, 3 * line_after_s)


def fetched(what: str, done: int, total: int) -> str:
    """`fetches 1.2 GB of 5.0 GB of input /in/x`."""
    if total and done >= total:
        return f"has fetched {decimal(total)} of {what}, and makes it ready"
    return f"fetches {decimal(done)}{f' of {decimal(total)}' if total else ''} of {what}"


def uploaded(what: str, done: int, total: int) -> str:
    """`uploads outputs (3 of 7, 1.2 GB of 5.0 GB)`."""
    return f"uploads outputs ({what}, {decimal(done)} of {decimal(max(done, total))})"
