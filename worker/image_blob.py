"""Images that are blobs of the yard: a job names the digest of an archive, and each node loads it once."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from batchyard.broker.errors import ImageError
from batchyard.broker.job import BLOB_IMAGE, DIGEST
from batchyard.cache.copies.flight import OnMoved
from batchyard.cache.copies.local import LocalCopies
from batchyard.cache.digest import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageBlob:
    """copies: those of the job's tenant, the only place that the archive is taken from."""

    digest: Digest
    copies: LocalCopies

    @classmethod
    def of(cls, image: str, copies: LocalCopies) -> ImageBlob | None:
        """None: the image is one of a registry, or of the engine."""
        return cls(digest=image, copies=copies) if DIGEST.fullmatch(image) else None

    @property
    def name(self) -> str:
        """What the engine calls it: no digest, so that only who may read the blob can name the image."""
        return f"{BLOB_IMAGE}:{self.copies.blobs.name(self.digest)}"

    @contextmanager
    def archive(self, on_moved: OnMoved | None = None) -> Iterator[Path]:
        """The verified archive; for the length of the body it stays. ImageError: it is a directory. Else as `stage`."""
        holder = f"image?{secrets.token_hex(8)}"
        try:
            path = self.copies.stage(self.digest, holder, on_moved).path
            if path.is_dir():
                raise ImageError("it is a directory; put the archive that `docker save` writes")
            yield path
        finally:
            self.copies.unpin(holder)
