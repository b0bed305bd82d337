"""What an attempt needs before its container is made: its image, its inputs, or what an identical job has made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from rich.filesize import decimal

from batchyard.broker.errors import ImageError, Permanent
from batchyard.cache.digest import Digest

from .capture import LogCapture
from .context import Context
from .engine import Bind
from .image_blob import ImageBlob
from .progress import Progress
from .reuse import Reuse, Reused, identity, obstacle
from .sources import Source, look_up


class Preparing:
    """One attempt's. image: what its container is made of, as the engine names it."""

    def __init__(self, context: Context) -> None:
        self._context, self._tools, self._job = context, context.tools, context.job
        self._blob = ImageBlob.of(self._job.image, self._tools.stage.copies)
        self._sources: Mapping[str, Source] | None = None
        self._tries = 0
        self.image = self._name

    @property
    def _name(self) -> str:
        """What the engine calls its image."""
        return self._blob.name if self._blob else self._job.image

    def is_not_there(self) -> None:
        """The engine had no such image after all."""
        self._tools.puller.forget(self._name)

    # -- inputs
    def pin(self) -> None:
        """Of a container that runs: before anything is staged for others, also where the index was lost."""
        self._tools.stage.copies.pin(self._context.folder.name, self._digests(), unpacked=self._archives())

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """Its inputs, and what is staged for it in the body, stay until the end of that."""
        copies = self._tools.stage.copies
        with copies.pinned(self._context.folder.name, self._digests(), unpacked=self._archives()):
            yield

    def _digests(self) -> list[Digest]:
        return self._needed(unpack=False)

    def _archives(self) -> list[Digest]:
        """Of those that it needs unpacked."""
        return self._needed(unpack=True)

    def _needed(self, *, unpack: bool) -> list[Digest]:
        found = []
        for spec in self._job.inputs.values():
            if spec.unpack is unpack:
                found += [spec.digest] if spec.digest and not spec.uri else [m.digest for m in spec.members or ()]
        return found

    def stage(self, capture: LogCapture) -> list[Bind]:
        """Image and inputs are on this node; the inputs as its container gets them. Raises what the puller and
        `Stage.binds` raise. May be called again.
        """
        if self._tries:  # what is held may be what another one waits for, which holds what this one waits for
            self._tools.stage.copies.unpin(self._context.folder.name)
            self.pin()
        with Progress(self._context.doing, capture.platform) as progress:
            self._pulled(capture, progress)
            binds = self._bound(capture, progress)
        self._context.doing("")
        if binds:
            moved = self._tools.stage.copies.moved(self._context.folder.name)
            inputs = len(self._job.inputs)
            capture.platform(
                f"{inputs} input{'' if inputs == 1 else 's'} staged: {decimal(moved.fetched_bytes)} fetched, "
                f"{moved.here} of {moved.copies} already here"
            )
        return binds

    def _pulled(self, capture: LogCapture, progress: Progress) -> str:
        """The image's config digest, once this node has it."""
        image, blob = self._job.image, self._blob
        try:
            return self._tools.puller.ensure(
                self._name,
                archive=None if blob is None else lambda: blob.archive(partial(progress.hear, "the image")),
                pulling=lambda: capture.platform(f"{'loading' if blob else 'pulling'} image {image}"),
                stopped=lambda: self._context.is_stopped,
            )
        except Permanent as error:
            if blob is None:
                raise
            raise ImageError(f"image {image}: {error}") from error

    def _bound(self, capture: LogCapture, progress: Progress) -> list[Bind]:
        self._tries += 1
        return self._tools.stage.binds(
            self._job,
            self._context.folder.name,
            sources=self._looked_up(),
            stopped=lambda: self._context.is_stopped,
            say=lambda text: self._say(capture, text),
            hear=lambda path, done, total: progress.hear(f"input {path}", done, total),
        )

    def _looked_up(self) -> Mapping[str, Source]:
        if self._sources is None:
            self._sources = look_up(self._tools.yard, self._job, self._context.claimed, self._tools.tenant)
        return self._sources

    def _say(self, capture: LogCapture, text: str) -> None:
        """What may take long: in the log, and for who asks what the job does."""
        text += f" (try {self._tries})" if self._tries > 1 else ""
        if self._tries & (self._tries - 1) == 0:  # 1, 2, 4, 8 …: a log is no place for all of them
            capture.platform(text)
        self._context.doing(text)

    # -- reuse
    def find(self, reuse: Reuse, capture: LogCapture) -> Reused | None:
        """What an identical job has made. From here on its image is a certain one."""
        if lack := obstacle(self._job):
            capture.platform(f"it is run anyway: {lack}, so it is not known to be identical to any other")
            return None
        self._tools.puller.forget(self._name)  # it may lead to another one by now
        context = self._context
        with Progress(context.doing, capture.platform) as progress:
            self.image = context.patiently(lambda: self._pulled(capture, progress))
        sources = context.patiently(self._looked_up)
        told = identity(self._job, image=self.image, sources=sources, index=context.claimed.index)
        return None if context.is_stopped else reuse.find(told, self._job, say=capture.platform)
