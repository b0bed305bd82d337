"""`batchyard ls`: the newest jobs, a job's outputs, or what is in a blob."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from ..errors import NotFound
from . import show
from .complete import job_ids
from .doors import Doors, examples, json_option, print_json, tenant_option, yard_options
from .look import list_options, print_children, print_jobs

if TYPE_CHECKING:
    from ..client import Client
    from ..record import Record

_SIGNS = {"directory": "d", "symlink": "l", "file": "-"}


@click.command(
    epilog=examples(
        "batchyard ls                       the newest jobs, as `batchyard list`",
        "batchyard ls ID                    the outputs of a job",
        "batchyard ls --array ID --status FAILED    the children of an array",
        "batchyard ls ID:table              what is in its output `table`",
        "batchyard ls -l sha256:…           what is in a blob, with the files' digests",
    )
)
@click.argument("what", required=False, shell_complete=job_ids)
@click.option("-l", "--long", "long_", is_flag=True, help="Show the digests of the files in a tree.")
@click.option("--array", metavar="ID", shell_complete=job_ids, help="List the children of this array, by index.")
@click.option("--from", "start", metavar="INDEX", type=click.IntRange(0), default=0, help="The first child.")
@list_options
@tenant_option
@json_option
@yard_options
def ls(
    doors: Doors,
    what: str | None,
    long_: bool,
    array: str | None,
    start: int,
    limit: int,
    states: Sequence[str],
    tenant: str,
    as_json: bool,
) -> None:
    """List the newest jobs, a job's outputs (ID), an array's children (--array), or what is in a blob (sha256:… or
    ID:OUTPUT).

    --limit and --status are for jobs and children.
    """
    if what is not None and array is not None:
        raise click.UsageError("--array lists children; leave out the other name")
    with doors.client() as client:
        if array is not None:
            print_children(client, client.whole_id(array), limit, states, start, as_json=as_json)
            return
        if what is None:
            print_jobs(client, limit, states, as_json=as_json)
            return
        record = None if what.startswith("sha256:") else _job(client, what)
        if record is not None:
            _print_outputs(record, as_json=as_json)
            return
        digest, owner = client.named(what, tenant)
        blob = client.look(digest, tenant=owner)
    print_json(blob) if as_json else _print_blob(blob, long_=long_)


def _job(client: Client, name: str) -> Record | None:
    """The job of this id; None where the name may be that of an output."""
    try:
        # an output's name is no job's, nothing is waited for
        return client.status(client.whole_id(name), patience_s=0 if ":" in name else None)
    except NotFound:
        if ":" not in name:
            raise
        return None


def _print_outputs(record: Record, *, as_json: bool) -> None:
    if as_json:
        print_json([{"name": name, **blob} for name, blob in record.outputs.items()])
        return
    if record.array is not None:
        click.echo(f"{record.array.told()}; `batchyard ls --array {record.id}` lists them")
        return
    rows = [
        (name, str(o.get("kind")), show.size(o.get("size") or 0), str(o.get("digest") or o.get("uri") or ""))
        for name, o in record.outputs.items()
    ]
    show.print_table(
        ("NAME", "KIND", "SIZE", "DIGEST"),
        rows,
        empty=f"no outputs: the job is {record.state}{'' if record.state.ended else ', they are there at its end'}",
    )


def _print_blob(blob: Mapping[str, Any], *, long_: bool) -> None:
    if blob["kind"] == "file":
        click.echo(f"a file of {blob['size']} bytes: {blob['digest']}")
        return
    width = max((len(str(e.get("size", ""))) for e in blob["entries"]), default=0)
    for entry in blob["entries"]:
        click.echo(_line(entry, width, long_=long_))


def _line(entry: Mapping[str, Any], width: int, *, long_: bool) -> str:
    """`-0444    812 a/b`: kind, mode, bytes, path. What a job wrote must not steer the terminal."""
    path = show.printable(entry["path"])
    tail = {"directory": "/", "symlink": f" -> {show.printable(entry.get('target', ''))}"}.get(entry["type"], "")
    digest = f"{entry.get('digest', ''):71} " if long_ else ""
    return f"{_SIGNS[entry['type']]}{entry['mode']} {entry.get('size', ''):>{width}} {digest}{path}{tail}"
