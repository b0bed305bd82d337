"""Images on this node: each pulled, or loaded, once at a time, few at a time (40 at once hang dockerd).

Who asks for an image that is being pulled waits for that pull and gets its outcome, good or bad. A failure is not
remembered: the next to ask tries again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeAlias

from batchyard.broker.errors import ImageError, StartError

from .engine.protocol import Engine

STOP_WITHIN_S = 0.25

Archive: TypeAlias = Callable[[], AbstractContextManager[Path]]
"""Gives the archive that an image is loaded from, for the length of a body."""


class Puller:
    """`parallel` pulls at once. That an image is here is believed for `fresh_s` without asking the engine."""

    def __init__(
        self, engine: Engine, *, parallel: int = 2, fresh_s: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._fresh_s, self._clock = fresh_s, clock
        self._slots = threading.BoundedSemaphore(parallel)
        self._lock = threading.Lock()
        self._pulling: dict[str, Future[str]] = {}
        self._seen: dict[str, tuple[str, float]] = {}

    def ensure(
        self,
        image: str,
        *,
        archive: Archive | None = None,
        pulling: Callable[[], None] | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> str:
        """The image's config digest, after a pull when it was not here; blocks meanwhile. archive: it is loaded from
        there instead, and whatever getting that raises is raised.

        `pulling` is called once when the caller has to wait for a pull. ImageError, ImageUnavailable, DiskFull and
        EngineUnavailable as of `Engine.pull`. StartError: `stopped` says that the caller waits no longer; the pull
        goes on.
        """
        digest = self._fresh(image) or self._present(image)
        if digest is not None:
            return digest
        if pulling is not None:
            pulling()
        with self._lock:
            first = image not in self._pulling
            future: Future[str] = self._pulling.setdefault(image, Future())
        if first:  # on a thread of its own: whoever waits may be told to stop
            threading.Thread(target=self._lead, args=(image, future, archive), name="pull", daemon=True).start()
        while not stopped():
            if wait([future], STOP_WITHIN_S).done:
                return future.result()
        raise StartError(f'stopped while image "{image}" was pulled')

    def forget(self, image: str) -> None:
        """It is not here after all (`create` raised ImageError): ask the engine next time."""
        with self._lock:
            self._seen.pop(image, None)

    def _fresh(self, image: str) -> str | None:
        with self._lock:
            digest, seen_at = self._seen.get(image, ("", 0.0))
        return digest if digest and self._clock() - seen_at < self._fresh_s else None

    def _present(self, image: str) -> str | None:
        digest = self._engine.image_present(image)
        if digest is not None:
            with self._lock:
                self._seen[image] = (digest, self._clock())
        return digest

    def _get(self, image: str, archive: Archive | None) -> None:
        if archive is None:
            self._engine.pull(image)
            return
        with archive() as path:
            self._engine.load(path, image)

    def _lead(self, image: str, future: Future[str], archive: Archive | None) -> None:
        try:
            with self._slots:
                digest = self._present(image)  # somebody's pull may have ended since we looked
                if digest is None:
                    self._get(image, archive)
                    digest = self._present(image)
            if digest is None:
                raise ImageError(f'image "{image}" was pulled and is not there; is somebody removing images?')
        except BaseException as error:
            with self._lock:
                del self._pulling[image]
            future.set_exception(error)
        else:
            with self._lock:
                del self._pulling[image]
            future.set_result(digest)
