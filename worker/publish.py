"""Outputs of one attempt: kept as blobs, and those with a destination written there too.

A destination is somebody else's name, so only the attempt that holds the job may write it. Each output first goes to
keys of this attempt alone, under `.batchyard/` beside the destination; then Redis is asked whether the job is still
ours, and again and again while the server copies. And before all that, the attempt deletes what earlier attempts of the
job left: one that was cut off meanwhile, and wakes after it was told that the job is its own, finds nothing to copy any
more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from batchyard.broker import globs
from batchyard.broker.errors import BatchyardError, OutputError, OutputMissing, StoreUnavailable
from batchyard.broker.job import WORK, Job, Output
from batchyard.broker.uri import S3Uri, parse_s3
from batchyard.cache.digest import Blob
from batchyard.cache.outputs import publish, size_of
from batchyard.cache.remote.buckets import Buckets
from batchyard.cache.remote.deliver import AttemptMark, Delivery
from batchyard.cache.sealed import BlobStore

from .staging import access_of

log = logging.getLogger(__name__)
_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What a queue allows the outputs of one job to have together."""

    queue: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """An output that is durable. uri: where it is besides."""

    blob: Blob
    uri: str | None = None

    def as_json(self) -> dict[str, object]:
        return self.blob.as_json() | ({} if self.uri is None else {"uri": self.uri})


class Publisher:
    """`publish`, or `salvage`, may be called again after it raised, and goes on where it was.

    on_progress may be set: told how many outputs are kept, and how many bytes were sent, by the thread that sends them.
    limit: what all outputs of the job may have together. confirm: raises unless the job is still this attempt's; called
    right before a destination is written, and again when that takes longer than `fresh_s`, well below the lease.
    stopped: nobody wants the outputs any more.
    """

    def __init__(
        self,
        blobs: BlobStore,
        job: Job,
        work: Path,
        *,
        mark: AttemptMark,
        secrets: Path | None,
        limit: Limit | None = None,
        confirm: Callable[[], None],
        fresh_s: float,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.on_progress: Callable[[int, int], None] = lambda kept, sent: None
        self._sent = 0
        self.elsewhere = False
        """what it does is at a destination, and not at the yard's store"""
        self._blobs, self._job, self._work = blobs, job, work
        self._mark, self._secrets, self._confirm, self._stopped = mark, secrets, confirm, stopped
        self._fresh_s, self._limit = fresh_s, limit
        self._buckets = Buckets(OutputError)
        self._kept: dict[str, Kept] = {}
        self._deliveries: dict[str, Delivery] = {}
        self._sizes: dict[str, int] = {}
        self._lacks: dict[str, str] = {}

    def publish(self) -> dict[str, Kept]:
        """All outputs, durable and where they belong. OutputError, StoreUnavailable, DiskFull; it names the output.

        Nothing is kept when one is missing of which the size matters, or too large.
        """
        for name, output in self._job.outputs.items():
            if not self._kept:
                with _of(name):
                    self._check_size(name, output)
        for name, output in self._job.outputs.items():
            if name not in self._kept:
                with _of(name):
                    self._keep(name, output)
        for name in self._deliveries:
            self._place(name)
        self.clean()
        return self._kept

    def salvage(self) -> tuple[dict[str, Kept], list[str]]:
        """Of a job that has failed: outputs that are to be kept all the same, and why others of these are not.

        What is not there is no lack. StoreUnavailable: then `salvaged` has what is kept already.
        """
        for name, output in self._job.outputs.items():
            if output.on_failure and name not in self._kept and name not in self._lacks:
                with self._lacking(name):
                    self._check_size(name, output)
                    self._keep(name, output)
        for name in self._deliveries.keys() - self._lacks.keys():
            with self._lacking(name):
                self._place(name)
        self.clean()
        return self._kept, [lack for lack in self._lacks.values() if lack]

    def weigh(self) -> int:
        """Bytes that there are to be sent, as far as that can be told."""
        found = 0
        for name, output in self._job.outputs.items():
            with suppress(BatchyardError):
                found += size_of(self._work, _below_work(output), name)
        return found

    @property
    def salvaged(self) -> dict[str, Kept]:
        return self._kept

    @contextmanager
    def _lacking(self, name: str) -> Iterator[None]:
        try:
            with _of(name):
                yield
        except OutputMissing:
            self._lacks[name] = ""
        except StoreUnavailable:
            raise
        except BatchyardError as error:
            self._lacks[name] = str(error)

    def _check_size(self, name: str, output: Output) -> None:
        """Against its own limit, and with those before it against the queue's."""
        if output.max_mib is None and self._limit is None:
            return
        size = size_of(self._work, _below_work(output), name)
        if output.max_mib is not None and size > output.max_mib * _MIB:
            raise OutputError(
                f"{output.path} has {size:,} bytes, more than max_mib = {output.max_mib:g} allows "
                f"({int(output.max_mib * _MIB):,}); write less, or allow more"
            )
        self._sizes[name] = size
        total = sum(self._sizes.values())
        if self._limit is not None and total > self._limit.bytes:
            told = ", ".join(f"{one} {bytes_:,}" for one, bytes_ in self._sizes.items())
            del self._sizes[name]
            raise OutputError(
                f"the job's outputs have {total:,} bytes up to this one ({told}), more than queue "
                f'"{self._limit.queue}" allows ({self._limit.bytes:,}, its max_output_gib); write less'
            )

    def _place(self, name: str) -> None:
        delivery, self.elsewhere = self._deliveries[name], True
        with _of(name):
            delivery.place(self._confirm, fresh_s=self._fresh_s)
        self._kept[name] = replace(self._kept[name], uri=str(delivery.target))

    def clean(self) -> None:
        """Deletes what this attempt wrote on the way to a destination. What cannot be deleted now stays."""
        for name, delivery in self._deliveries.items():
            try:
                delivery.sweep()
            except BatchyardError as error:
                log.warning('output "%s": temporary objects stay: %s', name, error)

    def _keep(self, name: str, output: Output) -> None:
        path = _below_work(output)
        self.elsewhere, self._sent = False, sum(kept.blob.size for kept in self._kept.values())
        blob = publish(self._blobs, self._work, path, name, on_bytes=self._heard)
        if output.to is not None:
            place, self.elsewhere = parse_s3(output.to), True
            if name not in self._deliveries:
                self._deliveries[name] = self._begun(output, place, _target(place, path, blob))
            self._deliveries[name].upload(self._blobs, self._work, globs.split(path)[0], blob)
        self._kept[name] = Kept(blob=blob)
        self.on_progress(len(self._kept), self._sent)

    def _heard(self, count: int) -> None:
        if self._stopped():
            raise OutputError("it was not kept: the job was told to stop")
        self._sent += count
        self.on_progress(len(self._kept), self._sent)

    def _begun(self, output: Output, place: S3Uri, target: S3Uri) -> Delivery:
        assert output.credentials is not None
        access = access_of(output.credentials, self._secrets, OutputError)
        bucket = self._buckets.get(access, place.bucket, f'secret "{output.credentials}"')
        folder = place.key[: place.key.rfind("/") + 1]
        mine = f"{folder}{self._mark.folder}"
        delivery = Delivery(bucket, target, temporary=f"{mine}{len(self._deliveries)}/", stopped=self._stopped)
        delivery.sweep_others(f"{folder}{self._mark.of_job}", keep=mine)
        return delivery


def _below_work(output: Output) -> str:
    return str(PurePosixPath(output.path).relative_to(WORK))


def _target(place: S3Uri, path: str, blob: Blob) -> S3Uri:
    """As `aws s3 cp`: a file that goes to a prefix keeps its name; a directory needs a prefix. OutputError."""
    if blob.kind == "tree":
        if not place.is_directory:
            raise OutputError(f'it is a directory, and goes to a prefix only; end "{place}" with "/"')
        return place
    name = PurePosixPath(path).name
    return S3Uri(bucket=place.bucket, key=place.key + name) if place.is_directory else place


@contextmanager
def _of(name: str) -> Iterator[None]:
    try:
        yield
    except BatchyardError as error:
        if str(error).startswith(f'output "{name}"'):
            raise
        raise type(error)(f'output "{name}": {error}') from error
