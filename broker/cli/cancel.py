"""`batchyard cancel`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from .complete import job_ids
from .doors import Doors, examples, json_option, print_json, yard_options

if TYPE_CHECKING:
    from ..client import Client

_UNKNOWN = "unknown"
_LEAST = 8  # characters of a cut id: what is cancelled does not come back
_SAID = {
    "stored": "is not taken in yet; it is cancelled if it comes within a day",
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
@click.option("--ahead", is_flag=True, help="An id that is not known yet too: its job is cancelled when it comes.")
@json_option
@yard_options
def cancel(doors: Doors, ids: Sequence[str], reason: str, waiting_only: bool, ahead: bool, as_json: bool) -> int:
    """End jobs. One that runs gets SIGTERM, and SIGKILL when it does not end.

    An id may be cut to its first eight or more characters.
    Exits with 1 when there is an id that the yard does not know, unless --ahead is given.
    """
    answers: dict[str, str] = {}
    with doors.client() as client:
        for job_id in [client.whole_id(one, least=_LEAST) for one in ids]:  # all are known before one is cancelled
            there = ahead or _sent(client, job_id)
            answers[job_id] = client.cancel(job_id, reason, terminate=not waiting_only) if there else _UNKNOWN
    if as_json:
        print_json(answers)
    for job_id, answer in answers.items():
        if answer == _UNKNOWN:
            click.echo(f'error: no job "{job_id}" is known; if it is still to come, cancel it with --ahead', err=True)
        elif not as_json:
            click.echo(f"{job_id} {_SAID[answer]}")
    return 1 if _UNKNOWN in answers.values() else 0


def _sent(client: Client, job_id: str) -> bool:
    """Whether there is such a job, or a message of it. Between the two looks it may have been taken in."""
    return bool(client.records([job_id]) or client.why(job_id)[0].code != _UNKNOWN or client.records([job_id]))
