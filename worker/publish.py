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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from batchyard.broker.errors import BatchyardError, OutputError
from batchyard.broker.job import WORK, Job, Output
from batchyard.broker.uri import S3Uri, parse_s3
from batchyard.cache.buckets import Buckets
from batchyard.cache.deliver import AttemptMark, Delivery
from batchyard.cache.digest import Blob
from batchyard.cache.outputs import publish
from batchyard.cache.sealed import BlobStore
from batchyard.cache.weight import Weight, weigh

from .staging import access_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """An output that is durable. uri: where it is besides."""

    blob: Blob
    uri: str | None = None

    def as_json(self) -> dict[str, object]:
        return self.blob.as_json() | ({} if self.uri is None else {"uri": self.uri})


class Publisher:
    """`publish` may be called again after it raised, and goes on where it was.

    on_progress: told how many outputs are kept, and how many bytes of content are, by the thread that sends them.
    confirm: raises unless the job is still this attempt's; called right before a destination is written, and again when
    that takes longer than `fresh_s`, well below the lease. stopped: nobody wants the outputs any more.
    """

    def __init__(
        self,
        blobs: BlobStore,
        job: Job,
        work: Path,
        *,
        mark: AttemptMark,
        secrets: Path | None,
        confirm: Callable[[], None],
        fresh_s: float,
        stopped: Callable[[], bool] = lambda: False,
        on_progress: Callable[[int, int], None] = lambda kept, sent: None,
    ) -> None:
        self._on_progress, self._sent = on_progress, 0
        self.elsewhere = False
        """what it does is at a destination, and not at the yard's store"""
        self._blobs, self._job, self._work = blobs, job, work
        self._mark, self._secrets, self._confirm, self._stopped = mark, secrets, confirm, stopped
        self._fresh_s = fresh_s
        self._buckets = Buckets(OutputError)
        self._kept: dict[str, Kept] = {}
        self._deliveries: dict[str, Delivery] = {}

    def publish(self) -> dict[str, Kept]:
        """All outputs, durable and where they belong. OutputError, StoreUnavailable, DiskFull; it names the output."""
        for name, output in self._job.outputs.items():
            if name not in self._kept:
                with _of(name):
                    self._keep(name, output)
        self.elsewhere = True
        for name, delivery in self._deliveries.items():
            with _of(name):
                delivery.place(self._confirm, fresh_s=self._fresh_s)
        self.clean()
        return self._kept

    def clean(self) -> None:
        """Deletes what this attempt wrote on the way to a destination. What cannot be deleted now stays."""
        for name, delivery in self._deliveries.items():
            try:
                delivery.sweep()
            except BatchyardError as error:
                log.warning('output "%s": temporary objects stay: %s', name, error)

    def _keep(self, name: str, output: Output) -> None:
        path = _path_of(output)
        self.elsewhere, self._sent = False, sum(kept.blob.size for kept in self._kept.values())
        blob = publish(self._blobs, self._work, path, name, on_bytes=self._heard)
        if output.to is None:
            self._is_kept(name, Kept(blob=blob))
            return
        place, self.elsewhere = parse_s3(output.to), True
        if name not in self._deliveries:
            self._deliveries[name] = self._begun(output, place, _target(place, path, blob))
        delivery = self._deliveries[name]
        delivery.upload(self._blobs, self._work, path, blob)
        self._is_kept(name, Kept(blob=blob, uri=str(delivery.target)))

    def _is_kept(self, name: str, kept: Kept) -> None:
        self._kept[name] = kept
        self._on_progress(len(self._kept), self._sent)

    def _heard(self, count: int) -> None:
        if self._stopped():
            raise OutputError("it was not kept: the job was told to stop")
        self._sent += count
        self._on_progress(len(self._kept), self._sent)

    def _begun(self, output: Output, place: S3Uri, target: S3Uri) -> Delivery:
        assert output.credentials is not None
        access = access_of(output.credentials, self._secrets, OutputError)
        bucket = self._buckets.get(access, place.bucket, f'secret "{output.credentials}"')
        folder = place.key[: place.key.rfind("/") + 1]
        mine = f"{folder}{self._mark.folder}"
        delivery = Delivery(bucket, target, temporary=f"{mine}{len(self._deliveries)}/", stopped=self._stopped)
        delivery.sweep_others(f"{folder}{self._mark.of_job}", keep=mine)
        return delivery


def weight_of(job: Job, work: Path) -> Weight:
    """What there is to be sent of a job that has ended, as far as it can be told."""
    return sum((weigh(work, _path_of(output)) for output in job.outputs.values()), Weight())


def _path_of(output: Output) -> str:
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
