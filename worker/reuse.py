"""What an identical job made, in place of running this one.

Two jobs are identical when what they run and what they are given is: the image by its content, the command, variables,
inputs by content and place, outputs by name and place, user, profile, network, GPUs. What a job is called, when it
runs, how often it is tried and how much of a machine it gets does not count; nor does what the platform tells it of
itself, such as its id. A secret counts by its name, never by its value.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from batchyard.broker import memo
from batchyard.broker.errors import BatchyardError
from batchyard.broker.job import Input, Job
from batchyard.broker.memo import Made
from batchyard.broker.recorder import Effect
from batchyard.broker.seal import KeyRing
from batchyard.broker.store import Yard
from batchyard.cache.digest import Blob
from batchyard.cache.sealed import BlobStore
from batchyard.cache.whole import Use, all_there

from .publish import Kept
from .sources import Source

log = logging.getLogger(__name__)
_VERSION = 1

# All other fields count, so that one that is added later does.
_ASIDE = {
    "definition", "name", "tags", "parameters", "reuse", "vcpus", "memory_mib", "disk_gib", "priority", "share",
    "scheduling_priority", "consumables", "max_concurrent", "depends_on", "array_size", "timeout_s", "attempts",
    "evaluate_on_exit", "backoff_s", "infrastructure_retries", "on_demand_after",
}  # fmt: skip
_TOLD_OTHERWISE = {"image", "inputs", "outputs", "network"}
_OF_A_SOURCE = {"digest", "size", "kind", "uri", "credentials", "from_", "job", "index", "members"}
_NOT_OF_A_SUCCESS = {"on_failure"}


def obstacle(job: Job) -> str | None:
    """Why it cannot be told whether this job is identical to another, or None."""
    for path, spec in job.inputs.items():
        if spec.uri is not None and spec.digest is None:
            return f'input "{path}" has no digest'
    for name, output in job.outputs.items():
        if output.to is not None:
            return f'output "{name}" goes to a bucket'
    return None


def identity(job: Job, *, image: str, sources: Mapping[str, Source], index: int | None) -> str:
    """Text that identical jobs have in common, and no others. The job has no `obstacle`.

    image: the digest of the image as this node has it. sources: what its inputs that name a job are. index: of a child
    of an array, which is told it.
    """
    told: dict[str, Any] = {
        **job.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude=_ASIDE | _TOLD_OTHERWISE),
        "version": _VERSION,
        "image": image,
        "network": job.networking,
        "inputs": {str(PurePosixPath(path)): _input(spec, sources.get(path)) for path, spec in job.inputs.items()},
        "outputs": {
            name: {field: value for field, value in output if field not in _NOT_OF_A_SUCCESS and value is not None}
            for name, output in job.outputs.items()
        },
    }
    if index is not None:
        told["array"] = [index, job.array_size]
    return json.dumps(told, sort_keys=True, separators=(",", ":"))


def _input(spec: Input, source: Source | None) -> dict[str, Any]:
    """The content, and how it is mounted. A bare digest may be a file or a tree: its content tells."""
    how = {field: value for field, value in spec if field not in _OF_A_SOURCE and value is not None}
    if isinstance(source, Blob):
        return {**how, "is": [source.kind, source.digest]}
    if source is not None:
        return {**how, "name": spec.from_, "children": {str(n): [b.kind, b.digest] for n, b in source.items()}}
    if spec.members is not None:
        return {**how, "members": [[m.name, m.kind, m.digest] for m in spec.members]}
    if spec.uri is not None:
        return {**how, "is": ["tree" if spec.uri.endswith("/") else "file", spec.digest]}
    return {**how, "is": ["" if spec.size is None else spec.kind, spec.digest]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reused:
    """The outputs that job `job_id` made."""

    job_id: str
    outputs: Mapping[str, Kept]


class Reuse:
    """One attempt of a job that says `reuse`. folder: the attempt's own, which outlives a node that is killed. use: as
    `all_there` has it.

    What goes wrong here costs a run, never the job.
    """

    def __init__(
        self, yard: Yard, ring: KeyRing, blobs: BlobStore, folder: Path, *, use: Use = lambda names: ()
    ) -> None:
        self._yard, self._ring, self._blobs, self._use = yard, ring, blobs, use
        self._file = folder / "memo"

    def find(self, identity: str, job: Job, say: Callable[[str], None]) -> Reused | None:
        """What an identical job made, all of it still in the durable store. say: hears what is not there any more."""
        name = memo.name_of(self._ring, identity)
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_text(name)
        try:
            made = memo.look_up(self._yard, self._ring, name)
            if made is None:
                return None
            blobs = {output: Blob.from_json(dict(made.outputs[output])) for output in job.outputs}
            if all_there(self._blobs, blobs.values(), use=self._use):
                return Reused(job_id=made.job_id, outputs={output: Kept(blob=blob) for output, blob in blobs.items()})
            say(f"what the identical job {made.job_id} made is not all there any more")
        except (BatchyardError, KeyError) as error:
            log.warning("it is not known what an identical job made: %s", error)
            say("it cannot be told now whether what an identical job made is there")
        return None

    def note(self, job_id: str, outputs: Mapping[str, Kept], *, keep_s: int) -> Effect | None:
        """For the call that settles the job's success: what it made. None: it was never looked for."""
        try:
            name = self._file.read_text()
        except (OSError, UnicodeDecodeError):
            return None
        made = Made(job_id=job_id, outputs={output: kept.blob.as_json() for output, kept in outputs.items()})
        return memo.written(self._ring, name, made, keep_s=keep_s) if name else None
