"""Jobs as Celery tasks, for `inspect`, Flower and event monitors.

Any thread may report; only the hub's thread touches Celery's worker state, clock and event dispatcher, none of which is
thread-safe.
"""

from __future__ import annotations

import logging
import shlex
import threading
import time
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from celery.worker import state as worker_state

from batchyard.broker.job import Job
from batchyard.broker.message import Document

log = logging.getLogger(__name__)


class TaskView:
    """One attempt, as far as Celery's worker wants to know: it quacks like `celery.worker.request.Request`.

    Arguments are shown as image and command; environment and inputs are not shown. silent: a child of an array, or a
    gang's member that is not its main one, is on this node's own lists, and monitors, to which the whole is the task,
    hear nothing of it.
    """

    eventer = None
    acknowledged = True
    task = SimpleNamespace(acks_late=False)

    def __init__(
        self,
        job_id: str,
        document: Document,
        job: Job,
        hostname: str,
        *,
        stop: Callable[[], None],
        drain: Callable[[], None],
        silent: bool = False,
    ) -> None:
        headers = document.message.headers
        self.id, self.name, self.hostname, self.silent = job_id, document.message.task, hostname, silent
        self._headers, self._stop, self._drain = headers, stop, drain
        self._delivery = document.message.properties.get("delivery_info") or {}
        self._priority = document.message.priority
        self.stamps, self.stamped_headers = headers.get("stamps") or {}, headers.get("stamped_headers")
        self.args, self.kwargs = "()", shown(job)
        self.time_start: float | None = None
        self.worker_pid: int | None = None

    def info(self, safe: bool = False) -> dict[str, Any]:
        """What `inspect active | reserved | query_task` answers."""
        return {
            "id": self.id,
            "name": self.name,
            "args": self.args,
            "kwargs": self.kwargs,
            "type": self.name,
            "hostname": self.hostname,
            "time_start": self.time_start,
            "acknowledged": True,
            "worker_pid": self.worker_pid,
            "delivery_info": {**self._delivery, "priority": self._priority, "redelivered": False},
        }

    def received(self) -> dict[str, Any]:
        """Fields of the task-received event."""
        h = self._headers
        return {
            "name": self.name,
            "args": self.args,
            "kwargs": self.kwargs,
            "root_id": h.get("root_id"),
            "parent_id": h.get("parent_id"),
            "retries": h.get("retries", 0),
            "eta": h.get("eta"),
            "expires": h.get("expires"),
        }

    def cancel(self, pool: object, signal: object = None, emit_retry: bool = True) -> None:
        """Cold shutdown, called by Celery before any hook of ours."""
        self._drain()

    def terminate(self, pool: object, signal: object = None) -> None:
        self._stop()


def shown(job: Job) -> str:
    """A job for people: image and command, and nothing that may be a secret."""
    command = shlex.join(job.command)
    return f"image={job.image} command={command if len(command) <= 300 else command[:297] + '...'}"


class Reporter:
    """Queues what is to be reported until the hub's thread flushes it."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Callable[[Any], object] | None, TaskView, str, dict[str, Any]]] = deque(maxlen=10000)
        self._consumer: Any = None
        self._lock = threading.Lock()

    def connected(self, consumer: Any) -> None:
        """On the hub's thread, after every (re)connect."""
        self._consumer = consumer

    def received(self, view: TaskView) -> None:
        self._add(worker_state.task_reserved, view, "task-received", **view.received())

    def started(self, view: TaskView, at: float) -> None:
        view.time_start = at
        self._add(worker_state.task_accepted, view, "task-started")

    def succeeded(self, view: TaskView, result: str, runtime: float) -> None:
        self._add(
            lambda v: worker_state.task_ready(v, successful=True),
            view,
            "task-succeeded",
            result=result,
            runtime=runtime,
        )

    def failed(self, view: TaskView, reason: str) -> None:
        self._add(worker_state.task_ready, view, "task-failed", exception=f"JobFailed({reason!r})", traceback=None)

    def revoked(self, view: TaskView, *, terminated: bool) -> None:
        self._add(
            worker_state.task_ready,
            view,
            "task-revoked",
            terminated=terminated,
            signum=15 if terminated else None,
            expired=False,
        )

    def returned(self, view: TaskView, reason: str) -> None:
        """Back in the queue; without this, Flower would not show the next node."""
        self._add(worker_state.task_ready, view, "task-retried", exception=f"Returned({reason!r})", traceback=None)

    def forgotten(self, view: TaskView) -> None:
        """The job is another node's by now: nothing is said of it."""
        self._add(worker_state.task_ready, view, "")

    def _add(self, move: Callable[[Any], object] | None, view: TaskView, event: str, **fields: Any) -> None:
        self._waiting.append((move, view, event, {**fields, "timestamp": time.time()}))
        self.wake()

    def wake(self) -> None:
        """The hub's thread comes out of its wait."""
        if self._consumer is not None:
            self._consumer.call_soon(self.flush)

    def flush(self) -> None:
        """On the hub's thread. What cannot be sent now waits for the next connection."""
        consumer = self._consumer
        with self._lock:
            while self._waiting and consumer is not None and consumer.event_dispatcher:
                move, view, event, fields = self._waiting.popleft()
                if move:
                    move(view)
                if event and not view.silent:
                    consumer.event_dispatcher.send(event, uuid=view.id, **fields)
