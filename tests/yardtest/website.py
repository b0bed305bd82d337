"""An HTTPS server of a test, on loopback, with an authority of its own: it answers what the test says, also wrongly.

with Website(folder) as site:
    site.pages["/a"] = Page(body=b"x", etag='"1"')
    site.url("/a"), site.asked        # [("GET", "/a", {"if-none-match": …}), …]
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

from batchyard.broker.certificate import write_server_certificate


@dataclass(slots=True, kw_only=True)
class Page:
    """What a GET gets. length: what Content-Length says, "" for none; act: writes instead of `body`."""

    body: bytes = b""
    status: int = 200
    etag: str = ""
    length: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    act: Callable[[BaseHTTPRequestHandler], None] | None = None


class Website:
    """`pages` by path, without the query. `asked`: method, path with query, and headers of each request so far;
    `posted`: what was POSTed.
    """

    def __init__(self, folder: Path, hosts: tuple[str, ...] = ("localhost", "127.0.0.1")) -> None:
        self.ca = write_server_certificate(folder, hosts)
        self.pages: dict[str, Page] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.posted: list[bytes] = []
        self.bytes_sent = 0
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(folder / "public.crt", folder / "private.key")
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port: int = self._server.server_address[1]

    def url(self, path: str, host: str = "localhost") -> str:
        return f"https://{host}:{self.port}{path}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are what many tests are about."""


def _handler(site: Website) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            site.asked.append(("GET", self.path, {k.lower(): v for k, v in self.headers.items()}))
            page = site.pages.get(self.path.partition("?")[0], Page(status=404))
            if page.etag and self.headers.get("If-None-Match") == page.etag:
                page = Page(status=304, etag=page.etag)
            if page.act is not None:
                page.act(self)
                return
            self.send_response(page.status)
            length = str(len(page.body)) if page.length is None else page.length
            for name, value in {**page.headers, "ETag": page.etag, "Content-Length": length}.items():
                if value:
                    self.send_header(name, value)
            self.end_headers()
            site.bytes_sent += len(page.body)  # before anybody has them
            self.wfile.write(page.body)
            if page.length is not None:
                self.close_connection = True

        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            site.asked.append(("POST", self.path, {k.lower(): v for k, v in self.headers.items()}))
            site.posted.append(sent)
            page = site.pages.get(self.path.partition("?")[0], Page(status=404))
            if page.act is not None:
                page.act(self)
                return
            self.send_response(page.status)
            for name, value in {**page.headers, "Content-Length": str(len(page.body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(page.body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
