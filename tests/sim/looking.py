"""What Redis holds and what it should hold, in one form."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from batchyard.broker import keys
from batchyard.broker.arrays import Array
from batchyard.broker.state import State

from .model import Job, Scheduler
from .world import NODES, QUEUES, World

_STOPS = ("cancel", "revoked")  # of a job that a node holds: it is to be stopped, it is not run again
_FIELDS = ("state", "node", "token", "ending", "left", "used", "interruptions", "losses")


def seen(world: World) -> dict[str, Any]:
    """By reading all of it. The ready index is asked where each job stands: how it is laid out is its own affair."""
    pipe = world.redis.pipeline(transaction=False)
    for queue in QUEUES:
        pipe.zrange(f"by:q:{queue}:delayed", 0, -1, withscores=True)
        pipe.smembers(f"by:q:{queue}:blocked")
    for node in NODES:
        pipe.smembers(keys.node_jobs(node))
    for key in (keys.LEASES, keys.EXPIRING):
        pipe.zrange(key, 0, -1, withscores=True)
    pipe.hkeys(keys.OUTBOX)
    pipe.hkeys(keys.DEAD)
    for job_id in world.model.jobs:
        pipe.hmget(keys.job(job_id), *_FIELDS, *_STOPS)
        pipe.get(keys.result(job_id))
        pipe.zrange(keys.dependants(job_id), 0, -1)
        pipe.execute_command("FCALL", "by_position", 0, job_id)
    arrays = [i for i, job in world.model.jobs.items() if job.sent.array]
    for job_id in arrays:
        pipe.hgetall(keys.job(job_id))
    pipe.execute_command("FCALL", "by_depth", 0, *QUEUES)
    for queue in QUEUES:
        pipe.hgetall(f"by:states:{queue}")
    found = iter(pipe.execute())
    out: dict[str, Any] = {}
    for queue in QUEUES:
        out[f"{queue} delayed"] = {i.decode(): int(ms) for i, ms in next(found)}
        out[f"{queue} blocked"] = {i.decode() for i in next(found)}
    for node in NODES:
        out[f"{node} holds"] = {i.decode() for i in next(found)}
    for name in ("leases", "expiring"):
        out[name] = {i.decode(): int(ms) for i, ms in next(found)}
    out["outbox"] = {name.decode() for name in next(found)}
    out["dead letters"] = next(found)
    for job_id in world.model.jobs:
        fields = [value and value.decode() for value in next(found)]
        result = json.loads(next(found) or "{}").get("status")
        dependants = [i.decode() for i in next(found)]
        there, *place = next(found)
        position = (place[0], place[1]) if there else None
        *fields, cancel, revoked = fields
        stops = (bool(cancel), bool(revoked)) if fields[0] in {"STARTING", "RUNNING"} else None
        out[job_id] = dict(zip(_FIELDS, fields, strict=True)) | _further(result, dependants, position, stops)
    for job_id in arrays:
        array = Array.of(next(found))
        out[f"{job_id} counts"] = {str(state): n for state, n in array.counts.items() if n} if array else None
    depths = next(found)
    out["depth"] = {queue: depths[4 * n + 1 : 4 * n + 4] for n, queue in enumerate(QUEUES)}
    for queue in QUEUES:
        if states := {state.decode(): int(n) for state, n in next(found).items()}:  # the ended ones are totals
            out[f"{queue} states"] = {state: n for state, n in states.items() if n and not State(state).ended}
    return out


def wanted(model: Scheduler) -> dict[str, Any]:
    """What `seen` is to be."""
    jobs = model.jobs
    out: dict[str, Any] = {}
    for queue in QUEUES:
        here = [job for job in jobs.values() if job.sent.queue == queue]
        out[f"{queue} delayed"] = {job.sent.id: job.due_ms for job in here if job.due_ms is not None}
        out[f"{queue} blocked"] = {job.sent.id for job in here if job.waits}
        out[f"{queue} states"] = dict(Counter(job.state for job in here if not job.ended))
    for node in NODES:
        out[f"{node} holds"] = model.leases(node)
    out["leases"] = {i: job.lease_ms for i, job in jobs.items() if job.lease_ms is not None}
    out["expiring"] = {i: job.sent.expires_ms for i, job in jobs.items() if job.expiring}
    out["outbox"] = model.outbox
    out["dead letters"] = []
    for job_id, job in jobs.items():
        waiting = sorted((other for other in jobs.values() if job_id in other.waits), key=lambda one: one.score)
        dependants = [other.sent.id for other in waiting]
        stops = (job.cancel, job.revoked) if job.state in {"STARTING", "RUNNING"} else None
        out[job_id] = _fields(job) | _further(job.result, dependants, model.position(job), stops)
        if job.sent.array:
            out[f"{job_id} counts"] = model.counts(job)
    others = {q: [len(out[f"{q} delayed"]), len(out[f"{q} blocked"])] for q in QUEUES}
    out["depth"] = {queue: [model.waiting(queue), *others[queue]] for queue in QUEUES}
    return out


def _further(
    result: str | None, dependants: list[str], position: tuple[int, int] | None, stops: tuple[bool, bool] | None
) -> dict[str, Any]:
    return {"result": result, "dependants": dependants, "position": position, "stops": stops}


def _fields(job: Job) -> dict[str, Any]:
    def count(number: int) -> str | None:
        return str(number) if number else None

    return {
        "state": job.state,
        "node": job.node,
        "token": job.token,
        "ending": job.ending,
        "left": count(len(job.waits)),
        "used": count(job.used),
        "interruptions": count(job.interruptions),
        "losses": count(job.losses),
    }
