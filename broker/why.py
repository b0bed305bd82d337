"""Why a job waits, or how it ended: a decision from facts, without I/O. `facts.gather` brings the facts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from .arrays import Array
from .record import Record
from .state import State

_MOST_NODES = 8  # of a kind that are named; more are counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """What a job asks for, or a node has."""

    vcpus: float
    memory_mib: int
    gpus: int
    disk_gib: float

    def lacks(self, need: Amounts) -> dict[str, float]:
        """What `need` asks for beyond these: field → how much is missing."""
        missing = {name: getattr(need, name) - getattr(self, name) for name in _UNITS}
        return {name: round(much, 3) for name, much in missing.items() if much > 1e-6}


_UNITS = {"vcpus": "vCPU", "memory_mib": "MiB of memory", "gpus": "GPU", "disk_gib": "GiB of disk"}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """A node that serves the job's queue. total, free: None where it has not said. quiet_s: since it was heard of."""

    name: str
    up: bool
    draining: bool
    quiet_s: float
    jobs: int
    most_jobs: int | None
    total: Amounts | None
    free: Amounts | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of one job at one moment. Times are seconds since the epoch, by Redis's clock.

    place: (jobs of its queue before it, jobs of its queue) while it stands in the index. before: jobs that wait in
    queues that the same nodes serve first. listed: (queue, messages before it) while its message waits for intake.
    waiting_lists: messages that wait for intake. queue_state: None when the queue is not configured (any more).
    depends_on: those that it still waits for, with their states. retry_at_s: when it is tried again.
    revoked: a cancel that spares the running job. ending: its end is decided, and is being written.
    array_goes: of an array that waits for nothing but its children; child: one of them that waits, while none runs.
    stored_cancel: of a job that has not come yet. dead: why its message was no job.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One thing to know. code: for programs; text: for people; details: figures behind the text, JSON types."""

    code: str
    text: str
    details: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """JSON types only."""
        return {"code": self.code, "text": self.text, **self.details}


def explain(facts: Facts) -> list[Reason]:
    """The reasons, the most telling first; never none."""
    record = facts.record
    if record is None:
        return _not_known(facts)
    if record.state.ended:
        return _ended(record, facts)
    if facts.ending:
        return [Reason(code="ending", text=f"its end is decided and is being written; {_controller(facts)}")]
    if record.array is not None and facts.array_goes:
        return _array(record, record.array, facts)
    if record.state in {State.STARTING, State.RUNNING}:
        return _held(record, facts)
    return [*_waiting(record, facts), *_history(record)]


def _array(r: Record, array: Array, f: Facts) -> list[Reason]:
    """Of a parent that waits for nothing but its children."""
    waiting = array.size - array.ended - array.running
    counts = {str(state): n for state, n in array.counts.items()}
    parts = [f"{n} {word}" for n, word in ((array.running, "run"), (waiting, "wait")) if n]
    text = f"{array.ended} of {array.size} children have ended{f'; {chr(32).join(parts[:1])}' if parts else ''}"
    found = [_reason("array", "; ".join([text, *parts[1:]]), size=array.size, counts=counts)]
    if r.cancelling or f.revoked:
        how = "those that run are being stopped" if r.cancelling else "those that run may end by themselves"
        found.append(Reason(code="cancelling", text=f"it was cancelled; {how}; {_controller(f)}"))
    if f.child is not None and f.child.record is not None:
        child, state = f.child.job_id, f.child.record.state
        reasons = [one for one in explain(f.child) if one.code != "attempt"][:_MOST_NODES]
        found += [
            _reason(f"child_{one.code}", f"child {child}, {state}: {one.text}", id=child, **one.details)
            for one in reasons
        ]
    return found


def _not_known(f: Facts) -> list[Reason]:
    found: list[Reason] = []
    if f.listed is not None:
        queue, before = f.listed
        text = f'its message waits to be taken in, in the list of queue "{queue}" behind {before} others'
        found.append(_reason("waits_for_intake", f"{text}; {_controller(f)}", queue=queue, before=before))
    if f.dead:
        found.append(
            Reason(code="dead_letter", text=f"its message was no job: {f.dead}; see `batchyard deadletters list`")
        )
    if f.stored_cancel:
        found.append(
            Reason(code="cancel_stored", text=f"a cancel waits for it ({f.stored_cancel}): it ends when it comes")
        )
    if not found:
        lists = f" ({f.waiting_lists} messages wait to be taken in; {_controller(f)})" if f.waiting_lists else ""
        found.append(
            Reason(code="unknown", text=f"no such job: it was never sent here, or its record has expired{lists}")
        )
    return found


def _ended(r: Record, f: Facts) -> list[Reason]:
    where = f" on {r.node}" if r.node else ""
    ran = "" if r.started is None or r.ended is None else f" after {_span(r.ended - r.started)}"
    code = "" if r.exit_code is None else f" (exit code {r.exit_code})"
    if r.state is State.SUCCEEDED:
        return [_reason("succeeded", f"it succeeded{where}{ran}{code}", exit_code=r.exit_code), *_history(r)]
    if f.cancelled:
        never = " before it ran" if r.started is None else f"{where}{ran}"
        return [_reason("cancelled", f"it was ended{never}: {r.reason}", exit_code=r.exit_code), *_history(r)]
    hint = "; `batchyard logs` shows what it said" if r.log else ""
    text = f"it failed{where}{ran}: {r.reason or 'no reason is known'}{code}{hint}"
    return [_reason("failed", text, exit_code=r.exit_code), *_history(r)]


def _held(r: Record, f: Facts) -> list[Reason]:
    found: list[Reason] = []
    if r.cancelling:
        found.append(Reason(code="stopping", text=f"it was cancelled and is being stopped on {r.node}"))
    elif r.state is State.STARTING:
        doing = f": {r.progress}" if r.progress else ""
        found.append(Reason(code="starting", text=f"node {r.node} has taken it and makes it ready{doing}"))
    else:
        since = "" if r.started is None else f" for {_span(f.now_s - r.started)}"
        found.append(Reason(code="running", text=f"it runs on {r.node}{since}"))
    if f.revoked:
        found.append(Reason(code="revoked", text=f"it may end by itself, and is not run again: {f.revoked}"))
    silent = next((n for n in f.nodes if n.name == r.node and not n.up), None)
    if silent is not None:
        quiet = f"node {silent.name} has been silent for {_span(silent.quiet_s)}"
        text = f"{quiet}; the job starts elsewhere once its lease lapses"
        found.append(_reason("node_silent", text, node=silent.name, quiet_s=round(silent.quiet_s, 1)))
    return [*found, *_history(r)]


def _waiting(r: Record, f: Facts) -> list[Reason]:
    found: list[Reason] = []
    if r.cancelling or f.revoked:
        found.append(Reason(code="cancelling", text=f"it was cancelled; {_controller(f)}"))
    found += _depends(r, f)
    if f.retry_at_s is not None and r.state is State.PENDING:
        left = f.retry_at_s - f.now_s
        when = f"in {_span(left)}" if left > 0 else f"due for {_span(-left)}; {_controller(f)}"
        text = f"it is tried again, not before {_moment(f.retry_at_s)} ({when})"
        found.append(_reason("backoff", text, retry_at=f.retry_at_s))
    elif f.eta_s is not None and r.state is State.PENDING:
        left = f.eta_s - f.now_s
        when = f"in {_span(left)}" if left > 0 else f"due for {_span(-left)}; {_controller(f)}"
        found.append(_reason("delayed", f"it is not to run before {_moment(f.eta_s)} ({when})", eta=f.eta_s))
    if f.queue_state is None:
        found.append(
            _reason("no_queue", f'queue "{r.queue}" is not configured any more: no node takes from it', queue=r.queue)
        )
    elif f.queue_state != "ENABLED":
        text = (
            f'queue "{r.queue}" is disabled: it takes no new jobs; those in it, like this one, still run. To enable '
            f"it, say `state: ENABLED` in the yard's YAML and start the controller, or `up`, again with --config"
        )
        found.append(_reason("queue_disabled", text, queue=r.queue))
    if r.state is State.RUNNABLE:
        found += _place(r, f)
        found += _nodes(r, f)
    if f.expires_s is not None:
        left = f.expires_s - f.now_s
        text = (
            f"it expires in {_span(left)} if it has not started by then"
            if left > 0
            else f"it has expired; {_controller(f)}"
        )
        found.append(_reason("expires", text, expires=f.expires_s))
    return found or [Reason(code="taken_in", text=f"it was taken in and is about to be queued; {_controller(f)}")]


def _depends(r: Record, f: Facts) -> list[Reason]:
    found = []
    for on in r.depends_on:
        if on.left:
            state = f.depends_on.get(on.job_id, "gone")
            if on.type:
                continue  # its children do
            wanted = "to succeed" if on.on_failure == "FAIL" else "to end, well or not"
            text = f"it waits for job {on.job_id} {wanted}; that is {state}"
            found.append(_reason("depends_on", text, depends_on=on.job_id, on_failure=on.on_failure, state=state))
    return found


def _place(r: Record, f: Facts) -> list[Reason]:
    found = []
    if f.place is not None:
        ahead, waiting = f.place
        text = (
            ("it is the only job" if waiting == 1 else f"it is the first of {waiting} jobs")
            if not ahead
            else f"{_count(ahead, 'job')} of {waiting} {'stands' if ahead == 1 else 'stand'} before it"
        )
        found.append(_reason("place", f'{text} in queue "{r.queue}"', ahead=ahead, waiting=waiting, queue=r.queue))
    if f.before:
        named = ", ".join(f"{queue} {n}" for queue, n in f.before.items())
        found.append(
            _reason(
                "other_queues",
                f"its nodes serve other queues first, and jobs wait there: {named}",
                before=dict(f.before),
            )
        )
    return found


def _nodes(r: Record, f: Facts) -> list[Reason]:
    """What each node that serves the queue has to say, the nearest to taking the job first."""
    need = Amounts(vcpus=r.vcpus, memory_mib=r.memory_mib, gpus=r.gpus, disk_gib=r.disk_gib)
    up = [n for n in f.nodes if n.up]
    if not up:
        silent = f" ({', '.join(n.name for n in f.nodes[:_MOST_NODES])} silent)" if f.nodes else ""
        text = f'no node is up that serves queue "{r.queue}"{silent}; start one, see `batchyard nodes`'
        return [_reason("no_node", text, queue=r.queue, silent=[n.name for n in f.nodes])]
    told = [_of_node(n, need) for n in up]
    order = ("has_room", "lacks_now", "full", "draining", "silent_on_size", "too_small")
    found: list[Reason] = []
    for code in order:
        of_kind = [one for one in told if one.code == code]
        found += of_kind[:_MOST_NODES]
        if len(of_kind) > _MOST_NODES:
            found.append(
                _reason(f"more_{code}", f"and {len(of_kind) - _MOST_NODES} more nodes alike", nodes=len(of_kind))
            )
    if all(one.code == "too_small" for one in told):
        text = f'no node that is up for queue "{r.queue}" is large enough; start a larger one, or ask for less'
        found.insert(0, _reason("no_node_fits", text, queue=r.queue))
    return found


def _of_node(n: NodeFacts, need: Amounts) -> Reason:
    if n.total is None or n.free is None:
        return _reason("silent_on_size", f"node {n.name} has not said yet what it has", node=n.name)
    if lacks := n.total.lacks(need):
        text = f"node {n.name} is too small: it has {_of(n.total, lacks)}; the job asks for {_of(need, lacks)}"
        return _reason("too_small", text, node=n.name, lacks=lacks)
    if n.draining:
        return _reason("draining", f"node {n.name} is leaving and takes no more jobs", node=n.name)
    if lacks := n.free.lacks(need):
        text = f"it fits {n.name} when empty; {n.name} now lacks {_short(lacks, n.total)}"
        return _reason("lacks_now", f"{text} ({_count(n.jobs, 'job')} there)", node=n.name, lacks=lacks)
    if n.most_jobs is not None and n.jobs >= n.most_jobs:
        return _reason("full", f"node {n.name} runs {n.jobs} jobs, and takes {n.most_jobs} at once", node=n.name)
    return _reason("has_room", f"node {n.name} has room for it now, and takes it when its turn comes", node=n.name)


def _history(r: Record) -> list[Reason]:
    found = [
        _reason("attempt", f"attempt {n} on {a.node}: {a.reason}{'' if a.counted else ' (not counted)'}", attempt=n,
                node=a.node, exit_code=a.exit_code)
        for n, a in enumerate(r.attempts, 1)
    ]  # fmt: skip
    return [] if r.state.ended and len(found) == 1 else found  # it is the end itself


def _controller(f: Facts) -> str:
    return "the controller works" if f.controller else "no controller works: start `batchyard controller`, or a node"


def _short(lacks: Mapping[str, float], total: Amounts) -> str:
    """`2 vCPU of 4, 100 MiB of memory of 4096`."""
    return ", ".join(f"{much:g} {_UNITS[name]} of {getattr(total, name):g}" for name, much in lacks.items())


def _of(amounts: Amounts, names: Iterable[str]) -> str:
    return ", ".join(f"{getattr(amounts, name):g} {_UNITS[name]}" for name in names)


def _reason(code: str, text: str, **details: Any) -> Reason:
    return Reason(code=code, text=text, details=details)


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def _span(seconds: float) -> str:
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    hours, minutes = divmod(int(seconds) // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {int(seconds) % 60} s"
