"""One attempt on this node, for all parts that work on it: what it is, whether it is wanted, what it says it does."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from batchyard.broker.errors import BatchyardError, BrokerUnavailable, EngineUnavailable, StoreUnavailable
from batchyard.broker.job import Job
from batchyard.broker.record import Claimed
from batchyard.cache.copies.held import CopiesPinned

from .outcome import Stop
from .tools import Tools

log = logging.getLogger(__name__)
T = TypeVar("T")
STORE_PATIENCE_S, ENGINE_PATIENCE_S = 120.0, 600.0
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,199}")


class Context:
    """folder: the attempt's own. stop, why: whether, and why, it was told to stop."""

    def __init__(self, tools: Tools, claimed: Claimed, job: Job) -> None:
        self.tools, self.claimed, self.job = tools, claimed, job
        self.folder = tools.options.files / "jobs" / folder_name(claimed)
        self.stop: Stop | None = None
        self.why = ""
        self._told = ""
        # What a main member says and does is the job's.
        self.shown_id = claimed.job_id if claimed.member is None or claimed.member.is_main else claimed.id

    @property
    def work(self) -> Path:
        """What the job sees as /work."""
        return self.folder / "work"

    @property
    def is_stopped(self) -> bool:
        return self.stop is not None

    @property
    def is_given_up(self) -> bool:
        """Nobody wants any more of it. Of one whose time is over, what it has written may be wanted."""
        return self.stop not in {None, Stop.TIMEOUT}

    def doing(self, text: str) -> None:
        """What it does just now, for people."""
        if text != self._told:
            with suppress(BrokerUnavailable):
                self.tools.yard.progress(self.shown_id, text)
            self._told = text

    def patiently(self, act: Callable[[], T], until: Callable[[BatchyardError], float] | None = None) -> T:
        """Repeats for a while what an engine, a store or Redis, away, refused, or a cache full of others' inputs.

        until: for how long, by the monotonic clock.
        """
        until = until or Patience().until
        while True:
            try:
                return act()
            except (EngineUnavailable, StoreUnavailable, CopiesPinned, BrokerUnavailable) as error:
                end_s = until(error)
                if self.is_given_up or time.monotonic() > end_s:
                    raise
                log.warning("job %s waits: %s", self.claimed.id, error)
                time.sleep(0.5)


class Patience:
    """How long what refuses is waited for, from its first refusal: that may have taken long to get there."""

    def __init__(self) -> None:
        self._since: dict[type[BatchyardError], float] = {}

    def until(self, error: BatchyardError) -> float:
        """By the monotonic clock."""
        since = self._since.setdefault(type(error), time.monotonic())
        return since + (STORE_PATIENCE_S if isinstance(error, StoreUnavailable | CopiesPinned) else ENGINE_PATIENCE_S)


def folder_name(claimed: Claimed) -> str:
    """One folder a lease. A job id is the producer's word, a folder's name is not."""
    plain = claimed.id if _PLAIN.fullmatch(claimed.id) else hashlib.sha256(claimed.id.encode()).hexdigest()
    return f"{plain}.{claimed.token.partition(':')[0]}"
