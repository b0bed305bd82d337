"""The record of a job as it is read, and what a claim hands out. Times are seconds since the epoch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .arrays import Array, index_of, parent_of
from .state import State


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One run of a job that has ended. counted: whether it used up one of `job.attempts`.

    status_reason: AWS Batch's word for how it ended; rules for retries look at it.
    """

    node: str
    started: float | None
    ended: float
    exit_code: int | None
    reason: str
    counted: bool = True
    log: str | None = None
    status_reason: str = ""

    def dumps(self) -> str:
        return json.dumps(
            {**asdict(self), "started": _to_ms(self.started), "ended": _to_ms(self.ended)}, separators=(",", ":")
        )

    @classmethod
    def loads(cls, text: str) -> Attempt:
        value = json.loads(text)
        return cls(**{**value, "started": _to_s(value["started"]), "ended": _to_s(value["ended"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class DependsOn:
    """A job that this one had to wait for. left: it still has to. on_failure: FAIL or CONTINUE.

    type: "SEQUENTIAL" (job_id is then '') or "N_TO_N", which an array's children wait for, each for one; else ''.
    """

    job_id: str
    on_failure: str
    left: bool
    type: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What the yard knows of a job.

    losses: runs that ended with their node; interruptions: those and all others that are not counted as attempts and
    bounded by `infrastructure_retries`. array: of a parent, its children; parent, index: of such a child. gang: on how
    many nodes it runs, 0 for a plain job; main: which of them is the main one. tenant: whose blobs it reads and writes.
    outputs: name → blob as JSON; of a failed job those that were to be kept all the same. reused: the job that made the
    outputs; this one was not run.
    """

    id: str
    state: State
    queue: str
    image: str
    name: str
    priority: int
    vcpus: float
    memory_mib: int
    gpus: int
    disk_gib: float
    created: float
    started: float | None
    ended: float | None
    node: str | None
    exit_code: int | None
    reason: str
    attempts: tuple[Attempt, ...]
    losses: int
    interruptions: int
    depends_on: tuple[DependsOn, ...]
    cancelling: bool
    result: dict[str, Any] | None
    log: str | None
    progress: str
    definition: str = ""
    array: Array | None = None
    parent: str | None = None
    index: int | None = None
    gang: int = 0
    main: int = 0
    share: str = ""
    scheduling_priority: int = 0
    gpu_type: str = ""
    consumables: Mapping[str, int] = field(default_factory=dict)
    tenant: str = ""
    outputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    reused: str = ""

    def as_json(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """What makes a leased job one node's part of a larger one: `job_id` runs on `count` nodes, this one is `index`.

    placement: how often the job's nodes have been chosen, with this time. go: the main node's address once it runs.
    halt: why this part is to be stopped and given up.
    """

    job_id: str
    index: int
    count: int
    main: int
    placement: int
    go: str | None = None
    halt: str = ""

    @property
    def is_main(self) -> bool:
        return self.index == self.main


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A job that this node holds. token is the fence: who has another one holds nothing. attempt counts from 1.

    interruptions: runs before this one that were not counted, but for drained nodes.
    """

    id: str
    token: str
    attempt: int
    queue: str
    created: float
    document: bytes
    cancel: str = ""
    started: float | None = None
    interruptions: int = 0
    member: Membership | None = None

    @property
    def job_id(self) -> str:
        """The job that was submitted: of a part of one, the whole."""
        return self.member.job_id if self.member else self.id

    @property
    def index(self) -> int | None:
        """Of a child of an array, else None."""
        return None if parent_of(self.id) is None else index_of(self.id)

    @classmethod
    def of_row(cls, row: Sequence[Any]) -> Claimed:
        """As `by_claim` answers it."""
        job_id, token, attempt, document, queue, created, interruptions, *more = row
        told = json.loads(more[0]) if more else {}
        started = told.get("started")
        return cls(
            id=job_id.decode(),
            token=token.decode(),
            attempt=int(attempt),
            document=document,
            queue=queue.decode(),
            created=int(created) / 1000,
            interruptions=int(interruptions),
            cancel=told.get("cancel", ""),
            started=None if started is None else started / 1000,
            member=_membership(told) if told else None,
        )


def _membership(told: Mapping[str, Any]) -> Membership:
    return Membership(
        job_id=told["parent"],
        index=told["index"],
        count=told["count"],
        main=told["main"],
        placement=told["placement"],
        go=told["go"],
        halt=told["halt"],
    )


def from_hash(job_id: str, own: Mapping[bytes, bytes], parent: Mapping[bytes, bytes] | None = None) -> Record:
    """A record from its Redis hash. parent: of a child, what `arrays.shared` gives of its array's."""
    h = {**(parent or {}), **own}

    def text(field: str) -> str | None:
        value = h.get(field.encode())
        return None if value is None else value.decode("utf-8", "replace")

    def number(field: str) -> float | None:
        value = text(field)
        return float(value) if value else None

    attempts = tuple(Attempt.loads(line) for line in (text("attempts") or "").split("\n") if line)
    exit_code, result = text("exit_code"), json.loads(text("result") or "null")
    return Record(
        id=job_id,
        state=State(text("state") or "SUBMITTED"),
        queue=text("queue") or "",
        image=text("image") or "",
        name=text("name") or "",
        priority=int(number("priority") or 0),
        vcpus=(number("mc") or 0) / 1000,
        memory_mib=int(number("mem") or 0),
        gpus=int(number("gpu") or 0),
        disk_gib=(number("disk") or 0) / 1024,
        created=(number("created") or 0) / 1000,
        started=_to_s(number("started")),
        ended=_to_s(number("ended")),
        node=text("node") or (attempts[-1].node if attempts else None),
        exit_code=int(exit_code) if exit_code else None,
        reason=text("reason") or "",
        attempts=attempts,
        losses=int(number("losses") or 0),
        interruptions=int(number("interruptions") or 0),
        depends_on=_depends_on(job_id, h),
        cancelling=b"cancel" in h,
        result=result,
        log=text("log"),
        progress=text("progress") or "",
        definition=text("definition") or "",
        array=Array.of(h),
        parent=text("parent"),
        index=int(h[b"index"]) if b"index" in h else None,
        gang=int(number("gang") or 0),
        main=int(number("main") or 0),
        share=text("share") or "",
        scheduling_priority=int(number("sched") or 0),
        gpu_type=text("gpu_type") or "",
        consumables=json.loads(text("tokens") or "{}"),
        tenant=text("tenant") or "",
        outputs=(result or {}).get("outputs") or json.loads(text("outputs") or "{}"),
        reused=text("reused") or "",
    )


def _depends_on(job_id: str, h: Mapping[bytes, bytes]) -> tuple[DependsOn, ...]:
    """Of a child: what it waits for itself."""
    index = int(h[b"index"]) if b"index" in h else None
    found = []
    for i, any_end, *kind in json.loads(h.get(b"depends") or b"[]"):
        if index is not None and (not kind or (kind == ["SEQUENTIAL"] and index == 0)):
            continue
        if index is not None:
            i, kind = (f"{i}:{index}", []) if i else (f"{parent_of(job_id)}:{index - 1}", [])
        on_failure, left = "CONTINUE" if any_end else "FAIL", f"on:{i}".encode() in h
        found.append(DependsOn(job_id=i, on_failure=on_failure, left=left, type=kind[0] if kind else ""))
    return tuple(found)


def _to_ms(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1000)


def _to_s(ms: float | None) -> float | None:
    return None if ms is None else ms / 1000
