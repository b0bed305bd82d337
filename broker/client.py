"""The typed client: what the command line does, for Python. Any Celery producer can do without it."""

from __future__ import annotations

import builtins
import json
import re
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from celery.exceptions import CeleryError
from kombu.exceptions import KombuError, OperationalError

from . import arrival, keys
from .arrays import index_of, parent_of
from .arrival import check_known
from .blobs import Blobs, LazyBlobs, OnBytes
from .consumables import Consumables, unmet
from .deadletters import DeadLetters
from .definitions import Definitions, Known, expand
from .endpoints import Endpoints, default_state
from .errors import BlobMissing, BrokerUnavailable, InvalidConfig, InvalidJob, NotFound
from .events import Events
from .expiry import Expiry
from .functions import words
from .gangs import Gangs
from .gather import gather
from .heads import Heads, Snapshot
from .job import DIGEST, Job, check_sources, of_step_before
from .joblog import JobLog
from .keysource import NO_KEYS, KeySource, as_source, load_ring
from .keywatch import holder_name, watching
from .message import TASK
from .puts import Puts
from .queues import Queues
from .reasons import Reason
from .record import Record, from_hash
from .remote import celery_app
from .schedule import Schedule
from .schedules import Schedules, check
from .seal import KeyRing
from .state import State
from .store import CancelAnswer, Depth, Yard
from .waiting import wait_for
from .why import explain

_LIST_MOST = 20_000
_CHILDREN = 1000  # in one round trip
_SHORT_ID, _SHORT_OF, _WHOLE_ID = re.compile(r"[0-9a-f][0-9a-f-]{3,34}"), 1000, 36


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueView:
    """A queue as configured, and what waits in it. nodes: those up that serve it. states: jobs by state; of SUCCEEDED
    and FAILED, how many ended so since the yard began.
    """

    name: str
    state: str
    priority: int
    environments: tuple[str, ...]
    depth: Depth
    nodes: tuple[str, ...]
    states: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        """JSON types only; `depth` has lists, index, delayed and their total."""
        return {**asdict(self), "depth": {**asdict(self.depth), "total": self.depth.total}}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """A node by its heartbeats. seen: epoch seconds; queues: empty for all; cache: figures of its copies and stores,
    bytes and counts since its start; about: all else that it says of itself.
    """

    name: str
    up: bool
    seen: float
    jobs: int
    queues: tuple[str, ...]
    cache: dict[str, int]
    about: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self)


class Client:
    """One yard. Not for use by several threads at once; close it, or use it as a context manager.

    url: the broker. blobs: needed for `put`, `get` and the logs of ended jobs only. keys: where the yard's are, for
    job definitions and schedules; key_file: the same, in a file. All methods raise BrokerUnavailable when Redis does
    not answer.
    """

    def __init__(
        self, url: str, *, blobs: Blobs | None = None, key_file: Path | None = None, keys: KeySource | None = None
    ) -> None:
        self.yard = Yard(url, KeyRing.new())  # a client seals and opens nothing of the records: any ring will do
        self._blobs = blobs
        self._source = as_source(key_file) if key_file is not None else keys
        self._keys: KeyRing | None = None
        self._sent: deque[str] = deque(maxlen=1000)
        self._app = celery_app(url)

    @classmethod
    def connect(cls, state: Path | None = None) -> Client:
        """To the yard of a state folder; by default `$BATCHYARD_STATE` or `~/.batchyard`. Raises InvalidConfig."""
        return cls.of(Endpoints.load(state or default_state()))

    @classmethod
    def of(cls, ends: Endpoints, keys: KeySource | None = None) -> Client:
        """To the yard at these endpoints. keys: where its keys are, if they do not say it. Raises InvalidConfig."""
        keys = keys or ends.key_source()
        blobs = LazyBlobs(ends.store, keys) if ends.store and keys else None
        return cls(ends.broker_url, blobs=blobs, keys=keys)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """May be called twice."""
        with suppress(redis.RedisError, OSError):
            self.yard.redis.close()
        with suppress(redis.RedisError, KombuError, OSError):
            self._app.close()

    # -- jobs
    def submit(
        self,
        job: Job | Mapping[str, Any],
        *,
        queue: str = "cpu",
        priority: int | None = None,
        countdown: float | None = None,
        eta: datetime | None = None,
        expires: float | datetime | None = None,
    ) -> str:
        """Sends a job and returns its id; what a plain Celery producer does, checked at the door.

        priority: 0 (most urgent) to 9. countdown and expires in seconds from now. Raises InvalidJob, NotFound (no such
        queue, no yard).
        """
        given, job = job, self.check(job, queue=queue)
        if priority is not None and not 0 <= priority <= 9:
            raise InvalidJob("priority", priority, "must be 0 (most urgent) to 9")
        shown = f"definition={job.definition}" if job.definition else f"image={job.image}"
        try:
            sent = self._app.send_task(
                TASK,
                kwargs={"job": _as_sent(given, job)},
                queue=queue,
                priority=priority,
                countdown=countdown,
                eta=eta,
                expires=expires,
                argsrepr="",
                kwargsrepr=shown,  # Celery puts the arguments' repr in clear into a header
            )
        except (OperationalError, redis.ConnectionError, redis.TimeoutError, OSError) as error:
            raise BrokerUnavailable(
                f"Redis does not answer: {words(error)}; the job may or may not have been taken"
            ) from error
        except (CeleryError, KombuError, TypeError, ValueError) as error:
            raise InvalidJob("", job.image, f"cannot be sent: {error}") from None
        self._sent.append(str(sent.id))
        return str(sent.id)

    def check(self, job: Job | Mapping[str, Any], *, queue: str = "cpu") -> Job:
        """The job as `submit` would send it, and nothing is sent. Raises InvalidJob, NotFound (no such queue)."""
        if not isinstance(job, Job) or job.definition is not None:
            known = Known(self.yard, self._ring if self._source else None)
            job = Job.parse(expand(_given(job), known.find if self._source else known.find_closed))
        self._admit(job, queue)
        return job

    def _admit(self, job: Job, queue: str) -> None:
        config = self.yard.config()
        if queue not in config.queues:
            raise NotFound(f'queue "{queue}" is not known; choose of {", ".join(config.by_priority())}')
        check_sources(job)
        if any(of_step_before(spec) for spec in job.inputs.values()):
            rule = 'needs a previous step; send a Celery chain, name a digest, or a "job" of which it is an output'
            raise InvalidJob("inputs", "from", rule)
        if reason := config.refusal(queue, job):
            raise InvalidJob("", job.image, reason)
        if job.consumables and (wrong := unmet(job.consumables, self.consumables.read(list(job.consumables)))):
            raise InvalidJob(f"consumables.{wrong[0]}", job.consumables[wrong[0]], wrong[1])
        check_known(self.yard, config.by_priority(), [on.job_id for on in job.depends_on], self._sent)

    def status(self, job_id: str, *, patience_s: float | None = None) -> Record:
        """Of one that was sent a moment ago, as soon as it is taken in: an unknown job is waited for, for patience_s
        (default 2), while messages wait to be taken in. Raises NotFound.
        """
        return arrival.record(self.yard, job_id, patience_s=arrival.PATIENCE_S if patience_s is None else patience_s)

    def members(self, record: Record) -> builtins.list[Record]:
        """The nodes of a job of several, by index; their ids are `<job id>#<index>`. None before it was placed."""
        return Gangs(self.yard).members(record)

    def whole_id(self, name: str, *, least: int = 4) -> str:
        """The id of one of the newest 1,000 jobs that begins like this; a name that none has, or that is a job's own,
        stays as it is. Only ids that Celery made are found. Raises InvalidConfig: several begin so, or
        one does and name has fewer than `least` characters.
        """
        if (array := parent_of(name)) is not None:
            return f"{self.whole_id(array, least=least)}:{index_of(name)}"
        name, sharp, index = name.partition("#")
        return self._whole_id(name, least) + sharp + index

    def _whole_id(self, name: str, least: int) -> str:
        if not _SHORT_ID.fullmatch(name) or self.records([name]):
            return name
        ids = self.yard.guard(lambda: self.yard.redis.zrevrange(keys.JOBS, 0, _SHORT_OF - 1))
        found = [i for i in (one.decode() for one in ids) if len(i) == _WHOLE_ID and i.startswith(name)]
        if len(found) > 1:
            more = f" and {len(found) - 8} more" if len(found) > 8 else ""
            raise InvalidConfig(f'"{name}" may be {", ".join(found[:8])}{more}; give more of the id')
        if found and len(name) < least:
            raise InvalidConfig(f'"{name}" is short for {found[0]}; give at least {least} characters of the id')
        return found[0] if found else name

    def records(self, ids: Sequence[str]) -> dict[str, Record]:
        """Those that there are, in one round trip for each thousand."""
        found: dict[str, Record] = {}
        for at in range(0, len(ids), 1000):
            some = ids[at : at + 1000]
            found |= {i: from_hash(i, *h) for i, h in self.yard.hashes(some).items()}
        return found

    def wait(
        self,
        ids: Iterable[str],
        *,
        timeout_s: float | None = None,
        on_change: Callable[[Record], None] | None = None,
    ) -> list[Record]:
        """The records of jobs, in the order given, once all have ended.

        on_change gets a record when it is first seen, and at each change of its state or its children's. An id that
        the yard does not know (yet) is waited for: it may be a later step of a chain. Raises NotEnded after timeout_s.
        """
        return wait_for(self.yard, list(ids), self.records, timeout_s=timeout_s, on_change=on_change)

    def list(self, limit: int = 50, states: Collection[State] = ()) -> list[Record]:
        """The newest jobs, newest first; with states, of the newest 20,000 those in one of them."""
        window = limit if not states else max(limit, 200)
        while True:
            recent = self.yard.recent(window)
            found = [r for r in recent if not states or r.state in states]
            if len(found) >= limit or len(recent) < window or window >= _LIST_MOST:
                return found[:limit]
            window *= 4

    def children(
        self, array: str, *, limit: int = 50, states: Collection[State] = (), start: int = 0
    ) -> builtins.list[Record]:
        """Those of an array from index `start` on, by index; with states, those in one of them.

        Raises NotFound (no such job), InvalidJob (it is no array).
        """
        parent = self.status(array)
        if (counted := parent.array) is None:
            raise InvalidJob("array_size", array, "is not an array, it has no children")
        found: builtins.list[Record] = []
        for at in range(start, counted.size, _CHILDREN):
            ids = [f"{array}:{n}" for n in range(at, min(counted.size, at + _CHILDREN))]
            if states:
                ids = self._in_states(ids, states, parent.state if parent.state.ended else State.PENDING)
            found += self.records(ids[: limit - len(found)]).values()
            if len(found) >= limit:
                break
        return found

    def _in_states(self, ids: Sequence[str], states: Collection[State], to_come: State) -> builtins.list[str]:
        """Of children. to_come: the state of those that have no record."""
        pipe = self.yard.redis.pipeline(transaction=False)
        for job_id in ids:
            pipe.hget(keys.job(job_id), "state")
        told: builtins.list[bytes | None] = self.yard.guard(pipe.execute)
        found = [State(state.decode()) if state else to_come for state in told]
        return [job_id for job_id, state in zip(ids, found, strict=True) if state in states]

    def cancelled(self, record: Record) -> bool:
        """Whether a job failed because it was cancelled or expired, rather than by itself."""
        if record.state is not State.FAILED:
            return False
        meta: bytes | None = self.yard.guard(lambda: self.yard.redis.get(keys.result(record.id)))
        return record.cancelling or b'"REVOKED"' in (meta or b"")[:40]

    def why(self, job_id: str) -> builtins.list[Reason]:
        """Why a job waits, what it does, or how it ended; the most telling first. Also of a job that is not known."""
        return explain(gather(self, job_id))

    def logs(self, job_id: str, *, follow: bool = False, awaited: bool = False) -> Iterator[str]:
        """Lines `<time> <stdout|stderr|platform> <text>` of the last attempt, without newlines.

        Of an ended job all that was kept; of a running one what the live tail holds. follow: go on until the job ends,
        over all its attempts. awaited: a job that is not taken in yet is waited for, as `wait` does. Raises NotFound
        (no such job, or no log), and what the blob store raises.
        """
        return JobLog(self.yard, self._blobs, self._of_main(job_id)).lines(follow=follow, awaited=awaited)

    def _of_main(self, job_id: str) -> str:
        """What the main node of a job says is the job's own."""
        whole, sharp, index = job_id.partition("#")
        if not sharp:
            return job_id
        found = self.records([whole]).get(whole)
        return whole if found is not None and str(found.main) == index else job_id

    def cancel(self, job_id: str, reason: str = "cancelled by its owner", *, terminate: bool = True) -> CancelAnswer:
        """Ends a job in any state; one not taken in yet ends when it comes. terminate=False spares a running one."""
        return self.yard.cancel(job_id, reason, terminate=terminate)

    @property
    def consumables(self) -> Consumables:
        """Consumable resources: create, update, show, list, delete."""
        return Consumables(self.yard)

    @property
    def definitions(self) -> Definitions:
        """Job definitions: register, deregister, show, list."""
        return Definitions(self.yard, self._ring)

    @property
    def at_run_time(self) -> Queues:
        """Queues and compute environments, made and changed while the yard runs."""
        return Queues(self.yard)

    @property
    def events(self) -> Events:
        """Changes of jobs' states: the newest, those after a cursor, and how they look in AWS's shape."""
        return Events(self.yard)

    @property
    def schedules(self) -> Schedules:
        """Schedules: list, show, pause, resume, remove, run_now; to add one, see `schedule`."""
        return Schedules(self.yard, self._ring)

    @property
    def dead_letters(self) -> DeadLetters:
        """Messages that no job could be made of: list, show, drop."""
        return DeadLetters(self.yard, self._ring)

    def schedule(self, schedule: Schedule, *, replace: bool = False) -> None:
        """Keeps a schedule (see `schedule.parse`). Raises InvalidConfig (its job, its name), NotFound (its queue)."""
        check(schedule, self.yard.config(), Known(self.yard, self._ring).find)
        self.schedules.add(schedule, replace=replace)

    # -- the yard
    def queues(self) -> builtins.list[QueueView]:
        """The most urgent queue first. Raises NotFound: no yard yet."""
        config, nodes = self.yard.config(), [n for n in self.nodes() if n.up]
        names = config.by_priority()
        depth, counts = self.yard.depth(names), self.yard.counts(names)
        return [
            QueueView(
                name=name,
                state=config.queues[name].state,
                priority=config.queues[name].priority,
                environments=config.queues[name].environments,
                depth=depth[name],
                nodes=tuple(n.name for n in nodes if not n.queues or name in n.queues),
                states={state.value: n for state, n in counts[name].items()},
            )
            for name in names
        ]

    def snapshot(self, queue: str, limit: int = 100) -> Snapshot:
        """The first jobs of a queue that may run, in order. Raises NotFound."""
        return Heads(self.yard).snapshot(queue, limit)

    def nodes(self) -> builtins.list[NodeView]:
        """Nodes that did not leave, by name; one that has not beaten for a lease is not up."""
        try:
            lease_s = self.yard.config().lease_s
        except NotFound:
            return []
        alive_since = self.yard.now_s() - lease_s
        return [_node(name, about, alive_since) for name, about in sorted(self.yard.nodes().items())]

    # -- bytes
    def put(self, path: Path, *, tenant: str = "", on_bytes: OnBytes | None = None) -> dict[str, Any]:
        """Keeps a file or directory as a blob: {"digest", "size", "kind"}; `digest` is what a job's input names.

        tenant: of the queue whose jobs are to read it. It stays until it is unpinned, whatever expires. on_bytes hears
        how many more bytes of content are done.
        """
        store, puts = self._store(tenant), Puts(Expiry(self.yard), f"put:{uuid.uuid4().hex}")
        with self._held_keys():
            kept = store.put(path, on_bytes=on_bytes, before_put=puts.before)
        puts.pin()
        return kept

    def get(self, digest: str, path: Path, *, part: str = "", tenant: str = "", on_bytes: OnBytes | None = None) -> str:
        """Writes a blob to a path that does not exist yet, a directory for a tree; "file" or "tree". part: the path of
        a file or directory in a tree, of which only that is written.
        """
        try:
            return self._store(tenant).get(digest, path, part=part, on_bytes=on_bytes)
        except BlobMissing:
            raise NotFound(_missing(digest)) from None

    def look(self, digest: str, *, tenant: str = "") -> dict[str, Any]:
        """What a blob is: {"digest", "kind", "size" of its content, "entries" of a tree}; see `blobs.Blobs.look`."""
        try:
            return self._store(tenant).look(digest)
        except BlobMissing:
            raise NotFound(_missing(digest)) from None

    def named(self, name: str, tenant: str = "") -> tuple[str, str]:
        """(digest, tenant) of what `sha256:…`, which is then the given tenant's, or `JOB_ID:OUTPUT` names. Raises
        NotFound: no such job or output; InvalidConfig: it is neither.
        """
        if name.startswith("sha256:"):
            if not DIGEST.fullmatch(name):
                raise InvalidConfig(f'"{name}" is no digest; a digest is sha256: and 64 hex digits (0-9, a-f)')
            return name, tenant
        job_id, colon, output = name.rpartition(":")  # an output's name has no colon
        if not (colon and job_id and output):
            raise InvalidConfig(f'"{name}" names no blob; give DIGEST (sha256:…) or JOB:OUTPUT')
        job_id = self.whole_id(job_id)
        record = self.status(job_id)
        outputs = record.outputs
        if output not in outputs:
            if record.array is not None:
                raise NotFound(f'job "{job_id}" is an array; its children have outputs: {job_id}:0:{output}')
            has = f"it has {', '.join(sorted(outputs))}" if outputs else f"it is {record.state} and has none"
            raise NotFound(f'job "{job_id}" has no output "{output}"; {has}')
        digest = outputs[output].get("digest")
        if digest is None:
            raise NotFound(f'output "{output}" of job "{job_id}" is no blob; see `batchyard ls {job_id}`')
        return str(digest), record.tenant

    def with_keys(self) -> Yard:
        """The same yard, for what needs its keys. Raises InvalidConfig."""
        return Yard(self.yard.url, self._ring())

    def _ring(self) -> KeyRing:
        """The yard's keys. Raises InvalidConfig."""
        if self._keys is None:
            if self._source is None:
                raise InvalidConfig(f"this is kept sealed, and {NO_KEYS}, or --state")
            ring = load_ring(self._source)
            mark: bytes | None = self.yard.guard(lambda: self.yard.redis.get(keys.KEY_MARK))
            if mark is not None and mark.decode() != ring.mark:
                raise InvalidConfig(f"{self._source} holds the keys of another yard; use those of its controller")
            self.yard.refuse_retired(ring)
            self._keys = ring
        return self._keys

    def _held_keys(self) -> AbstractContextManager[object]:
        """While something is put: a rotation waits for it. Raises InvalidConfig: with these nobody may put any more."""
        if not isinstance(self._blobs, LazyBlobs):
            return nullcontext()
        self.yard.refuse_retired(self._blobs.ring)
        return watching(self.yard, self._blobs.ring, None, holder_name("client of"))

    def _store(self, tenant: str) -> Blobs:
        if self._blobs is None:
            raise InvalidConfig(
                "no blob store was named; give --store and --key-file or --key-command, or a yard's --state"
            )
        return self._blobs.of(tenant)


def _missing(digest: str) -> str:
    return (
        f"blob {digest}, or a file that it names, is not in this store; correct the digest, --tenant or --store, "
        "or put it again if it has expired; a small file of a directory is no blob of its own: get DIRECTORY/PATH"
    )


def _given(job: Job | Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields that were said; what was not is for the definition to say."""
    return job.model_dump(mode="json", by_alias=True, exclude_unset=True) if isinstance(job, Job) else job


def _as_sent(given: Job | Mapping[str, Any], checked: Job) -> dict[str, Any]:
    """A job that names a definition goes as it was given: the yard takes the revision that is then the latest."""
    return checked.dump() if checked.definition is None else dict(_given(given))


def _node(name: str, about: dict[str, str], alive_since_s: float) -> NodeView:
    seen = float(about["seen"])
    rest = {k: v for k, v in about.items() if k not in {"seen", "jobs", "cache"}}
    return NodeView(
        name=name,
        up=seen >= alive_since_s,
        seen=seen,
        jobs=int(about.get("jobs") or 0),
        queues=tuple(q for q in (about.get("queues") or "").split(",") if q),
        cache=json.loads(about.get("cache") or "{}"),
        about=rest,
    )
