"""A stock Celery app: the user's own tasks, and with STOCK_PLAYS_US=1 one that plays `batchyard.run` as the reference.

`celery -A yardtest.stock worker`, with STOCK_URL in the environment.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from batchyard.broker.errors import JobFailed

app = Celery("user", broker=os.environ.get("STOCK_URL"), backend=os.environ.get("STOCK_URL"), set_as_current=False)
app.conf.update(worker_hijack_root_logger=False, broker_connection_retry_on_startup=True, worker_prefetch_multiplier=1)


def outcome(job_id: str, previous: object, job: dict[str, Any]) -> dict[str, Any]:
    """What a job of the equality test gives; JobFailed where its name says so."""
    if job["name"].startswith("fail"):
        raise JobFailed(f"job {job['name']} failed", {"exit_code": 3, "job_id": job_id})
    return {"job_id": job_id, "exit_code": 0, "outputs": {}, "name": job["name"], "previous": previous}


def play_us() -> None:
    """Registers the reference."""

    @app.task(name="batchyard.run", bind=True)
    def run(self: Any, previous: object = None, *, job: dict[str, Any]) -> dict[str, Any]:
        return outcome(self.request.id, previous, job)


def user_tasks() -> None:
    """Registers what a user of both has."""

    @app.task(name="user.add")
    def add(previous: object = None, n: str = "?") -> dict[str, object]:
        if n.startswith("fail"):
            raise ValueError(f"user task {n}")
        return {"user": n, "got": previous}

    @app.task(name="user.sum")
    def sum_(results: object, n: str = "sum") -> dict[str, object]:
        return {"sum": results}

    @app.task(name="user.err")
    def err(task_id: str, n: str = "err") -> list[str]:
        return ["errback of", task_id]


if os.environ.get("STOCK_PLAYS_US"):
    play_us()
else:
    user_tasks()
