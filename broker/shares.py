"""What the shares of a queue have used, and whose turn is next. The rule is in `lua/shared/shares.lua`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .functions import Functions
from .store import Yard


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareUse:
    """An active share. used: vCPU-seconds, decayed until now, those of running jobs among them. weight: what counts, so
    that of a prefix times the shares that match. running: vCPUs. ready: jobs that may run; jobs: all that go on.
    """

    share: str
    used: float
    weight: float
    running: float
    ready: int
    jobs: int

    @property
    def counted(self) -> float:
        """By which shares are served, the lowest first."""
        return self.used * self.weight

    def as_json(self) -> dict[str, Any]:
        """JSON types only."""
        return {**asdict(self), "counted": self.counted}


def shares(yard: Yard, queue: str) -> list[ShareUse]:
    """The active shares of a queue, in the order in which they are served. Raises BrokerUnavailable."""
    told = Functions(yard.redis).call("shares", queue)
    found = [
        ShareUse(share=share.decode(), used=float(used), weight=float(weight), running=int(running) / 1000,
                 ready=int(ready), jobs=int(jobs))
        for share, used, weight, running, ready, jobs in (told[n : n + 6] for n in range(0, len(told), 6))
    ]  # fmt: skip
    return sorted(found, key=lambda one: (one.counted, one.running * one.weight, one.share))
