"""Jobs on several nodes at once (AWS Batch's multi-node parallel jobs): what a job says of its nodes. Pure.

`nodes: 3` is three nodes alike. `nodes: {count: 4, main: 0, ranges: [{targets: "1:", vcpus: 2}]}` gives nodes 1 to 3
another demand. All nodes are placed in one step or none; node `main` starts first, and its end is the job's. A node of
a job has an id of its own, `<job id>#<index>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, GetJsonSchemaHandler, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from .fields import Frozen, Text

if TYPE_CHECKING:
    from .job import Job

MOST = 1000
MOST_RANGES = 5
_TARGETS = re.compile(r"(\d{0,4}):(\d{0,4})")
_Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=256)]
_Image = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\s\x00-\x1f-][^\s\x00-\x1f]*$")]


class NodeRange(Frozen):
    """What some nodes of a job have of their own. targets: `0:3` (both are in), `2:` or `:3`.

    environment is put over the job's, variable by variable; all else takes the place of the job's.
    """

    targets: Annotated[str, Field(pattern=r"^(\d{1,4}:\d{0,4}|:\d{1,4})$")]
    image: Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\s\x00-\x1f-][^\s\x00-\x1f]*$")] | None = (
        None
    )
    command: Annotated[tuple[Text, ...], Field(max_length=1024)] | None = None
    environment: dict[_Variable, Text] = {}
    vcpus: Annotated[float, Field(ge=0.001, le=4096, allow_inf_nan=False)] | None = None
    memory_mib: Annotated[int, Field(ge=6, le=2**32)] | None = None
    gpus: Annotated[int, Field(ge=0, le=1024)] | None = None
    disk_gib: Annotated[float, Field(ge=0, le=2**20, allow_inf_nan=False)] | None = None

    def span(self, count: int) -> range:
        """The indices that it means, in a job of so many nodes."""
        found = _TARGETS.fullmatch(self.targets)
        assert found is not None
        first, last = found.groups()
        return range(int(first or 0), int(last or count - 1) + 1)

    def over(self, job: Job) -> dict[str, Any]:
        """The fields of a job that it changes."""
        own = {name: getattr(self, name) for name in ("image", "command", "vcpus", "memory_mib", "gpus", "disk_gib")}
        told = {name: value for name, value in own.items() if value is not None}
        return {**told, "environment": {**job.environment, **self.environment}} if self.environment else told


class Nodes(Frozen):
    """On how many nodes a job runs, and which of them is the main one. A number stands for `{"count": …}`."""

    count: Annotated[int, Field(ge=1, le=MOST)]
    main: Annotated[int, Field(ge=0)] = 0
    ranges: Annotated[tuple[NodeRange, ...], Field(max_length=MOST_RANGES)] = ()

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"count": value} if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.main >= self.count:
            raise ValueError(f'"main" is a node of the job, 0 to {self.count - 1}')
        spans = [one.span(self.count) for one in self.ranges]
        for one, span in zip(self.ranges, spans, strict=True):
            if not span or span[-1] >= self.count:
                raise ValueError(f'"targets": "{one.targets}" names nodes that are none of 0 to {self.count - 1}')
        for n, a in enumerate(spans):
            for b in spans[:n]:
                if set(a) & set(b) and not (set(a) <= set(b) or set(b) <= set(a)):
                    raise ValueError(
                        f'"targets": "{a[0]}:{a[-1]}" and "{b[0]}:{b[-1]}" overlap; let one lie in the other, or apart'
                    )
        return self

    @model_serializer(mode="wrap")
    def _short_again(self, dump: SerializerFunctionWrapHandler) -> Any:
        return self.count if not self.main and not self.ranges else dump(self)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        whole = handler.resolve_ref_schema(handler(core))
        return {"anyOf": [{"type": "integer", "minimum": 1, "maximum": MOST}, whole]}


def id_of(job_id: str, index: int) -> str:
    """The id of one node of a job."""
    return f"{job_id}#{index}"


def member(job: Job, index: int) -> Job:
    """The job of one node alone: ranges applied, the widest first; its own retries, time and outputs only for main."""
    assert job.nodes is not None
    nodes, update = job.nodes, dict[str, Any](nodes=None)
    spans = [(one, one.span(nodes.count)) for one in nodes.ranges]
    for one, span in sorted(spans, key=lambda pair: -len(pair[1])):  # among equals, the later one wins
        if index in span:
            job = job.model_copy(update=one.over(job))
    if index != nodes.main:
        update |= {"outputs": {}, "timeout_s": None, "attempts": 1, "evaluate_on_exit": ()}
    return job.model_copy(update=update)


def runs(job: Job) -> Iterator[tuple[int, Job]]:
    """(how many nodes in a row, the job of each of these), by index."""
    assert job.nodes is not None
    nodes = job.nodes
    edges = {0, nodes.count, nodes.main, nodes.main + 1}
    for one in nodes.ranges:
        span = one.span(nodes.count)
        edges |= {span[0], span[-1] + 1}
    cuts = sorted(edges)
    for first, after in pairwise(cuts):
        yield after - first, member(job, first)


def variables(*, count: int, index: int, main: int, address: str | None) -> Mapping[str, str]:
    """What AWS Batch tells each node. address: main's, for the others."""
    told = {
        "AWS_BATCH_JOB_NUM_NODES": str(count),
        "AWS_BATCH_JOB_NODE_INDEX": str(index),
        "AWS_BATCH_JOB_MAIN_NODE_INDEX": str(main),
    }
    return told if index == main else {**told, "AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS": address or ""}
