"""`batchyard shares`."""

from __future__ import annotations

import click

from ..errors import InvalidConfig
from . import show
from .complete import queue_names
from .doors import Doors, examples, json_option, print_json, yard_options


@click.command(epilog=examples("batchyard shares lab", "batchyard shares lab --json | jq '.[0].share'"))
@click.argument("queue", shell_complete=queue_names)
@json_option
@yard_options
def shares(doors: Doors, queue: str, as_json: bool) -> None:
    """Show what the shares of a queue have used, in the order in which they are served.

    COUNTED is USED times WEIGHT; the lowest is served next.
    """
    from ..shares import shares as read

    with doors.client() as client:
        config = client.yard.config()
        if queue not in config.queues:
            raise InvalidConfig(f'queue "{queue}" is not known; choose of {", ".join(config.by_priority())}')
        found = read(client.yard, queue)
        if not found and config.queues[queue].fair_share is None:
            raise InvalidConfig(f'queue "{queue}" has no fair share; its jobs go by priority, then in order of arrival')
    if as_json:
        print_json([one.as_json() for one in found])
        return
    rows = [
        (one.share, f"{one.counted:.1f}", f"{one.used:.1f}", f"{one.weight:g}", f"{one.running:g}", str(one.ready),
         str(one.jobs))
        for one in found
    ]  # fmt: skip
    columns = ("SHARE", "COUNTED", "USED vCPU-s", "WEIGHT", "RUNNING vCPU", "READY", "JOBS")
    show.print_table(columns, rows, empty="no active shares")
