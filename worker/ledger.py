"""What of this node is taken by which job. Memory only: a restarted node reserves again what it adopts."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a job asks for. vCPUs are counted in thousandths and disk in MiB, both rounded up."""

    vcpus: float
    memory_mib: int
    disk_gib: float = 0.0
    gpus: int = 0
    gpu_type: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """What a job got: its demand and the ids of its GPUs, which are its alone. ended: of what it asked, it has its disk
    only.
    """

    job_id: str
    token: str
    demand: Demand
    gpus: tuple[str, ...]
    ended: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Free:
    """What is left, in the units in which it is counted. gpu_types: of the GPUs, those whose type is known."""

    vcpus_milli: int
    memory_mib: int
    disk_mib: int
    gpus: int
    gpu_types: Mapping[str, int] = field(default_factory=dict)


class Ledger:
    """Thread-safe. Accounts each job once, however often it is reserved. types: of GPUs, by id, where it is known."""

    def __init__(
        self,
        *,
        vcpus: float,
        memory_mib: int,
        disk_gib: float,
        gpus: Sequence[str] = (),
        types: Mapping[str, str] | None = None,
    ) -> None:
        self._types = dict(types or {})
        self._capacity = Free(
            vcpus_milli=math.floor(vcpus * 1000 + 1e-6),
            memory_mib=memory_mib,
            disk_mib=math.floor(disk_gib * 1024),
            gpus=len(gpus),
            gpu_types=self._by_type(gpus),
        )
        self._gpus = tuple(gpus)
        self._lock = threading.Lock()
        self._held: dict[str, Allocation] = {}

    @property
    def capacity(self) -> Free:
        """What the node has when it is empty."""
        return self._capacity

    def reserve(
        self,
        job_id: str,
        demand: Demand,
        *,
        token: str = "",
        gpus: Sequence[str] | None = None,
        runs: bool = False,
    ) -> Allocation | None:
        """Take what a job needs, or None when it does not fit now.

        A job that is accounted already (its lease came back while its old container still goes) keeps what it has,
        under the new token; what an ended one had besides its disk must fit again. `gpus` names the devices of an
        adopted container, which `runs`: it gets what it has, also when the node has been given less since it started.
        """
        with self._lock:
            held = self._held.get(job_id)
            if held is None or (held.ended and held.token != token):
                devices = tuple(gpus or ()) if runs else self._devices(demand, gpus)
                if devices is None or not (runs or self._fits(demand, beside=held)):
                    return None
                held = Allocation(job_id=job_id, token=token, demand=demand, gpus=devices)
            elif held.token != token:
                held = replace(held, token=token)
            self._held[job_id] = held
            return held

    def keep_disk(self, job_id: str, *, token: str) -> None:
        """Its container has ended: all but its disk is free. Nothing happens when it is held under another token."""
        with self._lock:
            held = self._held.get(job_id)
            if held is not None and token == held.token:
                disk = Demand(vcpus=0, memory_mib=0, disk_gib=held.demand.disk_gib)
                self._held[job_id] = replace(held, demand=disk, gpus=(), ended=True)

    def release(self, job_id: str, *, token: str | None = None) -> None:
        """Give it back. Nothing happens when it was, or when the job is held under another token by now."""
        with self._lock:
            held = self._held.get(job_id)
            if held is not None and token in (None, held.token):
                del self._held[job_id]

    def free(self) -> Free:
        """What is left. Never negative: what is adopted may exceed a capacity that was made smaller."""
        with self._lock:
            return self._free()

    def held(self) -> Mapping[str, Allocation]:
        """Who holds what, as it is now."""
        with self._lock:
            return dict(self._held)

    def _free(self) -> Free:
        taken = [_counted(one.demand) for one in self._held.values()]
        return Free(
            vcpus_milli=max(0, self._capacity.vcpus_milli - sum(one.vcpus_milli for one in taken)),
            memory_mib=max(0, self._capacity.memory_mib - sum(one.memory_mib for one in taken)),
            disk_mib=max(0, self._capacity.disk_mib - sum(one.disk_mib for one in taken)),
            gpus=max(0, self._capacity.gpus - sum(len(one.gpus) for one in self._held.values())),
            gpu_types=self._by_type(self._idle()),
        )

    def _by_type(self, gpus: Sequence[str]) -> Mapping[str, int]:
        return dict(Counter(self._types[gpu] for gpu in gpus if self._types.get(gpu)))

    def _idle(self) -> list[str]:
        taken = {gpu for one in self._held.values() for gpu in one.gpus}
        return [gpu for gpu in self._gpus if gpu not in taken]

    def _fits(self, demand: Demand, *, beside: Allocation | None) -> bool:
        """beside: what the same job has, which it would get no second time."""
        want, free = _counted(demand), self._free()
        own_disk = _counted(beside.demand).disk_mib if beside is not None else 0
        return (
            want.vcpus_milli <= free.vcpus_milli
            and want.memory_mib <= free.memory_mib
            and want.disk_mib <= free.disk_mib + own_disk
        )

    def _devices(self, demand: Demand, named: Sequence[str] | None) -> tuple[str, ...] | None:
        idle, count = self._idle(), demand.gpus
        if named is not None:
            return tuple(named) if set(named) <= set(idle) else None
        if demand.gpu_type is not None:
            idle = [gpu for gpu in idle if self._types.get(gpu) == demand.gpu_type]
        else:  # any will do: of a type that nobody can ask for, else of the one that most are left of
            left = self._by_type(idle)
            idle = sorted(idle, key=lambda gpu: -left.get(self._types.get(gpu, ""), len(self._gpus)))
        return tuple(idle[:count]) if count <= len(idle) else None


def _counted(demand: Demand) -> Free:
    return Free(
        vcpus_milli=math.ceil(demand.vcpus * 1000 - 1e-6),
        memory_mib=demand.memory_mib,
        disk_mib=math.ceil(demand.disk_gib * 1024 - 1e-6),
        gpus=demand.gpus,
    )
