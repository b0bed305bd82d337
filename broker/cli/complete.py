"""`batchyard completion`, and what a shell is offered for ids and names when a yard answers quickly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem, get_completion_class

from .doors import Doors, examples

if TYPE_CHECKING:
    from ..store import Yard

_JOBS, _WITHIN_S = 50, 0.5
_VARIABLE = "_BATCHYARD_COMPLETE"
_WHERE = {
    "bash": "~/.local/share/bash-completion/completions/batchyard",
    "zsh": "a folder of $fpath, as `_batchyard`",
    "fish": "~/.config/fish/completions/batchyard.fish",
}


@click.command(
    epilog=examples(
        'eval "$(batchyard completion bash)"                 this shell only',
        f"batchyard completion bash >{_WHERE['bash']}",
        'batchyard completion zsh >"${fpath[1]}/_batchyard"',
        f"batchyard completion fish >{_WHERE['fish']}",
    )
)
@click.argument("shell", type=click.Choice(list(_WHERE)))
def completion(shell: str) -> None:
    """Print the script that makes a shell complete commands, options, queues and job ids.

    Written to where the shell looks for such scripts, it works in every new shell; see the examples.
    """
    made = get_completion_class(shell)
    assert made is not None
    root = click.get_current_context().find_root().command
    click.echo(made(root, {}, "batchyard", _VARIABLE).source())


def job_ids(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The newest jobs that begin like this, each with its state."""
    found: list[CompletionItem] = []
    with suppress(Exception), _yard(ctx) as yard:
        found = [
            CompletionItem(r.id, help=f"{r.state} {r.name or r.image}")
            for r in yard.recent(_JOBS)
            if r.id.startswith(incomplete)
        ]
    return found


def queue_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The configured queues that begin like this."""
    found: list[CompletionItem] = []
    with suppress(Exception), _yard(ctx) as yard:
        queues = yard.config().queues
        found = [CompletionItem(n, help=queues[n].state) for n in sorted(queues) if n.startswith(incomplete)]
    return found


def environment_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The compute environments that begin like this."""
    found: list[CompletionItem] = []
    with suppress(Exception), _yard(ctx) as yard:
        there = yard.config().environments
        found = [CompletionItem(n, help=there[n].state) for n in sorted(there) if n.startswith(incomplete)]
    return found


@contextmanager
def _yard(ctx: click.Context) -> Iterator[Yard]:
    """The yard that the line names so far. It must answer at once: somebody waits for the key that they pressed."""
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    from ..seal import KeyRing
    from ..store import Yard

    once = {"socket_timeout": _WITHIN_S, "socket_connect_timeout": _WITHIN_S, "retry": Retry(NoBackoff(), 0)}
    yard = Yard(Doors.of(ctx).endpoints().broker_url, KeyRing.new(), **once)
    with closing(yard.redis):
        yield yard
