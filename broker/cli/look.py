"""`batchyard status`, `list`, `queues` and `nodes`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import NotFound
from . import show
from .complete import job_ids
from .doors import Doors, examples, json_option, print_json, yard_options

if TYPE_CHECKING:
    from ..client import Client, NodeView
    from ..record import Attempt, DependsOn, Record

_REASON = 120  # characters of it in a list
_STATES = ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING", "SUCCEEDED", "FAILED")
_COUNTED = ("PENDING", "RUNNABLE", "STARTING", "RUNNING", "SUCCEEDED", "FAILED")
F = TypeVar("F", bound=Callable[..., Any])


@click.command(epilog=examples("batchyard status ID", "batchyard status --json ID | jq .exit_code"))
@click.argument("ids", nargs=-1, required=True, shell_complete=job_ids)
@json_option
@yard_options
def status(doors: Doors, ids: Sequence[str], as_json: bool) -> int:
    """Show what the yard knows of jobs; of one that was sent a moment ago, as soon as it is taken in.

    Exits with 1 when there is one that it does not know.
    """
    records: list[Record] = []
    unknown: list[NotFound] = []
    with doors.client() as client:
        for job_id in ids:
            try:
                patience_s = 0 if unknown else None  # waited for once, not for each
                records.append(client.status(client.whole_id(job_id), patience_s=patience_s))
            except NotFound as error:
                unknown.append(error)
        members = {r.id: client.members(r) for r in records if r.gang}
    if as_json and (records or len(ids) > 1):
        told = [_as_json(r, members.get(r.id)) for r in records]
        print_json(told if len(ids) > 1 else told[0])
    for n, record in enumerate([] if as_json else records):
        if n:
            click.echo()
        _print_record(record, members.get(record.id, []))
    for one in unknown:
        click.echo(f"error: {one}", err=True)
    return 1 if unknown else 0


def _as_json(r: Record, members: Sequence[Record] | None) -> dict[str, Any]:
    told = r.as_json()
    return told if members is None else {**told, "members": [one.as_json() for one in members]}


def _print_record(r: Record, members: Sequence[Record]) -> None:
    facts = [
        ("id", r.id), ("name", r.name), ("state", str(r.state)), ("array", r.array.told() if r.array else ""),
        ("nodes", str(r.gang or "")),
        ("reason" if r.state.ended else "last reason", r.reason), ("reused from", r.reused), ("progress", r.progress),
        ("exit code", "" if r.exit_code is None else str(r.exit_code)), ("queue", r.queue), ("image", r.image),
        ("definition", r.definition),
        ("demand", f"{r.vcpus:g} vCPU, {r.memory_mib} MiB, {r.gpus} {f'{r.gpu_type} ' if r.gpu_type else ''}GPU, "
                   f"{r.disk_gib:g} GiB of disk"),
        ("consumables", ", ".join(f"{n} {name}" for name, n in r.consumables.items())), ("share", r.share),
        ("scheduling priority", str(r.scheduling_priority) if r.share else ""),
        ("priority", str(r.priority)), ("node", r.node or ""), ("created", show.moment(r.created)),
        ("started", show.moment(r.started)), ("ended", show.moment(r.ended)), ("ran", show.took(r, time.time())),
        ("lost nodes", str(r.losses or "")), ("interruptions", str(r.interruptions or "")), ("log", r.log or ""),
    ]  # fmt: skip
    facts += [(f"node {n}{' (main)' if n == r.main else ''}", _member(one)) for n, one in enumerate(members)]
    facts += [(f"depends on {on.job_id or 'itself'}", _dependency(on, r)) for on in r.depends_on]
    facts += [(f"attempt {n}", _attempt(a)) for n, a in enumerate(r.attempts, 1)]
    facts += [
        (f"output {name}", f"{o.get('digest')} ({o.get('kind')}, {show.size(o.get('size') or 0)})")
        for name, o in r.outputs.items()
    ]
    show.print_facts(facts)


def _member(m: Record) -> str:
    code = "" if m.exit_code is None else f", exit {m.exit_code}"
    why = f": {m.reason}" if m.reason else ""
    return f"{m.state} on {m.node}, {m.vcpus:g} vCPU, {m.memory_mib} MiB{code}{why}"


def _dependency(on: DependsOn, r: Record) -> str:
    if on.type:
        return f"each child for one, {on.type}"
    if on.left:
        return "waits for it" if on.on_failure == "FAIL" else "waits for it, however it ends"
    return "waits no more" if r.state.ended else "has ended"


def _attempt(a: Attempt) -> str:
    ran = "never started" if a.started is None else f"ran {show.span(a.ended - a.started)}"
    code = "" if a.exit_code is None else f", exit {a.exit_code}"
    return f"on {a.node}, {ran}{code}: {a.reason}{'' if a.counted else ' (not counted)'}"


def list_options(command: F) -> F:
    """--limit and --status, as `limit` and `states`."""
    of_states = click.option(
        "--status", "states", type=click.Choice(_STATES, case_sensitive=False), multiple=True, help="Repeatable."
    )
    return click.option("--limit", type=click.IntRange(1, 20000), default=20, show_default=True)(of_states(command))


@click.command(
    "list",
    epilog=examples(
        "batchyard list", "batchyard list --status FAILED --limit 100", "batchyard list --json | jq -r '.[].id'"
    ),
)
@list_options
@json_option
@yard_options
def list_jobs(doors: Doors, limit: int, states: Sequence[str], as_json: bool) -> None:
    """List the newest jobs, newest first."""
    with doors.client() as client:
        print_jobs(client, limit, states, as_json=as_json)


def print_jobs(client: Client, limit: int, states: Sequence[str], *, as_json: bool) -> None:
    """The newest jobs, of these states only where some are named."""
    from ..state import State

    print_records(client.list(limit, {State(s.upper()) for s in states}), as_json=as_json)


def print_children(client: Client, array: str, limit: int, states: Sequence[str], start: int, *, as_json: bool) -> None:
    """Of an array, by index."""
    from ..state import State

    found = client.children(array, limit=limit, states={State(s.upper()) for s in states}, start=start)
    print_records(found, as_json=as_json)


def print_records(records: Sequence[Record], *, as_json: bool) -> None:
    """As a table, one a line."""
    if as_json:
        print_json([r.as_json() for r in records])
        return
    now = time.time()
    reasons = [show.shortened(r.reason, _REASON) if str(r.state) == "FAILED" else "" for r in records]
    rows = [
        (r.id, str(r.state), r.queue, r.name or r.image, r.node or "", "" if r.exit_code is None else str(r.exit_code),
         show.span(now - r.created), show.took(r, now), reason)
        for r, reason in zip(records, reasons, strict=True)
    ]  # fmt: skip
    columns = ("ID", "STATE", "QUEUE", "JOB", "NODE", "EXIT", "AGE", "RAN", "REASON")
    show.print_table(columns, rows, empty="no jobs", cut=("JOB", "NODE", "REASON"))


@click.command(epilog=examples("batchyard queues", "batchyard queues --json | jq '.[].depth.total'"))
@json_option
@yard_options
def queues(doors: Doors, as_json: bool) -> None:
    """Show queues, the most urgent first, what waits in them, and their jobs by state.

    WAITING counts those too that are not taken in yet; SUCCEEDED and FAILED all that ended so since the yard began.
    """
    with doors.client() as client:
        found = client.queues()
    if as_json:
        print_json([q.as_json() for q in found])
        return
    rows = [
        (q.name, q.state, str(q.priority), str(q.depth.total), *(str(q.states[one]) for one in _COUNTED),
         str(len(q.nodes)), ", ".join(q.environments))
        for q in found
    ]  # fmt: skip
    columns = ("QUEUE", "STATE", "PRIORITY", "WAITING", *_COUNTED, "NODES UP", "ENVIRONMENTS")
    show.print_table(columns, rows, empty="")


@click.command(epilog=examples("batchyard nodes", "batchyard nodes --json | jq '.[] | {name, up, jobs}'"))
@json_option
@yard_options
def nodes(doors: Doors, as_json: bool) -> None:
    """Show nodes, what they have and when they were last heard of."""
    with doors.client() as client:
        found, now = client.nodes(), client.yard.now_s()
    if as_json:
        print_json([n.as_json() for n in found])
        return
    rows = [
        (n.name, _doing(n), str(n.jobs), ", ".join(n.queues) or "all", _capacity(n), _cache(n),
         f"{show.span(now - n.seen)} ago")
        for n in found
    ]  # fmt: skip
    show.print_table(
        ("NODE", "STATE", "JOBS", "QUEUES", "HAS", "CACHE", "HEARD OF"),
        rows,
        empty="no nodes; start one with `batchyard worker`",
    )


def _doing(node: NodeView) -> str:
    kept_for = node.about.get("reserved", "").partition(" ")[0]
    if node.up and node.about.get("state") == "UPLOADING":
        return f"full, {node.about.get('uploads')} uploads"
    return "silent" if not node.up else f"kept for {show.shortened(kept_for, 9)}" if kept_for else "up"


def _capacity(node: NodeView) -> str:
    units = {"vcpus": "vCPU", "memory_mib": "MiB", "gpus": "GPU", "disk_gib": "GiB disk"}
    kinds = ", ".join(f"{n} {kind}" for kind, n in json.loads(node.about.get("gpu_types") or "{}").items())
    told = {k: f"{node.about[k]} {unit}" for k, unit in units.items() if node.about.get(k)}
    if kinds and "gpus" in told:
        told["gpus"] += f" ({kinds})"
    return ", ".join(told.values())


def _cache(node: NodeView) -> str:
    held, limit = node.cache.get("held_bytes", 0), node.cache.get("limit_bytes", 0)
    hits, asked = node.cache.get("hits", 0), node.cache.get("hits", 0) + node.cache.get("misses", 0)
    found = f", {hits} of {asked} found" if asked else ""
    peers = node.cache.get("peer_bytes", 0)
    came = (
        f", {show.size(peers)} from nodes, {show.size(node.cache.get('far_bytes', 0))} from the store" if peers else ""
    )
    return f"{show.size(held)} of {show.size(limit)}{found}{came}" if limit else ""
