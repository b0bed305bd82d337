"""The yard in Redis: the record of every job and the only door to it. Every move is one Redis function call.

A call may be repeated after a lost reply: each function knows its own repeat. All raise BrokerUnavailable when Redis
does not answer, and then nothing is known of whether the move was made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import redis
from redis.client import PubSub

from . import config, keys
from .config import Config
from .dependencies import Dependency
from .errors import BrokerUnavailable, InvalidConfig, NotFound
from .functions import Arg, Functions, connect, told, words
from .message import Document
from .record import Attempt, Claimed, Record, from_hash
from .recorder import Effect, flat
from .retry import INFRASTRUCTURE_RETRIES
from .seal import KeyRing
from .state import State

CancelAnswer = Literal["stored", "ended", "cancelled", "running", "stopping"]
KEEP_CANCEL_S = 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """One message of a producer's list, read. kind: job (it may run), end (fails at the door), dead (is no job).

    loss_retries: see `retry.loss_retries`. patient: it stays in its list while one that it depends on is not known.
    """

    list_key: str
    raw: bytes
    kind: Literal["job", "end", "dead"]
    reason: str = ""
    id: str = ""
    queue: str = ""
    priority: int = 0
    vcpus: float = 0
    memory_mib: int = 0
    gpus: int = 0
    disk_gib: float = 0
    eta_ms: int = 0
    expires_ms: int = 0
    chord_key: str = ""
    loss_retries: int = INFRASTRUCTURE_RETRIES
    depends_on: Sequence[Dependency] = ()
    patient: bool = False
    clear: Mapping[str, str] | None = None
    document: bytes = b""

    def arguments(self) -> list[Arg]:
        """As `by_intake` reads them. vCPUs in thousandths, disk in MiB, rounded up."""
        reason = self.reason.encode("utf-8", "replace").decode()  # what it quotes may hold half a surrogate pair
        clear = {**(self.clear or {}), **({"reason": reason} if reason else {})}
        if self.loss_retries != INFRASTRUCTURE_RETRIES:
            clear["infra"] = str(self.loss_retries)
        return [
            self.list_key,
            self.raw,
            self.kind,
            self.id,
            self.queue,
            self.priority,
            _up(self.vcpus * 1000),
            self.memory_mib,
            self.gpus,
            _up(self.disk_gib * 1024),
            self.eta_ms,
            self.expires_ms,
            self.chord_key,
            json.dumps(clear),
            reason if self.kind == "dead" else self.document,
            json.dumps([(one.job_id, int(one.on_failure == "CONTINUE")) for one in self.depends_on])
            if self.depends_on
            else "",
            int(self.patient),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Free:
    """What a node has free."""

    vcpus: float
    memory_mib: int
    gpus: int
    disk_gib: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """Jobs of a queue that wait: in the producers' lists, in the index, for a time, for other jobs."""

    lists: int
    index: int
    delayed: int
    blocked: int = 0

    @property
    def total(self) -> int:
        return self.lists + self.index + self.delayed + self.blocked


class Yard:
    """One Redis database, opened with the yard's keys (which seal what producers sent)."""

    def __init__(self, url: str, ring: KeyRing, **options: Any) -> None:
        self.url, self.ring = url, ring
        self.redis = connect(url, **options)
        self._functions = Functions(self.redis)

    def prepare(self) -> None:
        """Loads the functions, checks the server and the keys. Raises InvalidConfig, BrokerUnavailable."""
        self._functions.load()
        mark = self.ring.mark
        known = self.guard(lambda: self.redis.set(keys.KEY_MARK, mark, nx=True, get=True))
        if known is not None and known.decode() != mark:
            raise InvalidConfig(
                "this key file is not the yard's: what the yard has sealed would not open; "
                "use the key file that its controller uses"
            )
        try:
            policy = self.redis.config_get("maxmemory-policy").get("maxmemory-policy")
            if policy != "noeviction":
                raise InvalidConfig(
                    f"Redis evicts keys (maxmemory-policy {policy}), so jobs would vanish; "
                    "set maxmemory-policy noeviction"
                )
        except redis.ResponseError:
            pass  # CONFIG is not for us on this server
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise BrokerUnavailable(f"Redis does not answer: {words(error)}") from error
        self.announce_lists()

    def announce_lists(self) -> None:
        """Makes Redis tell of every push; it forgets that when it is started again. Raises BrokerUnavailable."""
        try:
            events = self.redis.config_get("notify-keyspace-events").get("notify-keyspace-events") or ""
            if "K" not in events or not {"l", "A"} & set(events):
                self.redis.config_set("notify-keyspace-events", "".join({*events, "K", "l"}))
        except redis.ResponseError:
            pass  # CONFIG is not for us on this server: intake then looks by the clock
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise BrokerUnavailable(f"Redis does not answer: {words(error)}") from error

    # -- configuration
    def configure(self, value: Config, *, expected: bytes = b"") -> bool:
        """Keeps it and tells all who follow it. expected: only in place of this text. False: another one is there."""
        return bool(self._call("configure", expected, value.model_dump_json(), json.dumps(value.overflow())))

    def config(self) -> Config:
        """Raises NotFound when no controller has ever run on this Redis."""
        return self.config_and_text()[0]

    def config_and_text(self) -> tuple[Config, bytes]:
        """As `config`, and what `configure` may expect to find."""
        text: bytes | None = self._read("GET", keys.CONFIG)
        if text is None:
            raise NotFound("this Redis holds no yard yet; start `batchyard up` or `batchyard controller` on it")
        return config.parse(json.loads(text), "the yard's configuration"), text

    # -- the durable store
    def store_id(self) -> str | None:
        """Which store is the yard's; None: no node has opened one yet."""
        found = self._read("GET", keys.STORE)
        return None if found is None else str(found.decode())

    def keep_store_id(self, value: str, *, replace: bool = False) -> str:
        """The first one counts, unless `replace`; what is kept."""
        found = self.guard(lambda: self.redis.set(keys.STORE, value, nx=not replace, get=True))
        return value if found is None or replace else str(found.decode())

    def forget_store(self) -> None:
        """The next node may bring any store."""
        self._read("DEL", keys.STORE)

    # -- doors
    def intake(self, messages: Iterable[Incoming]) -> int:
        """Messages out of their lists into records, some 64 a call. Returns how many were taken."""
        return self.take_in(messages)[0]

    def take_in(self, messages: Iterable[Incoming]) -> tuple[int, frozenset[int]]:
        """As `intake`; and the numbers of the patient messages that stay where they are."""
        taken, *left = self._call("intake", *(a for m in messages for a in m.arguments()))
        return int(taken), frozenset(int(n) for n in left)

    def cancel(self, job_id: str, reason: str, *, terminate: bool) -> CancelAnswer:
        answer: CancelAnswer = self._call("cancel", job_id, reason, int(terminate), KEEP_CANCEL_S).decode()
        return answer

    # -- moves of a node
    def claim(
        self, node: str, claim_id: str, free: Free, queues: Sequence[str], *, lease_s: float, count: int = 1
    ) -> tuple[bool, list[Claimed]]:
        """(ask again at once, jobs). The same claim_id gets the same answer."""
        more, *jobs = self._call(
            "claim",
            node,
            claim_id,
            int(lease_s * 1000),
            int(free.vcpus * 1000 + 1e-6),
            free.memory_mib,
            free.gpus,
            int(free.disk_gib * 1024),
            count,
            *queues,
        )
        return bool(more), [
            Claimed(
                id=job_id.decode(),
                token=token.decode(),
                attempt=int(attempt),
                document=document,
                queue=queue.decode(),
                created=int(created) / 1000,
                interruptions=int(interruptions),
            )
            for job_id, token, attempt, document, queue, created, interruptions in jobs
        ]

    def held(self, node: str) -> list[Claimed]:
        """What Redis says that this node holds."""
        return [
            Claimed(
                id=i.decode(),
                token=token.decode(),
                attempt=int(n),
                document=document,
                queue=queue.decode(),
                created=int(created) / 1000,
                cancel=cancel.decode(),
                started=int(started) / 1000 if started else None,
                interruptions=int(interruptions),
            )
            for i, token, n, document, queue, created, interruptions, cancel, started in self._call("held", node)
        ]

    def start(self, job: Claimed, *, started_s: float, celery: str, expires_s: int) -> bool:
        """STARTING → RUNNING, with Celery's STARTED result (or ''). False: the lease is lost."""
        return bool(self._call("start", job.id, job.token, int(started_s * 1000), celery, expires_s))

    def renew(
        self, node: str, about: Mapping[str, str], held: Mapping[str, str], *, lease_s: float
    ) -> list[tuple[str, Literal["lost", "cancel"], str]]:
        """The node's heartbeat and all of its leases (id → token) in one call; what there is to be told of them."""
        args = [a for pair in held.items() for a in pair]
        out = [x.decode() for x in self._call("renew", node, int(lease_s * 1000), json.dumps(dict(about)), *args)]
        return [(out[i], out[i + 1], out[i + 2]) for i in range(0, len(out), 3)]

    def leave(self, node: str) -> bool:
        """Takes a node that holds nothing off the list."""
        return bool(self._call("leave", node))

    def settle(
        self,
        job: Claimed,
        state: State,
        attempt: Attempt,
        fields: Mapping[str, str],
        effects: list[Effect],
        *,
        retention_s: int,
    ) -> bool:
        """The end of a job, with all that follows. False: the lease is lost and nothing was written."""
        return bool(
            self._call(
                "settle",
                job.id,
                job.token,
                state.value,
                json.dumps(dict(fields)),
                attempt.dumps(),
                retention_s,
                *flat(effects),
            )
        )

    def give_back(
        self,
        job: Claimed,
        attempt: Attempt | None,
        *,
        interrupted: bool = False,
        delay_s: float = 0,
        fields: Mapping[str, str] | None = None,
    ) -> bool:
        """Back to its old place in the queue, not to start before delay_s. False: the lease is lost.

        interrupted: it counts against `infrastructure_retries`; who gives back has seen that some are left.
        """
        counted = attempt is not None and attempt.counted
        return bool(
            self._call(
                "giveback",
                job.id,
                job.token,
                "used" if counted else "interruptions" if interrupted else "",
                attempt.dumps() if attempt else "",
                json.dumps(dict(fields or {})),
                int(delay_s * 1000),
            )
        )

    def progress(self, job_id: str, text: str) -> None:
        """What the job does just now, for people."""
        self._read("HSET", keys.job(job_id), "progress", text)

    # -- moves of the controller
    def tick(self, queues: Sequence[str], *, lease_s: float, limit: int = 64) -> list[int]:
        """What time brings about: [reaped, due, expired, forgotten]."""
        return [int(n) for n in self._call("tick", int(lease_s * 1000), limit, *queues)]

    def outbox(self, cursor: int = 0) -> tuple[int, dict[str, dict[str, Any]]]:
        """The next call's cursor (0: that was all) and some entries: `end:<id>`, `deps:<id>` or `body:<chord key>`."""
        after, found = self.guard(lambda: self.redis.hscan(keys.OUTBOX, cursor, count=64))
        return int(after), {k.decode(): json.loads(v) for k, v in found.items()}

    def finish(
        self, job_id: str, state: State, fields: Mapping[str, str], effects: list[Effect], *, retention_s: int
    ) -> bool:
        """The end of a job outside a node. False: another call did it."""
        return bool(self._call("finish", job_id, state.value, json.dumps(dict(fields)), retention_s, *flat(effects)))

    def release(self, job_id: str) -> int:
        """Lets go some of the jobs that wait for one that has ended. Returns how many still wait: call again."""
        return int(self._call("release", job_id))

    def deliver(self, field: str, effects: list[Effect]) -> bool:
        return bool(self._call("deliver", field, *flat(effects)))

    # -- looking
    def pubsub(self) -> PubSub:
        """A subscription of its own connection, without the notices of subscribing."""
        made: PubSub = self.redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        return made

    def depth(self, queues: Sequence[str]) -> dict[str, Depth]:
        flat_ = [int(n) for n in self._call("depth", *queues)]
        return {
            q: Depth(lists=flat_[4 * i], index=flat_[4 * i + 1], delayed=flat_[4 * i + 2], blocked=flat_[4 * i + 3])
            for i, q in enumerate(queues)
        }

    def counts(self, queues: Sequence[str]) -> dict[str, dict[State, int]]:
        """Jobs of each queue by state. Of SUCCEEDED and FAILED, how many ended so since the yard began."""
        pipe = self.redis.pipeline(transaction=False)
        for queue in queues:
            pipe.hgetall(keys.states(queue))
        found = self.guard(pipe.execute) if queues else []
        return {
            queue: {state: int(h.get(state.value.encode(), 0)) for state in State}
            for queue, h in zip(queues, found, strict=True)
        }

    def position(self, job_id: str) -> tuple[int, int] | None:
        """(jobs of its queue that stand before it, all in its queue's index), None when it is not in the index."""
        there, ahead, waiting = (int(n) for n in self._call("position", job_id))
        return (ahead, waiting) if there else None

    def record(self, job_id: str) -> Record:
        """Raises NotFound."""
        found = self._read("HGETALL", keys.job(job_id))
        if not found:
            raise NotFound(f'no job "{job_id}"; it was never taken in, its record has expired, or the id is not whole')
        return from_hash(job_id, found)

    def exists(self, job_id: str) -> bool:
        """Whether there is a record."""
        return bool(self._read("EXISTS", keys.job(job_id)))

    def document(self, job_id: str) -> Document:
        """Raises NotFound, IntegrityError."""
        sealed = self._read("HGET", keys.job(job_id), "doc")
        if sealed is None:
            raise NotFound(f'no job "{job_id}"')
        return self.open(job_id, sealed)

    def open(self, job_id: str, sealed: bytes) -> Document:
        """The document of a claimed job. Raises IntegrityError."""
        return Document.loads(self.ring.open(sealed, job_id.encode()))

    def recent(self, limit: int) -> list[Record]:
        """The newest jobs, newest first."""
        ids = [i.decode() for i in self._read("ZREVRANGE", keys.JOBS, 0, limit - 1)]
        pipe = self.redis.pipeline(transaction=False)
        for job_id in ids:
            pipe.hgetall(keys.job(job_id))
        return [from_hash(i, h) for i, h in zip(ids, self.guard(pipe.execute), strict=True) if h]

    def nodes(self) -> dict[str, dict[str, str]]:
        """Fields of each node that has beaten, with `seen` in seconds since the epoch and `jobs` it holds."""
        out = {}
        for name, ms in self.guard(lambda: self.redis.zrange(keys.NODES, 0, -1, withscores=True)):
            fields = {k.decode(): v.decode() for k, v in self._read("HGETALL", keys.node(name.decode())).items()}
            hidden = [k for k in fields if k in {"claim", "claimed"} or k.startswith("at:")]
            for k in hidden:
                del fields[k]
            jobs = self._read("SCARD", keys.node_jobs(name.decode()))
            out[name.decode()] = {**fields, "seen": f"{ms / 1000:.3f}", "jobs": str(jobs)}
        return out

    def now_s(self) -> float:
        """Redis TIME."""
        seconds, micros = self.guard(self.redis.time)
        return float(seconds) + float(micros) / 1e6

    # -- dead letters
    def dead_letters(self) -> dict[str, dict[str, Any]]:
        """number → {at (ms), reason, list, raw}."""
        found = self._read("HGETALL", keys.DEAD)
        return {
            k.decode(): json.loads(v.decode("utf-8", "replace"), strict=False)
            for k, v in sorted(found.items(), key=lambda kv: int(kv[0]))
        }

    def drop_dead_letters(self, numbers: Sequence[str]) -> int:
        return int(self._read("HDEL", keys.DEAD, *numbers)) if numbers else 0

    # -- edges
    def _call(self, name: str, *args: Arg) -> Any:
        return self._functions.call(name, *args)

    def _read(self, *command: Arg) -> Any:
        return self.guard(lambda: self.redis.execute_command(*command))  # type: ignore[no-untyped-call]

    @staticmethod
    def guard(act: Any) -> Any:
        try:
            return act()
        except redis.RedisError as error:
            raise told(error) from error


def _up(value: float) -> int:
    return math.ceil(round(value, 6))  # 0.1 * 1000 is not 101
