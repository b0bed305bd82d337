"""`batchyard definition register | deregister | list | show`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..errors import InvalidConfig, InvalidJob
from . import show
from .doors import Doors, examples, json_option, print_json, yard_options


@click.group(
    epilog=examples(
        "batchyard definition register -f nightly.yaml",
        "batchyard definition list",
        "batchyard definition show nightly",
        "batchyard submit --definition nightly --param day=monday",
        "batchyard definition deregister nightly:1",
    )
)
def definition() -> None:
    """Job definitions: templates with revisions. A job names one, and says only what is to be different."""


@definition.command(
    epilog=examples(
        "batchyard definition register -f nightly.yaml",
        "batchyard definition register -f job.yaml --name nightly",
        "",
        "nightly.yaml, the fields of a job, and its name as a definition:",
        "  definition: nightly",
        "  image: busybox",
        "  command: [sh, -c, 'echo Ref::day']",
        "  parameters: {day: today}          # unless the job says another",
        "  vcpus: 0.5",
    )
)
@click.option("-f", "--file", "file", required=True, type=click.Path(path_type=Path, allow_dash=True),
              help="Definitions as JSON or YAML (- for stdin). All are checked before one is registered.")  # fmt: skip
@click.option("--name", help="The name, instead of the file's `definition`.")
@json_option
@yard_options
def register(doors: Doors, file: Path, name: str | None, as_json: bool) -> None:
    """Register the next revision of each definition in a file; prints NAME:REVISION."""
    from ..definition import check_name, check_template
    from .jobfile import SENDING, read

    told = read(file)
    if name is not None and len(told) > 1:
        raise click.UsageError(f"--name is for one definition, and {told[0].file} holds {len(told)}")
    templates: list[tuple[str, dict[str, Any]]] = []
    for one in told:
        if extra := sorted(one.sending):
            raise InvalidConfig(f"{one.at(extra[0])}: {extra[0]} is said when a job is sent; leave it out")
        template = {key: value for key, value in one.job.items() if key not in {"definition", *SENDING}}
        try:
            templates.append((check_name(name or one.job.get("definition")), check_template(template)))
        except InvalidJob as error:
            raise one.explained(error) from None
    with doors.client() as client:
        made = [client.definitions.register(*one) for one in templates]
    if as_json:
        print_json([m.as_json() for m in made] if len(made) > 1 else made[0].as_json())
        return
    for m in made:
        click.echo(m.reference)


@definition.command(epilog=examples("batchyard definition deregister nightly:1 nightly:2"))
@click.argument("references", nargs=-1, required=True, metavar="NAME:REV...")
@json_option
@yard_options
def deregister(doors: Doors, references: Sequence[str], as_json: bool) -> None:
    """Make revisions INACTIVE: they serve no new job. Jobs that were taken in go on."""
    with doors.client() as client:
        for reference in references:
            client.definitions.deregister(reference)
            if not as_json:
                click.echo(f"{reference} is INACTIVE")
    if as_json:
        print_json(dict.fromkeys(references, "INACTIVE"))


@definition.command(
    "list", epilog=examples("batchyard definition list", "batchyard definition list --all --json | jq '.[].definition'")
)
@click.option("--all", "every", is_flag=True, help="Every revision, INACTIVE ones too.  [default: the latest ACTIVE]")
@json_option
@yard_options
def list_(doors: Doors, every: bool, as_json: bool) -> None:
    """List definitions by name. An INACTIVE revision is kept for 180 days."""
    with doors.client() as client:
        found = client.definitions.list(every=every)
    if as_json:
        print_json([d.as_json() for d in found])
        return
    rows = [(d.reference, str(d.state), show.printable(d.image), show.moment(d.created)) for d in found]
    show.print_table(("DEFINITION", "STATE", "IMAGE", "CREATED"), rows, empty="no job definitions")


@definition.command(
    "show", epilog=examples("batchyard definition show nightly", "batchyard definition show nightly:2 --json | jq .job")
)
@click.argument("reference", metavar="NAME[:REV]")
@json_option
@yard_options
def show_(doors: Doors, reference: str, as_json: bool) -> None:
    """Show one revision, by default the latest ACTIVE one, with all that it says. Needs the yard's keys."""
    import yaml

    with doors.client() as client:
        found = client.definitions.show(reference)
    if as_json:
        print_json(found.as_json())
        return
    show.print_facts([("definition", found.reference), ("state", str(found.state)),
                      ("created", show.moment(found.created))])  # fmt: skip
    click.echo(yaml.safe_dump(found.template, sort_keys=False, allow_unicode=True).rstrip())
