"""The yard in Redis: the record of every job and the only door to it. Every move is one Redis function call.

A call may be repeated after a lost reply: each function knows its own repeat. All raise BrokerUnavailable when Redis
does not answer, and then nothing is known of whether the move was made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import redis
from redis.client import PubSub

from . import arrays, config, keys
from .arrays import parent_of
from .batch import End, Start
from .config import Config
from .dependencies import Dependency
from .errors import BrokerUnavailable, InvalidConfig, NotFound
from .functions import Arg, Functions, connect, told, words
from .locality import short_hash
from .message import Document
from .record import Attempt, Claimed, Record, from_hash
from .recorder import Effect, flat
from .retry import INFRASTRUCTURE_RETRIES
from .seal import KeyRing
from .state import State

CancelAnswer = Literal["stored", "ended", "cancelled", "running", "stopping"]
Told = Literal["lost", "cancel", "halt", "go"]
"""What a node hears of a job: its lease is lost; stop it; stop and give up this member of a gang; it may start."""
KEEP_CANCEL_S = 86400
MOST_HOLDS = 64  # blobs that a claim names


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

    @property
    def awaited(self) -> frozenset[str]:
        """The jobs of which a record must be there before it can be said what this one waits for."""
        return frozenset(parent_of(on.job_id) or on.job_id for on in self.depends_on if on.job_id)

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
            milli(self.vcpus),
            self.memory_mib,
            self.gpus,
            mib(self.disk_gib),
            self.eta_ms,
            self.expires_ms,
            self.chord_key,
            json.dumps(clear),
            self.document,
            json.dumps([one.told() for one in self.depends_on]) if self.depends_on else "",
            int(self.patient),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Free:
    """What a node has free. gpu_types: of the GPUs, those whose type is known."""

    vcpus: float
    memory_mib: int
    gpus: int
    disk_gib: float
    gpu_types: Mapping[str, int] = field(default_factory=dict)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a job stands that may run. ahead: jobs before it, of its share where it has one, else of its queue.

    waiting: all that may run of its queue. of_share: of its share. shares: that have such jobs; before: how many of
    these are served before its share, by what they have used until now. vcpus: that its queue may still take, where
    some are kept for shares that are not active.
    """

    ahead: int
    waiting: int
    share: str = ""
    of_share: int = 0
    shares: int = 0
    before: int = 0
    vcpus: float | None = None


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
        told = (
            value.model_dump_json(),
            json.dumps(value.policies()),
            json.dumps(value.overflow()),
            json.dumps(value.spot()),
        )
        return bool(self._call("configure", expected, *told))

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
        self,
        node: str,
        claim_id: str,
        free: Free,
        queues: Sequence[str],
        *,
        lease_s: float,
        count: int = 1,
        holds: Sequence[str] = (),
    ) -> tuple[bool, list[Claimed]]:
        """(ask again at once, jobs). The same claim_id gets the same answer.

        holds: names (`KeyRing.name`) of blobs of which this node has copies, the last used first; among equals, a job
        whose input it is may come first. The first MOST_HOLDS count.
        """
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
            _more(free, holds),
            *queues,
        )
        return bool(more), [Claimed.of_row(row) for row in jobs]

    def held(self, node: str) -> list[Claimed]:
        """What Redis says that this node holds."""
        return [_held(row) for row in self._call("held", node)]

    def start(self, job: Claimed, *, started_s: float, celery: str, expires_s: int, address: str = "") -> bool:
        """STARTING → RUNNING, with Celery's STARTED result (or ''). False: the lease is lost.

        address: where the other members of a gang reach its main one.
        """
        one = Start(job=job, started_s=started_s, celery=celery, expires_s=expires_s)
        if job.member:
            return bool(self._call("member_start", *one.arguments(), address))
        return self.start_many([one])[0]

    def start_many(self, starts: Sequence[Start]) -> list[bool]:
        """As `start`, at most `batch.MOST`; an answer for each. None is of a member of a gang."""
        return [bool(n) for n in self._call("start", *(a for one in starts for a in one.arguments()))]

    def renew(
        self, node: str, about: Mapping[str, str], held: Mapping[str, str], *, lease_s: float
    ) -> list[tuple[str, Told, str]]:
        """The node's heartbeat and all of its leases (id → token) in one call; what there is to be told of them."""
        args = [a for pair in held.items() for a in pair]
        out = [x.decode() for x in self._call("renew", node, int(lease_s * 1000), json.dumps(dict(about)), *args)]
        return [(out[i], cast(Told, out[i + 1]), out[i + 2]) for i in range(0, len(out), 3)]

    def exited(self, node: str, jobs: Iterable[tuple[str, str]]) -> None:
        """The containers of these jobs (id, token) have ended: they hold no more than their disk there from now on."""
        self._call("exited", node, *(word for pair in jobs for word in pair))

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
        one = End(job=job, state=state, attempt=attempt, fields=fields, effects=effects)
        if job.member:
            return bool(self._call("member_settle", *one.arguments(retention_s)[1:]))
        (answer,) = self.settle_many([one], retention_s=retention_s)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def settle_many(self, ends: Sequence[End], *, retention_s: int) -> list[bool | Exception]:
        """As `settle`, at most `batch.MOST`; an answer for each. An exception: this one broke, the others did not."""
        answers = self._call("settle", *(a for one in ends for a in one.arguments(retention_s)))
        return [told(one) if isinstance(one, redis.ResponseError) else bool(one) for one in answers]

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
                "member_giveback" if job.member else "giveback",
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
        """The next call's cursor (0: that was all) and some entries: `end:<id>`, `deps:<id>`, `array:<id>`, `children`
        or `body:<chord key>`.
        """
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
        """(jobs that stand before it, of its share where it has one, else of its queue; all in its queue's index).

        None when it is not in the index.
        """
        place = self.place(job_id)
        return None if place is None else (place.ahead, place.waiting)

    def place(self, job_id: str) -> Place | None:
        """Where it stands by the order of claims, as far as that is defined; None when it is not in the index."""
        there, *told = self._call("position", job_id)
        if not there:
            return None
        ahead, waiting, share, of_share, shares, before, room = told
        return Place(ahead=int(ahead), waiting=int(waiting), share=share.decode(), of_share=int(of_share),
                     shares=int(shares), before=int(before),
                     vcpus=int(room) / 1000 if int(room) >= 0 else None)  # fmt: skip

    def record(self, job_id: str) -> Record:
        """Raises NotFound."""
        found = self.hashes([job_id])
        if not found:
            raise NotFound(f'no job "{job_id}"; it was never taken in, its record has expired, or the id is not whole')
        return from_hash(job_id, *found[job_id])

    def hashes(self, ids: Sequence[str]) -> dict[str, tuple[dict[bytes, bytes], dict[bytes, bytes]]]:
        """Those records that there are, and of a child what its array says of it; in one round trip.

        A child that is still to come has the record that it will have.
        """
        pipe = self.redis.pipeline(transaction=False)
        for job_id in ids:
            pipe.hgetall(keys.job(job_id))
        parents = dict.fromkeys(parent for job_id in ids if (parent := parent_of(job_id)))
        for parent in parents:
            pipe.hmget(keys.job(parent), arrays.OF_PARENT)
        answers: list[Any] = self.guard(pipe.execute) if ids else []
        told = zip(parents, answers[len(ids) :], strict=True)
        known: dict[str, dict[bytes, bytes | None]] = {
            p: dict(zip(arrays.OF_PARENT, values, strict=True)) for p, values in told
        }
        found = {}
        for job_id, h in zip(ids, answers[: len(ids)], strict=True):
            of_parent = known.get(parent_of(job_id) or "", {})
            if own := h or arrays.to_come(job_id, of_parent):
                found[job_id] = own, arrays.shared(of_parent)
        return found

    def exists(self, job_id: str) -> bool:
        """Whether there is a record."""
        return bool(self._read("EXISTS", keys.job(job_id)))

    def document(self, job_id: str) -> Document:
        """A child's is its parent's. Raises NotFound, IntegrityError."""
        sealed = self._read("HGET", keys.job(parent_of(job_id) or job_id), "doc")
        if sealed is None:
            raise NotFound(f'no job "{job_id}"')
        return self.open(job_id, sealed)

    def open(self, job_id: str, sealed: bytes) -> Document:
        """The document of a claimed job. Raises IntegrityError."""
        return Document.loads(self.ring.open(sealed, (parent_of(job_id) or job_id).encode()))

    def recent(self, limit: int) -> list[Record]:
        """The newest jobs, newest first."""
        ids = [i.decode() for i in self._read("ZREVRANGE", keys.JOBS, 0, limit - 1)]
        return [from_hash(i, *h) for i, h in self.hashes(ids).items()]

    def nodes(self) -> dict[str, dict[str, str]]:
        """Fields of each node that has beaten, with `seen` in seconds since the epoch and `jobs` it holds."""
        out = {}
        for name, ms in self.guard(lambda: self.redis.zrange(keys.NODES, 0, -1, withscores=True)):
            fields = {k.decode(): v.decode() for k, v in self._read("HGETALL", keys.node(name.decode())).items()}
            inner = {"claim", "claimed", "placed", "room", "takes"}
            hidden = [k for k in fields if k in inner or k.startswith(("at:", "no:", "b:"))]
            for k in hidden:
                del fields[k]
            jobs = self._read("SCARD", keys.node_jobs(name.decode()))
            out[name.decode()] = {**fields, "seen": f"{ms / 1000:.3f}", "jobs": str(jobs)}
        return out

    def now_s(self) -> float:
        """Redis TIME."""
        seconds, micros = self.guard(self.redis.time)
        return float(seconds) + float(micros) / 1e6

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


def _held(row: Sequence[Any]) -> Claimed:
    """As `by_held` answers it."""
    if len(row) == 8:
        return Claimed.of_row(row)
    *plain, cancel, started = row
    made = Claimed.of_row(plain)
    return replace(made, cancel=cancel.decode(), started=int(started) / 1000 if started else None)


def _more(free: Free, holds: Sequence[str]) -> str:
    """What a claim says besides, as `by_claim` reads it."""
    types = ",".join(f"{kind}:{n}" for kind, n in sorted(free.gpu_types.items()))
    told: dict[str, Any] = {**({"types": types} if types else {})}
    if holds:
        told["has"] = " ".join(short_hash(name) for name in holds[:MOST_HOLDS])
    return json.dumps(told) if told else ""


def milli(vcpus: float) -> int:
    """vCPUs as Redis counts them, in thousandths, rounded up."""
    return _up(vcpus * 1000)


def mib(gib: float) -> int:
    """Disk as Redis counts it, rounded up."""
    return _up(gib * 1024)


def _up(value: float) -> int:
    return math.ceil(round(value, 6))  # 0.1 * 1000 is not 101
