"""`batchyard schedule list | add | pause | resume | remove | run-now`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..errors import InvalidConfig
from . import show
from .complete import queue_names
from .doors import Doors, examples, json_option, print_json, yard_options
from .submit import described, pairs


@click.group(
    epilog=examples(
        "batchyard schedule add tick --cron '*/5 * * * *' --image busybox -- date",
        "batchyard schedule list",
        "batchyard schedule run-now tick",
        "batchyard schedule pause tick",
        "batchyard schedule remove tick",
    )
)
def schedule() -> None:
    """Jobs that are sent by the clock. Those of the yard's configuration are changed there."""


@schedule.command("list", epilog=examples("batchyard schedule list", "batchyard schedule list --json | jq '.[].next'"))
@json_option
@yard_options
def list_(doors: Doors, as_json: bool) -> None:
    """List schedules with their next time, and what became of their last job."""
    with doors.client() as client:
        found = client.schedules.list()
    if as_json:
        print_json([one.as_json() for one in found])
        return
    now = time.time()
    rows = [
        (one.name, one.when, one.queue, one.state,
         "" if one.next is None else f"{show.moment(one.next)} (in {show.span(one.next - now)})",
         one.last_job or "", one.last_state or "", one.origin, show.printable(one.note))
        for one in found
    ]  # fmt: skip
    columns = ("SCHEDULE", "WHEN", "QUEUE", "STATE", "NEXT", "LAST JOB", "ITS STATE", "FROM", "NOTE")
    show.print_table(columns, rows, empty="no schedules")


@schedule.command(
    context_settings={"allow_interspersed_args": True},
    epilog=examples(
        "batchyard schedule add tick --rate 10m --image busybox -- date",
        "batchyard schedule add nightly --cron '30 2 * * *' --timezone Europe/Berlin \\",
        "    --definition report --param day=Ref::due --overlap skip",
        "batchyard schedule add nightly --cron @daily -f job.yaml --replace",
        "",
        "Ref::due in the command becomes the time that it is for, and",
        "Ref::schedule the schedule's name.",
    ),
)
@click.argument("name")
@click.option("--cron", help="Five fields of a crontab, or @hourly, @daily, @weekly, @monthly, @yearly.")
@click.option("--rate", help="Every so often: 30s, 10m, 1h30m, 2d.")
@click.option("--timezone", help="Of --cron, such as Europe/Berlin.  [default: UTC]")
@click.option("-f", "--file", "file", type=click.Path(path_type=Path, allow_dash=True),
              help="The job as JSON or YAML (- for stdin), as for `submit`.")  # fmt: skip
@click.option("--definition", metavar="NAME[:REV]", help="The job definition; without REV the latest at each time.")
@click.option("--image", help="The container image.")
@click.option("--param", metavar="NAME=VALUE", multiple=True, callback=pairs, help="Repeatable.")
@click.option("--queue", help="[default: the file's, else cpu]", shell_complete=queue_names)
@click.option("--priority", type=click.IntRange(0, 9), help="0 is the most urgent.")
@click.option("--overlap", type=click.Choice(["allow", "skip", "replace"]),
              help="When its last job goes on: send, skip this time, cancel that one.  [default: allow]")  # fmt: skip
@click.option("--catch-up", type=click.Choice(["none", "last", "all"]),
              help="What was missed in a downtime or a pause; all is 100 at most.  [default: last]")  # fmt: skip
@click.option("--jitter-s", type=float, help="Sent up to so much later, always the same for a time.  [default: 0]")
@click.option("--start", help="Not before this time (ISO 8601).")
@click.option("--end", help="Not after this time (ISO 8601).")
@click.option("--paused", is_flag=True, help="To be resumed later.")
@click.option("--replace", is_flag=True, help="In place of the one of this name.")
@json_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@yard_options
def add(
    doors: Doors, name: str, file: Path | None, command: Sequence[str], paused: bool, replace: bool, as_json: bool,
    queue: str | None, **fields: Any,
) -> None:  # fmt: skip
    """Add a schedule. The command of its job follows `--`."""
    from ..schedule import parse

    job, told_queue = _job(file)
    when = ("cron", "rate", "timezone", "priority", "overlap", "catch_up", "jitter_s", "start", "end")
    told = {key: fields[key] for key in when if fields.get(key) is not None}
    if chosen := queue or told_queue:
        told["queue"] = chosen
    state = "PAUSED" if paused else "ENABLED"
    made = parse({"name": name, "job": described(job, fields, command), "state": state, **told})
    with doors.client() as client:
        client.schedule(made, replace=replace)
        view = next((one for one in client.schedules.list() if one.name == name), None)
    if as_json:
        print_json(view and view.as_json())
    else:
        first = f"; first at {show.moment(view.next)}" if view and view.next else ""
        click.echo(f"{name} is {state}{first}")


def _job(file: Path | None) -> tuple[dict[str, Any], str | None]:
    """The job of a file, and the queue that it says."""
    from .jobfile import read

    if file is None:
        return {}, None
    one, *more = read(file)
    if more:
        raise InvalidConfig(f"{one.file} holds {1 + len(more)} jobs, and a schedule sends one; keep one")
    if extra := sorted(one.sending.keys() - {"queue"}):
        raise InvalidConfig(f"{one.at(extra[0])}: {extra[0]} is not for a schedule; leave it out")
    return dict(one.job), one.sending.get("queue")


def _on_each(doors: Doors, names: Sequence[str], act: str, said: str, *, as_json: bool) -> None:
    with doors.client() as client:
        for name in names:
            getattr(client.schedules, act)(name)
            if not as_json:
                click.echo(f"{name} is {said}")
    if as_json:
        print_json(dict.fromkeys(names, said))


@schedule.command(epilog=examples("batchyard schedule pause nightly"))
@click.argument("names", nargs=-1, required=True)
@json_option
@yard_options
def pause(doors: Doors, names: Sequence[str], as_json: bool) -> None:
    """Send nothing until it is resumed. Also one of the yard's configuration; it stays paused over a restart."""
    _on_each(doors, names, "pause", "PAUSED", as_json=as_json)


@schedule.command(epilog=examples("batchyard schedule resume nightly"))
@click.argument("names", nargs=-1, required=True)
@json_option
@yard_options
def resume(doors: Doors, names: Sequence[str], as_json: bool) -> None:
    """Go on; what was missed meanwhile comes by its catch-up policy."""
    _on_each(doors, names, "resume", "ENABLED", as_json=as_json)


@schedule.command(epilog=examples("batchyard schedule remove nightly"))
@click.argument("names", nargs=-1, required=True)
@json_option
@yard_options
def remove(doors: Doors, names: Sequence[str], as_json: bool) -> None:
    """Remove for good. Jobs that it has sent go on."""
    _on_each(doors, names, "remove", "removed", as_json=as_json)


@schedule.command("run-now", epilog=examples("batchyard schedule run-now nightly"))
@click.argument("name")
@json_option
@yard_options
def run_now(doors: Doors, name: str, as_json: bool) -> None:
    """Send its job once more, now, whatever it does otherwise; prints the job's id."""
    with doors.client() as client:
        job_id = client.schedules.run_now(name)
    print_json({"id": job_id}) if as_json else click.echo(job_id)
