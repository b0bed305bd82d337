"""Outputs of other jobs, looked up when a job that wants them starts: those of an array are too many for a message."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from . import keys
from .errors import InputError
from .state import State
from .store import Yard

CHUNK = 500  # records in one round trip


def output_of(yard: Yard, job_id: str, name: str, tenant: str) -> Mapping[str, Any]:
    """{"digest", "size", "kind"} as the job's record has it. tenant: whose job asks; another one's jobs are as if they
    were not there. Raises InputError, BrokerUnavailable.
    """
    return _named(job_id, name, *_look(yard, [job_id], tenant)[0])


def size_of(yard: Yard, job_id: str, tenant: str) -> int | None:
    """How many children it has; None: it is no array, or is not known. Raises BrokerUnavailable."""
    found, of = yard.guard(lambda: yard.redis.hmget(keys.job(job_id), "array", "tenant"))
    return int(found) if found is not None and _is_of(tenant, of) else None


def outputs_of(
    yard: Yard, job_id: str, size: int, name: str, tenant: str, *, some: bool
) -> dict[int, Mapping[str, Any]]:
    """Those of the children of an array, by index. some: only of children that have succeeded,
    or kept it all the same.

    Raises InputError, BrokerUnavailable.
    """
    outputs: dict[int, Mapping[str, Any]] = {}
    for at in range(0, size, CHUNK):
        indices = range(at, min(size, at + CHUNK))
        told = _look(yard, [f"{job_id}:{n}" for n in indices], tenant)
        for n, (state, result) in zip(indices, told, strict=True):
            if state == State.SUCCEEDED or name in result or not some:
                outputs[n] = _named(f"{job_id}:{n}", name, state, result)
    return outputs


def _is_of(tenant: str, told: bytes | None) -> bool:
    return (told or b"").decode() == tenant


def _look(yard: Yard, ids: list[str], tenant: str) -> list[tuple[str, Mapping[str, Any]]]:
    """State ('' where there is no record of this tenant's) and outputs."""
    pipe = yard.redis.pipeline(transaction=False)
    for job_id in ids:
        pipe.hmget(keys.job(job_id), "state", "tenant", "result", "outputs")
    found: list[tuple[bytes | None, ...]] = yard.guard(pipe.execute)
    return [
        ((state or b"").decode(), json.loads(result)["outputs"] if result else json.loads(kept or b"{}"))
        if _is_of(tenant, of)
        else ("", {})
        for state, of, result, kept in found
    ]


def _named(job_id: str, name: str, state: str, outputs: Mapping[str, Any]) -> Mapping[str, Any]:
    if not state:
        raise InputError(
            f'there is no record of job "{job_id}" any more, or none for this queue\'s tenant; run it again'
        )
    if state != State.SUCCEEDED and name not in outputs:
        raise InputError(f'job "{job_id}" is {state}, so there is no output "{name}" of it')
    found = outputs.get(name)
    if not isinstance(found, Mapping):
        raise InputError(f'job "{job_id}" has no output "{name}"; it has {", ".join(sorted(outputs)) or "none"}')
    return found
