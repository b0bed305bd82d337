"""`batchyard logs`."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from ..errors import BrokerUnavailable
from .complete import job_ids
from .doors import Doors, examples, json_option, yard_options
from .wait import say_unknown

if TYPE_CHECKING:
    from ..client import Client


@click.command(epilog=examples("batchyard logs ID", "batchyard logs -f ID", "batchyard logs -t ID | grep stderr"))
@click.argument("job_id", metavar="ID", shell_complete=job_ids)
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends.")
@click.option("-t", "--timestamps", is_flag=True, help="Print time and stream before each line.")
@json_option
@yard_options
def logs(doors: Doors, job_id: str, follow: bool, timestamps: bool, as_json: bool) -> int:
    """Print the log of a job's last attempt, both streams in order; what is not the job's own goes to stderr.

    Of a running job what is there so far, from its live tail; of an ended one all that was kept. --json prints one
    object a line: time, stream (stdout, stderr, or platform for what is not the job's own), text.
    """
    with doors.client() as client:
        job_id = client.whole_id(job_id)
        if follow:
            with suppress(BrokerUnavailable):  # for a while, that is waited out too
                say_unknown(client, [job_id])
        if not print_log(client, job_id, follow=follow, timestamps=timestamps, as_json=as_json, awaited=follow):
            record = client.status(job_id)
            if not record.state.ended:
                click.echo(f"no lines yet: the job is {record.state}", err=True)
    return 0


def print_log(
    client: Client, job_id: str, *, follow: bool, timestamps: bool = False, as_json: bool = False, awaited: bool = False
) -> int:
    """Prints it; how many lines there were. awaited: the job was sent just now."""
    from ..joblog import text_of

    count = 0
    for line in client.logs(job_id, follow=follow, awaited=awaited):
        count += 1
        if timestamps and not as_json:
            click.echo(line)
            continue
        at, stream, text = text_of(line)
        if as_json:
            click.echo(json.dumps({"time": at, "stream": stream, "text": text}, ensure_ascii=False))
        elif stream == "platform":
            click.echo(f"[batchyard] {text}", err=True)
        else:
            click.echo(text)
    return count
