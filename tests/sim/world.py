"""One yard on a real Redis beside the model of the scheduler: each act is done in both, and must do the same.

What acts here are the product's own classes, but for the nodes: they have no containers, only what the yard tells them.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from batchyard.broker import config, keys
from batchyard.broker.batch import End, Start
from batchyard.broker.ending import Outbox, failure
from batchyard.broker.followups import Followups
from batchyard.broker.intake import Intake
from batchyard.broker.record import Attempt, Claimed
from batchyard.broker.recorder import Effect
from batchyard.broker.seal import KeyRing
from batchyard.broker.state import State
from batchyard.broker.store import Free, Yard
from yardtest.clock import VirtualClock

from . import sending
from .model import Demand, Scheduler, Sent

RING = KeyRing.new()
LEASE_S, KEEP_S, AT_ONCE, TICK = 30.0, 1000, 2, 64
QUEUES = ("high", "low")  # the most urgent first
CONFIG = config.parse(
    {
        "queues": {"high": {"priority": 9, "environments": ["here"]}, "low": {"environments": ["here"]}},
        "environments": {"here": {"vcpus": 4, "memory_mib": 4096, "gpus": 2, "disk_gib": 16}},
        "lease_s": LEASE_S,
        "retention_s": KEEP_S,
    },
    "test",
)
NODES: Mapping[str, Demand] = {
    "large": (4000, 4096, 2, 16384),
    "small": (1000, 2048, 0, 4096),
    "wide": (3000, 1024, 1, 8192),
}


@dataclass(slots=True)
class Node:
    """A node as it sees itself. A dead one does nothing, but may come back to what it thinks it holds."""

    name: str
    size: Demand
    alive: bool = True
    held: dict[str, Claimed] = field(default_factory=dict)
    demands: dict[str, Demand] = field(default_factory=dict)
    last_claim: tuple[str, Demand, Sequence[str], int] | None = None

    def free(self) -> Demand:
        used = [sum(demand[i] for demand in self.demands.values()) for i in range(4)]
        a, b, c, d = (have - taken for have, taken in zip(self.size, used, strict=True))
        return a, b, c, d

    def takes(self, job: Claimed, demand: Demand) -> None:
        self.held[job.id], self.demands[job.id] = job, demand

    def drops(self, job_id: str) -> None:
        self.held.pop(job_id, None)
        self.demands.pop(job_id, None)


class Stalled(Yard):
    """A controller's yard, whose outbox is what the controller read of it before it stalled."""

    entries: ClassVar[dict[str, dict[str, Any]]] = {}

    def outbox(self, cursor: int = 0) -> tuple[int, dict[str, dict[str, Any]]]:
        return 0, dict(self.entries)


class World:
    """`told` counts what has happened. url: a Redis that is nobody else's, or not now."""

    def __init__(self, url: str, model: Scheduler, told: Counter[str], replace: Mapping[str, str]) -> None:
        self.yard, self.model, self.told = Yard(url, RING), model, told
        self.redis: Any = self.yard.redis
        self.redis.flushdb()
        self.yard.prepare()
        self.clock = VirtualClock(self.yard, replace=replace)
        model.now_ms = self.clock.now_ms
        self.nodes = {name: Node(name, size) for name, size in NODES.items()}
        self.followups = Followups(url, result_expires_s=KEEP_S)
        self._stalled = Stalled(url, RING)
        self._outboxes = [Outbox(self._stalled, self.followups, retention_s=KEEP_S) for _ in range(2)]
        self._intakes = [Intake(self.yard, clock=lambda: self.clock.now_s) for _ in range(2)]
        self._claims = itertools.count()
        self._read: dict[str, dict[str, Any]] = {}
        self.sent: dict[str, tuple[str, bytes, Sent]] = {}
        self.gone: list[tuple[Node, Claimed]] = []  # leases that nodes have heard of that they are lost

    def close(self) -> None:
        self.redis.close()
        self._stalled.redis.close()

    # -- producers
    def push(self, sent: Sent) -> None:
        """Into its list."""
        list_key, line = keys.priority_list(sent.queue, sent.priority), sending.message(sent)
        self.sent[sent.id] = (list_key, line, sent)
        self.redis.lpush(list_key, line)
        self.model.lists.append(sent)
        self.told["jobs"] += 1

    def push_again(self, job_id: str) -> None:
        """The same message once more."""
        list_key, line, sent = self.sent[job_id]
        self.redis.lpush(list_key, line)
        self.model.lists.append(sent)
        self.told["messages sent twice"] += 1

    def take_in(self, which: int) -> None:
        """By one of two controllers, until nothing is left that can be."""
        while self._intakes[which].run(CONFIG):
            pass
        self.model.take_in()

    # -- nodes
    def claim(self, node: Node, queues: Sequence[str], count: int) -> None:
        node.last_claim = (f"c{next(self._claims)}", node.free(), queues, count)
        self.ask(node)

    def ask(self, node: Node) -> None:
        """The node's last claim, the first time or once more: as the model says, in its order."""
        assert node.last_claim is not None
        claim_id, free, queues, count = node.last_claim
        more, jobs = self.yard.claim(node.name, claim_id, as_free(free), queues, lease_s=LEASE_S, count=count)
        wanted = self.model.claim(node.name, claim_id, free, queues, count)
        assert ([job.id for job in jobs], more) == (wanted, False)
        for job in jobs:
            model = self.model.jobs[job.id]
            assert (job.token, job.attempt, job.queue) == (model.token, model.used + 1, model.sent.queue)
            assert job.interruptions == model.interruptions
            node.takes(job, model.sent.demand)
        self.told["claimed"] += len(jobs)
        self.told["claims with nothing"] += not jobs

    def start(self, jobs: Sequence[Claimed]) -> list[bool]:
        now_s = self.clock.now_s
        starts = [Start(job=job, started_s=now_s, celery=_started(job), expires_s=KEEP_S) for job in jobs]
        answers = self.yard.start_many(starts)
        assert answers == [self.model.start(job.id, job.token) for job in jobs]
        self.told["started"] += sum(answers)
        return answers

    def settle(self, node: Node, outcomes: Sequence[tuple[Claimed, str]]) -> list[bool]:
        """Ends in one call. outcome: Celery's state. -> which of them were written, now or before."""
        written = self.yard.settle_many([self._end(node, *one) for one in outcomes], retention_s=KEEP_S)
        assert written == self.model.settle([(job.id, job.token, outcome) for job, outcome in outcomes])
        self.told["settled"] += sum(map(bool, written))
        self.told["settled too late"] += len(written) - sum(map(bool, written))
        return [bool(one) for one in written]

    def _end(self, node: Node, job: Claimed, outcome: str) -> End:
        state = State.SUCCEEDED if outcome == "SUCCESS" else State.FAILED
        return End(job=job, state=state, attempt=self._attempt(node), effects=self._effects(job, outcome))

    def _effects(self, job: Claimed, outcome: str) -> list[Effect]:
        if job.index is not None:  # what follows, follows its array
            return []
        sent = self.yard.open(job.id, job.document).message
        if outcome == "SUCCESS":
            return self.followups.succeeded(sent, {"job_id": job.id})
        if outcome == "REVOKED":
            return self.followups.revoked(sent, "terminated")
        return self.followups.failed(sent, failure(job.id, "exit code 1"))

    def _attempt(self, node: Node, *, counted: bool = True) -> Attempt:
        now = self.clock.now_s
        return Attempt(node=node.name, started=now, ended=now, exit_code=1, reason="test", counted=counted)

    def give_back(self, node: Node, job: Claimed, why: str, delay_s: float) -> bool:
        """why: retry, interruption or drain."""
        counted, interrupted = why == "retry", why == "interruption"
        attempt = None if why == "drain" else self._attempt(node, counted=counted)
        given = self.yard.give_back(job, attempt, interrupted=interrupted, delay_s=delay_s)
        delay_ms = int(delay_s * 1000)
        assert given == self.model.give_back(
            job.id, job.token, counted=counted, interrupted=interrupted, delay_ms=delay_ms
        )
        self.told[why] += given
        return given

    def beat(self, node: Node) -> None:
        """It keeps its leases, lets go of those that it has lost, and ends what is to be stopped."""
        held = {job.id: job.token for job in node.held.values()}
        told = self.yard.renew(node.name, {}, held, lease_s=LEASE_S)
        assert {i: what for i, what, _ in told} == self.model.renew(held)
        for job_id, what, _ in told:
            if what == "cancel":
                assert self.settle(node, [(node.held[job_id], "REVOKED")]) == [True]
                self.told["stopped"] += 1
            else:
                self.gone.append((node, node.held[job_id]))
            node.drops(job_id)

    def restart(self, node: Node) -> None:
        """As a process that is started anew, with what the yard says that it holds."""
        held = {job.id: job for job in sorted(self.yard.held(node.name), key=lambda job: job.id)}
        assert held.keys() == self.model.leases(node.name)
        self.gone += [(node, job) for job in node.held.values() if held.get(job.id, job).token != job.token]
        node.alive, node.held, node.demands, node.last_claim = True, {}, {}, None
        for job in held.values():
            node.takes(job, self.model.jobs[job.id].sent.demand)

    # -- people
    def cancel(self, job_id: str, *, terminate: bool) -> None:
        answer = self.yard.cancel(job_id, "not wanted", terminate=terminate)
        assert answer == self.model.cancel(job_id, terminate=terminate)
        self.told[f"cancel: {answer}"] += 1

    # -- time, and the controllers
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.model.now_ms = self.clock.now_ms

    def tick(self) -> None:
        reaped, due, expired, _ = self.yard.tick(QUEUES, lease_s=LEASE_S, limit=TICK)
        assert [reaped, due, expired] == self.model.tick(TICK)
        self.told["reaped"] += reaped
        self.told["due"] += due
        self.told["expired"] += expired

    def read_outbox(self) -> None:
        """A controller does, and stalls."""
        self._read = self.yard.outbox()[1]

    def empty_outbox(self, which: int, *, late: bool) -> None:
        """By one of two controllers. late: by what was read of it some time ago."""
        Stalled.entries = self._read if late else self.yard.outbox()[1]
        self._outboxes[which].run()
        self.model.deliver(Stalled.entries)

    def expire(self, job_id: str) -> None:
        """The record of a job that has ended goes, with all that is its, as its time in Redis is over."""
        ids = [i for i, job in self.model.jobs.items() if i == job_id or (job.parent and job.parent.sent.id == job_id)]
        for one in ids:
            assert self.redis.ttl(keys.job(one)) > 0
            self.redis.delete(keys.job(one))
        self.model.forget(job_id)
        self.told["records expired"] += 1


def _started(job: Claimed) -> str:
    return '{"status": "STARTED"}' if job.index is None else ""


def as_free(demand: Demand) -> Free:
    """What a node says that it has free."""
    return Free(vcpus=demand[0] / 1000, memory_mib=demand[1], gpus=demand[2], disk_gib=demand[3] / 1024)
