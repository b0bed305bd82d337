"""Flower, told the truth about a yard: depth with what the index and eta hold, queues without a node, readable jobs.

Flower runs in this process, from Python; no configuration file is read. Two of its methods are replaced, those that say
which queues there are and how long they are, and what events say of jobs is made short before Flower keeps it.
"""

from __future__ import annotations

import ast
import asyncio
import logging
import os
import re
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from celery import Celery
from flower.app import Flower
from flower.events import Events
from flower.options import options
from flower.urls import settings
from flower.views import BaseHandler
from flower.views.tasks import TASK_COLUMNS
from tornado.httputil import HTTPServerRequest
from tornado.web import ErrorHandler

from .errors import InvalidConfig, NotFound
from .message import TASK
from .remote import celery_app
from .seal import KeyRing
from .store import Yard

log = logging.getLogger(__name__)

COLUMNS = "uuid,state,kwargs,result,received,started,runtime,worker"
RUNTIME_BUCKETS_S = [0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0]
INSPECT_TIMEOUT_MS = 500.0
_SENDING = re.compile(r"/api/task/(apply|async-apply|send-task)(/|$)")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_MOST_PARSED = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Where Flower is served. port 0: any free one. auth: `user:password`, else no password is asked for."""

    address: str = "127.0.0.1"
    port: int = 0
    auth: str | None = None


def serve(url: str, page: Page, *, on_ready: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT. Raises InvalidConfig (address, port), BrokerUnavailable."""
    if page.address not in _LOOPBACK and page.auth is None:
        raise InvalidConfig(
            f"Flower at {page.address} would be open to others; set BATCHYARD_FLOWER_AUTH=user:password"
        )
    if page.auth is not None and ":" not in page.auth:
        raise InvalidConfig("BATCHYARD_FLOWER_AUTH must be user:password")
    yard = Yard(url, KeyRing.new())
    _configure(page)
    _tell_the_truth(YardDepth(yard))
    app = celery_app(url)
    app.set_current()  # Flower asks for results by the current app
    app.set_default()
    flower = YardFlower(app, page)
    try:
        port = flower.start_http_server()
    except OSError as error:
        raise InvalidConfig(
            f"Flower cannot listen on {page.address}:{page.port}: {error.strerror}; choose another --port, or 0 for any"
        ) from None
    loop = asyncio.get_event_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, flower.stop)
    host = f"[{page.address}]" if ":" in page.address else page.address
    flower.io_loop.add_callback(on_ready, f"http://{host}:{port}")
    flower.start()


class YardFlower(Flower):  # type: ignore[misc]
    """Flower with the yard's events, and without what a web page of elsewhere could do to it."""

    def __init__(self, app: Celery, page: Page) -> None:
        self._page = page
        from tornado.ioloop import IOLoop

        loop = IOLoop.current()
        events = ReadableEvents(
            app, io_loop=loop, db="", persistent=False, enable_events=True, state_save_interval=0,
            max_workers_in_memory=options.max_workers, max_tasks_in_memory=options.max_tasks,
        )  # fmt: skip
        super().__init__(capp=app, options=options, events=events, io_loop=loop, **settings)

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        """Flower's handler, or a refusal."""
        if why := refusal(request, self._page):
            log.warning("refused %s %s: %s", request.method, request.path, why)
            return self.get_handler_delegate(request, ErrorHandler, {"status_code": 403})
        return super().find_handler(request, **kwargs)


class ReadableEvents(Events):  # type: ignore[misc]
    """Events with jobs made short and without values, wherever they came from."""

    def on_event(self, event: dict[str, Any]) -> None:
        super().on_event(readable(event))


class YardDepth:
    """What Flower takes for its connection to the broker."""

    def __init__(self, yard: Yard) -> None:
        self._yard = yard

    async def queues(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """One row for each queue of the yard, with or without a node, and for each other one asked for."""
        return await asyncio.get_running_loop().run_in_executor(None, self.rows, list(names))

    def rows(self, names: list[str]) -> list[dict[str, Any]]:
        """messages: all that wait; messages_ready: without those whose eta has not come. Raises BrokerUnavailable."""
        try:
            known = self._yard.config().by_priority()
        except NotFound:
            known = []
        served = [set((about.get("queues") or ",".join(known)).split(",")) for about in self._yard.nodes().values()]
        depth = self._yard.depth([*known, *(n for n in names if n not in known)])
        return [
            {
                "name": name,
                "messages": d.total,
                "messages_ready": d.lists + d.index,
                "consumers": sum(name in queues for queues in served),
            }
            for name, d in depth.items()
        ]


def _configure(page: Page) -> None:
    os.environ["FLOWER_UNAUTHENTICATED_API"] = "true"  # what that opens to others, `refusal` closes
    values: dict[str, Any] = {
        "address": page.address,
        "port": page.port,
        "basic_auth": [page.auth] if page.auth else [],
        "persistent": False,
        "max_tasks": 20_000,
        "inspect_timeout": INSPECT_TIMEOUT_MS,
        "tasks_columns": COLUMNS,
        "format_task": format_task,
        "task_runtime_metric_buckets": RUNTIME_BUCKETS_S,
        "purge_offline_workers": 3600,
    }
    for name, value in values.items():
        setattr(options, name, value)
    TASK_COLUMNS["kwargs"] = "Job"
    settings["debug"] = False
    logging.getLogger("flower.inspector").setLevel(logging.ERROR)  # "failed" means there that no node is up
    access = logging.getLogger("tornado.access")
    access.addHandler(logging.NullHandler())
    access.propagate = False


def _tell_the_truth(depth: YardDepth) -> None:
    def live_queues(handler: Any) -> list[str]:
        """Without the default queue that stock Flower makes up when there is no worker."""
        answers = [info.get("active_queues") for info in handler.application.workers.values()]
        return sorted({queue["name"] for queues in answers if isinstance(queues, list) for queue in queues})

    def no_other_origins(handler: Any) -> None:
        handler.set_header("X-Content-Type-Options", "nosniff")
        handler.set_header("X-Frame-Options", "DENY")

    handlers: Any = BaseHandler
    handlers.get_broker = lambda _: depth
    handlers.get_active_queue_names = live_queues
    handlers.set_default_headers = no_other_origins


def refusal(request: HTTPServerRequest, page: Page) -> str | None:
    """Why a request is not served, or None.

    Without a password, a web page of elsewhere that is open in a browser of this machine must not read or change
    anything: not by its own name bound to our address, nor by a form or a fetch across sites. And a local user who
    has not got the broker's password must not get containers by way of Flower.
    """
    if page.auth is not None:
        return None
    host = urlsplit(f"//{request.host}").hostname
    if host not in _LOOPBACK:
        return f"it was asked for as {host!r:.80}"
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != request.host:
        return f"it came from {origin!r:.80}"
    looks = request.method in {"GET", "HEAD"} and request.headers.get("Sec-Fetch-Mode") == "navigate"
    if site not in {None, "same-origin", "none"} and not looks:
        return "it came from another site"
    if _SENDING.match(request.path):
        return "tasks are not sent through Flower without a password; use `batchyard submit`"
    return None


def readable(event: dict[str, Any]) -> dict[str, Any]:
    """An event of ours with `kwargs` such as `image=busybox command=sh -c …` and no arguments; others as they are."""
    if event.get("name") != TASK or not ("kwargs" in event or "args" in event):
        return event
    return {**event, "args": "", "kwargs": short(str(event.get("kwargs") or ""))}


def short(kwargs: str) -> str:
    """Image and command from the repr of a producer's kwargs. Anything else of it may be a secret: nothing is shown."""
    if kwargs.startswith("image="):
        return kwargs
    try:
        value = ast.literal_eval(kwargs[:_MOST_PARSED])
        job = value["job"]
        words = [str(word) for word in job.get("command", ())]
        return f"image={job['image']}" + (f" command={' '.join(words)}"[:200] if words else "")
    except (ValueError, SyntaxError, TypeError, KeyError, AttributeError, MemoryError, RecursionError):
        return "…"


def format_task(task: Any) -> Any:
    """A task as the pages show it: a failed one's reason stands where a result does."""
    if task.name == TASK and task.result is None and task.exception:
        task.result = reason_of(task.exception)
    return task


def reason_of(exception: str) -> str:
    """The reason out of the repr of a failure: `JobFailed('job x failed: why', {…})` becomes `why`."""
    found = re.match(r"\w+\((['\"])(?:job \S+ failed: )?(.*?)\1[,)]", exception, re.DOTALL)
    return found[2] if found else exception
