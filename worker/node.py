"""A node: claims what fits, runs it, keeps its leases. Threads of its own; Celery is only told.

Jobs outlive every loss of Redis: a node that cannot reach it keeps its containers, settles nothing, and kills them when
it is told that its token is stale or after `partition_grace_s`.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import redis
from celery.worker import state as worker_state

from batchyard.broker import gang, keys
from batchyard.broker.controller import Controller
from batchyard.broker.errors import BatchyardError, BrokerUnavailable, InvalidConfig
from batchyard.broker.job import Job
from batchyard.broker.message import Document
from batchyard.broker.record import Claimed
from batchyard.broker.store import MOST_HOLDS, Free, Told

from .adopt import Adoption
from .engine import Listed
from .gang import domain
from .gpu import types_of
from .ledger import Allocation, Demand, Ledger
from .near_store import check_alone
from .outcome import Stop
from .run import Run, unreadable
from .slots import Slot, Slots
from .tools import Tools
from .upkeep import Upkeep

log = logging.getLogger(__name__)
AT_ONCE = 8  # jobs claimed in one call
LOOK_S = 1.0  # between two looks when nothing calls: publish and subscribe promises nothing
SWEEP_S = 30.0
EX_USAGE = 2
PLACED_S = 5.0  # how long what was placed here waits for its resources, and then to be placed again
SWEEP_AGAIN_S = 1.0  # when a container could not be removed


class Node:
    """start() once; drain() and wait until `empty()`, then close()."""

    def __init__(self, tools: Tools) -> None:
        self.tools, options = tools, tools.options
        self.ledger = Ledger(
            vcpus=options.vcpus,
            memory_mib=options.memory_mib,
            disk_gib=options.disk_gib,
            gpus=[gpu.id for gpu in options.gpus],
            types={gpu.id: gpu.type for gpu in options.gpus},
        )
        self.runs: dict[str, Run] = {}
        self._slots, self._lock = Slots(options.most_jobs), threading.Lock()
        self._wake, self._beat, self._closing = threading.Event(), threading.Event(), threading.Event()
        self.ready = threading.Event()
        self.refused: InvalidConfig | None = None  # why this node does not work
        self._configured = threading.Event()  # the yard's configuration is known, not made up of this machine's
        self._litter = threading.Event()  # a container could not be removed
        self._beating = threading.Lock()
        self._claiming = self._left = False
        self._cleaning = 0
        self._adoption = Adoption(tools)
        self._stand_in = Controller(tools.yard, lambda: self.tools.config, tools.followups, stand_in=True)
        self._heard = time.monotonic()
        self._gangs = ""  # see `gang.domain`
        self._near = ""  # the id of its near store
        self._home = f"{socket.gethostname()}:{options.state}"
        self._told_exited: set[tuple[str, str]] = set()  # jobs and tokens, of those that still are held
        tools.uploads.follow(self._uploads_turned)

    def start(self) -> None:
        """Must not need Redis or the engine: both may be down."""
        self.tools.live.start()
        if self.tools.levels is not None:
            Upkeep(
                self.tools.yard, self.tools.levels, lambda: self.tools.config, self.tools.options.scrub_mib_s
            ).start()
        for act in (self._claim_loop, self._renew_loop, self._listen_loop, self._sweep_loop, self._stand_in_loop):
            threading.Thread(target=act, name=act.__qualname__, daemon=True).start()

    # -- what others ask
    def queues(self) -> list[str]:
        """The queues that this node serves, the most urgent first."""
        options = self.tools.options
        return self.tools.config.served(options.environment, options.queues)

    def cancel(self, job_id: str, reason: str, *, terminate: bool, first_signal: str = "SIGTERM") -> str:
        """Stored first, then told to the running container. Raises BrokerUnavailable."""
        answer = self.tools.yard.cancel(job_id, reason, terminate=terminate)
        run = self.runs.get(job_id)
        if run is not None and answer == "stopping":
            run.stop(Stop.CANCEL, reason, first_signal=first_signal)
        return answer

    def drain(self) -> None:
        """No new claims. May be called twice."""
        with self._lock:
            self._closing.set()
        self._stand_in.stop()
        self._wake.set()

    def give_back_all(self, grace_s: float) -> None:
        """What still runs is stopped and goes back to the front of its queue, no attempt used."""
        for run in list(self.runs.values()):
            run.stop(Stop.DRAIN, "the node drained", grace_s=grace_s)

    def empty(self) -> bool:
        """Nothing runs, is being removed, or may come as the answer to a claim."""
        with self._lock:
            return not (self.runs or self._cleaning or self._claiming)

    def close(self) -> None:
        """Off the list of nodes, if nothing is held any more; the engine keeps nothing of ours that is idle."""
        self.tools.engine.close()
        with self._beating:
            self._left = True  # a beat from now on would put it on the list again
            if not self.ready.is_set():
                return  # one of this name that is on the list is another
            try:
                for claimed in self.tools.yard.held(self.tools.options.name):
                    if claimed.id not in self.runs:  # placed here after the last claim
                        self.tools.yard.give_back(claimed, None)
                self.tools.yard.leave(self.tools.options.name)
            except BrokerUnavailable as error:
                log.warning("Redis was not told that this node leaves: %s", error)

    def _uploads_turned(self) -> None:
        """They are too many, or there is room again: others are told, and the claims look."""
        self._beat.set()
        self._wake.set()

    # -- claim
    def _claim_loop(self) -> None:
        try:
            self._until_done(self._settle_in, but=(InvalidConfig,))
            self._see_store()
        except InvalidConfig as error:
            self._refuse(error)
            return
        claim_id = uuid.uuid4().hex
        while self._may_claim():
            try:
                more = self._claim(claim_id)
                claim_id = uuid.uuid4().hex  # only after an answer: a repeat must be known as one
            except BrokerUnavailable as error:
                log.warning("claim: %s", error)
                self._closing.wait(0.5)
                continue
            except Exception:
                log.exception("claim")
                self._closing.wait(1)
                continue
            finally:
                self._claiming = False
                self._wake_drain()
            if not more:
                self._wake.wait(LOOK_S)
                self._wake.clear()

    def _may_claim(self) -> bool:
        with self._lock:
            self._claiming = not self._closing.is_set()
            return self._claiming

    def _settle_in(self) -> None:
        tools = self.tools
        tools.yard.prepare()
        self.tools = replace(tools, config=tools.yard.config())
        self.be_alone()
        self._near_alone()
        self._configured.set()
        tools.engine.ping()
        self._gangs = domain(tools.options.gang_network, tools.engine.identity)
        self._adoption.take_up(self._take)
        self.ready.set()

    def be_alone(self) -> None:
        """A second node of this name would take over what the first one holds. One that died is silent for a lease:
        it is waited for. Raises InvalidConfig: it lives. BrokerUnavailable.
        """
        tools, home, last = self.tools, self._home, ""
        while True:
            other = tools.yard.nodes().get(tools.options.name, {})
            seen = other.get("seen", "0")
            quiet_s = tools.yard.now_s() - float(seen)
            if other.get("home", home) == home or quiet_s >= tools.config.lease_s:
                return
            if last not in {"", seen}:
                raise InvalidConfig(
                    f'a node "{tools.options.name}" is alive at {other["home"]}; give this one another --name'
                )
            if not last:
                log.info("a node of this name was at %s: waiting whether it beats again", other["home"])
            last = seen
            time.sleep(0.5)

    def _near_alone(self) -> None:
        """Raises InvalidConfig: another node has this one's near store. BrokerUnavailable."""
        tools = self.tools
        self._near = tools.levels.near_id(tools.yard.ring) if tools.levels else ""
        check_alone(tools.yard, tools.options.name, self._near, alive_s=tools.config.lease_s)

    def _see_store(self) -> None:
        """No job is taken before the store was there once and was the yard's. Raises InvalidConfig."""
        while self.tools.levels is not None and not self._closing.is_set():
            try:
                self.tools.levels.yard_store.reach()
                return
            except InvalidConfig:
                raise
            except BatchyardError as error:
                log.warning("no job is taken before the store is there: %s", error)
            except Exception:
                log.exception("no job is taken before the store is there")
            self._closing.wait(1)

    def _refuse(self, error: InvalidConfig) -> None:
        """What only a person can mend: the process ends, and says why."""
        log.error("%s", error)
        self.refused = error
        self.drain()
        celery: Any = worker_state  # its types know no exit code
        celery.should_stop = EX_USAGE

    def _claim(self, claim_id: str) -> bool:
        """One call. True: ask again at once."""
        free, room, options = self.ledger.free(), self._slots.free(), self.tools.options
        full = self.tools.uploads.full
        if not full and (room <= 0 or free.vcpus_milli <= 0):
            return False
        wanted = Free(
            vcpus=free.vcpus_milli / 1000, memory_mib=free.memory_mib, gpus=free.gpus, disk_gib=free.disk_mib / 1024,
            gpu_types=free.gpu_types,
        )  # fmt: skip
        if full:  # only what was placed here before others knew
            room, wanted = 0, Free(vcpus=0, memory_mib=0, gpus=0, disk_gib=0)
        more, jobs = self.tools.yard.claim(
            self.tools.options.name,
            claim_id,
            wanted,
            self.tools.config.claimed(options.environment, options.queues),
            lease_s=self.tools.config.lease_s,
            count=min(room, AT_ONCE),
            holds=self.tools.levels.copies.last_used(MOST_HOLDS) if self.tools.levels else (),
        )
        patience_s = min(PLACED_S, self.tools.config.lease_s / 2)  # for all of them: the leases run meanwhile
        until = time.monotonic() + patience_s
        for claimed in jobs:
            self._take(claimed, None, until=until)
        return more or bool(jobs)

    def _take(self, claimed: Claimed, container: Listed | None, *, until: float = 0.0) -> None:
        """Runs a claimed job, or goes on with one whose container an earlier process of this node started.

        until: as long as this what was placed here may wait for its resources; by the monotonic clock.
        """
        if self._closing.is_set() and container is None:
            self._return(claimed)
            return
        known = self.runs.get(claimed.id)
        if known is not None and known.claimed.token == claimed.token:
            return
        try:
            document = self.tools.yard.open(claimed.job_id, claimed.document)
            job = _job(document, claimed)
        except BatchyardError as error:
            reason = str(error)
            self._until_done(lambda: unreadable(self.tools, claimed, reason))
            return
        demand = Demand(
            vcpus=job.vcpus, memory_mib=job.memory_mib, disk_gib=job.disk_gib, gpus=job.gpus, gpu_type=job.gpu_type
        )
        allocation = self._reserve(claimed, demand, container, until=until)
        if allocation is None:
            self._return(claimed)
            return
        tools = self.tools.of(document.tenant)
        run = Run(tools, claimed, document, job, allocation, container.id if container else None)
        with self._lock:
            self.runs[claimed.id] = run
        for what, text in _told(claimed):
            run.hear(what, text)
        try:
            self._slots.run(lambda slot: self._execute(run, slot))
        except RuntimeError:  # no thread for it: as if it had not been claimed, so that the repeated claim brings it
            with self._lock:
                del self.runs[claimed.id]
            self.ledger.release(claimed.id, token=claimed.token)
            raise

    def _reserve(
        self, claimed: Claimed, demand: Demand, container: Listed | None, *, until: float
    ) -> Allocation | None:
        """What a job needs of this node. What was placed here waits a little for what Redis knows to be free already:
        of a job that is settled, the resources are given back a moment later.
        """
        while True:
            allocation = self.ledger.reserve(
                claimed.id, demand, token=claimed.token, gpus=_gpus_of(container), runs=container is not None
            )
            patient = claimed.member is not None and time.monotonic() < until
            if allocation is not None or not patient or self._closing.wait(0.05):
                return allocation

    def _execute(self, run: Run, slot: Slot) -> None:
        run.execute(lambda: self._exited(run, slot))
        with self._lock:
            if self.runs.get(run.claimed.id) is run:
                del self.runs[run.claimed.id]
            self._cleaning += 1
        run.wipe()
        self.ledger.release(run.claimed.id, token=run.claimed.token)
        self.tools.uploads.leave(run.execution.folder.name)
        self._wake.set()
        if not run.clean():
            self._litter.set()
        with self._lock:
            self._cleaning -= 1
        self._wake_drain()

    def _wake_drain(self) -> None:
        """Whoever waits for an empty node looks again."""
        if self._closing.is_set():
            self.tools.reporter.wake()

    def _exited(self, run: Run, slot: Slot) -> None:
        """Its container runs no more: but for its disk, what it had is for others while its outputs are uploaded."""
        self.tools.uploads.enter(run.execution.folder.name)  # first: no claim may slip in between
        self.ledger.keep_disk(run.claimed.id, token=run.claimed.token)
        slot.leave()
        self._wake.set()

    def _return(self, claimed: Claimed) -> None:
        """A job that this node cannot start now; no attempt used. One that was placed here is not placed at once."""
        delay_s = PLACED_S if claimed.member and not self._closing.is_set() else 0.0
        reason = {"reason": f"node {self.tools.options.name} had no room for it"} if delay_s else None
        self._until_done(lambda: self.tools.yard.give_back(claimed, None, delay_s=delay_s, fields=reason))

    # -- leases
    def _renew_loop(self) -> None:
        self.ready.wait()
        while True:
            try:
                self._renew()
                self._heard = time.monotonic()
                self._follow_config()
            except BrokerUnavailable as error:
                log.warning("leases could not be renewed: %s", error)
                self._without_redis()
                time.sleep(0.5)  # and no longer: the leases run out meanwhile
                continue
            except Exception:
                log.exception("leases could not be renewed")
            self._beat.wait(self.tools.config.lease_s / 3)
            self._beat.clear()

    def _follow_config(self) -> None:
        """Queues and environments may have changed; then others are told at once what this node serves now."""
        config = self.tools.yard.config()
        if config != self.tools.config:
            self.tools = replace(self.tools, config=config)
            self._wake.set()
            self._beat.set()

    def _renew(self) -> None:
        runs = dict(self.runs)
        held = {job_id: run.claimed.token for job_id, run in runs.items() if not run.over.is_set()}
        with self._beating:
            if self._left:
                return
            about, lease_s = self._about(), self.tools.config.lease_s
            told = self.tools.yard.renew(self.tools.options.name, about, held, lease_s=lease_s)
            self._tell_exited({(job_id, held[job_id]) for job_id in held if runs[job_id].exited.is_set()})
        for job_id, what, reason in told:
            run = runs[job_id]
            if run.settling:
                continue
            if what == "lost":
                log.warning("job %s: the lease is lost", job_id)
            run.hear(what, reason)

    def _tell_exited(self, exited: set[tuple[str, str]]) -> None:
        """With a beat: most that have ended are settled before the next one."""
        if new := exited - self._told_exited:
            self.tools.yard.exited(self.tools.options.name, new)
        self._told_exited = exited

    def _without_redis(self) -> None:
        if time.monotonic() - self._heard > self.tools.options.partition_grace_s:
            for run in list(self.runs.values()):
                if not run.settling:
                    run.stop(Stop.LOST, grace_s=self.tools.options.stop_grace_s)

    def _about(self) -> Mapping[str, str]:
        options, free, levels = self.tools.options, self.ledger.free(), self.tools.levels
        uploads = self.tools.uploads
        return {
            "cache": json.dumps(asdict(levels.facts())) if levels else "",
            "near": self._near,
            "peer": levels.peer_address if levels else "",
            "vcpus": f"{options.vcpus:g}",
            "memory_mib": str(options.memory_mib),
            "gpus": str(len(options.gpus)),
            "gpu_types": json.dumps(dict(types_of(options.gpus)), sort_keys=True),
            "disk_gib": f"{options.disk_gib:g}",
            "free_vcpus": f"{free.vcpus_milli / 1000:g}",
            "free_memory_mib": str(free.memory_mib),
            "free_gpus": str(free.gpus),
            "free_gpu_types": json.dumps(dict(free.gpu_types), sort_keys=True),
            "free_disk_gib": f"{free.disk_mib / 1024:g}",
            "most_jobs": str(options.most_jobs),
            "queues": ",".join(self.queues()),
            "takes": ",".join(self.tools.config.claimed(options.environment, options.queues)),
            "labels": json.dumps(options.labels),
            "environment": options.environment,
            "gangs": self._gangs,
            "room": self._room(),
            "home": self._home,
            "uploads": str(uploads.count),
            "state": "DRAINING" if self._closing.is_set() else "UPLOADING" if uploads.full else "READY",
        }

    def _room(self) -> str:
        """What it has when empty and how long it lets a job be overtaken, as a claim looks at it."""
        has, after_ms = self.ledger.capacity, int(self.tools.config.reserve_after_s * 1000)
        return f"{has.vcpus_milli},{has.memory_mib},{has.gpus},{has.disk_mib},{after_ms}"

    # -- calls
    def _stand_in_loop(self) -> None:
        """Not with a configuration that the yard does not have: jobs would be refused for want of what others have."""
        self._configured.wait()
        self._stand_in.run()

    def _listen_loop(self) -> None:
        """New work and cancels, the moment they are published."""
        self.ready.wait()
        while True:
            pubsub = self.tools.yard.pubsub()
            try:
                pubsub.subscribe(keys.WAKE, keys.CONTROL)
                self._wake.set()
                self._beat.set()
                while True:
                    heard = pubsub.get_message(timeout=30)
                    if heard is not None:
                        self._hear(heard["channel"].decode(), heard["data"].decode())
            except (redis.RedisError, OSError, UnicodeDecodeError) as error:
                log.warning("not listening: %s", error)
                time.sleep(0.5)
            finally:
                pubsub.close()

    def _hear(self, channel: str, text: str) -> None:
        if channel == keys.WAKE:
            self._wake.set()
        elif text.partition(" ")[0] in {self.tools.options.name, "*"}:
            self._beat.set()

    def _sweep_loop(self) -> None:
        """Containers of ours that no run knows, left by an engine that was away when they should have gone."""
        self.ready.wait()
        while True:
            self._litter.wait(SWEEP_S)
            self._litter.clear()
            time.sleep(SWEEP_AGAIN_S)
            try:
                self._adoption.sweep(lambda: {(r.claimed.id, r.claimed.token) for r in list(self.runs.values())})
                self._adoption.sweep_networks()
            except BatchyardError as error:
                log.warning("sweep: %s", error)
                self._litter.set()

    def _until_done(self, act: Callable[[], object], *, but: tuple[type[BatchyardError], ...] = ()) -> None:
        while True:
            try:
                act()
                return
            except BatchyardError as error:
                if isinstance(error, but):
                    raise
                log.warning("%s", error)
            except Exception:
                log.exception("tried again in a moment")
            time.sleep(0.5)


def _job(document: Document, claimed: Claimed) -> Job:
    """What this node is to run. Raises InvalidJob."""
    job = Job.parse(document.job)
    if claimed.member is not None:
        return gang.member(job, claimed.member.index)
    return job if claimed.index is None else job.child(claimed.index)


def _told(claimed: Claimed) -> list[tuple[Told, str]]:
    """What was to be told of it before this node had it."""
    if claimed.cancel:
        return [("cancel", claimed.cancel)]
    member = claimed.member
    if member is None:
        return []
    return [("halt", member.halt)] if member.halt else [("go", member.go)] if member.go is not None else []


def _gpus_of(container: Listed | None) -> list[str] | None:
    """The devices that an adopted container has."""
    named = container.labels.get("batchyard.gpus") if container else None
    return named.split(",") if named else None
