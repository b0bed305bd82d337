"""Celery's remote control, heard by the controller: a revoke is stored as a cancel, with or without a node alive.

Stock revoke is one PUBLISH that nobody keeps: a worker started later runs the task.
"""

from __future__ import annotations

import logging
import socket
import threading
from typing import Any

import redis
from celery import Celery
from kombu.exceptions import KombuError
from kombu.pidbox import Node as MailboxNode

from .errors import BatchyardError
from .store import Yard

log = logging.getLogger(__name__)
_STOP_S = 5.0


def celery_app(url: str) -> Celery:
    """The app that Flower, the remote-control ear and the CLI share. It registers no task."""
    app = Celery("batchyard", broker=url, backend=url, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options=TRANSPORT_OPTIONS,
    )
    return app


# Without these a silent network leaves a worker deaf for ever (Celery's "silent after reconnect").
TRANSPORT_OPTIONS: dict[str, Any] = {
    "socket_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 5,
    "queue_order_strategy": "priority",
    "priority_steps": list(range(10)),
}


def ids_of(value: object) -> list[str]:
    """Celery sends one id or a list of them."""
    return [str(v) for v in value] if isinstance(value, list | tuple | set) else [str(value)]


class _QuietNode(MailboxNode):
    """Deaf to what only workers answer: an error of ours would show the controller as a broken worker."""

    def dispatch(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return super().dispatch(method, *args, **kwargs) if method in (self.handlers or {}) else None


class RevokeEar:
    """A node of Celery's mailbox that stores revokes. Runs in a thread of its own until stopped."""

    def __init__(self, yard: Yard) -> None:
        self._yard, self._stop, self._acting = yard, threading.Event(), threading.Lock()
        self._app = celery_app(yard.url)
        self.name = f"controller@{socket.gethostname()}"

    def stop(self) -> None:
        """What it was told before is done, if that takes no longer than `_STOP_S`, and it does nothing more; `run` may
        take half a second more to return.
        """
        self._stop.set()
        if self._acting.acquire(timeout=_STOP_S):
            self._acting.release()

    def run(self) -> None:
        """Returns after stop()."""
        while not self._stop.is_set():
            try:
                self._listen()
            except (redis.RedisError, KombuError, OSError) as error:
                log.warning("remote control waits for Redis: %s", error)
            except Exception:
                log.exception("remote control listens again after an error")
            self._stop.wait(0.5)

    def _listen(self) -> None:
        handlers = {"revoke": self._revoke, "terminate": self._terminate, "ping": lambda _, **__: {"ok": "pong"}}
        with self._app.connection_for_read() as connection:
            control: Any = self._app.control
            control.mailbox.node_cls = _QuietNode
            node = control.mailbox.Node(self.name, channel=connection.default_channel, handlers=handlers, state=None)

            def heard(body: Any, message: Any) -> None:
                try:
                    with self._acting:
                        if not self._stop.is_set():
                            node.handle_message(body, message)
                except Exception:  # anybody may send anything, and nobody repeats what is missed meanwhile
                    log.exception("remote control goes on after an error")

            node.listen(callback=heard)
            while not self._stop.is_set():
                try:
                    connection.drain_events(timeout=0.5)
                except TimeoutError:
                    continue

    def _revoke(self, _: object, task_id: object = None, terminate: bool = False, **__: object) -> dict[str, Any]:
        try:
            return {"ok": {i: self._yard.cancel(i, "revoked", terminate=bool(terminate)) for i in ids_of(task_id)}}
        except BatchyardError as error:
            return {"error": str(error)}

    def _terminate(self, state: object, task_id: object = None, **__: object) -> dict[str, Any]:
        return self._revoke(state, task_id, terminate=True)
