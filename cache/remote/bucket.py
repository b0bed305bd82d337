"""A bucket that a job names, for its inputs and outputs: reached as the job's credentials file says, or as Amazon's.

Nothing of the node's own access is used, and no redirect is followed: where keys go is the operator's word alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

from minio.commonconfig import ComposeSource, CopySource
from minio.deleteobjects import DeleteObject
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3.exceptions import HTTPError

from batchyard.broker.errors import BatchyardError, DiskFull, Permanent, StoreUnavailable
from batchyard.broker.uri import S3Uri

from ..stores.access import S3Access
from ..stores.s3call import FULL, Calls, code_of
from .body import Body
from .object import Changed, Found

COPY_BYTES = 512 << 20
_PART_BYTES = 8 << 20
_MOST_PARTS = 9000
_ELSEWHERE = {"PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "301", "307"}
_ABSENT = {"NoSuchKey", "NoSuchBucket", "404"}
_LATER = {"SlowDown", "SlowDownRead", "SlowDownWrite", "InternalError", "ServiceUnavailable", "RequestTimeout"}


class Bucket:
    """May be shared by threads. who: whose word the access is, for messages. refused: what is raised for good.
    copy_bytes: the most that the server copies in one request, 5 MiB at least.
    """

    def __init__(
        self, access: S3Access, bucket: str, *, who: str, refused: type[Permanent], copy_bytes: int = COPY_BYTES
    ) -> None:
        self._calls, self.name, self._who, self._refused = Calls(access, bucket), bucket, who, refused
        self._copy_bytes, self._named = copy_bytes, access.endpoint_url is not None

    @contextmanager
    def get(self, key: str, *, unless: str | None = None, only: str | None = None) -> Iterator[Body | None]:
        """An object; its validator is its ETag. None: that is still `unless`. Changed: it is not `only` any more."""
        headers = {"If-None-Match": f'"{unless}"'} if unless else {"If-Match": f'"{only}"'} if only else {}
        where = str(S3Uri(bucket=self.name, key=key))
        with self._said(key):
            answer = self._calls.ask("GET", key, headers=headers, stream=True)
        if answer.status == 304 and unless:
            yield None
            return
        if answer.status == 412 or (answer.status == 404 and only):
            raise Changed(where)
        if answer.status != 200:
            raise self._error(code_of(answer), answer.status, where)
        try:
            yield Body(answer.raw, where, answer.header("ETag").strip('"') or None)
        finally:
            answer.raw.close()
            answer.raw.release_conn()

    def list(self, prefix: str, most: int) -> list[Found]:
        """All objects below a prefix, in order. Raises what `refused` is for more than `most`."""
        found: list[Found] = []
        with self._said(prefix):
            for one in self._calls.client.list_objects(self.name, prefix=prefix, recursive=True):
                if len(found) >= most:
                    where = S3Uri(bucket=self.name, key=prefix)
                    raise self._refused(f"{where} holds more than {most} objects; name a longer prefix, or an archive")
                found.append(Found(key=one.object_name or "", size=one.size or 0, etag=(one.etag or "").strip('"')))
        return found

    def put(self, key: str, source: BinaryIO, size: int, content_type: str) -> None:
        """Exactly `size` bytes of `source`, in parts where there are many. Whoever had the name loses it."""
        part_bytes = max(_PART_BYTES, -(-size // _MOST_PARTS))
        with self._said(key):
            self._calls.client.put_object(self.name, key, source, size, content_type=content_type, part_size=part_bytes)

    def copy(self, source: str, key: str, size: int, content_type: str) -> None:
        """Within the bucket, by the server. Raises what `refused` is when `source` is gone.

        What is large is copied in parts: one request for all of it would be silent for longer than we wait.
        """
        client, part = self._calls.client, max(self._copy_bytes, -(-size // _MOST_PARTS))
        with self._said(key):
            try:
                if size <= part:
                    client.copy_object(self.name, key, CopySource(self.name, source))
                    return
                parts = [
                    ComposeSource(self.name, source, offset=start, length=min(part, size - start))
                    for start in range(0, size, part)
                ]
                client.compose_object(self.name, key, parts, metadata={"Content-Type": content_type})
            except ValueError as error:  # a 200 that holds no ETag: the copy failed on its way
                raise StoreUnavailable(f"{S3Uri(bucket=self.name, key=key)} was not copied: {error}") from error

    def delete(self, keys: Sequence[str]) -> None:
        """A success for those that are not there."""
        with self._said(keys[0] if keys else ""):
            for error in self._calls.client.remove_objects(self.name, [DeleteObject(key) for key in keys]):
                raise self._error(error.code, 0, str(S3Uri(bucket=self.name, key=error.name or "")))

    @contextmanager
    def _said(self, key: str) -> Iterator[None]:
        where = str(S3Uri(bucket=self.name, key=key))
        with self._advised(), self._calls.said():  # what the network says
            try:
                yield
            except S3Error as error:
                raise self._error(error.code or "", error.response.status, where) from error
            except ServerError as error:
                raise self._error(str(error.status_code), error.status_code, where) from error
            except InvalidResponseError as error:
                raise StoreUnavailable(f"{where}: what answers is no S3: {str(error)[:200]}") from error
            except MinioException as error:
                raise StoreUnavailable(f"{where}: {str(error)[:200]}") from error
            except ValueError as error:  # a name that the SDK takes for none
                raise self._refused(f"{where}: {error}") from error

    @contextmanager
    def _advised(self) -> Iterator[None]:
        """Who names no endpoint may not know that it is Amazon's then."""
        try:
            yield
        except StoreUnavailable as error:
            if self._named or not isinstance(error.__cause__, HTTPError | OSError):
                raise
            advice = "; if it is not Amazon's, name `credentials` with endpoint_url"
            raise StoreUnavailable(f"{error}{advice}") from error.__cause__

    def _error(self, code: str, status: int, where: str) -> BatchyardError:
        if code in FULL or status == 507:
            return DiskFull(f"no space left for {where} ({code}); free some there")
        if status >= 500 or status in {409, 429} or code in _LATER:
            return StoreUnavailable(f"{where} answers {code}; try again later")
        if code in _ELSEWHERE:
            return self._refused(f'{where} is in another region ({code}); write "region = …" into a credentials file')
        if code in _ABSENT:
            return self._refused(f"{where} is not there ({code}); correct bucket and key")
        return self._refused(f"{where} is refused to {self._who} ({code}); correct the keys, or what they may do")
