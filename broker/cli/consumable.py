"""`batchyard consumable create | update | list | show | delete`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from . import show
from .doors import Doors, examples, json_option, print_json, yard_options

if TYPE_CHECKING:
    from ..consumables import Consumable

_KINDS = ("REPLENISHABLE", "NON_REPLENISHABLE")


@click.group(
    epilog=examples(
        "batchyard consumable create licence-a --total 10",
        "batchyard submit --image busybox --consumable licence-a=2 -- sleep 10",
        "batchyard consumable list",
        "batchyard consumable update licence-a --add 5",
        "batchyard consumable delete licence-a",
    )
)
def consumable() -> None:
    """Consumable resources: licence tokens and the like, which jobs take while they run, or use up."""


@consumable.command(
    epilog=examples(
        "batchyard consumable create licence-a --total 10",
        "batchyard consumable create credits --total 1000 --kind NON_REPLENISHABLE --json",
    )
)
@click.argument("name")
@click.option("--total", type=click.IntRange(0), required=True, help="How many there are.")
@click.option("--kind", type=click.Choice(_KINDS, case_sensitive=False), default=_KINDS[0], show_default=True,
              help="Whether a job gives back what it took, or has used it up when it has run.")  # fmt: skip
@json_option
@yard_options
def create(doors: Doors, name: str, total: int, kind: str, as_json: bool) -> None:
    """Make a consumable resource known; jobs may then ask for it."""
    from ..consumables import Kind

    with doors.client() as client:
        _say(client.consumables.create(name, total, kind=Kind(kind.upper())), as_json=as_json)


@consumable.command(
    epilog=examples(
        "batchyard consumable update licence-a --set 20",
        "batchyard consumable update licence-a --add 5 --client-token order-4711",
        "batchyard consumable update licence-a --remove 5",
    )
)
@click.argument("name")
@click.option("--set", "set_", type=click.IntRange(0), metavar="N", help="So many in all.")
@click.option("--add", type=click.IntRange(0), metavar="N", help="So many more.")
@click.option("--remove", type=click.IntRange(0), metavar="N", help="So many fewer. Jobs that hold some keep them.")
@click.option("--client-token", metavar="TEXT", help="Said again within 8 hours, nothing changes a second time.")
@json_option
@yard_options
def update(
    doors: Doors, name: str, set_: int | None, add: int | None, remove: int | None, client_token: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Change how many there are. One of --set, --add and --remove."""
    said: list[tuple[Any, int]] = [
        (how, n) for how, n in (("SET", set_), ("ADD", add), ("REMOVE", remove)) if n is not None
    ]
    if len(said) != 1:
        raise click.UsageError("give one of --set, --add and --remove")
    ((how, quantity),) = said
    with doors.client() as client:
        _say(client.consumables.update(name, quantity, how=how, token=client_token), as_json=as_json)


@consumable.command("list", epilog=examples("batchyard consumable list", "batchyard consumable list --json"))
@json_option
@yard_options
def list_(doors: Doors, as_json: bool) -> None:
    """List consumable resources by name."""
    with doors.client() as client:
        found = client.consumables.list()
    if as_json:
        print_json([one.as_json() for one in found])
        return
    rows = [(c.name, str(c.kind), f"{c.available} of {c.total}", str(c.in_use), str(c.jobs)) for c in found]
    show.print_table(("NAME", "KIND", "AVAILABLE", "IN USE", "JOBS"), rows, empty="no consumable resources")


@consumable.command(
    "show", epilog=examples("batchyard consumable show licence-a", "batchyard consumable show licence-a --json")
)
@click.argument("name")
@json_option
@yard_options
def show_(doors: Doors, name: str, as_json: bool) -> None:
    """Show one: how many there are, and how many jobs hold some."""
    with doors.client() as client:
        found = client.consumables.show(name)
    if as_json:
        print_json(found.as_json())
        return
    show.print_facts([
        ("name", found.name), ("kind", str(found.kind)), ("total", str(found.total)),
        ("available", str(found.available)), ("in use", f"{found.in_use} by {found.jobs} jobs"),
        ("created", show.moment(found.created)), ("changed", show.moment(found.changed)),
    ])  # fmt: skip


@consumable.command(epilog=examples("batchyard consumable delete licence-a"))
@click.argument("name")
@json_option
@yard_options
def delete(doors: Doors, name: str, as_json: bool) -> None:
    """Remove one that no job holds. Jobs that still wait for it say so, until it is created again."""
    with doors.client() as client:
        client.consumables.delete(name)
    if as_json:
        print_json({"name": name, "deleted": True})
    else:
        click.echo(f"{name} is deleted")


def _say(made: Consumable, *, as_json: bool) -> None:
    if as_json:
        print_json(made.as_json())
    else:
        click.echo(f"{made.name}: {made.available} of {made.total} available")
