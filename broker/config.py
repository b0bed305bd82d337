"""The yard's configuration: queues, compute environments, times. One YAML, kept in Redis for every part to read.

queues:
  cpu: {priority: 10, environments: [here]}
  gpu: {environments: [here], default_priority: 5}
environments:
  here: {vcpus: 8, memory_mib: 16000, gpus: 1, disk_gib: 100}    # the largest node that it may have
schedules:
  nightly: {cron: "30 2 * * *", timezone: Europe/Berlin, definition: report}    # see `schedule.Schedule`
lease_s: 30
reserve_after_s: 60    # how long others may overtake a job before a node is kept for it

A file without `schedules` leaves those of the file before as they are; `schedules: {}` removes them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from . import rules
from .errors import InvalidConfig, InvalidJob
from .gang import runs
from .job import Job
from .plainyaml import Loader, keep_texts, part
from .schedule import Schedule

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$"
_KOMBU = ("celery", "by")
_KOMBU_PREFIXES = ("celery-task", "unacked")  # of result and chord keys, and of what stock workers hold
Name = Annotated[str, Field(pattern=_NAME)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Environment(_Frozen):
    """A compute environment, by the largest node that it may have."""

    vcpus: Annotated[float, Field(gt=0)]
    memory_mib: Annotated[int, Field(gt=0)]
    gpus: Annotated[int, Field(ge=0)] = 0
    disk_gib: Annotated[float, Field(ge=0)] = 100

    def lacks(self, job: Job) -> str | None:
        """What the largest node has too little of for this job, in words; None when it fits."""
        for what in ("vcpus", "memory_mib", "gpus", "disk_gib"):
            if getattr(job, what) > getattr(self, what):
                return f"{what} {getattr(job, what):g} of at most {getattr(self, what):g}"
        return None


class Queue(_Frozen):
    """A job queue. priority: higher is served first. default_priority: for messages that carry 0 or none."""

    priority: int = 1
    environments: Annotated[tuple[Name, ...], Field(min_length=1)]
    default_priority: Annotated[int, Field(ge=0, le=9)] = 0
    state: Literal["ENABLED", "DISABLED"] = "ENABLED"
    force_strict: bool = False
    allow_host_network: bool = False


class Config(_Frozen):
    """The whole configuration. Times in seconds.

    reserve_after_s: how long others may overtake a job that waits for more room than any node has free, before a node
    (or several, for a job of several nodes) is kept for it.
    """

    queues: Annotated[dict[Name, Queue], Field(min_length=1)]
    environments: Annotated[dict[Name, Environment], Field(min_length=1)]
    lease_s: Annotated[float, Field(ge=1, le=3600)] = 30
    reserve_after_s: Annotated[float, Field(ge=0, le=30 * 86400)] = 60
    retention_s: Annotated[int, Field(ge=60)] = 14 * 86400
    result_expires_s: Annotated[int, Field(ge=60)] = 86400
    # Kept apart in Redis, and sealed: a job's environment may be private.
    schedules: Annotated[dict[Name, Schedule], Field(exclude=True)] = {}

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """A schedule's name is its key."""
        if not isinstance(value, Mapping) or not isinstance(value.get("schedules"), Mapping):
            return value
        told = value["schedules"].items()
        named = {k: {**one, "name": str(k)} if isinstance(one, Mapping) else one for k, one in told}
        return {**value, "schedules": named}

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name, queue in self.queues.items():
            if name in _KOMBU or name.startswith(_KOMBU_PREFIXES):
                raise ValueError(f'queue "{name}": this name is used by the broker; choose another')
            for environment in queue.environments:
                if environment not in self.environments:
                    raise ValueError(
                        f'queue "{name}": environment "{environment}" is not defined; '
                        f"define it or choose of {', '.join(self.environments)}"
                    )
        for name, schedule in self.schedules.items():
            if schedule.queue not in self.queues:
                raise ValueError(
                    f'schedule "{name}": queue "{schedule.queue}" is not defined; '
                    f"define it or choose of {', '.join(self.queues)}"
                )
            if schedule.job.get("definition") is None and (
                reason := self.refusal(schedule.queue, Job.parse(schedule.job))
            ):
                raise ValueError(f'schedule "{name}": {reason}')
        return self

    def by_priority(self) -> list[str]:
        """Queue names, the most urgent queue first."""
        return sorted(self.queues, key=lambda name: (-self.queues[name].priority, name))

    def served(self, environment: str, asked: Collection[str] = ()) -> list[str]:
        """What a node serves, the most urgent queue first: those asked for, else those of its compute environment.

        A node of an environment that is not configured serves all.
        """
        known = environment in self.environments
        return [
            name
            for name in self.by_priority()
            if (name in asked if asked else not known or environment in self.queues[name].environments)
        ]

    def refusal(self, queue_name: str, job: Job) -> str | None:
        """Why this job can never run in this queue, in words, or None."""
        queue = self.queues[queue_name]
        if queue.state == "DISABLED":
            return (
                f'queue "{queue_name}" is disabled; choose another, or enable it (`state: ENABLED`) in the yard\'s YAML'
            )
        if queue.force_strict and job.profile != "strict":
            return f'queue "{queue_name}" runs profile "strict" only; leave job.profile out'
        if job.networking == "host" and not queue.allow_host_network:
            return f'queue "{queue_name}" does not allow network "host"; choose "none" or "bridge"'
        for one in [job] if job.nodes is None else [each for _, each in runs(job)]:
            if reason := self._too_much(queue_name, queue, one):
                return reason
        return None

    def _too_much(self, queue_name: str, queue: Queue, job: Job) -> str | None:
        missing = [f"{name}: {lack}" for name in queue.environments if (lack := self.environments[name].lacks(job))]
        if len(missing) == len(queue.environments):
            return (
                f'no node that queue "{queue_name}" may have can meet the demand ({"; ".join(missing)}); ask for less'
            )
        return None


def single_machine(vcpus: float, memory_mib: int, gpus: int, disk_gib: float) -> Config:
    """Queues cpu and gpu on one environment: what `batchyard up` runs without a configuration."""
    here = Environment(vcpus=vcpus, memory_mib=memory_mib, gpus=gpus, disk_gib=disk_gib)
    queue = Queue(environments=("here",))
    return Config(queues={"cpu": queue, "gpu": queue}, environments={"here": here})


def load(path: Path) -> Config:
    """Reads a YAML file. Raises InvalidConfig that names file, field and rule."""
    try:
        data = _read(path.read_text())
    except OSError as error:
        raise InvalidConfig(f"configuration {path} cannot be read: {error.strerror}; check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"configuration {path} is not YAML: {str(error).replace(chr(10), ' ')}") from None
    return parse(data, str(path))


def _read(text: str) -> Any:
    """As files of jobs are read: what a schedule's job has as text stays what was written. Raises YAMLError."""
    loader = Loader(text)
    node: Any = loader.get_single_node()
    schedules = part(node, "schedules")
    for _, schedule in schedules.value if isinstance(schedules, yaml.MappingNode) else []:
        keep_texts(schedule)  # `definition` may stand there itself
        if (job := part(schedule, "job")) is not None:
            keep_texts(job)
    return None if node is None else loader.construct_document(node)


def parse(data: object, source: str) -> Config:
    """A configuration from plain data. Raises InvalidConfig."""
    try:
        return Config.model_validate(data)
    except InvalidJob as error:
        raise InvalidConfig(f"{source}: schedules: {error}") from None
    except ValidationError as error:
        first = rules.most_telling(error)
        field = ".".join(str(part) for part in first["loc"] if part != "[key]") or "the whole"
        raise InvalidConfig(f"{source}: {field}: {_rule(first)}") from None


def _rule(first: ErrorDetails) -> str:
    loc, kind = [str(part) for part in first["loc"]], first["type"]
    models: dict[str, type[_Frozen]] = {"queues": Queue, "environments": Environment}
    model = models.get(loc[0], Config) if len(loc) > 1 else Config
    if kind == "extra_forbidden":
        return rules.no_such_field(loc[-1], list(model.model_fields))
    if kind in {"model_type", "model_attributes_type", "dict_type"}:
        return f"must be a mapping {_FORMS[model]}"
    if kind in rules.TEXT_ERRORS:
        return f"a name is {rules.NAME}"
    return rules.rule(first)


_FORMS: dict[type[_Frozen], str] = {
    Config: "such as {queues: {cpu: {environments: [here]}}, environments: {here: {vcpus: 8, memory_mib: 16000}}}",
    Queue: "such as {environments: [here]}",
    Environment: "such as {vcpus: 8, memory_mib: 16000}",
}
