"""The container of one attempt: image, inputs, start, wait, log, outputs. Knows nothing of Celery or of the record."""

from __future__ import annotations

import hashlib
import logging
import math
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from rich.filesize import decimal

from batchyard.broker.errors import (
    BatchyardError,
    BrokerUnavailable,
    DiskFull,
    EngineUnavailable,
    ImageError,
    NotFound,
    OutputError,
    Permanent,
    StartError,
    StoreUnavailable,
    disk_full,
)
from batchyard.broker.expiry import owner_of
from batchyard.broker.gang import variables
from batchyard.broker.job import Job
from batchyard.broker.puts import Puts
from batchyard.broker.record import Claimed
from batchyard.broker.recorder import Effect
from batchyard.cache.deliver import AttemptMark
from batchyard.cache.digest import Blob, Digest
from batchyard.cache.held import CopiesPinned

from .capture import LogCapture
from .container import Identity, container_spec
from .engine import Bind, ContainerSpec, Exit, launch
from .gang import GangNetwork, quietly
from .image_blob import ImageBlob
from .ledger import Allocation
from .outcome import Fate, Outcome, Stop, decide
from .progress import Progress, uploaded
from .publish import Kept, Limit, Publisher
from .reuse import Reuse, Reused, identity, obstacle
from .sources import Source, look_up
from .staging import secrets_of, work_directory
from .tools import Tools
from .writable import writable

log = logging.getLogger(__name__)
T = TypeVar("T")
STORE_PATIENCE_S, ENGINE_PATIENCE_S = 120.0, 600.0
UPLOAD_PATIENCE_S = 3600.0  # for the yard's store: outputs that wait for it hold their disk, and nothing else
LOG_TAIL_BYTES = 4096
STOPS = {"lost": Stop.LOST, "cancel": Stop.CANCEL, "halt": Stop.HALT}
"""What a heartbeat tells of a job, by how it is stopped for it."""
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,199}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How an attempt ended. Times in epoch seconds; log_tail: the last of what the command wrote.

    reused: the job that made the outputs, where this one was not run. memo: notes its success for later ones. put: the
    objects of its outputs and log.
    """

    outcome: Outcome
    started: float | None
    ended: float
    outputs: dict[str, Kept] = field(default_factory=dict)
    log: Blob | None = None
    log_tail: str = ""
    reused: str = ""
    memo: Effect | None = None
    put: Sequence[str] = ()


class Execution:
    """`run` is called once; `stop` from any thread.

    on_start: called when the container runs. on_exit: once, when it runs no more or never will, before outputs and log
    are uploaded.
    """

    def __init__(
        self,
        tools: Tools,
        claimed: Claimed,
        job: Job,
        allocation: Allocation,
        container: str | None,
        on_start: Callable[[float], None],
        on_exit: Callable[[], None] = lambda: None,
    ) -> None:
        self._tools, self._claimed, self._job = tools, claimed, job
        self._allocation, self._on_start = allocation, on_start
        self.folder = tools.options.files / "jobs" / folder_name(claimed)
        self.started = claimed.started
        self._lock, self._over = threading.Lock(), threading.Event()
        self._container, self._running = container, container is not None
        self._made = [container] if container is not None else []  # containers that may still be there
        self._stop: Stop | None = None
        self._why = self._told = ""
        self._tries = self._kept = 0
        self._exited_s = 0.0  # by the monotonic clock
        self._on_exit: Callable[[], None] | None = on_exit
        self._secrets: dict[str, str] = {}
        self._going, self._main_at = threading.Event(), ""
        self._network = _gang_network(tools, claimed, job)
        self._puts = Puts(tools.expiry, owner_of(claimed), self._wait_to_put) if tools.expiry else None
        self._blobs = tools.blobs.telling(self._puts.before) if self._puts else tools.blobs
        self._reuse = self._reusing()
        self._reused: Reused | None = None
        self._image_blob = ImageBlob.of(job.image, tools.stage.copies)
        self._image = self._image_name
        self._sources: Mapping[str, Source] | None = None
        # What a main member says and does is the job's.
        self._shown_id = claimed.job_id if claimed.member is None or claimed.member.is_main else claimed.id
        if container is not None:  # before anything is staged for others, also where the index was lost
            tools.stage.copies.pin(self.folder.name, self._digests(unpack=False), unpacked=self._digests(unpack=True))

    # -- from other threads
    @property
    def stopped(self) -> Stop | None:
        return self._stop

    @property
    def reused(self) -> str:
        """The job that made the outputs, where this one was not run."""
        return self._reused.job_id if self._reused is not None else ""

    def stop(self, stop: Stop, why: str, *, grace_s: float | None, first_signal: str) -> None:
        with self._lock:
            told = self._stop is stop is Stop.LOST  # at every beat again
            if self._stop is None or stop is Stop.LOST:
                self._stop, self._why = stop, why
            running = self._running and not told
        self._going.set()
        self._tools.uploads.look()
        if running:
            self._signal(first_signal, self._tools.options.stop_grace_s if grace_s is None else grace_s)

    def go(self, main_at: str) -> None:
        """The main member runs, and is reached there: this one may start. May be called again."""
        if not self._going.is_set():
            self._main_at = main_at
            self._going.set()

    def _signal(self, name: str, grace_s: float) -> None:
        container = self._container
        assert container is not None

        def act() -> None:
            kill_at = time.monotonic() + grace_s
            self._insist(lambda: self._tools.engine.signal(container, name), kill_at)
            if not self._over.wait(max(0.0, kill_at - time.monotonic())):
                self._insist(lambda: self._tools.engine.kill(container))

        threading.Thread(target=act, name="stop", daemon=True).start()

    def _insist(self, act: Callable[[], object], until: float = math.inf) -> None:
        """Repeats what an engine that is away did not do: a container that is not told to stop may never end."""
        while not self._over.is_set():
            try:
                act()
                return
            except BatchyardError as error:
                log.warning("job %s could not be told to stop: %s", self._claimed.id, error)
                if not isinstance(error, EngineUnavailable) or time.monotonic() > until:
                    return
            self._over.wait(0.5)

    # -- on the slot's thread
    def run(self) -> Finished:
        """What goes wrong becomes the outcome's reason; nothing is raised for it."""
        exit: Exit | None = None
        error: BatchyardError | None = None
        outputs: dict[str, Kept] = {}
        capture: LogCapture | None = None
        try:
            copies, unpacked = self._tools.stage.copies, self._digests(unpack=True)
            with copies.pinned(self.folder.name, self._digests(unpack=False), unpacked=unpacked):
                self._secrets = secrets_of(self._job, self._tools.options.secrets)
                capture = self._log()
                exit = self._ended(capture)
            self._has_exited(exit)
            if exit is not None and exit.code == 0 and self._stop is None:
                outputs = self._published() if self._reused is None else dict(self._reused.outputs)
        except Exception as caught:
            error = self._fault(caught)
        self._has_exited(exit)
        self._over.set()
        self._doing("")
        ended = exit.finished_at if exit is not None else time.time()
        outcome = decide(
            exit=exit,
            error=error,
            stop=self._stop,
            why=self._why,
            attempt=self._claimed.attempt,
            strategy=self._job.retry,
            interruptions=self._claimed.interruptions,
        )
        if outcome.fate is Fate.FAILED and exit is not None:
            outputs, lacks = self._salvaged()
            outcome = replace(outcome, reason=_with(outcome.reason, lacks))
        if outcome.fate is Fate.SUCCEEDED and self._reused is not None:
            outcome = replace(outcome, reason=f"not run: its outputs are those of the identical job {self.reused}")
        self._forget_puts(but=outputs)
        blob, tail, lack = self._keep_log(capture, outcome)
        if lack:
            outcome = replace(outcome, reason=f"{outcome.reason}; its log could not be kept: {lack}")
        return Finished(
            outcome=outcome,
            started=self.started,
            ended=ended,
            outputs=outputs,
            log=blob,
            log_tail=tail,
            reused=self.reused,
            put=self._puts.names if self._puts else (),
            memo=self._noted(outputs) if outcome.fate is Fate.SUCCEEDED else None,
        )

    def _fault(self, caught: Exception) -> BatchyardError:
        """In words. A fault of ours is logged, and no more: unsettled, the job would run again and again."""
        if isinstance(caught, BatchyardError):
            return caught
        if isinstance(caught, OSError):
            return _told(caught)
        log.error("job %s: the attempt broke", self._claimed.id, exc_info=caught)
        return Permanent(f"the node could not run it: {type(caught).__name__}: {caught}")

    def _has_exited(self, exit: Exit | None) -> None:
        """Tells it once. A container that may still run, on an engine that is away, keeps what it has."""
        if self._on_exit is not None and (exit is not None or not self._made):
            on_exit, self._on_exit = self._on_exit, None
            self._exited_s = time.monotonic()
            on_exit()

    def remove(self) -> None:
        """The container goes, and what is left of earlier tries to start it. May be called twice."""
        while self._made:
            self._tools.engine.remove(self._made[-1])
            self._made.pop()

    def leave_network(self) -> None:
        """After `remove`. Who cannot remove it leaves it to the others of the gang, or to the sweep."""
        if self._network is not None:
            quietly(self._network.remove, f"job {self._claimed.id}: its network stays for the sweep")

    def address(self) -> str:
        """Where the others of its gang reach its container; '' where they do not."""
        if self._network is None or self._container is None:
            return ""
        container, network = self._container, self._network
        try:
            return self._patiently(lambda: network.address_of(container))
        except BatchyardError as error:
            log.warning("job %s: its container's address is not known: %s", self._claimed.id, error)
            return ""

    def _ended(self, capture: LogCapture) -> Exit | None:
        """The container's exit; None when it was stopped before it ran."""
        if self._container is None:
            if self._found(capture):
                return Exit(code=0, oom=False, started_at=time.time(), finished_at=time.time())
            binds = self._patiently(lambda: self._stage(capture))
            self._wait_for_main(capture)
            self._patiently(lambda: self._launch(capture, binds))
        elif self.started is None:  # the node was killed before it could say so
            self.started = time.time()
            self._on_start(self.started)
        if self._container is None:
            return None
        engine, container = self._tools.engine, self._container
        capture.attach(engine.log_source(container))
        self._tools.poller.add(capture)
        timer = self._timer()
        try:
            exit = engine.wait(container)
        except NotFound:
            return Exit(
                code=255,
                oom=False,
                started_at=self.started or time.time(),
                finished_at=time.time(),
                error="its container was removed by somebody else",
                interrupted=True,
            )
        finally:
            self._tools.poller.discard(capture)
            if timer is not None:
                timer.cancel()
        self.started = self.started or exit.started_at
        return exit

    def _wait_for_main(self, capture: LogCapture) -> None:
        """Until the main member of the gang runs, or this one is stopped."""
        member = self._claimed.member
        if member is None or member.is_main or self._going.is_set():
            return
        capture.platform(f"node {member.index} of {member.count} is ready, and waits for node {member.main}")
        self._doing("waits for the main node")
        self._going.wait()
        self._doing("")

    def _timer(self) -> threading.Timer | None:
        """Stops the attempt when its time is over, counted from its start, also in an earlier process."""
        if self._job.timeout_s is None:
            return None
        left_s = (self.started or time.time()) + self._job.timeout_s - time.time()
        timer = threading.Timer(
            max(0.0, left_s), self.stop, (Stop.TIMEOUT, ""), {"grace_s": None, "first_signal": "SIGTERM"}
        )
        timer.daemon = True
        timer.start()
        return timer

    def _found(self, capture: LogCapture) -> bool:
        """Whether an identical job's outputs take the place of a run. From here on its image is a certain one."""
        if self._reuse is None:
            return False
        if lack := obstacle(self._job):
            capture.platform(f"it is run anyway: {lack}, so it is not known to be identical to any other")
            self._reuse = None
            return False
        self._tools.puller.forget(self._image_name)  # it may lead to another one by now
        with Progress(self._doing, capture.platform) as progress:
            self._image = self._patiently(lambda: self._pulled(capture, progress))
        sources = self._patiently(self._looked_up)
        told = identity(self._job, image=self._image, sources=sources, index=self._claimed.index)
        self._reused = self._reuse.find(told, self._job, say=capture.platform) if self._stop is None else None
        if self._reused is None:
            self._forget_puts()
        return self._reused is not None

    def _reusing(self) -> Reuse | None:
        if not self._job.reuse:
            return None
        tools = self._tools
        ring, use = tools.yard.ring.of(tools.tenant), self._puts.use if self._puts else lambda names: ()
        return Reuse(tools.yard, ring, tools.blobs, self.folder, use=use)

    def _forget_puts(self, *, but: Mapping[str, Kept] | None = None) -> None:
        """What was put until now, or was to be used, is no output, unless there are some."""
        if self._puts is not None and not but:
            self._puts.forget()

    def _noted(self, outputs: Mapping[str, Kept]) -> Effect | None:
        if self._reuse is None or self._reused is not None:
            return None
        return self._reuse.note(self._claimed.id, outputs, keep_s=self._tools.config.retention_s)

    def _looked_up(self) -> Mapping[str, Source]:
        if self._sources is None:
            self._sources = look_up(self._tools.yard, self._job, self._claimed, self._tools.tenant)
        return self._sources

    def _stage(self, capture: LogCapture) -> list[Bind]:
        with Progress(self._doing, capture.platform) as progress:
            self._pulled(capture, progress)
            binds = self._bound(capture, progress)
        self._doing("")
        if binds:
            moved = self._tools.stage.copies.moved(self.folder.name)
            inputs = len(self._job.inputs)
            capture.platform(
                f"{inputs} input{'' if inputs == 1 else 's'} staged: {decimal(moved.fetched_bytes)} fetched, "
                f"{moved.here} of {moved.copies} already here"
            )
        return binds

    @property
    def _image_name(self) -> str:
        """What the engine calls its image."""
        return self._image_blob.name if self._image_blob else self._job.image

    def _pulled(self, capture: LogCapture, progress: Progress) -> str:
        """The image's config digest, once this node has it."""
        image, blob = self._job.image, self._image_blob
        try:
            return self._tools.puller.ensure(
                self._image_name,
                archive=None if blob is None else lambda: blob.archive(partial(progress.hear, "the image")),
                pulling=lambda: capture.platform(f"{'loading' if blob else 'pulling'} image {image}"),
                stopped=lambda: self._stop is not None,
            )
        except Permanent as error:
            if blob is None:
                raise
            raise ImageError(f"image {image}: {error}") from error

    def _bound(self, capture: LogCapture, progress: Progress) -> list[Bind]:
        self._tries += 1
        return self._tools.stage.binds(
            self._job,
            self.folder.name,
            sources=self._looked_up(),
            stopped=lambda: self._stop is not None,
            say=lambda text: self._say(capture, text),
            hear=lambda path, done, total: progress.hear(f"input {path}", done, total),
        )

    def _say(self, capture: LogCapture, text: str) -> None:
        """What may take long: in the log, and for who asks what the job does."""
        text += f" (try {self._tries})" if self._tries > 1 else ""
        if self._tries & (self._tries - 1) == 0:  # 1, 2, 4, 8 …: a log is no place for all of them
            capture.platform(text)
        self._doing(text)

    def _doing(self, text: str) -> None:
        if text != self._told:
            with suppress(BrokerUnavailable):
                self._tools.yard.progress(self._shown_id, text)
            self._told = text

    def _launch(self, capture: LogCapture, binds: list[Bind]) -> None:
        spec = self._spec(binds)

        def created(container: str) -> None:
            self._container = container
            self._made.append(container)

        if self._stop is not None:
            return
        if self._network is not None:
            self._network.make()
        self.remove()  # one whose start was not answered may run
        try:
            launch(self._tools.engine, spec, say=capture.platform, created=created)
        except BaseException as error:
            self._container = None  # `launch` has removed it
            if isinstance(error, ImageError):
                self._tools.puller.forget(self._image_name)
            raise
        with self._lock:
            self._running, stop = True, self._stop
        self.started = time.time()
        self._on_start(self.started)
        if stop is not None:  # told between the last look and now
            self._signal("SIGTERM", self._tools.options.stop_grace_s)

    def _spec(self, binds: list[Bind]) -> ContainerSpec:
        tools, job = self._tools, self._job.model_copy(update={"image": self._image})
        gpus = [gpu for gpu in tools.options.gpus if gpu.id in self._allocation.gpus]
        identity = Identity(
            yard=tools.yard_id,
            node=tools.options.name,
            job_id=self._claimed.id,
            token=self._claimed.token,
            attempt=self._claimed.attempt,
            queue=self._claimed.queue,
            environment=tools.options.environment,
        )
        spec = container_spec(
            job,
            identity,
            work=str(self.folder / "work"),
            binds=binds,
            secrets=self._secrets,
            gpus=gpus,
            node_has_gpus=bool(tools.options.gpus),
            variables=_of_array(self._claimed, job) | self._gang_variables(),
            network=self._network.name if self._network else None,
        )
        work_directory(self.folder, spec.user)
        own = writable(spec.binds[1:], self.folder / "changes", spec.user)
        return replace(spec, binds=(spec.binds[0], *own))

    def _gang_variables(self) -> dict[str, str]:
        member = self._claimed.member
        if member is None:
            return {}
        return dict(variables(count=member.count, index=member.index, main=member.main, address=self._main_at))

    def _log(self) -> LogCapture:
        capture = LogCapture(
            self.folder / "log",
            mask=[v.encode() for v in self._secrets.values()],
            on_lines=self._tools.live.lines_of(self._shown_id),
        )
        taken = "takes up" if self._container is not None else "takes"
        capture.platform(f"node {self._tools.options.name} {taken} attempt {self._claimed.attempt}")
        return capture

    def _published(self) -> dict[str, Kept]:
        if not self._job.outputs:
            return {}
        publisher = self._publisher()
        try:
            return self._uploaded(publisher, publisher.publish)
        except BaseException:
            publisher.clean()
            raise

    def _salvaged(self) -> tuple[dict[str, Kept], list[str]]:
        """What is kept of a job that has failed for good, and why not more."""
        if not any(output.on_failure for output in self._job.outputs.values()):
            return {}, []
        self._forget_puts()
        publisher = self._publisher()
        try:
            return self._uploaded(publisher, publisher.salvage)
        except Exception as caught:
            publisher.clean()
            return publisher.salvaged, [f"not all outputs could be kept: {self._fault(caught)}"]

    def _uploaded(self, publisher: Publisher, act: Callable[[], T]) -> T:
        """In its turn. The yard's store is waited for for UPLOAD_PATIENCE_S, a destination as anything else is."""
        patience, uploads, size = _Patience(), self._tools.uploads, publisher.weigh()

        def until(error: BatchyardError) -> float:
            if publisher.elsewhere or not isinstance(error, StoreUnavailable):
                return patience.until(error)
            self._doing(f"waits to upload its outputs: {error}")
            return uploads.refused(self._exited_s) + UPLOAD_PATIENCE_S

        def hear(kept: int, sent: int) -> None:
            if kept > self._kept:
                self._kept = kept
                uploads.taken()
            progress.hear(f"{kept} of {len(self._job.outputs)}", sent, size)

        try:
            with self._turn(size), Progress(self._doing, words=uploaded) as progress:
                publisher.on_progress = hear
                return self._patiently(act, until)
        finally:
            self._doing("")

    def _turn(self, size: int) -> AbstractContextManager[None]:
        return self._tools.uploads.turn(
            self.folder.name,
            size,
            stopped=lambda: self._given_up,
            waits=lambda ahead: self._doing(f"waits to upload: {ahead} before it"),
        )

    def _publisher(self) -> Publisher:
        tools, claimed = self._tools, self._claimed
        queue = tools.config.queues.get(claimed.queue)
        most_gib = queue.max_output_gib if queue else None
        return Publisher(
            self._blobs,
            self._job,
            self.folder / "work",
            mark=AttemptMark.of(tools.yard_id, claimed.id, claimed.token),
            secrets=tools.options.secrets,
            limit=Limit(queue=claimed.queue, bytes=int(most_gib * 2**30)) if most_gib else None,
            confirm=self._confirm,
            fresh_s=tools.config.lease_s / 3,
            stopped=lambda: self._given_up,
        )

    @property
    def _given_up(self) -> bool:
        """Nobody wants any more of it. Of one whose time is over, what it has written may be wanted."""
        return self._stop not in {None, Stop.TIMEOUT}

    def _confirm(self) -> None:
        """Returns when Redis has said that the job is still ours, with a whole lease ahead. Raises OutputError."""
        tools, job = self._tools, self._claimed
        while not self._given_up:
            try:
                told = tools.yard.renew(tools.options.name, {}, {job.id: job.token}, lease_s=tools.config.lease_s)
            except BrokerUnavailable as error:
                log.warning("job %s waits to write its outputs: %s", job.id, error)
                time.sleep(0.5)
                continue
            stops = [(STOPS[what], reason) for _, what, reason in told if what in STOPS]  # not that it may start
            for stop, reason in stops:
                self.stop(stop, reason, grace_s=0, first_signal="SIGKILL")
            if not stops:
                return
            break
        raise OutputError("it was not written: the job was told to stop")

    def _wait_to_put(self, why: BatchyardError) -> None:
        """Redis is away, so nobody would know of it; or the object is just being deleted."""
        if self._stop is Stop.LOST:
            raise OutputError("it was not kept: the job is not this node's any more")
        log.warning("job %s waits to keep its outputs and log: %s", self._claimed.id, why)
        time.sleep(0.5)

    def _keep_log(self, capture: LogCapture | None, outcome: Outcome) -> tuple[Blob | None, str, str]:
        """The sealed log, its last lines, and why it could not be kept, which does not change the fate."""
        if capture is None or outcome.fate is Fate.FORGET:
            return None, "", ""
        try:
            path = self._whole_log(capture, outcome.reason)
            tail = "" if outcome.fate is Fate.SUCCEEDED else command_lines(capture.tail(LOG_TAIL_BYTES))
            with self._turn(path.stat().st_size):
                return self._patiently(lambda: self._blobs.put_file(path)), tail, ""
        except (BatchyardError, OSError) as error:
            log.warning("job %s: its log could not be kept: %s", self._claimed.id, error)
            return None, "", str(error)
        finally:
            capture.close()

    def _whole_log(self, capture: LogCapture, last_words: str) -> Path:
        try:
            capture.platform(last_words)
            return capture.finish()
        except (DiskFull, OSError):  # by what the job has written, most likely: its outputs are kept by now
            shutil.rmtree(self.folder / "work", ignore_errors=True)
            return capture.finish()

    def _digests(self, *, unpack: bool) -> list[Digest]:
        """Of the blobs that it needs: those of archives that it needs unpacked, or the others."""
        found = []
        for spec in self._job.inputs.values():
            if spec.unpack is not unpack:
                continue
            found += [spec.digest] if spec.digest and not spec.uri else [m.digest for m in spec.members or ()]
        return found

    def _patiently(self, act: Callable[[], T], until: Callable[[BatchyardError], float] | None = None) -> T:
        """Repeats for a while what an engine, a store or Redis, away, refused, or a cache full of others' inputs.

        until: for how long, by the monotonic clock.
        """
        until = until or _Patience().until
        while True:
            try:
                return act()
            except (EngineUnavailable, StoreUnavailable, CopiesPinned, BrokerUnavailable) as error:
                end_s = until(error)
                if self._given_up or time.monotonic() > end_s:
                    raise
                log.warning("job %s waits: %s", self._claimed.id, error)
                time.sleep(0.5)


class _Patience:
    """How long what refuses is waited for, from its first refusal: that may have taken long to get there."""

    def __init__(self) -> None:
        self._since: dict[type[BatchyardError], float] = {}

    def until(self, error: BatchyardError) -> float:
        """By the monotonic clock."""
        since = self._since.setdefault(type(error), time.monotonic())
        return since + (STORE_PATIENCE_S if isinstance(error, StoreUnavailable | CopiesPinned) else ENGINE_PATIENCE_S)


def _gang_network(tools: Tools, claimed: Claimed, job: Job) -> GangNetwork | None:
    if claimed.member is None:
        return None
    options = tools.options
    return GangNetwork(
        tools.engine,
        job,
        claimed.member,
        yard=tools.yard_id,
        mode=options.gang_network,
        address=options.address,
    )


def _with(reason: str, lacks: Sequence[str]) -> str:
    """And what was not kept, if the reason does not say so already."""
    return "; ".join([reason, *(lack for lack in lacks if lack not in reason)])


def command_lines(text: str) -> str:
    """Log lines as the command wrote them: without time and stream, without the platform's own."""
    return "\n".join(
        words[2] if len(words) > 2 else ""
        for line in text.splitlines()
        if len(words := line.split(" ", 2)) > 1 and words[1] != "platform"
    )


def _of_array(claimed: Claimed, job: Job) -> dict[str, str]:
    """What a child is told of its array, as under AWS Batch."""
    if claimed.index is None:
        return {}
    return {"AWS_BATCH_JOB_ARRAY_INDEX": str(claimed.index), "AWS_BATCH_JOB_ARRAY_SIZE": str(job.array_size)}


def _told(error: OSError) -> BatchyardError:
    if disk_full(error):
        return DiskFull(f"no space left in the node's state folder: {error}")
    return StartError(f"the node's state folder cannot be used: {error}")


def folder_name(claimed: Claimed) -> str:
    """One folder a lease. A job id is the producer's word, a folder's name is not."""
    plain = claimed.id if _PLAIN.fullmatch(claimed.id) else hashlib.sha256(claimed.id.encode()).hexdigest()
    return f"{plain}.{claimed.token.partition(':')[0]}"
