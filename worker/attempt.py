"""The container of one attempt: image, inputs, start, wait, log, outputs. Knows nothing of Celery or of the record."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from batchyard.broker.errors import (
    BatchyardError,
    DiskFull,
    EngineUnavailable,
    ImageError,
    NotFound,
    Permanent,
    StartError,
    disk_full,
)
from batchyard.broker.gang import variables
from batchyard.broker.job import Job
from batchyard.broker.record import Claimed
from batchyard.broker.recorder import Effect
from batchyard.cache.digest import Blob

from .capture import LogCapture
from .container import Identity, container_spec
from .context import Context
from .engine import Bind, ContainerSpec, Exit, launch
from .gang import GangNetwork, quietly
from .keeping import Keeping
from .ledger import Allocation
from .outcome import Fate, Outcome, Stop, decide
from .preparing import Preparing
from .publish import Kept
from .reuse import Reused
from .staging import secrets_of, work_directory
from .tools import Tools
from .writable import writable

log = logging.getLogger(__name__)


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
        self._context = Context(tools, claimed, job)
        self._preparing = Preparing(self._context)
        self._keeping = Keeping(self._context, self._told_to_stop)
        self.folder = self._context.folder
        self.started = claimed.started
        self._lock, self._over = threading.Lock(), threading.Event()
        self._container, self._running = container, container is not None
        self._made = [container] if container is not None else []  # containers that may still be there
        self._on_exit: Callable[[], None] | None = on_exit
        self._secrets: dict[str, str] = {}
        self._going, self._main_at = threading.Event(), ""
        self._network = _gang_network(tools, claimed, job)
        self._reuse = self._keeping.reuse() if job.reuse else None
        self._reused: Reused | None = None
        if container is not None:
            self._preparing.pin()

    # -- from other threads
    @property
    def stopped(self) -> Stop | None:
        return self._context.stop

    @property
    def reused(self) -> str:
        """The job that made the outputs, where this one was not run."""
        return self._reused.job_id if self._reused is not None else ""

    def stop(self, stop: Stop, why: str, *, grace_s: float | None, first_signal: str) -> None:
        with self._lock:
            context = self._context
            told = context.stop is stop is Stop.LOST  # at every beat again
            if context.stop is None or stop is Stop.LOST:
                context.stop, context.why = stop, why
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

    def _told_to_stop(self, stop: Stop, why: str) -> None:
        """By Redis, after its container has ended."""
        self.stop(stop, why, grace_s=0, first_signal="SIGKILL")

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
            with self._preparing.pinned():
                self._secrets = secrets_of(self._job, self._tools.options.secrets)
                capture = self._log()
                exit = self._ended(capture)
            self._has_exited(exit)
            if exit is not None and exit.code == 0 and not self._context.is_stopped:
                outputs = self._keeping.publish() if self._reused is None else dict(self._reused.outputs)
        except Exception as caught:
            error = self._fault(caught)
        self._has_exited(exit)
        self._over.set()
        self._context.doing("")
        ended = exit.finished_at if exit is not None else time.time()
        outcome = decide(
            exit=exit,
            error=error,
            stop=self._context.stop,
            why=self._context.why,
            attempt=self._claimed.attempt,
            strategy=self._job.retry,
            interruptions=self._claimed.interruptions,
        )
        if outcome.fate is Fate.FAILED and exit is not None:
            outputs, lacks = self._keeping.salvage(self._fault)
            outcome = replace(outcome, reason=_with(outcome.reason, lacks))
        if outcome.fate is Fate.SUCCEEDED and self._reused is not None:
            outcome = replace(outcome, reason=f"not run: its outputs are those of the identical job {self.reused}")
        self._keeping.forget(but=outputs if outcome.fate in {Fate.SUCCEEDED, Fate.FAILED} else None)
        blob, tail, lack = self._keeping.keep_log(capture, outcome)
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
            put=self._keeping.put,
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
            self._keeping.exited()
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
            return self._context.patiently(lambda: network.address_of(container))
        except BatchyardError as error:
            log.warning("job %s: its container's address is not known: %s", self._claimed.id, error)
            return ""

    def _ended(self, capture: LogCapture) -> Exit | None:
        """The container's exit; None when it was stopped before it ran."""
        if self._container is None:
            if self._found(capture):
                return Exit(code=0, oom=False, started_at=time.time(), finished_at=time.time())
            binds = self._context.patiently(lambda: self._preparing.stage(capture))
            self._wait_for_main(capture)
            self._context.patiently(lambda: self._launch(capture, binds))
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
        self._context.doing("waits for the main node")
        self._going.wait()
        self._context.doing("")

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
        """Whether an identical job's outputs take the place of a run."""
        if self._reuse is None:
            return False
        self._reused = self._preparing.find(self._reuse, capture)
        if self._reused is None:
            self._keeping.forget()
        return self._reused is not None

    def _noted(self, outputs: dict[str, Kept]) -> Effect | None:
        if self._reuse is None or self._reused is not None:
            return None
        return self._reuse.note(self._claimed.id, outputs, keep_s=self._tools.config.retention_s)

    def _launch(self, capture: LogCapture, binds: list[Bind]) -> None:
        def created(container: str) -> None:
            self._container = container
            self._made.append(container)

        if self._context.is_stopped:
            return
        self.remove()  # one whose start was not answered may run, with what it has changed mounted
        spec = self._spec(binds)
        if self._network is not None:
            self._network.make()
        try:
            launch(self._tools.engine, spec, say=capture.platform, created=created)
        except BaseException as error:
            self._container = None  # `launch` has removed it
            if isinstance(error, ImageError):
                self._preparing.is_not_there()
            raise
        with self._lock:
            self._running, stop = True, self._context.stop
        self.started = time.time()
        self._on_start(self.started)
        if stop is not None:  # told between the last look and now
            self._signal("SIGTERM", self._tools.options.stop_grace_s)

    def _spec(self, binds: list[Bind]) -> ContainerSpec:
        tools, job = self._tools, self._job.model_copy(update={"image": self._preparing.image})
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
            work=str(self._context.work),
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
            on_lines=self._tools.live.lines_of(self._context.shown_id),
        )
        taken = "takes up" if self._container is not None else "takes"
        capture.platform(f"node {self._tools.options.name} {taken} attempt {self._claimed.attempt}")
        return capture


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


def _of_array(claimed: Claimed, job: Job) -> dict[str, str]:
    """What a child is told of its array, as under AWS Batch."""
    if claimed.index is None:
        return {}
    return {"AWS_BATCH_JOB_ARRAY_INDEX": str(claimed.index), "AWS_BATCH_JOB_ARRAY_SIZE": str(job.array_size)}


def _told(error: OSError) -> BatchyardError:
    if disk_full(error):
        return DiskFull(f"no space left in the node's state folder: {error}")
    return StartError(f"the node's state folder cannot be used: {error}")
