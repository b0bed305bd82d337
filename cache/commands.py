"""`batchyard put` and `batchyard get`."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchyard.broker.cli import progress
from batchyard.broker.cli.doors import Doors, examples, json_option, print_json, tenant_option, yard_options
from batchyard.broker.errors import InvalidConfig

if TYPE_CHECKING:
    from batchyard.broker.client import Client

_OUTPUT_OR_DIGEST = re.compile(r".+?:[A-Za-z0-9][A-Za-z0-9_.-]*(?=/|$)")


@click.command(
    epilog=examples(
        "batchyard put table.csv",
        "batchyard submit --image busybox --input /in/t=$(batchyard put table.csv) -- wc -l /in/t",
        "batchyard put --json folder other.csv | jq -r '.[].digest'",
        "batchyard submit --image $(batchyard put --image my/tool:1) -- tool     on nodes that have no such image",
    )
)
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--image",
    "images",
    metavar="NAME",
    multiple=True,
    help="An image of this machine's engine; a job then names its digest as its image. Repeatable.",
)
@tenant_option
@json_option
@yard_options
def put(doors: Doors, paths: Sequence[Path], images: Sequence[str], tenant: str, as_json: bool) -> None:
    """Keep files, directories or images as blobs and print their digests.

    A digest is what a job's input names: --input /in/table=sha256:…  The blob is durable when its digest is printed.
    """
    if not paths and not images:
        raise click.UsageError("nothing was named; give files or directories, or --image NAME")
    kept, several = [], len(paths) + len(images) > 1

    def said(told: str, what: str, blob: Mapping[str, Any]) -> None:
        kept.append({told: what, **blob})
        if not as_json:
            click.echo(f"{blob['digest']} {what}" if several else blob["digest"])

    with doors.client() as client:
        _known_tenant(client, tenant)
        for path in paths:
            said("path", str(path), _put(client, path, path.name, tenant, as_json=as_json))
        for image in images:
            with tempfile.TemporaryDirectory() as folder:
                archive = Path(folder) / "image.tar"
                _save_image(image, archive)
                said("image", image, _put(client, archive, f"image {image}", tenant, as_json=as_json))
    if as_json:
        print_json(kept if several else kept[0])


def _known_tenant(client: Client, tenant: str) -> None:
    """InvalidConfig: no queue's jobs could ever read what is put."""
    if not tenant:
        return
    there = sorted({queue.tenant for queue in client.yard.config().queues.values()} - {""})
    if tenant not in there:
        has = f"they have {', '.join(there)}" if there else "none has one"
        raise InvalidConfig(
            f'no queue has tenant "{tenant}" ({has}); correct --tenant, or give a queue that tenant first'
        )


def _put(client: Client, path: Path, name: str, tenant: str, *, as_json: bool) -> dict[str, Any]:
    shown = progress.wanted(as_json=as_json)
    total = progress.content_bytes(path) if shown else None
    with progress.transfer(f"put {name}", total, shown=shown) as on_bytes:
        return client.put(path, tenant=tenant, on_bytes=on_bytes)


def _save_image(image: str, path: Path) -> None:
    """By the layer that knows engines. ImageError, EngineUnavailable, DiskFull."""
    for entry in entry_points(group="batchyard.images"):
        entry.load()(image, path)
        return
    raise InvalidConfig("this installation knows no container engine; install batchyard again")


@click.command(
    epilog=examples(
        "batchyard get sha256:… table.csv",
        "batchyard get ID:table table.csv          the output `table` of a job",
        "batchyard get ID:table - | wc -l",
        "batchyard get ID:folder/sub/a.csv a.csv   of the output `folder`, a directory, one file",
    )
)
@click.argument("what", metavar="BLOB[/PART]")
@click.argument("path", type=click.Path(path_type=Path, allow_dash=True))
@tenant_option
@json_option
@yard_options
def get(doors: Doors, what: str, path: Path, tenant: str, as_json: bool) -> None:
    """Write a blob (sha256:… or ID:OUTPUT) to PATH, which must not exist yet (- for stdout).

    A tree becomes a directory. With PART, the path of a file or directory in a tree, only that is fetched.
    """
    name, part = parted(what)
    with doors.client() as client:
        digest, owner = client.named(name, tenant)
        if str(path) != "-":
            kind = _fetch(client, digest, part, owner, path, as_json=as_json)
            if as_json:
                told = {"digest": digest, "part": part} if part else {"digest": digest}
                print_json({**told, "path": str(path), "kind": kind})
            return
        if _is_directory(client.look(digest, tenant=owner), part):
            raise click.UsageError("this is a directory; give a path instead of -")
        with tempfile.TemporaryDirectory() as folder:  # nothing is shown before all of it was verified
            whole = Path(folder) / "blob"
            _fetch(client, digest, part, owner, whole, as_json=as_json)
            with whole.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)


def parted(what: str) -> tuple[str, str]:
    """The name of a blob, and the path in it. An output's name, behind a colon, has no slash; a job's id may have."""
    found = _OUTPUT_OR_DIGEST.match(what)
    return (what[: found.end()], what[found.end() :].strip("/")) if found else (what, "")


def _is_directory(blob: Mapping[str, Any], part: str) -> bool:
    if not part:
        return bool(blob["kind"] == "tree")
    return any(entry["path"] == part and entry["type"] == "directory" for entry in blob["entries"])


def _fetch(client: Client, digest: str, part: str, tenant: str, path: Path, *, as_json: bool) -> str:
    """The kind of what was wanted, once it is all there."""
    shown = progress.wanted(as_json=as_json)
    total = client.look(digest, tenant=tenant)["size"] if shown and not part else None
    with progress.transfer(f"get {part or f'{digest[:15]}…'}", total, shown=shown) as on_bytes:
        return client.get(digest, path, part=part, tenant=tenant, on_bytes=on_bytes)
