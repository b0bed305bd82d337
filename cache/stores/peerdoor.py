"""The door at which other nodes get sealed objects of this node's near store; `peercall.py` says what is said there.

It gives nothing else, reads no other level, and says 404 to whoever cannot show the yard's keys. Plain HTTP, since what
goes over it is sealed; who listens on the way learns names and sizes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import uvicorn
from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from batchyard.broker.errors import BatchyardError, NotFound
from batchyard.broker.seal import KeyRing, Readable

from .fill import Fill
from .peercall import ARRIVED, HOLD_S, PATH, is_stamped
from .protocol import Store, is_name

log = logging.getLogger(__name__)
_MOST_SENT, _MOST_CONNECTIONS = 8, 256
_PIECE_BYTES = 1 << 20
_REQUEST_S = 10.0
"""How long a connection may take until it has said what it wants."""
_SEND_S = 30.0
"""How long a peer may take no byte."""


class PeerDoor:
    """Listens on a socket, in a thread of its own, until `stop`. arriving: what is on its way into `near`."""

    def __init__(
        self, listening: socket.socket, near: Store, arriving: Callable[[str], Fill | None], ring: KeyRing, node: str
    ) -> None:
        config = uvicorn.Config(
            _app(_Blobs(near, arriving, ring, node)),
            http=_Connection,
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            log_level="critical",  # else it has much to say of answers that end early
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listening]}, name="peer door", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """What is being sent ends early. May be called twice."""
        self._server.should_exit = True
        self._thread.join(10)


class _Connection(H11Protocol):
    """One that asks in time, takes what it is sent in time, and is not one of too many."""

    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > _MOST_CONNECTIONS:
            transport.abort()
        else:
            self.loop.call_later(_REQUEST_S, self._asked)

    def _asked(self) -> None:
        if not self.cycle:
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(_SEND_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()


def _app(blobs: _Blobs) -> Starlette:
    async def nothing(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            log.error("a peer was told nothing", exc_info=error)
        return _nothing()

    app = Starlette(
        routes=[Route(PATH + "{name}", blobs.answer, methods=["GET", "HEAD"])],
        exception_handlers={404: nothing, 405: nothing, Exception: nothing},
    )
    app.router.redirect_slashes = False
    return app


def _nothing() -> Response:
    return _said(404)


def _said(status: int, **headers: str) -> Response:
    return Response(status_code=status, headers={"Connection": "close", **headers})


class _Blobs:
    def __init__(self, near: Store, arriving: Callable[[str], Fill | None], ring: KeyRing, node: str) -> None:
        self._near, self._arriving, self._ring, self._node = near, arriving, ring, node
        self._slots = asyncio.Semaphore(_MOST_SENT)
        self._waits: dict[Fill, asyncio.Task[bool]] = {}

    async def answer(self, request: Request) -> Response:
        """Of any question."""
        name, header = request.path_params["name"], request.headers.get("Authorization", "")
        if not is_name(name) or not is_stamped(self._ring, self._node, name, header, time.time()):
            return _nothing()
        try:
            async with asyncio.timeout(HOLD_S):
                size = await self._here(name)
                if isinstance(size, Fill):
                    return _said(202, **{ARRIVED: str(size.given_bytes)})
                if size is None:
                    return _nothing()
                if request.method == "HEAD":
                    return _said(200, **{"Content-Length": str(size)})
                await self._slots.acquire()
        except TimeoutError:
            return _said(503)
        try:
            opened = self._near.get(name)
            reader = await to_thread.run_sync(opened.__enter__)
        except BatchyardError as error:
            self._slots.release()
            if not isinstance(error, NotFound):
                log.warning("object %s is not given to a peer: %s", name, error)
            return _nothing()
        except BaseException:
            self._slots.release()
            raise
        return _Body(request, opened, reader, size, self._slots)

    async def _here(self, name: str) -> int | Fill | None:
        """The object's size once it is here; what is still on its way; None: it is not here."""
        try:
            fill = self._arriving(name)
            size = await to_thread.run_sync(self._near.stat, name)
            if size is not None or fill is None:
                return size
            if not await self._ended(fill):
                return fill
            return await to_thread.run_sync(self._near.stat, name)
        except BatchyardError as error:
            log.warning("object %s is not given to a peer: %s", name, error)
            return None

    async def _ended(self, fill: Fill) -> bool:
        """Waits a while; one thread for all who wait for the same."""
        task = self._waits.get(fill)
        if task is None:
            waiting = to_thread.run_sync(fill.ended.wait, HOLD_S * 0.9, abandon_on_cancel=True)
            task = self._waits[fill] = asyncio.create_task(waiting)
            task.add_done_callback(lambda _: self._waits.pop(fill, None))
        await asyncio.wait({task}, timeout=HOLD_S * 0.9)
        return fill.ended.is_set()


class _Body(Response):
    """An opened object, sent as it is read. It holds a slot until it is sent, or nobody takes it any more."""

    def __init__(
        self,
        request: Request,
        opened: AbstractContextManager[Readable],
        reader: Readable,
        size: int,
        slots: asyncio.Semaphore,
    ) -> None:
        self.status_code, self.background, self.body = 200, None, b""
        self._request, self._opened, self._reader, self._slots = request, opened, reader, slots
        self._left = size
        self.init_headers({"Content-Length": str(size), "Connection": "close"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._send_all(send)
        except BatchyardError as error:  # the connection ends early
            log.warning("an object was given to a peer in part only: %s", error)
        finally:
            self._slots.release()
            await asyncio.shield(to_thread.run_sync(self._opened.__exit__, None, None, None))

    async def _send_all(self, send: Send) -> None:
        while not await self._request.is_disconnected():
            piece = await to_thread.run_sync(self._read)
            self._left -= len(piece)
            if not piece and self._left:
                return  # it is shorter than it was
            await send({"type": "http.response.body", "body": piece, "more_body": self._left > 0})
            if not self._left:
                return

    def _read(self) -> bytes:
        buffer = memoryview(bytearray(min(self._left, _PIECE_BYTES)))
        return bytes(buffer[: self._reader.readinto(buffer) or 0]) if self._left else b""
