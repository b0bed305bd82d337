"""TLS for large bodies: many records a system call.

Python's own TLS socket asks the kernel twice for each record of 16 KiB, and writes one at a time. Through memory a
quarter of a megabyte comes or goes at once, which costs a client a third less time for what it reads.
"""

from __future__ import annotations

import socket
import ssl
from typing import Any

from urllib3.util.ssltransport import SSLTransport

from batchyard.broker.errors import InvalidConfig

_AT_ONCE_BYTES = 1 << 18


class BulkTls(SSLTransport):
    """A connection as urllib3 wants it. A server that closes while it is written to shows as an error of the socket,
    after which urllib3 reads what it has answered.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_hostname: str | None) -> None:
        self._room = memoryview(bytearray(_AT_ONCE_BYTES))
        super().__init__(sock, context, server_hostname)

    def recv_into(self, buffer: bytearray | memoryview, nbytes: int | None = None, flags: int = 0) -> int:
        """As much as is here, at least a byte unless the server has ended."""
        view, done = memoryview(buffer)[:nbytes], 0
        size, read = len(view), self.sslobj.read
        while done < size:
            try:
                count: Any = read(size - done, view[done:])  # a number, where a buffer is given
                if not count:
                    break
                done += count
            except ssl.SSLWantReadError:
                if done:
                    break
                self._receive()
            except ssl.SSLError as error:
                if done or error.errno in {ssl.SSL_ERROR_EOF, ssl.SSL_ERROR_ZERO_RETURN}:
                    break  # an error comes again with the next call
                raise
        return done

    def _receive(self) -> None:
        if self.outgoing.pending:
            self.socket.sendall(self.outgoing.read())
        count = self.socket.recv_into(self._room)
        if count:
            self.incoming.write(self._room[:count])
        else:
            self.incoming.write_eof()

    def sendall(self, data: bytes | memoryview, flags: int = 0) -> None:
        with memoryview(data) as view, view.cast("B") as whole:
            done = 0
            while done < len(whole):
                try:
                    done += self.sslobj.write(whole[done : done + _AT_ONCE_BYTES])
                except ssl.SSLWantReadError:
                    self._receive()
                if done == len(whole) or self.outgoing.pending >= _AT_ONCE_BYTES:
                    self.socket.sendall(self.outgoing.read())


class BulkContext(ssl.SSLContext):
    """Trusts the authorities in a file, and wraps sockets in `BulkTls`."""

    @classmethod
    def trusting(cls, authorities: str) -> BulkContext:
        """InvalidConfig: the file has no certificate."""
        context = cls(ssl.PROTOCOL_TLS_CLIENT)  # which checks certificates and names
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_verify_locations(authorities)
        except OSError:
            raise InvalidConfig(f'ca_bundle "{authorities}" is no file of certificates (PEM)') from None
        return context

    def wrap_socket(self, sock: socket.socket, *_: Any, server_hostname: Any = None, **__: Any) -> Any:
        return BulkTls(sock, self, server_hostname)
