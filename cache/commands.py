"""`batchyard put` and `batchyard get`."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batchyard.broker.cli import progress
from batchyard.broker.cli.doors import Doors, examples, json_option, print_json, tenant_option, yard_options

if TYPE_CHECKING:
    from batchyard.broker.client import Client


@click.command(
    epilog=examples(
        "batchyard put table.csv",
        "batchyard submit --image busybox --input /in/t=$(batchyard put table.csv) -- wc -l /in/t",
        "batchyard put --json folder other.csv | jq -r '.[].digest'",
    )
)
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@tenant_option
@json_option
@yard_options
def put(doors: Doors, paths: Sequence[Path], tenant: str, as_json: bool) -> None:
    """Keep files or directories as blobs and print their digests.

    A digest is what a job's input names: --input /in/table=sha256:…  The blob is durable when its digest is printed.
    """
    shown = progress.wanted(as_json=as_json)
    with doors.client() as client:
        kept = []
        for path in paths:
            total = progress.content_bytes(path) if shown else None
            with progress.transfer(f"put {path.name}", total, shown=shown) as on_bytes:
                blob = client.put(path, tenant=tenant, on_bytes=on_bytes)
            kept.append({"path": str(path), **blob})
            if not as_json:
                click.echo(blob["digest"] if len(paths) == 1 else f"{blob['digest']} {path}")
        if as_json:
            print_json(kept if len(kept) > 1 else kept[0])


@click.command(
    epilog=examples(
        "batchyard get sha256:… table.csv",
        "batchyard get ID:table table.csv          the output `table` of a job",
        "batchyard get ID:table - | wc -l",
    )
)
@click.argument("what")
@click.argument("path", type=click.Path(path_type=Path, allow_dash=True))
@tenant_option
@json_option
@yard_options
def get(doors: Doors, what: str, path: Path, tenant: str, as_json: bool) -> None:
    """Write a blob (sha256:… or ID:OUTPUT) to PATH, which must not exist yet (- for stdout).

    A tree becomes a directory.
    """
    with doors.client() as client:
        digest, owner = client.named(what, tenant)
        if str(path) != "-":
            kind = _fetch(client, digest, owner, path, as_json=as_json)
            if as_json:
                print_json({"digest": digest, "path": str(path), "kind": kind})
            return
        with tempfile.TemporaryDirectory() as folder:  # nothing is shown before all of it was verified
            whole = Path(folder) / "blob"
            if _fetch(client, digest, owner, whole, as_json=as_json) == "tree":
                raise click.UsageError("this blob is a directory; give a path instead of -")
            with whole.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)


def _fetch(client: Client, digest: str, tenant: str, path: Path, *, as_json: bool) -> str:
    """The blob's kind, once it is all there."""
    shown = progress.wanted(as_json=as_json)
    total = client.look(digest, tenant=tenant)["size"] if shown else None
    with progress.transfer(f"get {digest[:15]}…", total, shown=shown) as on_bytes:
        return client.get(digest, path, tenant=tenant, on_bytes=on_bytes)
