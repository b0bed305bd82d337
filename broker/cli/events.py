"""`batchyard events`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from . import show
from .complete import queue_names
from .doors import Doors, examples, print_json, yard_options

if TYPE_CHECKING:
    from ..events import Event, Events

_BLOCK_MS = 1000
_REASON = 200


@click.command(
    epilog=examples(
        "batchyard events",
        "batchyard events --follow --queue gpu",
        "batchyard events --webhook",
        "batchyard events -f --json | jq -c '.detail | {jobId, status, statusReason}'",
    )
)
@click.option("-f", "--follow", is_flag=True, help="Go on until Ctrl-C.")
@click.option("--limit", type=click.IntRange(0, 20000), default=20, show_default=True, help="Of those that were.")
@click.option("--queue", shell_complete=queue_names, help="Only this queue's.")
@click.option("--json", "as_json", is_flag=True, help="Each as one line of JSON, as AWS Batch sends it to EventBridge.")
@click.option("--webhook", is_flag=True, help="How far the webhook has come instead, and what went wrong last.")
@yard_options
def events(doors: Doors, follow: bool, limit: int, queue: str | None, as_json: bool, webhook: bool) -> None:
    """Print changes of jobs' states, oldest first. The newest 100,000 or so are kept."""
    with doors.client() as client:
        stream = client.events
        if webhook:
            _print_webhook(stream, as_json=as_json)
            return
        cursor, found = stream.newest(limit, queue)
        _print(stream, found, as_json=as_json)
        while follow:
            some = stream.after(cursor, block_ms=_BLOCK_MS)
            cursor = some[-1].cursor if some else cursor
            _print(stream, [one for one in some if queue in (None, one.queue)], as_json=as_json)


def _print_webhook(stream: Events, *, as_json: bool) -> None:
    told = stream.delivered()
    if as_json:
        print_json(told)
        return
    if told is None:
        click.echo("no webhook is told of events; see `events.webhook` of the yard's configuration")
        return
    waiting = f"{told['waiting']}{' or more' if told['waiting'] >= stream.MOST_WAITING else ''}"
    failures = str(told["failures"] or "")
    show.print_facts(
        [("delivered up to", show.moment(told["upto"])), ("events that wait", waiting), ("failed tries", failures),
         ("last reason", show.printable(told["note"]))]
    )  # fmt: skip


def _print(stream: Events, found: Sequence[Event], *, as_json: bool) -> None:
    if as_json:
        for one in stream.shaped(found):
            click.echo(json.dumps(one, ensure_ascii=False))
        return
    for event in found:
        reason = show.printable(show.shortened(event.reason, _REASON))
        when, state = show.moment(event.at_ms / 1000), "BLOCKED" if event.blocked else event.state
        click.echo(f"{when}  {event.job_id}  {event.queue}  {state}  {reason}".rstrip())
