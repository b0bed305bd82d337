"""A store in a bucket of any S3: MinIO, versitygw, Amazon's.

One object a name, under an optional prefix. Requests are presigned, so that a body streams from its source in one PUT
with `If-None-Match: *`, which the SDK's own `put_object` would not send on.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import urllib3
from minio.error import MinioException, S3Error

from batchyard.broker.errors import BatchyardError, DiskFull, IntegrityError, InvalidConfig, NotFound, StoreUnavailable
from batchyard.broker.seal import Readable

from .access import S3Access
from .store import check_name

MOST_BYTES = 5 << 30
"""What one PUT may hold (https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html)."""
_BUFFER_BYTES = 1 << 20
_VALID_FOR = timedelta(hours=1)
_FULL = {"XMinioStorageFull", "QuotaExceeded", "InsufficientStorage", "XMinioAdminBucketQuotaExceeded"}
_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,64})</Code>")


class S3Store:
    """`bucket` must be there, unless `create`. `prefix`: "" or "a/b/"."""

    def __init__(self, access: S3Access, bucket: str, prefix: str = "", *, create: bool = False) -> None:
        self._access, self._bucket, self._prefix = access, bucket, prefix
        self._pool = access.pool()
        self._client = access.client(self._pool)
        self._where = f"s3://{bucket} at {access.endpoint_url or 'Amazon'}"
        if create:
            self._make_bucket()

    def _make_bucket(self) -> None:
        with self._said():
            try:
                if not self._client.bucket_exists(self._bucket):
                    self._client.make_bucket(self._bucket)
            except S3Error as error:
                if error.code not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
                    raise
            except ValueError as error:
                raise InvalidConfig(f'"{self._bucket}" cannot be a bucket: {error}') from None

    def put_if_absent(self, name: str, source: Readable, size: int) -> bool:
        check_name(name)
        if self.stat(name) is not None:
            return False
        if size > MOST_BYTES:
            raise IntegrityError(f"object {name} has {size} bytes; {self._where} takes {MOST_BYTES} at most in one PUT")
        headers = {"If-None-Match": "*", "Content-Length": str(size), "Content-Type": "application/octet-stream"}
        with self._asked("PUT", name, headers, _body(name, source, size)) as answer:
            if answer.status == 200:
                return True
            error = self._error(answer, name)
        if answer.status in {409, 412} and self.stat(name) is not None:
            return False
        raise error

    @contextmanager
    def get(self, name: str) -> Iterator[Readable]:
        with self._asked("GET", check_name(name)) as answer:
            if answer.status != 200:
                raise self._error(answer, name)
            yield _Body(answer, f"object {name} of {self._where}")

    def stat(self, name: str) -> int | None:
        with self._asked("HEAD", check_name(name)) as answer:
            if answer.status == 200:
                return int(answer.headers["Content-Length"])
            if answer.status == 404:
                return None
            raise self._error(answer, name)

    def delete(self, name: str) -> None:
        # MinIO's header frees the bytes at once; it deletes by prefix, but no name is another's prefix
        with self._asked("DELETE", check_name(name), {"x-minio-force-delete": "true"}) as answer:
            if answer.status not in {200, 204, 404}:
                raise self._error(answer, name)

    def names(self) -> Iterator[str]:
        with self._said():
            for found in self._client.list_objects(self._bucket, prefix=self._prefix, recursive=True):
                name = (found.object_name or "").removeprefix(self._prefix)
                try:
                    yield check_name(name)
                except ValueError:
                    continue  # not ours

    @contextmanager
    def _asked(
        self, method: str, name: str, headers: Mapping[str, str] | None = None, body: Any = None
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        with self._said():
            url = self._client.get_presigned_url(method, self._bucket, self._prefix + name, expires=_VALID_FOR)
            answer = self._pool.request(
                method, url, body=body, headers=dict(headers or {}), preload_content=False, redirect=False
            )
        try:
            yield answer
        finally:
            if method == "GET":
                answer.close()  # what was not read is not worth reading on
            else:
                answer.drain_conn()
            answer.release_conn()

    @contextmanager
    def _said(self) -> Iterator[None]:
        """What the network and the SDK raise, in our words."""
        try:
            yield
        except (urllib3.exceptions.HTTPError, OSError, MinioException) as error:
            raise StoreUnavailable(f"{self._where} does not answer: {_reason(error)}") from error

    def _error(self, answer: urllib3.BaseHTTPResponse, name: str) -> BatchyardError:
        found = _CODE.search(answer.read(1 << 16)) if answer.status != 304 else None
        code = found[1].decode() if found else str(answer.status)
        if code in _FULL or answer.status == 507:
            return DiskFull(f"no space left in {self._where} ({code}); free some, or give it a larger disk")
        if code == "NoSuchKey" or (answer.status == 404 and code != "NoSuchBucket"):
            return NotFound(f"object {name} is not in the store")
        if answer.status in {401, 403}:
            return StoreUnavailable(f"{self._where} refuses us ({code}); correct the keys in {self._access.source}")
        if code == "NoSuchBucket":
            return StoreUnavailable(f"{self._where}: there is no such bucket; make it, or correct the store's name")
        return StoreUnavailable(f"{self._where} answers {answer.status} ({code})")


class _Body:
    """What a GET gives, straight from the connection."""

    def __init__(self, answer: urllib3.BaseHTTPResponse, what: str) -> None:
        self._answer, self._what = answer, what

    def readinto(self, buffer: memoryview, /) -> int:
        try:
            return self._answer.readinto(buffer)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise StoreUnavailable(f"{self._what} ended early: {_reason(error)}") from error


def _body(name: str, source: Readable, size: int) -> Generator[memoryview, None, None]:
    """`size` bytes of `source`. The last piece is given only when the source has ended where it should: a body that
    is cut short is no object.
    """
    buffers = [memoryview(bytearray(max(1, min(size + 1, _BUFFER_BYTES)))) for _ in range(2)]
    held, given = memoryview(b""), 0
    while count := source.readinto(buffers[0]):
        given += count
        if given > size:
            break
        if held:
            yield held
        held = buffers[0][:count]
        buffers.reverse()
    if given != size:
        raise IntegrityError(f"object {name}: the source gave {given} bytes, not {size}")
    if held:
        yield held


def _reason(error: Exception) -> str:
    if isinstance(error, S3Error):
        return f"{error.code}: {error.message}"
    cause: object = getattr(error, "reason", None) or error
    return " ".join(str(cause).split())[:300]
