"""Requests to one bucket: presigned, repeated where that is safe, and their failures in our words.

Presigned, because the SDK's own calls neither send `If-None-Match` on a PUT nor stream a body that can be sent again.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from xml.etree.ElementTree import ParseError

import urllib3
from minio.error import MinioException, S3Error

from batchyard.broker.errors import BatchyardError, DiskFull, InvalidConfig, NotFound, StoreUnavailable

from .access import S3Access
from .bulktls import BulkContext

_VALID_FOR = timedelta(minutes=15)  # as long as S3 lets a signature be used
_PAUSES_S = (0.1, 0.3, 0.9)
_REPEAT_WITHIN_S = 20.0
_PASSING = {409, 429, 500, 502, 503, 504}
FULL = {"XMinioStorageFull", "QuotaExceeded", "InsufficientStorage", "XMinioAdminBucketQuotaExceeded"}
"""What servers call a lack of space."""
_MOST_CONTENT = 16 << 20  # a page of a listing
_REFUSED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
_WHOSE = re.compile(r"^\w*Connection\(.*?\): ")  # urllib3 begins with what it connects: a class
_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,64})</Code>")

Body = bytes | memoryview | Iterable[memoryview] | None
"""What can be sent again: an iterable starts from its first byte each time."""


@dataclass(slots=True, kw_only=True)
class Answer:
    """tries: more than 1 when the request was sent again, so that an earlier one may have had its effect. content: the
    body, unless it streams.
    """

    raw: urllib3.BaseHTTPResponse
    tries: int = 1
    content: bytes = b""

    @property
    def status(self) -> int:
        return self.raw.status

    def header(self, name: str) -> str:
        """Empty if there is none."""
        return self.raw.headers.get(name, "")


class Calls:
    """May be shared by threads. `pause` waits between a request and its repetition."""

    def __init__(self, access: S3Access, bucket: str, *, pause: Callable[[float], None] = time.sleep) -> None:
        self._access, self.bucket, self.pause = access, bucket, pause
        self._pool = access.pool(context=BulkContext.trusting(access.authorities))
        self.client = access.client(self._pool)
        try:
            self.client.get_presigned_url("HEAD", bucket, "any")
        except ValueError as error:
            raise InvalidConfig(f'"{bucket}" cannot be a bucket: {error}') from None
        self.where = f"s3://{bucket} at {access.endpoint_url or 'Amazon'}"

    def ask(
        self,
        method: str,
        key: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Body = None,
        stream: bool = False,
        repeat: bool = True,
    ) -> Answer:
        """The answer, whatever its status. stream: leave a success's body to the caller, who closes or releases `raw`.

        Sent again, up to three times unless not `repeat`, when the connection breaks or the server says that it cannot
        just now. StoreUnavailable.
        """
        began = time.monotonic()
        for tries, pause_s in enumerate((*_PAUSES_S, None), 1):
            last = not repeat or pause_s is None or time.monotonic() - began > _REPEAT_WITHIN_S
            try:
                with self.said():
                    answer = self._once(method, key, dict(query or {}), dict(headers or {}), body, stream)
            except StoreUnavailable as error:
                if last or not _may_pass(error.__cause__):
                    raise
            else:
                if last or answer.status not in _PASSING:
                    answer.tries = tries
                    return answer
            self.pause((pause_s or 0) * random.uniform(0.5, 1.5))
        raise AssertionError("the last try returns or raises")

    def _once(
        self, method: str, key: str, query: dict[str, Any], headers: dict[str, str], body: Any, stream: bool
    ) -> Answer:
        url = self.client.get_presigned_url(
            method, self.bucket, key, expires=_VALID_FOR, extra_query_params=query or None
        )
        raw = self._pool.request(
            method, url, body=body, headers=headers, preload_content=False, redirect=False, retries=False
        )
        if stream and raw.status < 300:
            return Answer(raw=raw)
        try:
            content = raw.read(_MOST_CONTENT)
        except BaseException:
            raw.close()
            raise
        if raw.length_remaining:
            raw.close()
        raw.release_conn()
        return Answer(raw=raw, content=content)

    @contextmanager
    def said(self) -> Iterator[None]:
        """What the network and the SDK raise, in our words."""
        try:
            yield
        except S3Error as error:  # of the SDK's own calls
            if error.code in _REFUSED:
                raise StoreUnavailable(self._refusal(error.code or "")) from error
            raise StoreUnavailable(f"{self.where} answers {error.code}: {error.message}") from error
        except (urllib3.exceptions.HTTPError, OSError, MinioException) as error:
            raise StoreUnavailable(f"{self.where} does not answer: {reason(error)}{_advice(error)}") from error
        except (ParseError, ValueError) as error:
            raise StoreUnavailable(f"{self.where} does not answer as S3 does: {reason(error)}") from error

    def error(self, answer: Answer, what: str) -> BatchyardError:
        """What an answer that is no success says. what: "object …"."""
        code = code_of(answer)
        if code in FULL or answer.status == 507:
            return DiskFull(f"no space left in {self.where} ({code}); free some, or give it a larger disk")
        if code == "NoSuchBucket":
            return StoreUnavailable(f"{self.where}: there is no such bucket; make it, or correct the store's name")
        if answer.status == 404:
            return NotFound(f"{what} is not in the store")
        if code == "RequestTimeTooSkewed":
            return StoreUnavailable(f"{self.where} has another time than this machine; set the clocks")
        if answer.status in {401, 403}:
            return StoreUnavailable(self._refusal(code))
        return StoreUnavailable(f"{self.where} answers {answer.status} ({code}) for {what}; try again, or see its log")

    def _refusal(self, code: str) -> str:
        return f"{self.where} refuses us ({code}); correct the keys in {self._access.source}, or what they may do"


def code_of(answer: Answer) -> str:
    """S3's code for an error, else the status: an answer to HEAD has no body."""
    found = _CODE.search(answer.content)
    return found[1].decode() if found else str(answer.status)


def reason(error: BaseException) -> str:
    """An error of the network or the SDK in a line."""
    cause: object = getattr(error, "reason", None) or error
    said = _WHOSE.sub("", str(cause))
    return " ".join(said.split())[:300]


def _advice(error: BaseException) -> str:
    if "certificate verify failed" in str(error):
        return "; name the authority that signed its certificate as ca_bundle in the credentials file"
    return ""


def _may_pass(error: BaseException | None) -> bool:
    """Whether the same request may find another world: not after a wait that was long already, nor bad trust."""
    return not (isinstance(error, urllib3.exceptions.ReadTimeoutError) or "certificate verify failed" in str(error))
