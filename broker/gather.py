"""What `why.explain` decides from: a bounded number of reads of Redis, whatever is queued."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from . import keys
from .blocked import Amounts
from .config import Config
from .facts import Closed, Facts, GateFacts, Kept, NodeFacts
from .heads import Head, Heads
from .record import Record, from_hash
from .shortage import EnvironmentFacts
from .state import State

if TYPE_CHECKING:
    from .client import Client, NodeView

_TOLD = ("eta", "expires", "revoked", "ending", "retry_at", "ready")
_MOST_NODES = 200
_MOST_MESSAGES = 200  # of a list that are looked through for a job that was not taken in yet
_MOST_LETTERS = 500


def gather(client: Client, job_id: str) -> Facts:
    """All that is known of a job now. Raises BrokerUnavailable, NotFound (no yard)."""
    yard = client.yard
    raw, of_parent = yard.hashes([job_id]).get(job_id, ({}, {}))
    config, now_s = yard.config(), yard.now_s()
    alive = bool(yard.guard(lambda: yard.redis.exists(keys.CONTROLLER, keys.STAND_IN)))
    if not raw:
        return Facts(job_id=job_id, now_s=now_s, record=None, controller=alive, **_of_unknown(client, job_id, config))
    record = from_hash(job_id, raw, of_parent)
    told = {name: raw.get(name.encode(), b"").decode("utf-8", "replace") for name in _TOLD}
    left = [on.job_id for on in record.depends_on if on.left]
    place = yard.place(job_id) if record.state is State.RUNNABLE else None
    nodes = [] if record.state.ended else [n for n in client.nodes() if record.queue in (n.queues or [record.queue])]
    queue = config.queues.get(record.queue)
    head, limit_s = _head(client, record, config) if place is not None else (None, None)
    return Facts(
        job_id=job_id,
        now_s=now_s,
        record=record,
        controller=alive,
        place=(place.ahead, place.of_share if place.share else place.waiting) if place else None,
        turn=(place.shares, place.before) if place and place.share else None,
        unreserved_vcpus=place.vcpus if place else None,
        gates=_gates(client, record, raw.get(b"def"), queue.max_concurrent if queue else None) if place else (),
        before=_served_first(client, record, nodes, config) if place is not None else {},
        eta_s=int(told["eta"]) / 1000 if told["eta"] else None,
        depends_on=_states(client, left),
        retry_at_s=int(told["retry_at"]) / 1000 if told["retry_at"] else None,
        expires_s=int(told["expires"]) / 1000 if told["expires"] else None,
        revoked=told["revoked"],
        ending=told["ending"],
        queue_state=queue.state if queue else None,
        nodes=_nodes(client, nodes[:_MOST_NODES], now_s, job_id, _closed(config, raw)),
        runs=_runs(raw),
        kept=_kept(raw) if record.state is State.RUNNABLE else None,
        returning=b"back" in raw,
        ready_s=int(told["ready"]) / 1000 if told["ready"] and place is not None else None,
        environments=_environments(client, record, config) if place is not None else (),
        head=head,
        limit_s=limit_s,
        cancelled=client.cancelled(record),
        **_of_array(client, record, raw),
    )


def _kept(told: Mapping[bytes, bytes]) -> Kept | None:
    """Of a job's record."""
    since, *nodes = told.get(b"reserved", b"0").decode().split()
    return Kept(nodes=tuple(nodes), since_s=int(since) / 1000) if nodes else None


def _runs(told: Mapping[bytes, bytes]) -> tuple[tuple[int, Amounts], ...]:
    """What the nodes of a job ask for, of its record: (how many, each). Nothing of a plain job."""
    return tuple(
        (n, Amounts(vcpus=mc / 1000, memory_mib=mem, gpus=gpu, disk_gib=disk / 1024))
        for n, mc, mem, gpu, disk in json.loads(told.get(b"members") or b"[]")
    )


def _of_array(client: Client, record: Record, raw: Mapping[bytes, bytes]) -> dict[str, Any]:
    array, left = record.array, any(on.left for on in record.depends_on)
    if array is None or record.state.ended or left or not sum(int(raw.get(f"n:{s}".encode(), 0)) for s in State):
        return {}
    if array.running or array.ended == array.size:
        return {"array_goes": True}
    waiting = {State.RUNNABLE} if array.counts[State.RUNNABLE] else {State.PENDING}
    first = client.children(record.id, limit=1, states=waiting)
    return {"array_goes": True, "child": gather(client, first[0].id) if first else None}


def _gates(client: Client, record: Record, definition: bytes | None, at_once: int | None) -> tuple[GateFacts, ...]:
    """What is counted beside nodes' resources and this job needs, as it is now."""
    yard, name = client.yard, (definition or b"").decode()
    fields = [f"d:{name}", f"q:{record.queue}"]
    pipe = yard.redis.pipeline(transaction=False)
    pipe.hmget(keys.HOLDS, fields)
    pipe.hmget(keys.HOLDS_SINCE, fields)
    pipe.hget(keys.LIMITS, name)
    held, since, limit = yard.guard(pipe.execute)
    limits: list[tuple[Literal["definition", "queue"], str, int | None]] = [
        ("definition", name, int(limit) if limit and name else None),
        ("queue", record.queue, at_once),
    ]
    found = [
        GateFacts(kind=kind, name=name, need=1, total=most, free=max(0, most - int(held[n] or 0)),
                  jobs=int(held[n] or 0), since_s=int(since[n]) / 1000 if since[n] else None)
        for n, (kind, name, most) in enumerate(limits) if most is not None
    ]  # fmt: skip
    stock = client.consumables.read(list(record.consumables))
    for token, need in record.consumables.items():
        one = stock.get(token)
        found.append(
            GateFacts(kind="consumable", name=token, need=need, total=one.total if one else None,
                      free=one.available if one else 0, jobs=one.jobs if one else 0,
                      since_s=one.changed if one else None)
        )  # fmt: skip
    return tuple(found)


def _head(client: Client, record: Record, config: Config) -> tuple[Head | None, float | None]:
    """Of the first job of its queue: what blocks it, and when its queue cancels it for that."""
    head, queue = Heads(client.yard).told(record.queue), config.queues.get(record.queue)
    if head is None or head.id != record.id or queue is None:
        return None, None
    limits = [one.max_time_s for one in queue.job_state_time_limit_actions if one.reason == head.code]
    return head, head.since + limits[0] if limits else None


def _environments(client: Client, record: Record, config: Config) -> tuple[EnvironmentFacts, ...]:
    queue = config.queues.get(record.queue)
    if queue is None:
        return ()
    scaling = Heads(client.yard).scaling(queue.environments)
    return tuple(
        EnvironmentFacts(name=name, state=one.state, lacks=one.lacking(record), scaling=scaling.get(name))
        for name, one in ((name, config.environments[name]) for name in queue.environments)
    )


def _states(client: Client, ids: Sequence[str]) -> dict[str, str]:
    """What other jobs do, by their states."""
    found = client.records(ids)
    return {i: str(found[i].state) if i in found else "gone" for i in ids}


def _served_first(client: Client, record: Record, nodes: Sequence[NodeView], config: Config) -> dict[str, int]:
    """Jobs that are ready in queues which a node of this job's serves before its queue."""
    order = config.by_priority()
    if record.queue not in order:
        return {}
    shared = {queue for node in nodes if node.up for queue in (node.queues or order)}
    queues = [queue for queue in order[: order.index(record.queue)] if queue in shared]
    depth = client.yard.depth(queues) if queues else {}
    return {queue: depth[queue].index for queue in queues if depth[queue].index}


def _closed(config: Config, raw: Mapping[bytes, bytes]) -> dict[str, Closed]:
    """Environments of which no node takes this job."""
    most, found = raw.get(b"od"), dict[str, Closed]()
    if most is not None and int(raw.get(b"spot_lost", 0)) >= int(most):
        found |= dict.fromkeys(config.spot(), "spot")
    for name, one in config.environments.items():
        if one.state != "ENABLED":
            found[name] = "disabled"
    return found


def _nodes(
    client: Client,
    nodes: Sequence[NodeView],
    now_s: float,
    job_id: str,
    closed: Mapping[str, Closed],
) -> tuple[NodeFacts, ...]:
    """Free is what the node has less what its jobs ask for: its own word on that is as old as its last beat."""
    yard = client.yard
    pipe = yard.redis.pipeline(transaction=False)
    for node in nodes:
        pipe.smembers(keys.node_jobs(node.name))
    held: list[set[bytes]] = yard.guard(pipe.execute) if nodes else []
    asked = yard.redis.pipeline(transaction=False)
    for one in (i for ids in held for i in sorted(ids)):
        asked.hmget(keys.job(one.decode()), "mc", "mem", "gpu", "disk", "exited")
    demands = iter(yard.guard(asked.execute) if any(held) else [])
    return tuple(
        _node(node, [next(demands) for _ in ids], now_s, closed, job_id) for node, ids in zip(nodes, held, strict=True)
    )


def _node(
    node: NodeView,
    demands: Sequence[Sequence[bytes | None]],
    now_s: float,
    closed: Mapping[str, Closed],
    job_id: str,
) -> NodeFacts:
    about, total = node.about, _amounts(node.about)
    kept_for = about.get("reserved", "").partition(" ")[0]
    running, free = [d for d in demands if d[4] is None], None  # what has ended there holds only its disk
    if total is not None:
        taken = [sum(float(d[n] or 0) for d in (demands if n == 3 else running)) for n in range(4)]
        free = Amounts(
            vcpus=round(max(0.0, total.vcpus - taken[0] / 1000), 3),
            memory_mib=max(0, total.memory_mib - int(taken[1])),
            gpus=max(0, total.gpus - int(taken[2])),
            disk_gib=round(max(0.0, total.disk_gib - taken[3] / 1024), 3),
        )
    return NodeFacts(
        name=node.name,
        up=node.up,
        draining=about.get("state") == "DRAINING",
        quiet_s=max(0.0, now_s - node.seen),
        jobs=len(running),
        uploads=int(about.get("uploads") or 0),
        uploads_full=about.get("state") == "UPLOADING",
        most_jobs=int(about["most_jobs"]) if about.get("most_jobs", "").isdigit() else None,
        total=total,
        free=free,
        gpu_types=_types(about.get("gpu_types", "")),
        free_gpu_types=_types(about.get("free_gpu_types", "")),
        kept_for="" if kept_for == job_id else kept_for,
        closed=closed.get(about.get("environment", "")),
    )


def _types(told: str) -> dict[str, int]:
    try:
        return {str(kind): int(n) for kind, n in json.loads(told or "{}").items()}
    except (ValueError, AttributeError):
        return {}


def _amounts(about: Mapping[str, str]) -> Amounts | None:
    try:
        return Amounts(
            vcpus=float(about["vcpus"]),
            memory_mib=int(about["memory_mib"]),
            gpus=int(about["gpus"]),
            disk_gib=float(about["disk_gib"]),
        )
    except (KeyError, ValueError):
        return None


def _of_unknown(client: Client, job_id: str, config: Config) -> dict[str, Any]:
    """Of a job without a record: its message in a list, among the dead letters, a cancel that waits for it."""
    yard, wanted = client.yard, json.dumps(job_id).encode()
    lists = [(queue, key) for queue in config.by_priority() for key in keys.priority_lists(queue)]
    pipe = yard.redis.pipeline(transaction=False)
    for _, key in lists:
        pipe.lrange(key, -_MOST_MESSAGES, -1)  # the end that is taken in next
    found = zip(lists, yard.guard(lambda: pipe.execute(raise_on_error=False)), strict=True)
    listed = next(
        (
            (queue, len(messages) - 1 - n)
            for (queue, _), messages in found
            if isinstance(messages, list)
            for n, message in enumerate(messages)
            if wanted in message
        ),
        None,
    )
    _, letters = yard.guard(lambda: yard.redis.hscan(keys.DEAD, 0, count=_MOST_LETTERS))
    dead: dict[str, Any] = next(
        (json.loads(v.decode("utf-8", "replace"), strict=False) for v in letters.values() if job_id.encode() in v), {}
    )
    cancel: bytes | None = yard.guard(lambda: yard.redis.get(keys.cancelled(job_id)))
    return {
        "listed": listed,
        "dead": str(dead.get("reason", "")),
        "stored_cancel": (cancel or b"").decode("utf-8", "replace"),
        "waiting_lists": sum(d.lists for d in yard.depth(config.by_priority()).values()),
    }
