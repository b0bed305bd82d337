"""`batchyard queue create | update | enable | disable | delete | list | show | snapshot`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import show
from .changing import change, field_options, fields_of, show_one
from .complete import environment_names, queue_names
from .doors import Doors, examples, json_option, print_json, yard_options

_NAME = click.argument("name", shell_complete=queue_names)
_FIELDS = (
    click.option("-e", "--environment", "environments", multiple=True, shell_complete=environment_names,
                 help="In the order in which they are filled; 1 to 3."),
    click.option("--priority", type=int, help="Higher is served first.  [default: 1]"),
    click.option("--default-priority", type=click.IntRange(0, 9), help="Of messages without one.  [default: 0]"),
    click.option("--outputs-expire-s", type=click.IntRange(1),
                 help="Delete outputs and logs of its jobs so long after their end.  [default: never]"),
)  # fmt: skip


def _fields(command: Any) -> Any:
    for option in reversed(_FIELDS):
        command = option(command)
    return field_options(command)


@click.group(
    epilog=examples(
        "batchyard queue create night --environment here --priority 0",
        "batchyard queue list",
        "batchyard queue disable night",
        "batchyard queue delete night",
    )
)
def queue() -> None:
    """Queues, changed while the yard runs. Those of the yard's file are changed there, but for their state."""


@queue.command(
    epilog=examples(
        "batchyard queue create night --environment here --priority 0",
        "batchyard queue create big -e own -e rented --set overflow_s=30",
        "batchyard queue create open -f queue.yaml",
    )
)
@click.argument("name")
@_fields
@click.option("--disabled", is_flag=True, help="Take no new jobs before it is enabled.")
@json_option
@yard_options
def create(
    doors: Doors, name: str, file: Path | None, told: tuple[str, ...], disabled: bool, as_json: bool, **more: Any
) -> None:
    """Make a queue; producers may send to it at once."""
    fields = fields_of({**more, "state": "DISABLED" if disabled else None}, file, told)
    change(doors, "create", "queue", name, fields, as_json=as_json)


@queue.command(
    epilog=examples(
        "batchyard queue update night --priority 3",
        "batchyard queue update big -e own",
        "batchyard queue update tests --outputs-expire-s 86400",
        "batchyard queue update tests --set outputs_expire_s=null    never, from now on",
    )
)
@_NAME
@_fields
@json_option
@yard_options
def update(doors: Doors, name: str, file: Path | None, told: tuple[str, ...], as_json: bool, **more: Any) -> None:
    """Change what is said of a queue; the rest stays. Jobs in it stay too."""
    fields = fields_of(more, file, told)
    change(doors, "update", "queue", name, fields, as_json=as_json)


@queue.command(epilog=examples("batchyard queue enable night"))
@_NAME
@json_option
@yard_options
def enable(doors: Doors, name: str, as_json: bool) -> None:
    """Take new jobs."""
    change(doors, "update", "queue", name, {"state": "ENABLED"}, as_json=as_json)


@queue.command(epilog=examples("batchyard queue disable night"))
@_NAME
@json_option
@yard_options
def disable(doors: Doors, name: str, as_json: bool) -> None:
    """Take no new jobs: they fail at the door. Those that are in it go on."""
    change(doors, "update", "queue", name, {"state": "DISABLED"}, as_json=as_json)


@queue.command(epilog=examples("batchyard queue disable night; batchyard queue delete night"))
@_NAME
@json_option
@yard_options
def delete(doors: Doors, name: str, as_json: bool) -> None:
    """Delete a disabled queue. Its jobs are ended, also running ones; then it is gone."""
    with doors.client() as client:
        client.at_run_time.delete("queue", name)
    said = f"queue {name} goes when its jobs have ended"
    print_json({"name": name, "deleting": True}) if as_json else click.echo(said)


@queue.command("list", epilog=examples("batchyard queue list", "batchyard queue list --json | jq -r '.[].name'"))
@json_option
@yard_options
def list_(doors: Doors, as_json: bool) -> None:
    """List queues by name, and where they come from. `batchyard queues` shows what is in them."""
    with doors.client() as client:
        found = client.at_run_time.view("queue")
    if as_json:
        print_json([{"name": name, **one} for name, one in found.items()])
        return
    rows = [
        (name, "DELETING" if one.get("deleting") else one["state"], str(one["priority"]),
         ", ".join(one["environments"]), one["origin"])
        for name, one in found.items()
    ]  # fmt: skip
    show.print_table(("QUEUE", "STATE", "PRIORITY", "ENVIRONMENTS", "FROM"), rows, empty="no queues")


@queue.command("show", epilog=examples("batchyard queue show night"))
@_NAME
@json_option
@yard_options
def show_(doors: Doors, name: str, as_json: bool) -> None:
    """Show all that is said of a queue."""
    show_one(doors, "queue", name, as_json=as_json)


@queue.command(epilog=examples("batchyard queue snapshot cpu", "batchyard queue snapshot cpu --json | jq .front"))
@_NAME
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
@json_option
@yard_options
def snapshot(doors: Doors, name: str, limit: int, as_json: bool) -> None:
    """Show the first jobs of a queue that may run, in the order in which they are taken."""
    with doors.client() as client:
        found = client.snapshot(name, limit)
    if as_json:
        print_json(found.as_json())
        return
    rows = [(str(one.position), one.id, show.moment(one.since), one.share) for one in found.front]
    show.print_table(("POSITION", "ID", "READY SINCE", "SHARE"), rows, empty="no job is ready")
    if found.blocked:
        click.echo(f"the first one is blocked: {found.blocked}")
