"""`https://` for inputs: a GET that goes only where the node may be sent.

No proxy is used, whatever the environment says: it would resolve the name anew, and the address that was looked at
would not be the one that is asked. Nothing is sent along: no cookies, no keys. A private authority is trusted by
SSL_CERT_FILE, as with every OpenSSL program.
"""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urldefrag, urljoin

import certifi
import urllib3
from urllib3.connection import HTTPSConnection
from urllib3.util.connection import create_connection

from batchyard.broker.errors import BatchyardError, InputError, StoreUnavailable
from batchyard.broker.uri import parse_https, shown

from .address import Resolve, reachable, resolve
from .body import Body, reason

CONNECT_S, READ_S = 5.0, 30.0
HEAD_S = 60.0  # for handshake and headers altogether
MOST_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_LATER = frozenset({408, 425, 429})
_SIGNING = frozenset({"signature", "expires", "policy", "key-pair-id", "awsaccesskeyid", "googleaccessid"})
_KEPT = "%/:=&?~#+!$,;'@()*[]"


class _Deadline:
    """Cuts a connection whose answer has not begun in time: each read has a limit, but there may be many reads."""

    def __init__(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self.passed = False
        self._timer.start()

    def watch(self, connection: socket.socket) -> None:
        """The connection's socket, before TLS takes it over."""
        with self._lock:
            self._close()
            self._socket = connection.dup()

    def over(self) -> None:
        self._timer.cancel()
        with self._lock:
            self._close()

    def _cut(self) -> None:
        self.passed = True  # http.client takes headers that are cut off for headers
        with self._lock, suppress(OSError):
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class _Connection(HTTPSConnection):
    """To one of the addresses that were looked at; TLS is verified for the host's name."""

    def __init__(self, *args: Any, addresses: list[str], deadline: _Deadline, **more: Any) -> None:
        super().__init__(*args, **more)
        self._addresses, self._deadline = addresses, deadline

    def _new_conn(self) -> socket.socket:
        failure: OSError | None = None
        for address in self._addresses:
            try:
                made = create_connection((address, self.port or 443), CONNECT_S)
            except OSError as error:
                failure = error
            else:
                made.settimeout(READ_S)
                self._deadline.watch(made)
                return made
        raise urllib3.exceptions.NewConnectionError(self, f"cannot connect: {failure}") from failure


class _Pool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _Connection  # pyright: ignore[reportAssignmentType]


class Web:
    """What jobs read from the web. allowed_hosts: those whose addresses need not be public."""

    def __init__(self, allowed_hosts: Collection[str] = (), *, ask: Resolve = resolve, head_s: float = HEAD_S) -> None:
        self._allowed = frozenset(host.lower().rstrip(".") for host in allowed_hosts)
        self._ask, self._head_s = ask, head_s
        self._context = ssl.create_default_context()
        self._context.load_verify_locations(certifi.where())

    @contextmanager
    def get(self, uri: str, validator: str | None = None) -> Iterator[Body | None]:
        """The body; None: it is still what `validator`, of an earlier body, stands for.

        InputError: refused, by us or by the server. StoreUnavailable: another time it may be well.
        """
        url = uri
        for _ in range(MOST_REDIRECTS + 1):
            conditions = _conditions(validator, url)
            with self._asked(url, conditions) as answer:
                if answer.status in _REDIRECTS:
                    url = _redirected(url, answer.headers.get("Location"))
                    continue
                if answer.status == 304 and conditions:
                    yield None
                elif answer.status == 200:
                    yield Body(answer, shown(uri), _validator(answer.headers, url))
                else:
                    raise _refused(uri, url, answer.status)
                return
        raise InputError(f"{shown(uri)} redirects more than {MOST_REDIRECTS} times")

    @contextmanager
    def _asked(self, url: str, headers: Mapping[str, str]) -> Iterator[urllib3.BaseHTTPResponse]:
        parts = parse_https(url)
        host, port = parts.hostname or "", parts.port or 443
        addresses = reachable(host, port, allowed=self._allowed, ask=self._ask)
        deadline = _Deadline(self._head_s)
        pool = _Pool(
            host,
            port,
            timeout=urllib3.Timeout(connect=CONNECT_S, read=READ_S),
            retries=False,
            ssl_context=self._context,
            addresses=addresses,
            deadline=deadline,
        )
        try:
            try:
                answer = pool.urlopen(
                    "GET",
                    (parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
                    headers={"Accept-Encoding": "identity", "User-Agent": "batchyard", "Accept": "*/*", **headers},
                    redirect=False,
                    preload_content=False,
                    decode_content=False,
                    assert_same_host=False,
                )
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise _unanswered(url, error) from error
            finally:
                deadline.over()
            try:
                if deadline.passed:
                    raise StoreUnavailable(f"{shown(url)} does not answer: nothing whole in {self._head_s:.0f} s")
                yield answer
            finally:
                answer.close()
        finally:
            pool.close()


def _unanswered(url: str, error: Exception) -> BatchyardError:
    cause: object = error
    while isinstance(cause, BaseException):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return InputError(f"{shown(url)}: its certificate is not to be trusted: {cause.verify_message}")
        cause = cause.__cause__ or getattr(cause, "reason", None) or (cause.args[0] if cause.args else None)
    return StoreUnavailable(f"{shown(url)} does not answer: {reason(error)}")


def _redirected(url: str, location: str | None) -> str:
    """Where a redirect leads. InputError: nowhere that a job may name."""
    if not location:
        raise InputError(f"{shown(url)} redirects without saying where to")
    target = ""
    try:
        target = urldefrag(urljoin(url, quote(location.strip(), safe=_KEPT)))[0]
        parse_https(target)
    except ValueError as error:
        raise InputError(f"{shown(url)} redirects to {shown(target) or '?'}, which is refused: {error}") from None
    return target


def _refused(uri: str, url: str, status: int) -> BatchyardError:
    where = shown(uri) if url == uri else f"{shown(uri)} (redirected to {shown(url)})"
    if status >= 500 or status in _LATER:
        return StoreUnavailable(f"{where} answers {status}; try again later")
    said = {401: " (not authorized)", 403: " (forbidden; has a signed URI expired?)", 404: " (not found)"}
    return InputError(f"{where} answers {status}{said.get(status, '')}; correct the URI")


def resource_of(uri: str) -> str:
    """The URI without what signs it, which differs each time that the same thing is asked for."""
    url, _, query = uri.partition("?")
    pairs = [(pair.partition("=")[0].lower(), pair) for pair in query.split("&")]
    signed = any(name == "signature" for name, _ in pairs)
    kept = [p for n, p in pairs if not (n.startswith(("x-amz-", "x-goog-")) or (signed and n in _SIGNING))]
    return f"{url}?{'&'.join(kept)}" if any(kept) else url


def _validator(headers: Mapping[str, str], url: str) -> str | None:
    """What proves later that nothing has changed: a strong ETag, or a date that is old enough to be one.

    https://www.rfc-editor.org/rfc/rfc9110#section-8.8.2.2
    """
    etag, changed = headers.get("ETag", ""), headers.get("Last-Modified", "")
    if etag.startswith('"') and etag.isascii():
        return json.dumps({"at": _place(url), "If-None-Match": etag})
    try:
        age = parsedate_to_datetime(headers.get("Date", "")) - parsedate_to_datetime(changed)
    except (TypeError, ValueError):
        return None
    return json.dumps({"at": _place(url), "If-Modified-Since": changed}) if age.total_seconds() >= 1 else None


def _conditions(validator: str | None, url: str) -> dict[str, str]:
    """Only for the place that the validator is of: another one's ETags may mean something else."""
    found: dict[str, str] = json.loads(validator) if validator else {}
    return found if found.pop("at", None) == _place(url) else {}


def _place(url: str) -> str:
    """As a hash: a query may hold what is nobody's business."""
    return hashlib.sha256(resource_of(url).encode()).hexdigest()
