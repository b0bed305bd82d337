"""What `why.explain` decides from: all that is known of one job, and of the nodes that serve its queue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .blocked import Amounts
from .heads import Head
from .record import Record
from .shortage import EnvironmentFacts

Closed = Literal["disabled", "spot"]
"""Why no node of an environment takes a job: it is disabled, or the job has left spot machines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Nodes that take nothing else until this job has room. since_s: epoch seconds."""

    nodes: tuple[str, ...]
    since_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """A node that serves the job's queue. total, free: None where it has not said. quiet_s: since it was heard of.

    jobs: that run there; uploads: that have ended there, and whose outputs are not durable yet; uploads_full: so many
    that it takes no more jobs. kept_for: another job, for which it takes no others. closed: no node of its environment
    takes the job.
    """

    name: str
    up: bool
    draining: bool
    quiet_s: float
    jobs: int
    most_jobs: int | None
    total: Amounts | None
    free: Amounts | None
    gpu_types: Mapping[str, int] = field(default_factory=dict)
    free_gpu_types: Mapping[str, int] = field(default_factory=dict)
    kept_for: str = ""
    closed: Closed | None = None
    uploads: int = 0
    uploads_full: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GateFacts:
    """What a job needs that no node has: tokens of a consumable resource, a place among the jobs at once of its
    definition or queue. jobs: that hold some now. total: None when there is no such resource (any more).
    since_s: when it was last taken from or changed.
    """

    kind: Literal["consumable", "definition", "queue"]
    name: str
    need: int
    free: int
    total: int | None
    jobs: int
    since_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of one job at one moment. Times are seconds since the epoch, by Redis's clock.

    place: (jobs before it, jobs) of its queue, or of its share if it has one, while it stands in the index. turn:
    (shares with jobs ready, those of them that are served before its share). gates: all that it needs.
    unreserved_vcpus: that its queue may still take, where some are kept for other shares. before: jobs
    that wait in queues that the same nodes serve first. listed: (queue, messages before it) while its message waits
    for intake. ready_s: since when it stands in the index.
    waiting_lists: messages that wait for intake. queue_state: None when the queue is not configured (any more).
    depends_on: those that it still waits for, with their states. retry_at_s: when it is tried again.
    revoked: a cancel that spares the running job. ending: its end is decided, and is being written.
    array_goes: of an array that waits for nothing but its children; child: one of them that waits, while none runs.
    stored_cancel: of a job that has not come yet. dead: why its message was no job. runs: of a job of several nodes,
    what they ask for. kept: the nodes that are kept for it. returning: its nodes give it up, then it waits again.
    environments: of its queue, in their order. head: why nothing can start it as the first job of its queue; limit_s:
    the time at which it is cancelled for that.
    """

    job_id: str
    now_s: float
    record: Record | None
    controller: bool
    place: tuple[int, int] | None = None
    before: Mapping[str, int] = field(default_factory=dict)
    eta_s: float | None = None
    depends_on: Mapping[str, str] = field(default_factory=dict)
    retry_at_s: float | None = None
    expires_s: float | None = None
    revoked: str = ""
    ending: str = ""
    stored_cancel: str = ""
    dead: str = ""
    listed: tuple[str, int] | None = None
    waiting_lists: int = 0
    queue_state: str | None = "ENABLED"
    nodes: tuple[NodeFacts, ...] = ()
    cancelled: bool = False
    array_goes: bool = False
    child: Facts | None = None
    turn: tuple[int, int] | None = None
    gates: tuple[GateFacts, ...] = ()
    unreserved_vcpus: float | None = None
    runs: tuple[tuple[int, Amounts], ...] = ()
    kept: Kept | None = None
    returning: bool = False
    ready_s: float | None = None
    environments: tuple[EnvironmentFacts, ...] = ()
    head: Head | None = None
    limit_s: float | None = None
