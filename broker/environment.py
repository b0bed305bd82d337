"""Compute environments: which machines a queue's jobs may get. Pure."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from .fields import Frozen
from .job import GpuType, Job

MEASURES = ("vcpus", "memory_mib", "gpus", "disk_gib")
FARGATE = frozenset({"FARGATE", "FARGATE_SPOT"})
SPOT = frozenset({"SPOT", "FARGATE_SPOT"})
Kind = Literal["EC2", "SPOT", "FARGATE", "FARGATE_SPOT", "UNMANAGED"]


class Shape(Frozen):
    """A kind of machine. name: the cloud's word for it."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    vcpus: Annotated[float, Field(gt=0)]
    memory_mib: Annotated[int, Field(gt=0)]
    gpus: Annotated[int, Field(ge=0)] = 0
    disk_gib: Annotated[float, Field(ge=0)] = 100


class Environment(Frozen):
    """A compute environment, by the largest node that it may have, or by `shapes`, one of which a node is.

    kind: UNMANAGED machines are a person's own; the others are added and removed. min_vcpus, max_vcpus: of all its
    machines together. state: DISABLED gives its nodes no more jobs; what runs there goes on. gpu_types: those that its
    nodes may have; any, where it does not say.
    """

    vcpus: Annotated[float, Field(gt=0)]
    memory_mib: Annotated[int, Field(gt=0)]
    gpus: Annotated[int, Field(ge=0)] = 0
    disk_gib: Annotated[float, Field(ge=0)] = 100
    gpu_types: tuple[GpuType, ...] | None = None
    kind: Kind = "UNMANAGED"
    state: Literal["ENABLED", "DISABLED"] = "ENABLED"
    shapes: Annotated[tuple[Shape, ...], Field(max_length=200)] = ()
    min_vcpus: Annotated[float, Field(ge=0)] = 0
    max_vcpus: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _largest(cls, value: Any) -> Any:
        """Where only shapes are said, the largest figure of each kind among them; people are shown those."""
        shapes = value.get("shapes") if isinstance(value, dict) else None
        if not isinstance(shapes, list | tuple) or not shapes:
            return value
        told = [shape.model_dump() if isinstance(shape, Shape) else shape for shape in shapes]
        if not all(isinstance(shape, dict) for shape in told):
            return value
        known = {name: [s[name] for s in told if isinstance(s.get(name), int | float)] for name in MEASURES}
        return {**{name: max(of) for name, of in known.items() if of}, **value}

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.max_vcpus is not None and self.max_vcpus < self.min_vcpus:
            raise ValueError(f"max_vcpus {self.max_vcpus:g} is less than min_vcpus {self.min_vcpus:g}")
        names = [shape.name for shape in self.shapes]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f'shape "{twice[0]}" stands there twice')
        return self

    def lacking(self, need: Any) -> dict[str, tuple[float, float]]:
        """What the nearest shape has too little of: measure → (asked for, had). Empty when it fits one.

        need: anything with `vcpus`, `memory_mib`, `gpus`, `disk_gib`.
        """
        found = [_short(shape, need) for shape in self.shapes or (self,)]
        least = min(found, key=lambda short: (len(short), sum(asked / max(had, 1) for asked, had in short.values())))
        if self.max_vcpus is not None and need.vcpus > self.max_vcpus:
            return {**least, "vcpus": (need.vcpus, self.max_vcpus)}
        return least

    def lacks(self, job: Job) -> str | None:
        """What the nearest shape has too little of for this job, in words; None when it fits."""
        short = self.lacking(job)
        name = next(iter(short), None)
        kinds = self.gpu_types
        if name is None and job.gpu_type is not None and kinds is not None and job.gpu_type not in kinds:
            return f"gpu_type {job.gpu_type}, it has {', '.join(kinds) or 'none'}"
        return None if name is None else f"{name} {short[name][0]:g} of at most {short[name][1]:g}"


def _short(shape: Any, need: Any) -> dict[str, tuple[float, float]]:
    pairs = {name: (getattr(need, name), getattr(shape, name)) for name in MEASURES}
    return {name: (asked, had) for name, (asked, had) in pairs.items() if asked > had}
