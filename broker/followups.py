"""What follows a job's end: Celery's result, next chain step, callbacks, errbacks, chord part, as effects.

Made by Celery's own tracer and backend, so that a canvas of ours ends as a canvas of stock workers does.
"""

from __future__ import annotations

import json
import logging
import threading
import warnings
from collections.abc import Callable
from typing import Any

from celery import states
from celery.app.task import Context
from celery.app.trace import build_tracer
from celery.exceptions import TaskRevokedError

from .errors import BrokerUnavailable, JobFailed
from .message import Message
from .recorder import RECORDING, Effect, celery_state, record, recording_app, transient

# The tracer logs each outcome, with tracebacks of ours; the yard has its own log.
for _name in ("celery.app.trace", "celery.backends.redis"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class CannotFollow(Exception):
    """What the producer wanted to follow cannot be sent. `effects` are those of a failure: settle the job with them."""

    def __init__(self, effects: list[Effect], reason: str) -> None:
        super().__init__(reason)
        self.effects = effects


def _outcome(*_: object, **__: object) -> Any:
    assert RECORDING.outcome is not None
    state, value = RECORDING.outcome
    if state == states.SUCCESS:
        return value
    raise value


class Followups:
    """Records follow-ups; thread-safe, one recording at a time.

    Never registers `batchyard.run`: Celery would run a registered errback inline.
    """

    def __init__(self, url: str, *, result_expires_s: int) -> None:
        self._app = recording_app(url, result_expires=result_expires_s, task_routes=(_same_queue,))
        self._task = self._app.task(name="batchyard.internal.outcome", shared=False)(_outcome)
        self._app.finalize()
        self._tracer = build_tracer(self._task.name, self._task, app=self._app)
        self._lock = threading.Lock()

    def succeeded(self, message: Message, result: dict[str, Any]) -> list[Effect]:
        """Raises CannotFollow, BrokerUnavailable (decide nothing, call again)."""
        return self._ended(message, states.SUCCESS, result)

    def failed(self, message: Message, error: JobFailed) -> list[Effect]:
        """Raises CannotFollow, BrokerUnavailable."""
        return self._ended(message, states.FAILURE, error)

    def revoked(self, message: Message, reason: str) -> list[Effect]:
        """Raises CannotFollow, BrokerUnavailable."""
        return self._ended(message, states.REVOKED, reason)

    def body(self, entry: dict[str, Any], message_of: Callable[[str], Message]) -> list[Effect]:
        """Effects of a completed chord: its body's messages, or the ChordError and its errbacks.

        entry: what the `PART` effect left in the outbox. message_of: the message of a job by id.
        """
        last = json.loads(entry["last"])
        message = message_of(last["job"])
        context = Context(message.request(), called_directly=False)

        def fire() -> None:
            self._inside(
                context, lambda: self._app.backend.on_chord_part_return(Context(last["member"]), states.SUCCESS, None)
            )

        with self._lock:
            effects = self._transiently(lambda: record(self._app, fire, own=last["job"], body=entry))
        return [*effects, ("DEL", tuple(entry["base"] + suffix for suffix in (".j", ".t", ".s", ".d")))]

    def started(self, message: Message, node: str) -> str:
        """Celery's STARTED result as JSON, or '' where the producer wants no results."""
        if message.headers.get("ignore_result"):
            return ""
        meta: dict[str, Any] = {
            "status": states.STARTED,
            "result": {"hostname": node},
            "traceback": None,
            "children": [],
            "date_done": None,
        }
        meta |= {
            k: v
            for k, v in (("group_id", message.headers.get("group")), ("parent_id", message.headers.get("parent_id")))
            if v
        }
        return json.dumps({**meta, "task_id": message.id}, separators=(",", ":"))

    def _ended(self, message: Message, state: str, value: Any) -> list[Effect]:
        with self._lock:
            request = message.request()
            try:
                return self._transiently(lambda: self._record(message.id, request, state, value))
            except BrokerUnavailable:
                raise
            except Exception as error:  # the producer wrote what follows: a queue that is none, bad options
                reason = f"what follows the job cannot be sent: {error}"
            return self._without(message.id, request, reason)

    def _without(self, job_id: str, request: dict[str, Any], reason: str) -> list[Effect]:
        """Leaves out as little of what follows as gets through. Raises CannotFollow with the effects of the failure."""
        details: dict[str, object] = {"exit_code": None, "reason": reason, "log_tail": "", "job_id": job_id}
        failure = JobFailed(reason, details)
        error: Exception | None = None
        for key in ("callbacks", "errbacks", "chain", "chord"):
            request = {**request, key: None}
            try:
                effects = self._transiently(lambda: self._record(job_id, request, states.FAILURE, failure))  # noqa: B023
            except BrokerUnavailable:
                raise
            except Exception as again:
                error = again
            else:
                raise CannotFollow(effects, reason)
        raise RuntimeError(f"job {job_id}: no end can be recorded") from error

    def _record(self, job_id: str, request: dict[str, Any], state: str, value: Any) -> list[Effect]:
        if state == states.REVOKED:
            context = Context(request, called_directly=False)
            return record(self._app, lambda: self._revoke(job_id, context, value), own=job_id)
        traced: list[Any] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the tracer warns of what is raised here
            effects = record(
                self._app,
                own=job_id,
                outcome=(state, value),
                act=lambda: traced.append(self._tracer(job_id, request["args"], request["kwargs"], request).info),
            )
        info = traced[0]
        if info is not None and info.retval is not value:
            raise info.retval  # the tracer swallowed an error of the sending, and failed the task for it
        return effects

    def _revoke(self, job_id: str, context: Context, reason: str) -> None:
        """Stock leaves the rest of a chain PENDING for ever; here the rest ends too."""
        backend: Any = self._app.backend
        error = TaskRevokedError(reason)

        def end() -> None:
            backend.mark_as_revoked(job_id, reason, request=context, store_result=not context.ignore_result)
            backend._fail_chain(context.chain, error, state=states.REVOKED)
            if context.errbacks:
                backend._call_task_errbacks(context, error, None)

        self._inside(context, end)

    def _inside(self, context: Context, act: Callable[[], object]) -> None:
        """As inside the tracer: what is sent takes its root and parent from this request."""
        celery_state._task_stack.push(self._task)
        self._task.request_stack.push(context)
        try:
            act()
        finally:
            self._task.request_stack.pop()
            celery_state._task_stack.pop()

    @staticmethod
    def _transiently(act: Callable[[], list[Effect]]) -> list[Effect]:
        try:
            return act()
        except Exception as error:
            if transient(error):
                raise BrokerUnavailable(f"Redis was lost while follow-ups were recorded: {error}") from error
            raise


def _same_queue(
    name: str, args: object, kwargs: object, options: dict[str, Any], task: Any = None, **_: object
) -> dict[str, str] | None:
    """A step without a queue takes its parent's: `chain.apply_async(queue=…)` reaches only the first."""
    if options.get("queue") or RECORDING.own is None or name != "batchyard.run":
        return None
    current = celery_state._task_stack.top
    info = current.request.delivery_info if current is not None else None
    return {"queue": info["routing_key"]} if info and info.get("routing_key") else None
