"""One attempt of one job on this node, from claim to settle, on a slot's thread.

What an attempt has done survives a `kill -9` of the node: containers carry their job and token, the log its cursor, and
nothing is removed before the job is settled.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from batchyard.broker import ending, message
from batchyard.broker.errors import BatchyardError, BrokerUnavailable
from batchyard.broker.expiry import MOST_SETTLED, told
from batchyard.broker.followups import CannotFollow
from batchyard.broker.job import Job
from batchyard.broker.message import Document
from batchyard.broker.record import Attempt, Claimed
from batchyard.broker.recorder import Effect
from batchyard.broker.state import State
from batchyard.broker.store import Told

from .attempt import Execution, Finished
from .ledger import Allocation
from .outcome import STOPS, Fate, Outcome, Stop
from .report import TaskView
from .tools import Tools

log = logging.getLogger(__name__)
T = TypeVar("T")


class Run:
    """`execute` is called once; `stop` from anywhere, any number of times."""

    def __init__(
        self,
        tools: Tools,
        claimed: Claimed,
        document: Document,
        job: Job,
        allocation: Allocation,
        container: str | None = None,
    ) -> None:
        self.claimed, self.job, self.allocation = claimed, job, allocation
        self._tools, self._document = tools, document
        self.execution = Execution(tools, claimed, job, allocation, container, self._started, self._exited)
        # Celery's task, whose result is a job's: the one member that is main, and no child of an array
        self._leads = claimed.index is None and (claimed.member is None or claimed.member.is_main)
        self.view = TaskView(
            claimed.job_id if self._leads else claimed.id,
            document,
            job,
            tools.hostname,
            silent=not self._leads,
            stop=lambda: self.stop(Stop.CANCEL, "terminated"),
            drain=lambda: self.stop(Stop.DRAIN),
        )
        self.over, self.exited = threading.Event(), threading.Event()
        self.settling = False
        self._on_exit: Callable[[], None] = lambda: None

    def stop(self, stop: Stop, why: str = "", *, grace_s: float | None = None, first_signal: str = "SIGTERM") -> None:
        """SIGTERM now, SIGKILL after the grace; what does not run yet will not be started."""
        self.execution.stop(stop, why, grace_s=grace_s, first_signal=first_signal)

    def hear(self, what: Told, text: str) -> None:
        """What a heartbeat, or a claim, was told of this job."""
        if what == "go":
            self.execution.go(text)
        elif what == "lost":
            self.stop(Stop.LOST, grace_s=1)
        elif self.execution.stopped is None:
            self.stop(STOPS[what], text)

    def execute(self, on_exit: Callable[[], None] = lambda: None) -> None:
        """Never raises. Returns when the job is settled, given back, or not ours any more.

        on_exit: called once, when its container runs no more, which may be long before.
        """
        self._on_exit = on_exit
        try:
            self._tools.reporter.received(self.view)
            end = self.execution.run()
            self.settling = True  # from here on the fence decides, not what is heard of the lease
            self._settle(end)
        except Exception:
            log.exception("job %s: the attempt broke; its lease will lapse", self.claimed.id)
            self._tools.reporter.forgotten(self.view)
        finally:
            self.over.set()
            self._tools.live.end(self.claimed.job_id if self._leads else self.claimed.id)

    def wipe(self) -> None:
        """Removes its files. Before `clean`."""
        shutil.rmtree(self.execution.folder, ignore_errors=True)

    def clean(self) -> bool:
        """Removes its container. False: the engine did not remove it now, the node's sweep has to."""
        try:
            self.execution.remove()
        except BatchyardError as error:
            log.warning("job %s: its container stays for the sweep: %s", self.claimed.id, error)
            return False
        self.execution.leave_network()
        return True

    # -- RUNNING
    def _started(self, at: float) -> None:
        """The container runs. A Redis that is away is told at the end."""
        self._tools.reporter.started(self.view, at)
        address = self.execution.address()
        try:
            self._tell_start(at, address)
        except BrokerUnavailable as error:
            log.warning("job %s: %s", self.claimed.id, error)
            if self.claimed.member is not None and self._leads:  # the others wait for it
                threading.Thread(target=self._insist_on_start, args=(at, address), daemon=True).start()

    def _tell_start(self, at: float, address: str) -> None:
        tools = self._tools
        celery = tools.followups.started(self._document.message, tools.options.name) if self._leads else ""
        expires_s = tools.config.result_expires_s
        if not tools.yard.start(self.claimed, started_s=at, celery=celery, expires_s=expires_s, address=address):
            self.stop(Stop.LOST)

    def _insist_on_start(self, at: float, address: str) -> None:
        while not self.over.wait(0.5) and not self.settling:
            with suppress(BrokerUnavailable):
                return self._tell_start(at, address)

    def _exited(self) -> None:
        self.exited.set()
        self._on_exit()

    # -- settle
    def _settle(self, end: Finished) -> None:
        outcome, reporter = end.outcome, self._tools.reporter
        if outcome.fate is Fate.FORGET:
            return reporter.forgotten(self.view)
        if outcome.fate in {Fate.RETRY, Fate.INTERRUPTED, Fate.RETURN}:
            self._until_told(lambda: self._give_back(end))
            return reporter.returned(self.view, outcome.reason)
        if not self._until_told(lambda: self._write(end)):
            log.warning("job %s: its lease was lost; nothing was written", self.claimed.id)
            return reporter.forgotten(self.view)
        return None

    def _give_back(self, end: Finished) -> bool:
        outcome = end.outcome
        return self._tools.yard.give_back(
            self.claimed,
            self._record(end, outcome),
            interrupted=outcome.fate is Fate.INTERRUPTED,
            delay_s=outcome.delay_s,
            fields={"reason": outcome.reason, **self._put(end)},
        )

    def _put(self, end: Finished) -> dict[str, str]:
        """What becomes of its outputs and log, by its queue."""
        queue, expiry = self._tools.config.queues.get(self.claimed.queue), self._tools.expiry
        expire_s = None if queue is None else queue.outputs_expire_s
        if expiry is not None and len(end.put) > MOST_SETTLED:
            expiry.keep(expire_s, end.put[MOST_SETTLED:])
        return told(expire_s, end.put[:MOST_SETTLED])

    def _write(self, end: Finished) -> bool:
        outcome, result = end.outcome, self._result(end)
        effects, outcome = self._effects(end, outcome, result)
        fields = {
            "reason": outcome.reason,
            "node": self._tools.options.name,
            "ended": _ms(end.ended),
            **({"started": _ms(end.started)} if end.started else {}),
            **({"exit_code": str(outcome.exit_code)} if outcome.exit_code is not None else {}),
            **({"log": end.log.digest} if end.log else {}),
            **self._put(end),
        }
        good = outcome.fate is Fate.SUCCEEDED
        if good:
            fields |= {"result": json.dumps(result), **({"reused": end.reused} if end.reused else {})}
            effects = [*effects, *([end.memo] if end.memo is not None else [])]
        elif end.outputs and outcome.fate is Fate.FAILED:
            fields["outputs"] = json.dumps(result["outputs"])
        written = self._tools.yard.settle(
            self.claimed,
            State.SUCCEEDED if good else State.FAILED,
            self._record(end, outcome),
            fields,
            effects,
            retention_s=self._tools.config.retention_s,
        )
        if written:
            self._report(outcome, end.ended - (end.started or end.ended))
        return written

    def _effects(self, end: Finished, outcome: Outcome, result: dict[str, object]) -> tuple[list[Effect], Outcome]:
        followups, message = self._tools.followups, self._document.message
        if not self._leads:
            return [], outcome
        try:
            if outcome.fate is Fate.SUCCEEDED:
                return followups.succeeded(message, result), outcome
            if outcome.fate is Fate.REVOKED:
                return followups.revoked(message, outcome.reason), outcome
            job_id = self.claimed.job_id
            outputs = {name: kept.as_json() for name, kept in end.outputs.items()}
            error = ending.failure(
                job_id, outcome.reason, exit_code=outcome.exit_code, log_tail=end.log_tail, outputs=outputs
            )
            return followups.failed(message, error), outcome
        except CannotFollow as error:
            reason = str(error) if outcome.fate is Fate.SUCCEEDED else f"{outcome.reason}; {error}"
            return error.effects, Outcome(fate=Fate.FAILED, reason=reason, exit_code=outcome.exit_code)
        except BrokerUnavailable:
            raise
        except Exception as error:  # unsettled, the job would run again and again
            log.exception("job %s: what follows it cannot be told", self.claimed.id)
            reason = f"{outcome.reason}; what follows the job cannot be told: {error}"
            return [], Outcome(fate=Fate.FAILED, reason=reason, exit_code=outcome.exit_code)

    def _result(self, end: Finished) -> dict[str, object]:
        outputs = {name: blob.as_json() for name, blob in end.outputs.items()}
        return {
            "job_id": self.claimed.job_id,
            "exit_code": end.outcome.exit_code,
            "outputs": outputs,
            "log": end.log.digest if end.log else None,
            "node": self._tools.options.name,
            "attempt": self.claimed.attempt,
            "created": self.claimed.created,
            "started": end.started,
            "ended": end.ended,
            **({"reused_from": end.reused} if end.reused else {}),
        }

    def _record(self, end: Finished, outcome: Outcome) -> Attempt:
        return Attempt(
            node=self._tools.options.name,
            started=end.started,
            ended=end.ended,
            exit_code=outcome.exit_code,
            reason=outcome.reason,
            status_reason=outcome.status_reason,
            counted=outcome.counted,
            log=end.log.digest if end.log else None,
        )

    def _report(self, outcome: Outcome, runtime_s: float) -> None:
        reporter = self._tools.reporter
        if outcome.fate is Fate.SUCCEEDED:
            reporter.succeeded(self.view, f"exit_code={outcome.exit_code}", runtime_s)
        elif outcome.fate is Fate.REVOKED:
            reporter.revoked(self.view, terminated=self.execution.started is not None)
        else:
            reporter.failed(self.view, outcome.reason)

    def _until_told(self, call: Callable[[], bool]) -> bool:
        """Repeats a call until Redis has answered it. False: the job is another's by now."""
        while True:
            try:
                return call()
            except BrokerUnavailable as error:
                log.warning("job %s waits to be settled: %s", self.claimed.id, error)
                time.sleep(0.3)


def unreadable(tools: Tools, claimed: Claimed, why: str) -> None:
    """Ends a job whose document does not open: nobody can run it, and its producer must not wait for ever.

    Raises BrokerUnavailable.
    """
    reason, now = f"the yard cannot read this job any more: {why}", time.time()
    log.error("job %s: %s", claimed.id, reason)
    effects: list[Effect] = []
    if claimed.index is None:
        effects = tools.followups.failed(message.bare(claimed.job_id), ending.failure(claimed.job_id, reason))
    attempt = Attempt(node=tools.options.name, started=None, ended=now, exit_code=None, reason=reason)
    fields = {"reason": reason, "node": tools.options.name, "ended": _ms(now)}
    tools.yard.settle(claimed, State.FAILED, attempt, fields, effects, retention_s=tools.config.retention_s)


def _ms(seconds: float) -> str:
    return str(int(seconds * 1000))
