"""An object in one request or in parts, made only if its name is free.

A server may hold an object's lock while it receives a conditional PUT (MinIO does), and everybody else who asks for
that name waits as long as the writer takes. So an object that goes in one PUT is read from its source first, and a
larger one is uploaded in parts, which lock nothing, and gets its name in a short last request.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from xml.etree import ElementTree

from minio.error import S3Error

from batchyard.broker.errors import BatchyardError, IntegrityError, StoreUnavailable
from batchyard.broker.seal import CHUNK_BYTES, Readable

from .protocol import is_name
from .s3call import Answer, Calls, code_of

ONE_PUT_BYTES = 8 << 20
PART_BYTES = 32 << 20
SWEEP_AFTER_S = 24 * 3600.0
_MOST_PARTS = 10_000  # https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
_PIECE_BYTES = CHUNK_BYTES + (1 << 12)  # room for a sealed chunk and its tag
_ABORTS, _ABORT_PAUSE_S = 4, 0.05
_IF_ABSENT = {"If-None-Match": "*"}
_BYTES = {"Content-Type": "application/octet-stream"}


class _SourceFailed(Exception):
    """Carries what a source raised through urllib3, which would take an OSError for the network's."""

    def __init__(self, cause: Exception) -> None:
        super().__init__()
        self.cause = cause


class _Source:
    """A source that must have `size` bytes."""

    def __init__(self, name: str, source: Readable, size: int) -> None:
        self.name, self.size = name, size
        self._source, self._given = source, 0

    def some(self, view: memoryview) -> int:
        """How many bytes are now in `view`: more than none."""
        count = self._read(view)
        if not count:
            raise _SourceFailed(self._wrong_size(f"{self._given} bytes"))
        self._given += count
        return count

    def end(self) -> None:
        """Raises unless there are no more bytes."""
        if self._read(memoryview(bytearray(1))):
            raise _SourceFailed(self._wrong_size("more bytes"))

    def _read(self, view: memoryview) -> int:
        try:
            return self._source.readinto(view) or 0
        except Exception as error:
            raise _SourceFailed(error) from error

    def _wrong_size(self, gave: str) -> IntegrityError:
        return IntegrityError(f"object {self.name}: the source gave {gave}, not {self.size}")


class _Part:
    """A part of a source, read while it is sent the first time and kept in `room`, to be sent again."""

    def __init__(self, source: _Source, room: memoryview) -> None:
        self._source, self._room, self._have = source, room, 0

    def __iter__(self) -> Iterator[memoryview]:
        if self._have:
            yield self._room[: self._have]
        while self._have < len(self._room):
            start = self._have
            self._have += self._source.some(self._room[start : start + _PIECE_BYTES])
            yield self._room[start : self._have]


class Uploads:
    """What of one bucket's objects is written. one_put_bytes: the largest object that goes in one PUT."""

    def __init__(self, calls: Calls, *, one_put_bytes: int = ONE_PUT_BYTES, part_bytes: int = PART_BYTES) -> None:
        self._calls, self._one_put_bytes, self._part_bytes = calls, one_put_bytes, part_bytes

    def put_if_absent(self, key: str, name: str, source: Readable, size: int) -> bool:
        """As `Store.put_if_absent`, of an object that was not there a moment ago."""
        try:
            put = self._one_put if size <= self._one_put_bytes else self._in_parts
            return put(key, _Source(name, source, size), size)
        except _SourceFailed as failed:
            raise failed.cause from None

    def _one_put(self, key: str, source: _Source, size: int) -> bool:
        data = bytearray(size)
        for _ in _Part(source, memoryview(data)):
            pass
        source.end()
        md5 = hashlib.md5(data, usedforsecurity=False)
        # versitygw 1.8 keeps what it has when the connection ends early, unless it can compare
        headers = _IF_ABSENT | _BYTES | {"Content-MD5": base64.b64encode(md5.digest()).decode()}
        answer = self._calls.ask("PUT", key, headers=headers, body=bytes(data))
        return self._made(answer, key, source.name, md5.hexdigest)

    def _in_parts(self, key: str, source: _Source, size: int) -> bool:
        upload = self._begin(key, source.name)
        try:
            tags = self._send_parts(key, upload, source, size)
            answer = self._calls.ask(
                "POST", key, query={"uploadId": upload}, headers=_IF_ABSENT, body=_completion(tags)
            )
            made = self._made(answer, key, source.name, lambda: _tag_of_parts(tags))
        except BaseException:
            self._abort(key, upload)
            raise
        if not made:
            self._abort(key, upload)
        return made

    def _begin(self, key: str, name: str) -> str:
        answer = self._calls.ask("POST", key, query={"uploads": ""}, headers=_BYTES)
        upload = _xml(answer).findtext("{*}UploadId") if answer.status == 200 else None
        if not upload:
            raise self._error(answer, name)
        return upload

    def _send_parts(self, key: str, upload: str, source: _Source, size: int) -> list[str]:
        """The parts' tags, in order."""
        part_bytes = max(self._part_bytes, -(-size // _MOST_PARTS))
        room, tags = memoryview(bytearray(min(part_bytes, size))), list[str]()
        for start in range(0, size, part_bytes):
            count = min(part_bytes, size - start)
            query = {"partNumber": str(len(tags) + 1), "uploadId": upload}
            body = _Part(source, room[:count])
            answer = self._calls.ask("PUT", key, query=query, headers={"Content-Length": str(count)}, body=body)
            if answer.status != 200:
                raise self._error(answer, source.name)
            tags.append(answer.header("ETag").strip('"'))
        source.end()
        return tags

    def _made(self, answer: Answer, key: str, name: str, tag: Callable[[], str]) -> bool:
        """Whether the object is there because of the request that was answered so; raises if it is not there."""
        if answer.status == 200 and b"<Error>" not in answer.content:  # a completion may fail after its 200
            return True
        there = self._calls.ask("HEAD", key)
        if there.status == 200 and (answer.status in {409, 412} or answer.tries > 1):
            # an earlier try of ours may have made it, unheard; its tag says so, where tags are MD5 sums
            return answer.tries > 1 and there.header("ETag").strip('"') == tag()
        raise self._error(answer, name)

    def _abort(self, key: str, upload: str) -> None:
        """Until the server knows it no more: a part that was on its way may come to lie there after the first time."""
        with suppress(StoreUnavailable):  # swept later
            for _ in range(_ABORTS):
                answer = self._calls.ask("DELETE", key, query={"uploadId": upload}, repeat=False)
                if answer.status == 404:
                    break
                self._calls.pause(_ABORT_PAUSE_S)

    def _error(self, answer: Answer, name: str) -> BatchyardError:
        if code_of(answer) == "NoSuchUpload":
            return StoreUnavailable(f"{self._calls.where} knows the upload of object {name} no more; try again")
        return self._calls.error(answer, f"object {name}")

    def sweep(self, prefix: str, before: datetime) -> None:
        """Abort uploads that killed writers left. Where we may not list them, or the server lists none (MinIO under a
        prefix), they stay: servers sweep too.
        """
        with self._calls.said(), suppress(S3Error):
            found = self._calls.client._list_multipart_uploads(self._calls.bucket, prefix=prefix)
            for upload in found.uploads:
                began = upload.initiated_time
                if is_name(upload.object_name.removeprefix(prefix)) and began is not None and began <= before:
                    self._abort(upload.object_name, upload.upload_id or "")


def _xml(answer: Answer) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(answer.content)
    except ElementTree.ParseError:
        raise StoreUnavailable("the store answers what is no XML; is it an S3?") from None


def _completion(tags: list[str]) -> bytes:
    parts = ElementTree.Element("CompleteMultipartUpload")
    for number, tag in enumerate(tags, 1):
        part = ElementTree.SubElement(parts, "Part")
        ElementTree.SubElement(part, "PartNumber").text = str(number)
        ElementTree.SubElement(part, "ETag").text = tag
    return ElementTree.tostring(parts)


def _tag_of_parts(tags: list[str]) -> str:
    """Of an object that was uploaded so, where tags are MD5 sums; "" where they are not."""
    try:
        sums = b"".join(map(bytes.fromhex, tags))
    except ValueError:
        return ""
    return f"{hashlib.md5(sums, usedforsecurity=False).hexdigest()}-{len(tags)}"
