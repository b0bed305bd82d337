"""`batchyard environment create | update | enable | disable | delete | list | show`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import show
from .changing import change, field_options, fields_of, show_one
from .complete import environment_names
from .doors import Doors, examples, json_option, print_json, yard_options

_NAME = click.argument("name", shell_complete=environment_names)
_FIELDS = (
    click.option("--vcpus", type=float, help="Of the largest node that it may have."),
    click.option("--memory-mib", type=int, help="Of the largest node."),
    click.option("--gpus", type=int, help="Of the largest node.  [default: 0]"),
    click.option("--disk-gib", type=float, help="Of the largest node.  [default: 100]"),
    click.option("--kind", type=click.Choice(["UNMANAGED", "EC2", "SPOT", "FARGATE", "FARGATE_SPOT"]),
                 help="Whose machines they are.  [default: UNMANAGED, your own]"),
    click.option("--min-vcpus", type=float, help="Of all its machines together.  [default: 0]"),
    click.option("--max-vcpus", type=float, help="Of all its machines together.  [default: no limit]"),
)  # fmt: skip


def _fields(command: Any) -> Any:
    for option in reversed(_FIELDS):
        command = option(command)
    return field_options(command)


@click.group(
    epilog=examples(
        "batchyard environment create rented --vcpus 16 --memory-mib 64000 --max-vcpus 128",
        "batchyard environment list",
        "batchyard environment disable rented",
    )
)
def environment() -> None:
    """Compute environments, changed while the yard runs. Those of the yard's file are changed there, but for their
    state. A node says which one it is in: `batchyard worker --labels environment=NAME`.
    """


@environment.command(
    epilog=examples(
        "batchyard environment create rented --vcpus 16 --memory-mib 64000",
        "batchyard environment create cloud --kind SPOT --max-vcpus 128 \\",
        "    --set 'shapes=[{name: m5.large, vcpus: 2, memory_mib: 8000}]'",
    )
)
@click.argument("name")
@_fields
@click.option("--disabled", is_flag=True, help="Give its nodes no jobs before it is enabled.")
@json_option
@yard_options
def create(
    doors: Doors, name: str, file: Path | None, told: tuple[str, ...], disabled: bool, as_json: bool, **more: Any
) -> None:
    """Make a compute environment; queues may name it then."""
    fields = fields_of({**more, "state": "DISABLED" if disabled else None}, file, told)
    change(doors, "create", "environment", name, fields, as_json=as_json)


@environment.command(epilog=examples("batchyard environment update rented --max-vcpus 64"))
@_NAME
@_fields
@json_option
@yard_options
def update(doors: Doors, name: str, file: Path | None, told: tuple[str, ...], as_json: bool, **more: Any) -> None:
    """Change what is said of a compute environment; the rest stays."""
    fields = fields_of(more, file, told)
    change(doors, "update", "environment", name, fields, as_json=as_json)


@environment.command(epilog=examples("batchyard environment enable rented"))
@_NAME
@json_option
@yard_options
def enable(doors: Doors, name: str, as_json: bool) -> None:
    """Give its nodes jobs again."""
    change(doors, "update", "environment", name, {"state": "ENABLED"}, as_json=as_json)


@environment.command(epilog=examples("batchyard environment disable rented"))
@_NAME
@json_option
@yard_options
def disable(doors: Doors, name: str, as_json: bool) -> None:
    """Give its nodes no more jobs. What runs there goes on."""
    change(doors, "update", "environment", name, {"state": "DISABLED"}, as_json=as_json)


@environment.command(epilog=examples("batchyard environment disable rented; batchyard environment delete rented"))
@_NAME
@json_option
@yard_options
def delete(doors: Doors, name: str, as_json: bool) -> None:
    """Delete a disabled compute environment that no queue names and no node is in."""
    with doors.client() as client:
        client.at_run_time.delete("environment", name)
    print_json({"name": name, "deleted": True}) if as_json else click.echo(f"environment {name} is deleted")


@environment.command("list", epilog=examples("batchyard environment list"))
@json_option
@yard_options
def list_(doors: Doors, as_json: bool) -> None:
    """List compute environments by name, and where they come from."""
    with doors.client() as client:
        found = client.at_run_time.view("environment")
    if as_json:
        print_json([{"name": name, **one} for name, one in found.items()])
        return
    rows = [
        (name, one["state"], one["kind"], f"{one['vcpus']:g} vCPU, {one['memory_mib']} MiB, {one['gpus']} GPU",
         f"{one['max_vcpus']:g}" if "max_vcpus" in one else "", one["origin"])
        for name, one in found.items()
    ]  # fmt: skip
    show.print_table(("ENVIRONMENT", "STATE", "KIND", "LARGEST NODE", "MAX VCPUS", "FROM"), rows, empty="none")


@environment.command("show", epilog=examples("batchyard environment show rented"))
@_NAME
@json_option
@yard_options
def show_(doors: Doors, name: str, as_json: bool) -> None:
    """Show all that is said of a compute environment."""
    show_one(doors, "environment", name, as_json=as_json)
