"""Why a job of several nodes waits, and for which job a node is kept: a part of `why`."""

from __future__ import annotations

from collections.abc import Sequence

from .blocked import Amounts
from .facts import Facts, NodeFacts
from .reasons import Reason, span
from .record import Record

_MOST_NAMED = 8


def reservations(f: Facts) -> list[Reason]:
    """Which nodes are kept for the job."""
    if f.kept is None:
        return []
    names, since = _named(f.kept.nodes), span(f.now_s - f.kept.since_s)
    who, take = (f"nodes {names} are", "take") if len(f.kept.nodes) > 1 else (f"node {names} is", "takes")
    text = f"{who} kept for it since {since} ago, and {take} no other job until it has room"
    return [Reason(code="reserved", text=text, details={"nodes": list(f.kept.nodes), "since": f.kept.since_s})]


def room(r: Record, f: Facts) -> list[Reason]:
    """Of how many nodes a job has room now on how many."""
    needs = _alike(f.runs)
    found = [_of(count, need, r.gang, f.nodes) for need, count in needs]
    return found if len(needs) == 1 else sorted(found, key=lambda one: -one.details["missing"])


def _of(count: int, need: Amounts, of: int, nodes: Sequence[NodeFacts]) -> Reason:
    able = [n for n in nodes if n.up and not n.draining and not n.kept_for]
    now = [n.name for n in able if n.free is not None and not n.free.lacks(need)]
    ever = [n.name for n in nodes if n.up and n.total is not None and not n.total.lacks(need)]
    asks = f"{need.vcpus:g} vCPU, {need.memory_mib} MiB, {need.gpus} GPU, {need.disk_gib:g} GiB of disk"
    what = f"all {of}" if count == of else f"{count} of its {of}"
    text = f"it needs {of} nodes at once, {what} with {asks}: {len(now)} {'has' if len(now) == 1 else 'have'} room now"
    if now:
        text += f" ({_named(now)})"
    if len(ever) < count:
        text += f"; only {len(ever)} that are up would have when empty: start more, or larger ones"
    details = {"needed": count, "room": len(now), "large_enough": len(ever), "missing": max(0, count - len(now))}
    return Reason(code="gang_room", text=text, details=details)


def _alike(runs: Sequence[tuple[int, Amounts]]) -> list[tuple[Amounts, int]]:
    counts: dict[Amounts, int] = {}
    for count, need in runs:
        counts[need] = counts.get(need, 0) + count
    return list(counts.items())


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
