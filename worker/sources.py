"""Inputs that are outputs of other jobs, as blobs: looked up in the records when the job starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from batchyard.broker.errors import BatchyardError
from batchyard.broker.job import Input, Job
from batchyard.broker.record import Claimed
from batchyard.broker.sources import output_of, outputs_of, size_of
from batchyard.broker.store import Yard
from batchyard.cache.digest import Blob

Source: TypeAlias = Blob | Mapping[int, Blob]
"""An output, or those of an array's children by index."""


def look_up(yard: Yard, job: Job, claimed: Claimed, tenant: str) -> dict[str, Source]:
    """The inputs of this job that name a job, one of the same tenant, by path. Raises InputError, which names the
    input, BrokerUnavailable.
    """
    found: dict[str, Source] = {}
    for path, spec in job.inputs.items():
        if spec.job is not None and spec.from_ is not None:
            try:
                found[path] = _one(yard, job, claimed.index, spec, spec.job, spec.from_, tenant)
            except BatchyardError as error:
                raise type(error)(f'input "{path}": {error}') from error
    return found


def _one(yard: Yard, job: Job, own_index: int | None, spec: Input, job_id: str, name: str, tenant: str) -> Source:
    awaited = [on for on in job.depends_on if on.job_id == job_id]
    index = spec.index
    if index is None and any(on.type == "N_TO_N" for on in awaited):
        index = own_index
    if index is not None:
        return Blob.from_json(dict(output_of(yard, f"{job_id}:{index}", name, tenant)))
    size = size_of(yard, job_id, tenant)
    if size is None:
        return Blob.from_json(dict(output_of(yard, job_id, name, tenant)))
    some = any(on.on_failure == "CONTINUE" for on in awaited)
    outputs = outputs_of(yard, job_id, size, name, tenant, some=some)
    return {n: Blob.from_json(dict(value)) for n, value in outputs.items()}
