"""What a node tells of several of its jobs in one call: that they run, how they ended. Each is answered by itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .functions import Arg
from .record import Attempt, Claimed
from .recorder import Effect, flat
from .state import State

MOST = 32  # jobs a call: so many ends keep Redis for about 2 ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """STARTING → RUNNING. celery: Celery's STARTED result as JSON, or ''."""

    job: Claimed
    started_s: float
    celery: str = ""
    expires_s: int = 0

    def arguments(self) -> list[Arg]:
        """As `by_start` reads them."""
        return [self.job.id, self.job.token, int(self.started_s * 1000), self.celery, self.expires_s]


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The end of a job, with all that follows."""

    job: Claimed
    state: State
    attempt: Attempt
    fields: Mapping[str, str] = field(default_factory=dict)
    effects: Sequence[Effect] = ()

    def arguments(self, retention_s: int) -> list[Arg]:
        """As `by_settle` reads them."""
        told = [self.job.id, self.job.token, self.state.value, json.dumps(dict(self.fields)), self.attempt.dumps()]
        found: list[Arg] = [*told, retention_s, *flat(list(self.effects))]
        return [len(found), *found]
