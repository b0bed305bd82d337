"""From producers' lists into records. Any number of processes may do this at once; a message is taken in once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from . import deadletters, definition, gangs, keys, message
from .config import Config
from .definitions import Find, Known, expand, refuse
from .doorstep import Doorstep
from .errors import BrokerUnavailable, IntegrityError, InvalidJob
from .job import Job, check_sources, resolve
from .locality import short_hashes
from .message import Document, Message
from .retry import loss_retries
from .seal import KeyRing
from .store import Incoming, Yard

BATCH = 64  # 64 messages block Redis for about 1 ms, 256 for up to 6


def read(list_key: str, queue: str, raw: bytes, *, config: Config, ring: KeyRing, find: Find = refuse) -> Incoming:
    """What is to be done with one message. What cannot be read says why; raises only BrokerUnavailable, as find does.

    find: where the job definitions are that jobs name.
    """
    try:
        sent = message.parse(raw)
    except message.Unreadable as error:
        return _dead(list_key, raw, str(error), ring)
    try:
        arguments = sent.arguments()
    except Exception as error:  # kombu makes datetimes, UUIDs and decimals of what says that it is one
        return _dead(list_key, raw, f"task {sent.id}: its body cannot be read: {error}", ring)
    # What follows without a queue of its own goes where this job lies, whatever routing key its producer has for that.
    delivery = {**(sent.properties.get("delivery_info") or {}), "exchange": "", "routing_key": queue}
    sent = replace(sent, properties={**sent.properties, "delivery_info": delivery})
    tenant = config.tenant_of(queue)
    try:
        job = _job(sent, *arguments[:2], find)
        eta_ms, expires_ms = sent.when_ms("eta"), sent.when_ms("expires")
        reason = config.refusal(queue, job)
    except (InvalidJob, IntegrityError, ValueError) as error:
        return _refused(list_key, queue, raw, sent, str(error), tenant, ring)
    if reason is not None:
        return _refused(list_key, queue, raw, sent, reason, tenant, ring, job)
    priority = job.priority if job.priority is not None else sent.priority or config.queues[queue].default_priority
    chord, group = arguments[2].get("chord"), sent.headers.get("group")
    return Incoming(
        list_key=list_key,
        raw=raw,
        kind="job",
        id=sent.id,
        queue=queue,
        priority=priority,
        vcpus=job.vcpus,
        memory_mib=job.memory_mib,
        gpus=job.gpus,
        disk_gib=job.disk_gib,
        eta_ms=eta_ms,
        expires_ms=expires_ms,
        loss_retries=loss_retries(job.retry),
        depends_on=job.depends_on,
        patient=bool(job.depends_on),
        chord_key=f"celery-taskset-meta-{group}.s" if chord and isinstance(group, str) else "",
        clear=_clear(job, tenant, ring),
        document=_sealed(sent, job, tenant, ring),
    )


def _clear(job: Job, tenant: str, ring: KeyRing) -> dict[str, str]:
    """What everybody may see on the record."""
    told = {"image": job.image, "name": job.name or "", **gangs.facts(job)}
    if job.definition:
        told["definition"] = job.definition
        if job.max_concurrent is not None:
            told["def"] = definition.split(job.definition)[0]
    if job.array_size is not None:
        told["array"] = str(job.array_size)
    if job.share is not None:
        told |= {"share": job.share, "sched": str(job.scheduling_priority)}
    if job.consumables:
        told["tokens"] = json.dumps(dict(sorted(job.consumables.items())))
    if job.on_demand_after is not None:
        told["od"] = str(job.on_demand_after)
    if job.gpu_type is not None:
        told["gpu_type"] = job.gpu_type
    if tenant:
        told["tenant"] = tenant
    if shorts := short_hashes(job.inputs.values(), ring.of(tenant)):
        told["in"] = " ".join(shorts)
    return told


def _job(sent: Message, args: list[object], kwargs: dict[str, object], find: Find) -> Job:
    if sent.task != message.TASK:
        raise ValueError(f'task "{sent.task}" is not known here; send "{message.TASK}" with kwargs {{"job": {{…}}}}')
    if unknown := kwargs.keys() - {"job", "previous"}:
        raise ValueError(f'argument "{min(unknown)}" is not known; {message.TASK} takes previous=None, *, job')
    if len(args) > 1 or (args and "previous" in kwargs):
        raise ValueError(f"{message.TASK} takes one positional argument, the previous result; give the job as job=…")
    if "job" not in kwargs:
        raise ValueError('argument "job" is missing: kwargs={"job": {"image": …, "command": […]}}')
    job = Job.parse(expand(kwargs["job"], find))
    check_sources(job)
    return resolve(job, args[0] if args else kwargs.get("previous"))


def _refused(
    list_key: str,
    queue: str,
    raw: bytes,
    sent: Message,
    reason: str,
    tenant: str,
    ring: KeyRing,
    job: Job | None = None,
) -> Incoming:
    clear = _clear(job, tenant, ring) if job else {}
    return Incoming(
        list_key=list_key,
        raw=raw,
        kind="end",
        reason=reason,
        id=sent.id,
        queue=queue,
        priority=sent.priority,
        clear=clear,
        document=_sealed(sent, job, tenant, ring),
    )


def _dead(list_key: str, raw: bytes, reason: str, ring: KeyRing) -> Incoming:
    return Incoming(list_key=list_key, raw=raw, kind="dead", reason=reason, document=deadletters.seal(raw, ring))


def _sealed(sent: Message, job: Job | None, tenant: str, ring: KeyRing) -> bytes:
    document = Document(message=sent, job=job.dump() if job else None, tenant=tenant)
    return ring.seal(document.dumps(), sent.id.encode())


class Intake:
    """Takes in what lies in the lists of the configured queues."""

    def __init__(self, yard: Yard, clock: Callable[[], float] = time.monotonic) -> None:
        self._yard = yard
        self._definitions = Known(yard, lambda: yard.ring)
        self._door, self._drained = Doorstep(clock), True

    def run(self, config: Config) -> int:
        """One batch from each list that has messages, most urgent first. Returns how many messages were taken."""
        self._drained = True
        self._ask()
        taken = sum(self._queue(queue, config) for queue in config.by_priority())
        self._door.round_ended(taken=taken, drained=self._drained)
        return taken

    def _ask(self) -> None:
        """Whether what messages at the door wait for is there now: they may be large, so they are not sent to ask."""
        waiting = self._door.to_ask()
        if not waiting:
            return
        pipe = self._yard.redis.pipeline(transaction=False)
        for one in waiting:
            pipe.exists(*dict.fromkeys(keys.job(i) for i in one.awaited))
            pipe.exists(keys.job(one.id), keys.cancelled(one.id))  # it ended, or somebody else has taken it in
        answers = self._yard.guard(pipe.execute)
        known, ended = answers[::2], answers[1::2]
        ready = [n == len(one.awaited) or end > 0 for one, n, end in zip(waiting, known, ended, strict=True)]
        self._door.told(waiting, ready)

    def _queue(self, queue: str, config: Config) -> int:
        lists = keys.priority_lists(queue)
        pipe = self._yard.redis.pipeline(transaction=False)
        for key in lists:
            pipe.lrange(key, -self._window(key), -1)
        pipe.get(keys.DEFINITIONS_VERSION)
        *answers, version = self._yard.guard(lambda: pipe.execute(raise_on_error=False))
        batches = {key: lines[::-1] for key, lines in zip(lists, answers, strict=True) if isinstance(lines, list)}
        taken = self._batches(queue, batches, version, config)
        for key, lines in batches.items():
            self._door.seen(key, lines)
        return taken

    def _batches(
        self, queue: str, batches: Mapping[str, Sequence[bytes]], version: bytes | None, config: Config
    ) -> int:
        found = self._found(batches)
        again = self._door.again(list(batches))
        if not found and not again:
            return 0
        self._definitions.at(version)
        messages = [
            read(key, queue, raw, config=config, ring=self._yard.ring, find=self._definitions.find)
            for key, raw in found
        ]
        messages += again
        try:
            taken, left = self._yard.take_in(messages)
            self._door.tried(messages, left)
            return taken
        except BrokerUnavailable:
            raise
        except Exception as error:  # one that Redis cannot digest must not hold up the others
            return sum(self._alone(one, error) for one in messages)

    def _window(self, list_key: str) -> int:
        waiting = self._door.count(list_key)
        return max(1, waiting) if self._door.full(list_key) else waiting + BATCH

    def _found(self, batches: Mapping[str, Sequence[bytes]]) -> list[tuple[str, bytes]]:
        """Messages that are to be read, by their lists, at most BATCH. batches: oldest first."""
        found: list[tuple[str, bytes]] = []
        for key, lines in batches.items():
            if self._door.full(key):
                continue
            fresh = [(key, raw) for raw in lines if not self._door.waits(key, raw)]
            if fresh and len(lines) >= self._window(key):
                self._drained = False
            found += fresh
        if len(found) > BATCH:
            self._drained = False
        return found[:BATCH]

    def _alone(self, one: Incoming, _: Exception) -> int:
        try:
            return self._yard.intake([one])
        except BrokerUnavailable:
            raise
        except Exception as error:
            reason = f"Redis refused to take it in: {error}"
            return self._yard.intake([_dead(one.list_key, one.raw, reason, self._yard.ring)])
