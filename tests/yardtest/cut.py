"""A network that fails: a TCP relay to a server, which ends connections when it is told to."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

_BUFFER_BYTES = 1 << 16
_BACKLOG = 64


class CuttingRelay:
    """Listens on a loopback port and relays to another, in a thread a direction.

        with CuttingRelay(server.port) as relay:
            relay.cut_down = lambda connection, seen: seen > 3_000_000

    cut_up, cut_down: asked with a connection's number from 0 on, and the bytes that have come so far from the client or
    the server, these included; True ends the connection before they are relayed. deaf: what the server says is
    swallowed, and the client waits.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
        self.port: int = self._listening.getsockname()[1]
        self.cut_up: Callable[[int, int], bool] = lambda *_: False
        self.cut_down: Callable[[int, int], bool] = lambda *_: False
        self.deaf = False
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                return
            number, self.connections = self.connections, self.connections + 1
            for source, sink, up in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._relay, args=(number, source, sink, up), daemon=True).start()

    def _relay(self, number: int, source: socket.socket, sink: socket.socket, up: bool) -> None:
        seen = 0
        with suppress(OSError):
            while data := source.recv(_BUFFER_BYTES):
                seen += len(data)
                if (self.cut_up if up else self.cut_down)(number, seen):
                    break
                if up or not self.deaf:
                    sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
