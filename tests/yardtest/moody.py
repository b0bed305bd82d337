"""An S3 server with moods: a proxy over TLS to a real one, which answers wrongly when it is told to.

with MoodyS3(server, folder) as moody:
    moody.mood = lambda method, path, number: Mood(status=500, code="InternalError") if number == 0 else None
"""

from __future__ import annotations

import http.client
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from batchyard.broker.certificate import write_server_certificate
from batchyard.cache.stores.access import S3Access

from .minio import S3Server

_PIECE_BYTES = 1 << 16
_DRIP_S = 0.01
_ERROR = "<Error><Code>{}</Code><Message>moody</Message></Error>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mood:
    """What comes instead of an answer. status: with an error of this code, the server is not asked. Of its answer,
    after `after_bytes` of the body: `close` ends the connection; `half close` only its way to the client; `stall` says
    nothing more until the end of the test; `drip` goes on slowly.
    """

    status: int = 0
    code: str = ""
    then: Literal["close", "half close", "stall", "drip"] = "close"
    after_bytes: int = 0


class MoodyS3:
    """mood: asked for each request, with its number from 0 on. asked: method and path of each so far."""

    def __init__(self, server: S3Server, folder: Path) -> None:
        self._real, self._ca = server, write_server_certificate(folder, ("127.0.0.1",))
        self.mood: Callable[[str, str, int], Mood | None] = lambda *_: None
        self.asked: list[tuple[str, str]] = []
        self.over = threading.Event()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(folder / "public.crt", folder / "private.key")
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port: int = self._server.server_address[1]

    def access(self) -> S3Access:
        return replace(self._real.access(), endpoint_url=f"https://127.0.0.1:{self.port}", ca_bundle=str(self._ca))

    def real(self) -> http.client.HTTPSConnection:
        trust = ssl.create_default_context(cafile=str(self._real.ca))
        return http.client.HTTPSConnection("127.0.0.1", self._real.port, context=trust, timeout=20)

    def forget(self) -> None:
        """The next request is number 0."""
        self.asked.clear()

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are what this is about."""


def _handler(moody: MoodyS3) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            number = len(moody.asked)
            moody.asked.append((self.command, self.path.partition("?")[0]))
            mood = moody.mood(*moody.asked[-1], number)
            if mood is not None and mood.status:
                self._refuse(mood)
                return
            real = moody.real()
            try:
                # the signature is over the Host that the client knows, so that goes on as it is
                real.request(self.command, self.path, body=body or None, headers=dict(self.headers))
                self._relay(real.getresponse(), mood)
            finally:
                real.close()

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_one

        def _refuse(self, mood: Mood) -> None:
            said = b"" if self.command == "HEAD" else _ERROR.format(mood.code).encode()
            self.send_response(mood.status)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def _relay(self, answer: http.client.HTTPResponse, mood: Mood | None) -> None:
            body = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in {"content-length", "transfer-encoding", "connection", "date", "server"}:
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") or str(len(body))
            self.send_header("Content-Length", length)
            self.end_headers()
            if mood is None:
                self.wfile.write(body)
                return
            self.wfile.write(body[: mood.after_bytes])
            self._sulk(mood, body[mood.after_bytes :])

        def _sulk(self, mood: Mood, rest: bytes) -> None:
            self.close_connection = mood.then != "drip"
            if mood.then == "drip":
                for at in range(0, len(rest), _PIECE_BYTES):
                    moody.over.wait(_DRIP_S)
                    self.wfile.write(rest[at : at + _PIECE_BYTES])
            elif mood.then == "stall":
                moody.over.wait(30)
            elif mood.then == "half close":
                with suppress(OSError):
                    self.connection.shutdown(1)
                moody.over.wait(30)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
