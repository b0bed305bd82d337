"""Why nothing can start the first job of a queue, in AWS Batch's codes. Pure.

A job that waits for its turn is not blocked: a node that is up is large enough for it. MISCONFIGURATION is told of the
largest machines that there may be, never of those of the moment, and nothing is told while machines are being added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .config import Config
from .environment import MEASURES

IDLE_S = 60.0  # with room for it on a node, and still there
_TEXTS = {
    "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY": "Service cannot fulfill the capacity requested for instance type [{}]",
    "MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE": (
        "CE(s) associated with the job queue cannot meet the CPU requirement of the job."
    ),
    "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT": (
        "The job resource requirement (vCPU/memory/GPU) is higher than that can be met by the CE(s) attached to the "
        "job queue."
    ),
    "ACTION_REQUIRED": "CE(s) associated with the job queue are invalid.",
    "UNDETERMINED": "Batch job is blocked, root cause is undetermined.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """What a job asks for, or a node has."""

    vcpus: float
    memory_mib: int
    gpus: int
    disk_gib: float

    def lacks(self, need: Amounts) -> dict[str, float]:
        """What `need` asks for beyond these: field → how much is missing."""
        missing = {name: getattr(need, name) - getattr(self, name) for name in MEASURES}
        return {name: round(much, 3) for name, much in missing.items() if much > 1e-6}

    def covers(self, need: Amounts) -> bool:
        """Whether there is so much of each."""
        return not self.lacks(need)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A node that is up and takes jobs."""

    environment: str
    queues: tuple[str, ...]
    total: Amounts
    free: Amounts


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """What the autoscaler says of an environment. state: UNDER_WAY, or NO_CAPACITY for machines of `shape`."""

    state: str
    since_s: float = 0.0
    shape: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """code: as in `TimeLimit.reason`; text: the whole status reason, which begins with it."""

    code: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What a queue's jobs may get now. All by name of the environment."""

    config: Config
    machines: Sequence[Machine] = ()
    scaling: Mapping[str, Scaling] = field(default_factory=dict)


def blocked(queue: str, need: Amounts, ground: Ground, *, first_s: float) -> Block | None:
    """Why it is blocked that has been the first of its queue for so long; None: it is not."""
    config = ground.config
    there = {name: config.environments[name] for name in config.queues[queue].environments}
    if all(one.max_vcpus is not None and need.vcpus > one.max_vcpus for one in there.values()):
        return _block("MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE")
    if all(one.lacking(need) for one in there.values()):
        return _block("MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT")
    open_ = [name for name, one in there.items() if one.state == "ENABLED"]
    if not open_:
        return _block("ACTION_REQUIRED")
    fitting = [name for name in open_ if not there[name].lacking(need)]
    if any(name in ground.scaling and ground.scaling[name].state == "UNDER_WAY" for name in fitting):
        return None
    mine = [m for m in ground.machines if queue in m.queues and _enabled(config, m.environment)]
    large = [m for m in mine if m.total.covers(need)]
    if not large:
        short = [ground.scaling[name].shape for name in fitting if name in ground.scaling]
        return _block("CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY", next(iter([*short, *fitting, *open_])))
    if first_s >= IDLE_S and any(m.free.covers(need) for m in large):
        return _block("UNDETERMINED")
    return None


def _enabled(config: Config, environment: str) -> bool:
    there = config.environments.get(environment)
    return there is None or there.state == "ENABLED"


def _block(code: str, *named: str) -> Block:
    return Block(code=code, text=f"{code} - {_TEXTS[code].format(*named)}")
