"""A webhook: who is told of events, and how what is told is signed. Pure.

The signature is that of https://www.standardwebhooks.com: the header `webhook-signature` is "v1," and the base64 of
HMAC-SHA256 over "<webhook-id>.<webhook-timestamp>.<body>", keyed with the secret; `webhook-timestamp` is in seconds. A
secret `whsec_…` is base64, any other one is taken as it stands.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from ipaddress import ip_address
from typing import Annotated, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import Field, model_validator

from .errors import InvalidConfig
from .fields import Frozen

_LEAST_BYTES = 16
_PREFIX = "whsec_"


class Webhook(Frozen):
    """Where events are sent. secret: the name of a file in the controller's --secrets, or of a variable of its
    environment. allow_http: also without TLS, to this machine itself. timeout_s: for one answer.
    """

    url: Annotated[str, Field(min_length=1, max_length=2000)]
    secret: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")]
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 10
    allow_http: bool = False

    @model_validator(mode="after")
    def _where(self) -> Self:
        try:
            parts, _ = urlsplit(self.url), urlsplit(self.url).port
        except ValueError:
            raise ValueError("url is none; give https://HOST/PATH") from None
        if any(not c.isprintable() or c.isspace() for c in self.url):
            raise ValueError("url has blanks or signs that cannot be printed; write them as %xx")
        if "@" in parts.netloc or parts.fragment:
            raise ValueError("url has a user, a password or a fragment; leave them out, and sign by `secret`")
        if not parts.hostname or parts.scheme not in {"https", "http"}:
            raise ValueError("url must be https://HOST/PATH")
        if parts.scheme == "http" and not (self.allow_http and _is_loopback(parts)):
            raise ValueError("url must be https://; http:// is for this machine itself, with `allow_http: true`")
        return self

    @property
    def shown(self) -> str:
        """Without what may be private in it."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}{parts.path}{'?…' if parts.query else ''}"


class EventSettings(Frozen):
    """What becomes of changes of jobs' states. stream: they are kept, the newest 100,000; it costs Redis a tenth more
    for each job.
    """

    stream: bool = True
    webhook: Webhook | None = None

    @model_validator(mode="after")
    def _needs_stream(self) -> Self:
        if self.webhook is not None and not self.stream:
            raise ValueError("a webhook is fed from the stream; leave out `stream: false`")
        return self


def key_of(secret: str, name: str) -> bytes:
    """The bytes that a secret stands for. Raises InvalidConfig, which does not quote it."""
    text = secret.strip()
    if text.startswith(_PREFIX):
        try:
            key = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
        except (binascii.Error, ValueError):
            raise InvalidConfig(f'secret "{name}" begins with {_PREFIX}, and the rest is not base64') from None
    else:
        key = text.encode()
    if len(key) < _LEAST_BYTES:
        raise InvalidConfig(f'secret "{name}" has {len(key)} bytes; a webhook is signed with {_LEAST_BYTES} or more')
    return key


def signature(key: bytes, message_id: str, timestamp_s: int, body: bytes) -> str:
    """The value of `webhook-signature`."""
    signed = f"{message_id}.{timestamp_s}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def _is_loopback(parts: SplitResult) -> bool:
    host = parts.hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
