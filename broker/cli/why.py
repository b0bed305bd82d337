"""`batchyard why`."""

from __future__ import annotations

import click

from .complete import job_ids
from .doors import Doors, examples, json_option, print_json, yard_options
from .show import printable

EXIT_UNKNOWN = 1


@click.command(epilog=examples("batchyard why ID", "batchyard why --json ID | jq -r '.reasons[].code'"))
@click.argument("job_id", metavar="ID", shell_complete=job_ids)
@json_option
@yard_options
def why(doors: Doors, job_id: str, as_json: bool) -> int:
    """Say why a job waits: its place, what nodes lack, an eta …; or what it does, or how it ended.

    Exits with 1 for a job that nobody knows.
    """
    with doors.client() as client:
        reasons = client.why(client.whole_id(job_id))
    if as_json:
        print_json({"id": job_id, "reasons": [reason.as_json() for reason in reasons]})
    else:
        for reason in reasons:
            click.echo(printable(reason.text))
    return EXIT_UNKNOWN if reasons[0].code == "unknown" else 0
