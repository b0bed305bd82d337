"""A store in a bucket of any S3: MinIO, versitygw, Amazon's. One object a name, under an optional prefix.

The server must honour `If-None-Match: *` on PutObject and CompleteMultipartUpload, as MinIO, versitygw 1.8 and Amazon's
do; one that ignores it lets the last of two writers win, whose bytes are the same blob under another seal.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from minio.error import S3Error

from batchyard.broker.errors import StoreUnavailable
from batchyard.broker.seal import Readable

from .access import S3Access
from .protocol import check_name, is_name
from .s3body import S3Body, beginning
from .s3call import Calls
from .s3upload import ONE_PUT_BYTES, PART_BYTES, SWEEP_AFTER_S, Uploads


class S3Store:
    """Use where several hosts share what they know, or the store is somebody else's to run.

    `bucket` must be there, unless `create`, which also aborts uploads that killed writers left `sweep_after_s` before
    `now_s` (wall clock). `prefix`: "" or "a/b/". A put holds `part_bytes` in memory.
    """

    def __init__(
        self,
        access: S3Access,
        bucket: str,
        prefix: str = "",
        *,
        create: bool = False,
        sweep_after_s: float | None = SWEEP_AFTER_S,
        now_s: float | None = None,
        one_put_bytes: int = ONE_PUT_BYTES,
        part_bytes: int = PART_BYTES,
    ) -> None:
        self._prefix = prefix
        self._calls = Calls(access, bucket)
        self._uploads = Uploads(self._calls, one_put_bytes=one_put_bytes, part_bytes=part_bytes)
        if create:
            self._make_bucket()
        if create and sweep_after_s is not None:
            before_s = (time.time() if now_s is None else now_s) - sweep_after_s
            self._uploads.sweep(prefix, datetime.fromtimestamp(before_s, UTC))

    def _make_bucket(self) -> None:
        client, bucket = self._calls.client, self._calls.bucket
        with self._calls.said():
            try:
                if not client.bucket_exists(bucket):
                    client.make_bucket(bucket)
            except S3Error as error:
                if error.code not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
                    raise

    def _key(self, name: str) -> str:
        return self._prefix + check_name(name)

    def put_if_absent(self, name: str, source: Readable, size: int) -> bool:
        return self.stat(name) is None and self._uploads.put_if_absent(self._key(name), name, source, size)

    @contextmanager
    def get(self, name: str) -> Iterator[Readable]:
        body = S3Body(self._calls, self._key(name), f"object {name} of {self._calls.where}")
        try:
            yield body
        finally:
            body.close()

    def first(self, name: str, count: int) -> bytes:
        """The first `count` bytes, or all there are, and no more leaves the server. NotFound, StoreUnavailable."""
        return beginning(self._calls, self._key(name), f"object {name} of {self._calls.where}", count)

    def stat(self, name: str) -> int | None:
        answer = self._calls.ask("HEAD", self._key(name))
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise self._calls.error(answer, f"object {name}")
        length = answer.header("Content-Length")
        if not (length.isascii() and length.isdigit()):
            raise StoreUnavailable(f"{self._calls.where} does not say how large object {name} is; is it an S3?")
        return int(length)

    def delete(self, name: str) -> None:
        key = self._key(name)
        # MinIO's header frees the bytes at once; it deletes by prefix, but no name is another's prefix
        answer = self._calls.ask("DELETE", key, headers={"x-minio-force-delete": "true"})
        if answer.status == 403:  # keys that may delete, but not so
            answer = self._calls.ask("DELETE", key)
        if answer.status not in {200, 204, 404}:
            raise self._calls.error(answer, f"object {name}")

    def names(self) -> Iterator[str]:
        return (name for name, _ in self.sizes())

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Name and size of each object, as the list has them."""
        with self._calls.said():
            for found in self._calls.client.list_objects(self._calls.bucket, prefix=self._prefix, recursive=True):
                name = (found.object_name or "").removeprefix(self._prefix)
                if is_name(name):  # others are not ours
                    yield name, found.size or 0
