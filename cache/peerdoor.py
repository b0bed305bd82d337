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
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from batchyard.broker.errors import BatchyardError, NotFound
from batchyard.broker.seal import KeyRing, Readable

from .fill import Fill
from .peercall import ARRIVED, HOLD_S, PATH, is_stamped
from .store import Store, is_name

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
            log_level="error",
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
    """One that asks in time, and not more of them than a few hundred."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > _MOST_CONNECTIONS:
            transport.abort()
        else:
            self.loop.call_later(_REQUEST_S, self._asked)

    def _asked(self) -> None:
        if self.cycle is None and self.transport is not None:
            self.transport.abort()


def _app(blobs: _Blobs) -> Starlette:
    async def nothing(request: Request, error: Exception) -> Response:
        return _nothing()

    app = Starlette(
        routes=[Route(PATH + "{name}", blobs.answer, methods=["GET", "HEAD"])],
        exception_handlers={404: nothing, 405: nothing},
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
        return _Body(opened, reader, size, self._slots)

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
    """An opened object, sent as it is read. It holds a slot until it is sent."""

    def __init__(
        self, opened: AbstractContextManager[Readable], reader: Readable, size: int, slots: asyncio.Semaphore
    ) -> None:
        self.status_code, self.background, self.body = 200, None, b""
        self._opened, self._reader, self._size, self._slots = opened, reader, size, slots
        self.init_headers({"Content-Length": str(size), "Connection": "close"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        left = self._size
        try:
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await self._send(send, start)
            while left:
                piece = await to_thread.run_sync(self._read, min(left, _PIECE_BYTES))
                left -= len(piece)
                await self._send(send, {"type": "http.response.body", "body": piece, "more_body": left > 0})
                if not piece:
                    break  # shorter than it was: the connection ends early
        except (BatchyardError, TimeoutError) as error:
            log.warning("an object was given to a peer in part only: %s", error or "the peer takes no more")
            raise
        finally:
            self._slots.release()
            await asyncio.shield(to_thread.run_sync(self._opened.__exit__, None, None, None))

    def _read(self, most: int) -> bytes:
        buffer = bytearray(most)
        count = self._reader.readinto(memoryview(buffer)) or 0
        return bytes(memoryview(buffer)[:count])

    @staticmethod
    async def _send(send: Send, message: dict[str, Any]) -> None:
        async with asyncio.timeout(_SEND_S):
            await send(message)
