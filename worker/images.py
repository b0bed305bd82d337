"""Images of this machine's engine for the command line (entry point group `batchyard.images`)."""

from __future__ import annotations

from pathlib import Path


def save(image: str, path: Path) -> None:
    """Write an image as an archive that a job may name as its image. ImageError, EngineUnavailable, DiskFull."""
    from .engine.docker import DockerEngine

    DockerEngine().save(image, path)
