"""From a job to the container that runs it. Pure: all that depends on the node comes in as values.

| | strict | aws |
|---|---|---|
| user | the job's or 65534:65534, never root | the job's or the image's |
| root filesystem | read-only, tmpfs on /tmp | writable |
| capabilities | none | the engine's default |
| network, unless the job says | none | bridge |
| working directory | /work | the image's |
| HOME, unless the job says | /work | the image's |
| pids | 4,096 | the engine's limit |

Both: no new privileges, memory and CPU limits, an init process, `/work` mounted and writable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from batchyard.broker.errors import InvalidJob
from batchyard.broker.job import Job

from .engine.protocol import Bind, ContainerSpec
from .gpu import Gpu

Profile = Literal["strict", "aws"]

WORK = "/work"
NOBODY = "65534:65534"
PIDS = 4096
TMP_OPTIONS = "rw,exec,nosuid,nodev,mode=1777"  # counted against the job's memory, so it needs no size of its own
_NOT_OURS = ("/proc", "/sys", "/dev")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a container belongs to. `token` is the lease's; `attempt` counts from 1."""

    yard: str
    node: str
    job_id: str
    token: str
    attempt: int
    queue: str
    environment: str

    def labels(self) -> dict[str, str]:
        """What the container carries, so that a restarted node knows it again."""
        return owner_labels(self.yard, self.node) | {
            "batchyard.job": self.job_id,
            "batchyard.token": self.token,
            "batchyard.attempt": str(self.attempt),
        }

    def variables(self) -> dict[str, str]:
        """What the job may rely on, as under AWS Batch."""
        return {
            "AWS_BATCH_JOB_ID": self.job_id,
            "AWS_BATCH_JOB_ATTEMPT": str(self.attempt),
            "AWS_BATCH_JQ_NAME": self.queue,
            "AWS_BATCH_CE_NAME": self.environment,
            "BATCHYARD_JOB_ID": self.job_id,
        }


def owner_labels(yard: str, node: str) -> dict[str, str]:
    """What all containers of a node carry, and no others."""
    return {"batchyard.yard": yard, "batchyard.node": node}


def container_spec(
    job: Job,
    identity: Identity,
    *,
    work: str,
    profile: Profile | None = None,
    binds: Sequence[Bind] = (),
    secrets: Mapping[str, str] | None = None,
    variables: Mapping[str, str] | None = None,
    gpus: Sequence[Gpu] = (),
    node_has_gpus: bool = False,
    network: str | None = None,
) -> ContainerSpec:
    """The container of one attempt.

    `profile` is the job's unless the operator forces one; `work` is the attempt's directory on the node, which the
    job's user must be able to write; `binds` are inputs and output directories outside of `/work`; `secrets` maps
    variable names to values; `variables` are further ones that the platform sets (array index, gang); `gpus` are the
    job's own devices; `network` is that of a gang, in place of the job's. InvalidJob: root under `strict`, a bind at a
    path that is not the job's to choose.
    """
    strict = (profile or job.profile) == "strict"
    every = (Bind(source=work, target=WORK), *binds)
    _check_targets(every)
    return ContainerSpec(
        image=job.image,
        command=job.command or None,
        environment=_variables(job, identity, strict, secrets or {}, variables or {})
        | _gpu_variables(gpus, node_has_gpus),
        labels=identity.labels() | ({"batchyard.gpus": ",".join(gpu.id for gpu in gpus)} if gpus else {}),
        user=_strict_user(job.user) if strict else job.user,
        working_dir=WORK if strict else None,
        binds=every,
        tmpfs={"/tmp": TMP_OPTIONS} if strict and "/tmp" not in {bind.target for bind in every} else {},
        vcpus=job.vcpus,
        memory_mib=job.memory_mib,
        network=network or job.network or ("none" if strict else "bridge"),
        read_only_root=strict,
        cap_drop_all=strict,
        no_new_privileges=True,
        pids_limit=PIDS if strict else None,
        gpus=tuple(gpu.id for gpu in gpus if not gpu.declared),
        init=True,
    )


def _variables(
    job: Job, identity: Identity, strict: bool, secrets: Mapping[str, str], ours: Mapping[str, str]
) -> dict[str, str]:
    home = {"HOME": WORK} if strict else {}
    return home | job.environment | dict(secrets) | dict(ours) | identity.variables()


def _gpu_variables(gpus: Sequence[Gpu], node_has_gpus: bool) -> dict[str, str]:
    """CUDA images say `all` themselves: where that runtime is the default, a job without GPUs must say `void`."""
    if gpus:
        return {"NVIDIA_VISIBLE_DEVICES": ",".join(gpu.id for gpu in gpus)}
    return {"NVIDIA_VISIBLE_DEVICES": "void"} if node_has_gpus else {}


def _strict_user(user: str | None) -> str:
    """Always with a group: the engine's default for a user alone is group 0."""
    if user is None:
        return NOBODY
    uid, _, gid = user.partition(":")
    if not uid.isascii() or not uid.isdigit() or int(uid) == 0:
        raise InvalidJob("user", user, 'must be a number other than 0 in profile "strict"; or choose profile "aws"')
    return f"{uid}:{gid or uid}"


def _check_targets(binds: Sequence[Bind]) -> None:
    seen: set[str] = set()
    for bind in binds:
        path = PurePosixPath(bind.target)
        if not path.is_absolute() or ".." in path.parts or str(path) != bind.target or bind.target == "/":
            raise InvalidJob("inputs", bind.target, "must be a plain absolute path in the container")
        if any(path.is_relative_to(system) for system in _NOT_OURS):
            raise InvalidJob("inputs", bind.target, "must not lie under /proc, /sys or /dev")
        if bind.target in seen:
            raise InvalidJob("inputs", bind.target, "is mounted twice; choose another path for one of them")
        seen.add(bind.target)
