"""The command line. `main` is the console script; a command's modules are imported when it is called.

The layers above add commands through the entry point group `batchyard.commands`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points, version
from typing import Any

import click

from ..errors import BatchyardError, InvalidConfig, InvalidJob

GROUP = "batchyard.commands"
EXIT_USAGE, EXIT_ERROR, EXIT_INTERRUPTED = 2, 1, 130

# name -> (module of this package and attribute, what it does). What the layers above add has no module here.
COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("", "Run a whole yard on this machine: Redis, controller, one node, Flower."),
    "submit": ("submit:submit", "Send a job; prints its id."),
    "wait": ("wait:wait", "Wait for jobs; exits with the job's exit code."),
    "status": ("look:status", "Show what the yard knows of jobs."),
    "why": ("why:why", "Say why a job waits, or how it ended."),
    "ls": ("ls:ls", "List jobs, a job's outputs, or what is in a blob."),
    "list": ("look:list_jobs", "List the newest jobs."),
    "logs": ("logs:logs", "Print a job's log; -f follows it."),
    "cancel": ("cancel:cancel", "End jobs, whatever they do."),
    "put": ("", "Keep a file or directory as a blob; prints its digest."),
    "get": ("", "Write a blob to a file or directory."),
    "cache": ("", "Look after blobs: stats, ls, verify, gc, pin, unpin."),
    "queues": ("look:queues", "Show queues and what waits in them."),
    "queue": ("queue:queue", "Queues at run time: create, update, enable, disable, delete, list, show, snapshot."),
    "environment": ("environment:environment", "Compute environments at run time: create, update, delete, list, show."),
    "events": ("events:events", "Print changes of jobs' states; -f follows them."),
    "shares": ("shares:shares", "Show what the shares of a queue have used, and who is next."),
    "nodes": ("look:nodes", "Show nodes and what they have."),
    "definition": ("definition:definition", "Job definitions: register, deregister, list, show."),
    "schedule": ("schedule:schedule", "Jobs that are sent by the clock: list, add, pause, resume, remove, run-now."),
    "consumable": ("consumable:consumable", "Licence tokens and the like: create, update, list, show, delete."),
    "schema": ("submit:schema", "Print the JSON schema of a job."),
    "deadletters": ("deadletters:deadletters", "Messages that could not be taken in: list, show, drop."),
    "keys": ("keys:keys", "Keys that blobs and jobs are sealed under: list, rotate, retire, print."),
    "doctor": ("", "Check what the yard stands on: engine, Redis, store, keys, disk, clock."),
    "completion": ("complete:completion", "Print the script of a shell's completion."),
    "controller": ("serve:controller", "Run the controller: intake, reaping, what follows jobs."),
    "worker": ("", "Run a node of this machine."),
    "flower": ("serve:flower", "Run Flower, a web page of queues, nodes and jobs."),
}

EXAMPLES = """\b
Examples:
  batchyard up                                       in one terminal
  batchyard submit --image busybox --wait -- sh -c 'echo hello'
  batchyard put table.csv                            prints sha256:…
  batchyard submit --image busybox --input /in/t=sha256:… \\
      --output n=/work/n -- sh -c 'wc -l </in/t >/work/n'
  batchyard list --status FAILED
  batchyard logs -f ID

\b
A yard is found by --state DIR (BATCHYARD_STATE, else ~/.batchyard), or by
--broker, --key-file and --store (BATCHYARD_BROKER_URL, BATCHYARD_KEY_FILE,
BATCHYARD_STORE). Most commands print JSON with --json.

\b
Exit codes: 0 well; 1 it failed; 2 asked wrongly. `wait` and `submit --wait`:
the job's own; 1 for a job that failed without one; 124 not in time;
130 cancelled, expired, or Ctrl-C.
"""


class Lazy(click.Group):
    """Knows its commands by name, and loads one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        added = _added()
        mine = [name for name, (where, _) in COMMANDS.items() if where or name in added]
        return [*mine, *sorted(added.keys() - COMMANDS.keys())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        where = COMMANDS.get(cmd_name, ("", ""))[0]
        if where:
            module, _, name = where.partition(":")
            command: click.Command = getattr(import_module(f".{module}", __package__), name)
            return command
        entry = _added().get(cmd_name)
        return None if entry is None else entry.load()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, self._about(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def _about(self, ctx: click.Context, name: str) -> str:
        if name in COMMANDS:
            return COMMANDS[name][1]
        command = self.get_command(ctx, name)
        return command.get_short_help_str(100) if command else ""


def _added() -> Mapping[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXAMPLES)
@click.version_option(package_name="batchyard", message="batchyard %(version)s")
def cli() -> None:
    """Batch jobs in containers on your own machines."""


def main(args: Sequence[str] | None = None) -> None:
    """The console script. Never shows a traceback, unless BATCHYARD_DEBUG is set; ends the process."""
    sys.exit(run(args))


def run(args: Sequence[str] | None = None) -> int:
    """The exit code of a command line; what went wrong is said on stderr."""
    try:
        code: Any = cli.main(args=args, prog_name="batchyard", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return EXIT_USAGE
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # `batchyard logs … | head`: nobody reads any more, and the interpreter's own flush at exit must not complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except Exception as error:
        if os.environ.get("BATCHYARD_DEBUG"):
            raise
        click.echo(f"error: {_said(error)}", err=True)
        return EXIT_USAGE if isinstance(error, InvalidConfig | InvalidJob) else EXIT_ERROR


def _said(error: Exception) -> str:
    if isinstance(error, BatchyardError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f'"{error.filename}": {error.strerror}' if error.filename else error.strerror
    return (
        f"{type(error).__name__}: {error} (this is a fault of batchyard {version('batchyard')}; "
        "BATCHYARD_DEBUG=1 shows where)"
    )
