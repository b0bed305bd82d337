"""A gang's nodes without containers: who beats, claims, starts and settles on the real Redis functions."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import redis

from batchyard.broker import keys
from batchyard.broker.gangs import Gangs, Wait, facts
from batchyard.broker.job import Job
from batchyard.broker.record import Attempt, Claimed, Record
from batchyard.broker.state import State
from batchyard.broker.store import Free, Incoming, Yard

LEASE_S, KEEP_S = 30.0, 1000
_numbers = itertools.count(1)


@dataclass
class SimNode:
    """One node: what it has, and what it holds."""

    yard: Yard
    name: str
    vcpus: float = 4.0
    memory_mib: int = 4096
    gpus: int = 0
    domain: str = ""
    queues: str = "cpu"
    takes: str | None = None
    most_jobs: int = 64
    state: str = "READY"
    held: dict[str, Claimed] = field(default_factory=dict)
    dead: bool = False
    reserve_after_s: float = 60
    gpu_types: dict[str, int] = field(default_factory=dict)

    def beat(self) -> dict[str, tuple[str, str]]:
        """What it is told of its jobs: id → (what, reason)."""
        self.dead = False
        about = {
            "vcpus": f"{self.vcpus:g}",
            "memory_mib": str(self.memory_mib),
            "gpus": str(self.gpus),
            "disk_gib": "100",
            "most_jobs": str(self.most_jobs),
            "queues": self.queues,
            "takes": self.queues if self.takes is None else self.takes,
            "gangs": self.domain,
            "gpu_types": json.dumps(self.gpu_types),
            "room": ",".join(map(str, self._room())),
            "state": self.state,
        }
        tokens = {i: job.token for i, job in self.held.items()}
        told = self.yard.renew(self.name, about, tokens, lease_s=LEASE_S)
        return {job_id: (what, reason) for job_id, what, reason in told}

    def _room(self) -> tuple[int, ...]:
        return int(self.vcpus * 1000), self.memory_mib, self.gpus, 100 * 1024, int(self.reserve_after_s * 1000)

    def claim(self, *, claim_id: str | None = None, count: int = 8) -> list[Claimed]:
        """What it gets."""
        taken = [self.yard.record(i) for i in self.held]
        free = Free(
            vcpus=self.vcpus - sum(r.vcpus for r in taken),
            memory_mib=self.memory_mib - sum(r.memory_mib for r in taken),
            gpus=self.gpus - sum(r.gpus for r in taken),
            disk_gib=100 - sum(r.disk_gib for r in taken),
        )
        claim_id = claim_id or f"claim-{next(_numbers)}"
        _, jobs = self.yard.claim(self.name, claim_id, free, ["cpu"], lease_s=LEASE_S, count=count)
        self.held |= {job.id: job for job in jobs}
        return jobs

    def start(self, job_id: str, *, address: str = "10.0.0.1") -> bool:
        return self.yard.start(self.held[job_id], started_s=5.0, celery="{}", expires_s=60, address=address)

    def exited(self, job_id: str) -> None:
        """Its container has ended; its outputs are being uploaded."""
        self.yard.exited(self.name, [(job_id, self.held[job_id].token)])

    def settle(self, job_id: str, *, well: bool = True) -> bool:
        state, code = (State.SUCCEEDED, 0) if well else (State.FAILED, 1)
        fields = {"reason": "it ended", "exit_code": str(code), "ended": "9000", "log": f"sha256:{job_id}"}
        return self.yard.settle(
            self.held.pop(job_id), state, attempt(self.name, exit_code=code), fields, [], retention_s=KEEP_S
        )

    def give_back(self, job_id: str, **how: Any) -> bool:
        counted = how.pop("counted", False)
        told = attempt(self.name, counted=counted)
        return self.yard.give_back(self.held.pop(job_id), told, fields={"reason": "test"}, **how)

    def die(self) -> None:
        """Its leases lapse while the reaper looks on; it does not beat any more."""
        self.yard.tick(["cpu"], lease_s=LEASE_S)
        held: set[Any] = self.yard.redis.smembers(keys.node_jobs(self.name))
        self.yard.redis.zrem(keys.NODES, self.name)
        if held:
            self.yard.redis.zadd(keys.LEASES, dict.fromkeys(held, 1), xx=True)
        self.held.clear()
        self.dead = True

    def booked(self) -> dict[str, int]:
        """What Redis says that it has given away."""
        fields: dict[Any, Any] = self.yard.redis.hgetall(keys.node(self.name))
        return {k.decode()[2:]: int(v) for k, v in fields.items() if k.startswith(b"b:")}


def attempt(node: str = "n", *, counted: bool = True, exit_code: int | None = 1) -> Attempt:
    return Attempt(
        node=node, started=5.0, ended=9.0, exit_code=exit_code, reason="test", counted=counted, log="sha256:log"
    )


@dataclass
class SimYard:
    """A queue `cpu`, its nodes, and a controller that acts when it is told to."""

    yard: Yard
    nodes: list[SimNode]

    @classmethod
    def of(cls, yard: Yard, *vcpus: float, **more: Any) -> SimYard:
        """With nodes n0, n1, … of so many vCPUs, which have beaten."""
        made = cls(yard, [SimNode(yard, f"n{n}", vcpus=v, **more) for n, v in enumerate(vcpus)])
        for node in made.nodes:
            node.beat()
        return made

    def submit(
        self, job_id: str | None = None, *, priority: int = 0, clear: Mapping[str, str] | None = None, **fields: Any
    ) -> str:
        """Takes a job in. clear: what more stands on its record."""
        job_id = job_id or f"j{next(_numbers)}"
        job = Job.parse({"image": "busybox", "vcpus": 2, "memory_mib": 64, "disk_gib": 1, **fields})
        message = Incoming(
            list_key="cpu",
            raw=job_id.encode(),
            kind="job",
            id=job_id,
            queue="cpu",
            priority=priority,
            vcpus=job.vcpus,
            memory_mib=job.memory_mib,
            gpus=job.gpus,
            disk_gib=job.disk_gib,
            loss_retries=job.infrastructure_retries,
            clear={"image": job.image, "name": "", **facts(job), **(clear or {})},
            document=b"sealed",
        )
        self.yard.redis.lpush("cpu", message.raw)
        assert self.yard.intake([message]) == 1
        return job_id

    def place(self, *, reserve_after_s: float = 3600) -> list[str]:
        found: list[str] = []
        wait = Wait.AGAIN
        while wait is Wait.AGAIN:
            wait, placed = Gangs(self.yard).place(["cpu"], lease_s=LEASE_S, reserve_after_s=reserve_after_s)
            found += placed
        return found

    def tick(self) -> list[int]:
        return self.yard.tick(["cpu"], lease_s=LEASE_S)

    def claim(self) -> None:
        for node in self.nodes:
            if not node.dead:
                node.claim()

    def holder(self, job_id: str) -> SimNode:
        """The node that has taken this up."""
        return next(node for node in self.nodes if job_id in node.held)

    def where(self, job_id: str) -> list[str]:
        """Names of the nodes that hold members of a gang by Redis's word."""
        return [
            node.name
            for node in self.nodes
            if any(job.startswith(f"{job_id}#".encode()) for job in self._jobs(node.name))
        ]

    def _jobs(self, name: str) -> set[Any]:
        return set(self.yard.redis.smembers(keys.node_jobs(name)))

    def member(self, job_id: str, index: int) -> Record:
        return self.yard.record(f"{job_id}#{index}")

    def obey(self) -> None:
        """Nodes that live beat, and do as they are told: start, stop, forget."""
        for node in [n for n in self.nodes if not n.dead]:
            for job_id, (what, _) in node.beat().items():
                if what == "go":
                    node.start(job_id)
                elif what == "halt":
                    node.give_back(job_id)
                elif what == "cancel":
                    node.settle(job_id, well=False)
                else:
                    del node.held[job_id]

    def deliver(self) -> None:
        """The controller's outbox, without what follows."""
        for name, entry in self.yard.outbox()[1].items():
            if name.startswith("end:"):
                told = {"reason": entry["reason"]}
                self.yard.finish(entry["id"], State.FAILED, told, [], retention_s=KEEP_S)

    def nothing_left(self) -> None:
        """No lease, reservation, queue entry, or booked resource."""
        redis_: redis.Redis = self.yard.redis
        assert redis_.zrange(keys.LEASES, 0, -1) == []
        assert redis_.keys("by:q:*") == []
        assert redis_.keys("by:node:*:jobs") == []
        assert redis_.smembers(keys.GANG_QUEUES) == set()
        assert redis_.hlen(keys.OUTBOX) == 0
        assert redis_.exists(keys.RESERVATIONS, keys.GANG_RESERVED) == 0
        for node in self.nodes:
            assert node.booked() == {}, node.name
            assert not node.held, node.name


def states(sim: SimYard, job_id: str, indices: Sequence[int]) -> list[str]:
    return [str(sim.member(job_id, index).state) for index in indices]


def unnamed(job: Claimed) -> Claimed:
    """Without its token: as somebody who does not hold it would say it."""
    return replace(job, token="0:nobody")
