"""`batchyard put` and `batchyard get`."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from batchyard.broker.cli.doors import Doors, json_option, print_json, yard_options


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@json_option
@yard_options
def put(doors: Doors, paths: Sequence[Path], as_json: bool) -> None:
    """Keep files or directories as blobs and print their digests.

    A digest is what a job's input names: --input /in/table=sha256:…  The blob is durable when its digest is printed.
    """
    with doors.client() as client:
        kept = []
        for path in paths:
            blob = client.put(path)
            kept.append({"path": str(path), **blob})
            if not as_json:
                click.echo(blob["digest"] if len(paths) == 1 else f"{blob['digest']} {path}")
        if as_json:
            print_json(kept if len(kept) > 1 else kept[0])


@click.command()
@click.argument("digest")
@click.argument("path", type=click.Path(path_type=Path, allow_dash=True))
@json_option
@yard_options
def get(doors: Doors, digest: str, path: Path, as_json: bool) -> None:
    """Write a blob to PATH, which must not exist yet (- for stdout). A tree becomes a directory."""
    with doors.client() as client:
        if str(path) != "-":
            kind = client.get(digest, path)
            if as_json:
                print_json({"digest": digest, "path": str(path), "kind": kind})
            return
        with tempfile.TemporaryDirectory() as folder:  # nothing is shown before all of it was verified
            whole = Path(folder) / "blob"
            if client.get(digest, whole) == "tree":
                raise click.UsageError("this blob is a directory; give a path instead of -")
            with whole.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
