"""The yard's configuration: queues, compute environments, times. One YAML, kept in Redis for every part to read.

queues:
  cpu: {priority: 10, environments: [here]}
  gpu: {environments: [here], default_priority: 5, max_concurrent: 4}
  tests: {environments: [here], outputs_expire_s: 86400}    # without it outputs stay for ever
  lab: {environments: [here], fair_share: {shares: [{share: alice, weight: 0.5}]}}    # see `fairshare`
environments:
  here: {vcpus: 8, memory_mib: 16000, gpus: 1, gpu_types: [a100], disk_gib: 100}    # the largest node that it may have
schedules:
  nightly: {cron: "30 2 * * *", timezone: Europe/Berlin, definition: report}    # see `schedule.Schedule`
lease_s: 30
reserve_after_s: 60    # how long others may overtake a job before a node is kept for it

A file without `schedules` leaves those of the file before as they are; `schedules: {}` removes them. So it is with
`queues` and `environments`. What was made at run time (`queues.Queues`) stays, whatever a file says of others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from . import rules
from .environment import FARGATE, SPOT, Environment, Shape
from .errors import InvalidConfig, InvalidJob
from .fairshare import FairShare, Share
from .gang import runs
from .job import Job
from .plainyaml import Loader, keep_texts, part
from .schedule import Schedule
from .webhook import EventSettings, Webhook

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$"
_KOMBU = ("celery", "by")
_KOMBU_PREFIXES = ("celery-task", "unacked")  # of result and chord keys, and of what stock workers hold
Name = Annotated[str, Field(pattern=_NAME)]
Tenant = Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9_-]{0,63})?$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TimeLimit(_Frozen):
    """What becomes of the first job of a queue when nothing can start it, for this reason, for so long."""

    reason: Literal[
        "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY",
        "MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE",
        "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT",
        "MISCONFIGURATION:EC2_INSTANCE_CONFIGURATION_UNSUPPORTED",
    ]
    state: Literal["RUNNABLE"] = "RUNNABLE"
    max_time_s: Annotated[int, Field(ge=600, le=86400)]
    action: Literal["CANCEL"] = "CANCEL"


class Queue(_Frozen):
    """A job queue. priority: higher is served first. default_priority: for messages that carry 0 or none.

    environments: in the order in which they are to be filled. overflow_s: a node of the second one takes a job when it
    has been ready for so long, of the third one for twice as long.
    fair_share: without one, jobs go by their priority, then in the order of arrival. max_concurrent: jobs at once.
    tenant: whose blobs its jobs read and write. Jobs of one tenant learn nothing of another's; '' is the yard's own.
    max_output_gib: what the outputs of one job may have together.
    outputs_expire_s: outputs and logs of its jobs are deleted so long after a job has ended; None: never.
    """

    priority: int = 1
    environments: Annotated[tuple[Name, ...], Field(min_length=1, max_length=3)]
    overflow_s: Annotated[float, Field(ge=0, le=3600)] = 2
    job_state_time_limit_actions: Annotated[tuple[TimeLimit, ...], Field(max_length=4)] = ()
    default_priority: Annotated[int, Field(ge=0, le=9)] = 0
    state: Literal["ENABLED", "DISABLED"] = "ENABLED"
    force_strict: bool = False
    allow_host_network: bool = False
    fair_share: FairShare | None = None
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    tenant: Tenant = ""
    max_output_gib: Annotated[float, Field(gt=0, le=2**30, allow_inf_nan=False)] | None = None
    outputs_expire_s: Annotated[int, Field(ge=1)] | None = None


class Made(_Frozen):
    """What was done to queues and environments while the yard ran: no file says it.

    deleting: queues whose jobs are being ended. file_states: of those whose state was changed, what the file says,
    by "queue NAME" and "environment NAME".
    """

    queues: tuple[str, ...] = ()
    environments: tuple[str, ...] = ()
    deleting: tuple[str, ...] = ()
    file_states: dict[str, str] = {}


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
    events: EventSettings = EventSettings()
    made: Made = Made()

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
            if queue.fair_share and queue.fair_share.compute_reservation and self._max_vcpus(queue) is None:
                raise ValueError(
                    f'queue "{name}": compute_reservation is a part of max_vcpus; give its environments max_vcpus'
                )
            if len(set(queue.environments)) < len(queue.environments):
                raise ValueError(f'queue "{name}": an environment stands there twice')
            kinds = {self.environments[one].kind for one in queue.environments}
            if kinds & FARGATE and kinds - FARGATE:
                raise ValueError(f'queue "{name}": its environments are {", ".join(sorted(kinds))}; do not mix FARGATE')
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

    def policies(self) -> dict[str, str]:
        """What the claim has to know of queues: name → JSON; nothing of a queue that goes by priority and arrival."""
        found = {}
        for name, queue in self.queues.items():
            policy: dict[str, Any] = {}
            if queue.max_concurrent is not None:
                policy["max_concurrent"] = queue.max_concurrent
            if queue.fair_share is not None:
                policy["fair"] = queue.fair_share.told(self._max_vcpus(queue))
            if policy:
                found[name] = json.dumps(policy, sort_keys=True)
        return found

    def _max_vcpus(self, queue: Queue) -> float | None:
        each = [self.environments[name].max_vcpus for name in queue.environments]
        return sum(one for one in each if one is not None) if None not in each else None

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

    def claimed(self, environment: str, asked: Collection[str] = ()) -> list[str]:
        """Of what a node serves, that which it takes jobs from now: nothing while its environment is disabled."""
        there = self.environments.get(environment)
        if there is not None and there.state == "DISABLED":
            return []
        return [name for name in self.served(environment, asked) if name not in self.made.deleting]

    def overflow(self) -> dict[str, str]:
        """How long a job is ready before a node of a later environment takes it: "<queue> <environment>" → ms."""
        return {
            f"{name} {environment}": f"{n * queue.overflow_s * 1000:.0f}"
            for name, queue in self.queues.items()
            for n, environment in enumerate(queue.environments)
            if n * queue.overflow_s > 0
        }

    def spot(self) -> list[str]:
        """Environments whose machines may be taken away."""
        return sorted(name for name, one in self.environments.items() if one.kind in SPOT)

    def tenant_of(self, queue_name: str) -> str:
        """Whose blobs the jobs of a queue read and write; '' also of a queue that is not known."""
        queue = self.queues.get(queue_name)
        return queue.tenant if queue is not None else ""

    def refusal(self, queue_name: str, job: Job) -> str | None:
        """Why this job can never run in this queue, in words, or None."""
        queue = self.queues[queue_name]
        if queue_name in self.made.deleting:
            return f'queue "{queue_name}" is being deleted; choose another'
        if queue.state == "DISABLED":
            return f'queue "{queue_name}" is disabled; choose another, or `batchyard queue enable {queue_name}`'
        if queue.force_strict and job.profile != "strict":
            return f'queue "{queue_name}" runs profile "strict" only; leave job.profile out'
        if job.networking == "host" and not queue.allow_host_network:
            return f'queue "{queue_name}" does not allow network "host"; choose "none" or "bridge"'
        if reason := _share_refusal(queue_name, queue, job):
            return reason
        if job.on_demand_after is not None and all(self.environments[one].kind in SPOT for one in queue.environments):
            return f'queue "{queue_name}" has spot machines only; leave on_demand_after out, or choose another queue'
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


def _share_refusal(name: str, queue: Queue, job: Job) -> str | None:
    if queue.fair_share is None:
        return None if job.share is None else f'queue "{name}" has no fair share; leave job.share out'
    if job.share is not None:
        return None
    named = [one.share for one in queue.fair_share.shares]
    such = f", such as {', '.join(named[:5])}" if named else ""
    return f'queue "{name}" has a fair-share policy; say whose work it is with job.share{such}'


def single_machine(
    vcpus: float, memory_mib: int, gpus: int, disk_gib: float, *, gpu_types: Sequence[str] | None = None
) -> Config:
    """Queues cpu and gpu on one environment: what `batchyard up` runs without a configuration."""
    types = None if gpu_types is None else tuple(gpu_types)
    here = Environment(vcpus=vcpus, memory_mib=memory_mib, gpus=gpus, disk_gib=disk_gib, gpu_types=types)
    queue = Queue(environments=("here",))
    return Config(queues={"cpu": queue, "gpu": queue}, environments={"here": here})


_NOTHING_MADE = Made().model_dump(mode="json")  # as it stands in what a configuration was written out to


def load(path: Path, there: Callable[[], Config | None] = lambda: None) -> Config:
    """Reads a YAML file. Raises InvalidConfig that names file, field and rule.

    there: the configuration before it, asked for where the file says nothing of queues or of environments: those stay.
    """
    try:
        data = _read(path.read_text())
    except OSError as error:
        raise InvalidConfig(f"configuration {path} cannot be read: {error.strerror}; check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"configuration {path} is not YAML: {str(error).replace(chr(10), ' ')}") from None
    if isinstance(data, Mapping):
        if data.get("made", _NOTHING_MADE) != _NOTHING_MADE:
            raise InvalidConfig(f"{path}: made: {rules.no_such_field('made', _fields(Config))}")
        missing = [part for part in ("queues", "environments") if part not in data]
        before = there() if missing else None
        if before is not None:
            plain = before.model_dump(mode="json")
            data = {**data, **{part: _of_files(plain, part) for part in missing}}
    return parse(data, str(path))


def _of_files(plain: dict[str, Any], part: str) -> dict[str, Any]:
    """What a file before said of queues, or environments; what was made at run time is no file's."""
    said = {f"{part[:-1]} {name}": name for name in plain[part]}
    states = {
        name: plain["made"]["file_states"][key] for key, name in said.items() if key in plain["made"]["file_states"]
    }
    kept = {name: one for name, one in plain[part].items() if name not in plain["made"][part]}
    return {name: {**one, "state": states.get(name, one["state"])} for name, one in kept.items()}


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
    models: dict[str, type[BaseModel]] = {"queues": Queue, "environments": Environment, "events": EventSettings}
    model = models.get(loc[0], Config) if len(loc) > 1 else Config
    model = next((inner for name, inner in _INNER.items() if name in loc[1:-1]), model)
    if "fair_share" in loc[2:3] and (len(loc) > 3 or kind != "extra_forbidden"):
        model = Share if "shares" in loc[3:4] and len(loc) > 5 else FairShare
        if loc[-1] == "share":
            return 'a share is 1 to 255 letters and digits, the last may be "*"'
    if kind == "extra_forbidden":
        return rules.no_such_field(loc[-1], _fields(model))
    if kind in {"model_type", "model_attributes_type", "dict_type"}:
        return f"must be a mapping {_FORMS.get(model, '')}".rstrip()
    if kind in rules.TEXT_ERRORS:
        return f"a name is {rules.NAME}"
    return rules.rule(first)


def _fields(model: type[BaseModel]) -> list[str]:
    """Those that people may say."""
    return [name for name in model.model_fields if name != "made"]


_INNER: dict[str, type[BaseModel]] = {
    "shapes": Shape,
    "job_state_time_limit_actions": TimeLimit,
    "webhook": Webhook,
}
_FORMS: dict[type[BaseModel], str] = {
    Config: "such as {queues: {cpu: {environments: [here]}}, environments: {here: {vcpus: 8, memory_mib: 16000}}}",
    Queue: "such as {environments: [here]}",
    Environment: "such as {vcpus: 8, memory_mib: 16000}",
    FairShare: "such as {share_decay_s: 600, shares: [{share: alice, weight: 0.5}]}",
    Share: "such as {share: alice, weight: 0.5}",
}
