"""`batchyard cancel`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from .complete import job_ids
from .doors import Doors, examples, json_option, print_json, yard_options

_SAID = {
    "stored": "is not known yet; it will be cancelled if it comes within a day",
    "ended": "has ended already",
    "cancelled": "is cancelled",
    "stopping": "is being stopped",
    "running": "runs on: only waiting jobs were to be cancelled",
}


@click.command(
    epilog=examples(
        "batchyard cancel ID ID",
        'batchyard cancel --waiting-only --reason "not needed" ID',
        "batchyard list --status RUNNABLE --json | jq -r '.[].id' | xargs batchyard cancel",
    )
)
@click.argument("ids", nargs=-1, required=True, shell_complete=job_ids)
@click.option("--reason", default="cancelled by its owner", show_default=True, help="Kept on the job's record.")
@click.option("--waiting-only", is_flag=True, help="Leave those alone that run already.")
@json_option
@yard_options
def cancel(doors: Doors, ids: Sequence[str], reason: str, waiting_only: bool, as_json: bool) -> None:
    """End jobs. One that runs gets SIGTERM, and SIGKILL when it does not end."""
    with doors.client() as client:
        answers = {i: client.cancel(i, reason, terminate=not waiting_only) for i in ids}
    if as_json:
        print_json(answers)
    else:
        for job_id, answer in answers.items():
            click.echo(f"{job_id} {_SAID[answer]}")
