"""Why a job waits, or how it ended: a decision from facts, without I/O. `gather` brings the facts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from . import why_gang
from .arrays import Array
from .blocked import Amounts
from .facts import Facts, GateFacts, NodeFacts
from .reasons import Reason, count, moment, span, told
from .record import Record
from .shortage import shortage
from .state import State

_ORDER = ("has_room", "kept", "lacks_now", "full", "uploading", "draining", "spot", "node_disabled", "silent_on_size",
          "too_small")  # fmt: skip
_OF_ONE_NODE = {"has_room", "lacks_now", "too_small"}  # of a job of several nodes, `gang_room` says more
_MOST_NODES = 8  # of a kind that are named; more are counted

_UNITS = {"vcpus": "vCPU", "memory_mib": "MiB of memory", "gpus": "GPU", "disk_gib": "GiB of disk"}


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
    found = [told("array", "; ".join([text, *parts[1:]]), size=array.size, counts=counts)]
    if r.cancelling or f.revoked:
        how = "those that run are being stopped" if r.cancelling else "those that run may end by themselves"
        found.append(Reason(code="cancelling", text=f"it was cancelled; {how}; {_controller(f)}"))
    if f.child is not None and f.child.record is not None:
        child, state = f.child.job_id, f.child.record.state
        reasons = [one for one in explain(f.child) if one.code != "attempt"][:_MOST_NODES]
        found += [
            told(f"child_{one.code}", f"child {child}, {state}: {one.text}", id=child, **one.details) for one in reasons
        ]
    return found


def _not_known(f: Facts) -> list[Reason]:
    found: list[Reason] = []
    if f.listed is not None:
        queue, before = f.listed
        text = f'its message waits to be taken in, in the list of queue "{queue}" behind {before} others'
        found.append(told("waits_for_intake", f"{text}; {_controller(f)}", queue=queue, before=before))
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
    ran = "" if r.started is None or r.ended is None else f" after {span(r.ended - r.started)}"
    code = "" if r.exit_code is None else f" (exit code {r.exit_code})"
    if r.state is State.SUCCEEDED:
        reused = f", not run: its outputs are those of job {r.reused}" if r.reused else ""
        return [told("succeeded", f"it succeeded{where}{ran}{code}{reused}", exit_code=r.exit_code), *_history(r)]
    if f.cancelled:
        never = " before it ran" if r.started is None else f"{where}{ran}"
        return [told("cancelled", f"it was ended{never}: {r.reason}", exit_code=r.exit_code), *_history(r)]
    hint = "; `batchyard logs` shows what it said" if r.log else ""
    text = f"it failed{where}{ran}: {r.reason or 'no reason is known'}{code}{hint}"
    return [told("failed", text, exit_code=r.exit_code), *_history(r)]


def _held(r: Record, f: Facts) -> list[Reason]:
    found: list[Reason] = []
    if r.cancelling:
        found.append(Reason(code="stopping", text=f"it was cancelled and is being stopped on {r.node}"))
    elif f.returning:
        found.append(Reason(code="returning", text=f"its nodes give it up, then it waits again: {r.reason}"))
    elif r.state is State.STARTING:
        doing = f": {r.progress}" if r.progress else ""
        found.append(Reason(code="starting", text=f"node {r.node} has taken it and makes it ready{doing}"))
    else:
        since = "" if r.started is None else f" for {span(f.now_s - r.started)}"
        nodes = f" as the main one of {r.gang} nodes" if r.gang else ""
        doing = f": {r.progress}" if r.progress else ""
        found.append(Reason(code="running", text=f"it runs on {r.node}{nodes}{since}{doing}"))
    if f.revoked:
        found.append(Reason(code="revoked", text=f"it may end by itself, and is not run again: {f.revoked}"))
    silent = next((n for n in f.nodes if n.name == r.node and not n.up), None)
    if silent is not None:
        quiet = f"node {silent.name} has been silent for {span(silent.quiet_s)}"
        text = f"{quiet}; the job starts elsewhere once its lease lapses"
        found.append(told("node_silent", text, node=silent.name, quiet_s=round(silent.quiet_s, 1)))
    return [*found, *_history(r)]


def _runnable(r: Record, f: Facts) -> list[Reason]:
    return [
        *(_gate(one, f) for one in f.gates if one.free < one.need),
        *_place(r, f),
        *why_gang.reservations(f),
        *(why_gang.room(r, f) if f.runs else []),
        *_blocked(f),
        *shortage(r.queue, f.environments, f.now_s),
        *(one for one in _nodes(r, f) if not f.runs or one.code not in _OF_ONE_NODE),
    ]


def _waiting(r: Record, f: Facts) -> list[Reason]:
    found: list[Reason] = []
    if r.cancelling or f.revoked:
        found.append(Reason(code="cancelling", text=f"it was cancelled; {_controller(f)}"))
    found += _depends(r, f)
    if f.retry_at_s is not None and r.state is State.PENDING:
        left = f.retry_at_s - f.now_s
        when = f"in {span(left)}" if left > 0 else f"due for {span(-left)}; {_controller(f)}"
        text = f"it is tried again, not before {moment(f.retry_at_s)} ({when})"
        found.append(told("backoff", text, retry_at=f.retry_at_s))
    elif f.eta_s is not None and r.state is State.PENDING:
        left = f.eta_s - f.now_s
        when = f"in {span(left)}" if left > 0 else f"due for {span(-left)}; {_controller(f)}"
        found.append(told("delayed", f"it is not to run before {moment(f.eta_s)} ({when})", eta=f.eta_s))
    if f.queue_state is None:
        found.append(
            told("no_queue", f'queue "{r.queue}" is not configured any more: no node takes from it', queue=r.queue)
        )
    elif f.queue_state != "ENABLED":
        text = (
            f'queue "{r.queue}" is disabled: it takes no new jobs; those in it, like this one, still run. '
            f"`batchyard queue enable {r.queue}` enables it"
        )
        found.append(told("queue_disabled", text, queue=r.queue))
    if r.state is State.RUNNABLE:
        found += _runnable(r, f)
    if f.expires_s is not None:
        left = f.expires_s - f.now_s
        text = (
            f"it expires in {span(left)} if it has not started by then"
            if left > 0
            else f"it has expired; {_controller(f)}"
        )
        found.append(told("expires", text, expires=f.expires_s))
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
            found.append(told("depends_on", text, depends_on=on.job_id, on_failure=on.on_failure, state=state))
    return found


def _gate(g: GateFacts, f: Facts) -> Reason:
    """What a closed gate says."""
    since = "" if g.since_s is None else f", since {moment(g.since_s)} ({span(f.now_s - g.since_s)})"
    details = {"name": g.name, "free": g.free, "total": g.total, "jobs": g.jobs, "since": g.since_s}
    if g.kind != "consumable":
        what = f'queue "{g.name}"' if g.kind == "queue" else f'job definition "{g.name}"'
        text = f"{what} runs {count(g.total or 0, 'job')} at once at most, and {g.jobs} run{since}"
        return told("max_concurrent", text, of=g.kind, **details)
    need = {"need": g.need, **details}
    if g.total is None:
        text = f'there is no consumable resource "{g.name}" any more; create it again, or cancel the job'
        return told("consumable_gone", text, **need)
    if g.total < g.need:
        text = (
            f'it asks for {g.need} of consumable resource "{g.name}", and there are {g.total} in all; '
            "add some (`batchyard consumable update`), or cancel the job"
        )
        return told("consumable_short", text, **need)
    text = (
        f'it waits for {g.need} of consumable resource "{g.name}": {g.free} of {g.total} are free, '
        f"{count(g.jobs, 'job')} {'holds' if g.jobs == 1 else 'hold'} the others{since}"
    )
    return told("consumable", text, **need)


def _turn(r: Record, shares: int, before: int) -> Reason:
    if not before:
        text = f'share "{r.share}" is served next in queue "{r.queue}"'
        text += f": of {shares} with jobs it has used least for its weight" if shares > 1 else ""
    else:
        text = (
            f'share "{r.share}" is served after {before} of the {shares} shares with jobs in queue "{r.queue}": '
            "it has used more for its weight"
        )
    return told("share", text, share=r.share, shares=shares, before=before)


def _place(r: Record, f: Facts) -> list[Reason]:
    found = []
    if f.place is not None:
        ahead, waiting = f.place
        text = (
            ("it is the only job" if waiting == 1 else f"it is the first of {waiting} jobs")
            if not ahead
            else f"{count(ahead, 'job')} of {waiting} {'stands' if ahead == 1 else 'stand'} before it"
        )
        since = {} if f.ready_s is None else {"since": f.ready_s}
        ready = "" if f.ready_s is None else f"; it has been ready for {span(f.now_s - f.ready_s)}"
        where = f'of share "{r.share}" in queue "{r.queue}"' if f.turn else f'in queue "{r.queue}"'
        found.append(told("place", f"{text} {where}{ready}", ahead=ahead, waiting=waiting, queue=r.queue, **since))
    if f.turn is not None:
        found.append(_turn(r, *f.turn))
    if f.unreserved_vcpus is not None and f.unreserved_vcpus < r.vcpus:
        text = (
            f'queue "{r.queue}" may take {f.unreserved_vcpus:g} vCPU more now, and the job asks for {r.vcpus:g}: '
            "the rest is kept for shares that are not active yet (compute_reservation)"
        )
        found.append(told("reservation", text, vcpus=f.unreserved_vcpus))
    if f.before:
        named = ", ".join(f"{queue} {n}" for queue, n in f.before.items())
        found.append(
            told(
                "other_queues",
                f"its nodes serve other queues first, and jobs wait there: {named}",
                before=dict(f.before),
            )
        )
    return found


def _blocked(f: Facts) -> list[Reason]:
    """What AWS Batch says of the first job of a queue."""
    if f.head is None or not f.head.code:
        return []
    text = f"nothing can start it, for {span(f.now_s - f.head.since)} now: {f.head.text}"
    found = [told("blocked", text, status_reason=f.head.text, aws_code=f.head.code, since=f.head.since)]
    if f.limit_s is not None:
        left = span(f.limit_s - f.now_s)
        found.append(told("time_limit", f"it is cancelled in {left} if that stays so, as its queue says", at=f.limit_s))
    return found


def _nodes(r: Record, f: Facts) -> list[Reason]:
    """What each node that serves the queue has to say, the nearest to taking the job first."""
    need = Amounts(vcpus=r.vcpus, memory_mib=r.memory_mib, gpus=r.gpus, disk_gib=r.disk_gib)
    if f.runs:
        need = max((each for _, each in f.runs), key=lambda one: (one.gpus, one.vcpus, one.memory_mib))
    up = [n for n in f.nodes if n.up]
    if not up:
        silent = f" ({', '.join(n.name for n in f.nodes[:_MOST_NODES])} silent)" if f.nodes else ""
        text = f'no node is up that serves queue "{r.queue}"{silent}; start one, see `batchyard nodes`'
        return [told("no_node", text, queue=r.queue, silent=[n.name for n in f.nodes])]
    said = [_of_node(n, need, r.gpu_type) for n in up]
    found: list[Reason] = []
    for code in _ORDER:
        of_kind = [one for one in said if one.code == code]
        found += of_kind[:_MOST_NODES]
        if len(of_kind) > _MOST_NODES:
            found.append(told(f"more_{code}", f"and {len(of_kind) - _MOST_NODES} more nodes alike", nodes=len(of_kind)))
    if all(one.code == "too_small" for one in said):
        text = f'no node that is up for queue "{r.queue}" is large enough; start a larger one, or ask for less'
        found.insert(0, told("no_node_fits", text, queue=r.queue))
    return found


def _of_node(n: NodeFacts, need: Amounts, gpu_type: str = "") -> Reason:
    if n.total is None or n.free is None:
        return told("silent_on_size", f"node {n.name} has not said yet what it has", node=n.name)
    if lacks := n.total.lacks(need):
        text = f"node {n.name} is too small: it has {_of(n.total, lacks)}; the job asks for {_of(need, lacks)}"
        return told("too_small", text, node=n.name, lacks=lacks)
    if gpu_type and n.gpu_types.get(gpu_type, 0) < need.gpus:
        text = f"node {n.name} has {n.gpu_types.get(gpu_type, 0)} GPU of type {gpu_type}; the job asks for {need.gpus}"
        return told("too_small", text, node=n.name, lacks={"gpus": need.gpus - n.gpu_types.get(gpu_type, 0)})
    if n.closed == "spot":
        text = f"node {n.name} is a spot machine, and the job takes such no more: they interrupted it too often"
        return told("spot", text, node=n.name)
    if n.closed:
        return told("node_disabled", f"node {n.name} takes no more jobs: its environment is disabled", node=n.name)
    if n.draining:
        return told("draining", f"node {n.name} is leaving and takes no more jobs", node=n.name)
    if n.uploads_full:
        text = f"node {n.name} takes no more jobs until outputs of {count(n.uploads, 'ended job')} are uploaded"
        return told("uploading", f"{text}: is its store slow, or away?", node=n.name, uploads=n.uploads)
    if n.kept_for:
        return told("kept", f"node {n.name} is kept for job {n.kept_for}", node=n.name, kept_for=n.kept_for)
    if lacks := n.free.lacks(need):
        text = f"it fits {n.name} when empty; {n.name} now lacks {_short(lacks, n.total)}"
        return told("lacks_now", f"{text} ({count(n.jobs, 'job')} there)", node=n.name, lacks=lacks)
    if gpu_type and n.free_gpu_types.get(gpu_type, 0) < need.gpus:
        lacking = need.gpus - n.free_gpu_types.get(gpu_type, 0)
        text = f"it fits {n.name} when empty; {n.name} now lacks {lacking} GPU of type {gpu_type} of"
        text = f"{text} {n.gpu_types[gpu_type]} ({count(n.jobs, 'job')} there)"
        return told("lacks_now", text, node=n.name, lacks={"gpus": lacking})
    if n.most_jobs is not None and n.jobs >= n.most_jobs:
        return told("full", f"node {n.name} runs {n.jobs} jobs, and takes {n.most_jobs} at once", node=n.name)
    return told("has_room", f"node {n.name} has room for it now, and takes it when its turn comes", node=n.name)


def _history(r: Record) -> list[Reason]:
    found = [
        told("attempt", f"attempt {n} on {a.node}: {a.reason}{'' if a.counted else ' (not counted)'}", attempt=n,
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
