"""`batchyard wait`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from ..errors import BrokerUnavailable, NotEnded
from . import progress
from .complete import job_ids
from .doors import Doors, examples, json_option, print_json, yard_options
from .show import one_line

if TYPE_CHECKING:
    from ..client import Client
    from ..record import Record

_MOST_NAMED = 8
EXIT_FAILED, EXIT_LATE, EXIT_CANCELLED = 1, 124, 130


@click.command(
    epilog=examples(
        "batchyard wait ID ID",
        'batchyard wait --timeout-s 600 ID || echo "ended with $?"',
        "batchyard submit -f jobs.yaml | xargs batchyard wait --quiet",
    )
)
@click.argument("ids", nargs=-1, required=True, shell_complete=job_ids)
@click.option("--timeout-s", type=float, help="Give up after so many seconds (exit code 124); the jobs go on.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing on the way.")
@json_option
@yard_options
def wait(doors: Doors, ids: Sequence[str], timeout_s: float | None, quiet: bool, as_json: bool) -> int:
    """Wait until jobs have ended; each one's end is printed. On a terminal, a bar counts them meanwhile.

    Exits with the job's exit code; of several jobs, with the first that is not 0. A job that failed without an exit
    code, or with 0 (an output is missing), counts as 1, a cancelled or expired one as 130. 124: not in time.
    """
    with doors.client() as client:
        try:
            ids = [client.whole_id(i) for i in ids]
            if not quiet:
                say_unknown(client, ids)
        except BrokerUnavailable as error:  # for a while, that is waited out too
            if doors.explained(error) is not error:
                raise
        return wait_and_say(client, ids, timeout_s=timeout_s, as_json=as_json, quiet=quiet)


def say_unknown(client: Client, ids: Sequence[str]) -> None:
    """Which are waited for although they may never come."""
    known = client.records(ids)
    for job_id in ids:
        if job_id not in known:
            click.echo(f"{job_id} is not known to the yard yet; it is waited for", err=True)


@contextmanager
def going_on(ids: Sequence[str]) -> Iterator[None]:
    """Says at Ctrl-C that it has ended the wait, and not the jobs."""
    try:
        yield
    except KeyboardInterrupt:
        who = "the job goes on" if len(ids) == 1 else f"the {len(ids)} jobs go on"
        named = " ".join(ids[:_MOST_NAMED]) + (" …" if len(ids) > _MOST_NAMED else "")
        click.echo(f"\n{who}; `batchyard wait {named}` waits again", err=True)
        raise


def wait_and_say(client: Client, ids: Sequence[str], *, timeout_s: float | None, as_json: bool, quiet: bool) -> int:
    """Waits, prints the ends on stdout and what happens meanwhile on stderr; the exit code."""

    said: dict[str, str] = {}

    def say(record: Record) -> None:
        if not record.state.ended and said.get(record.id) != record.state:
            click.echo(one_line(record), err=True)
        said[record.id] = record.state

    try:
        with going_on(ids), progress.jobs(len(ids), shown=progress.wanted(as_json=as_json, quiet=quiet)) as hear:
            records = client.wait(ids, timeout_s=timeout_s, on_change=hear or (None if quiet else say))
    except NotEnded as error:
        click.echo(f"error: {error}", err=True)
        return EXIT_LATE
    if as_json:
        print_json([record.as_json() for record in records])
    else:
        for record in records:
            click.echo(one_line(record))
    codes = [exit_code(record, cancelled=client.cancelled(record)) for record in records]
    return next((code for code in codes if code), 0)


def exit_code(record: Record, *, cancelled: bool) -> int:
    """What `wait` exits with for an ended job."""
    if record.state == "SUCCEEDED":
        return 0
    if cancelled:
        return EXIT_CANCELLED
    return record.exit_code if record.exit_code and 0 < record.exit_code < 256 else EXIT_FAILED
