"""`batchyard deadletters list | show | drop`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from . import show
from .doors import Doors, examples, json_option, print_json, yard_options


@click.group(
    epilog=examples("batchyard deadletters list", "batchyard deadletters show 3", "batchyard deadletters drop --all")
)
def deadletters() -> None:
    """Messages that no job could be made of, each with its reason. They stop nothing."""


@deadletters.command("list", epilog=examples("batchyard deadletters list", "batchyard deadletters list --json"))
@json_option
@yard_options
def list_(doors: Doors, as_json: bool) -> None:
    """List them, oldest first."""
    with doors.client() as client:
        letters = client.dead_letters.list()
    if as_json:
        print_json([{"number": n, **letter} for n, letter in letters.items()])
        return
    rows = [(n, show.moment(_at(letter)), _list_of(letter), str(letter.get("reason"))) for n, letter in letters.items()]
    show.print_table(("NUMBER", "SINCE", "LIST", "REASON"), rows, empty="no dead letters")


@deadletters.command("show", epilog=examples("batchyard deadletters show 3"))
@click.argument("number")
@json_option
@yard_options
def show_(doors: Doors, number: str, as_json: bool) -> None:
    """Show one with the message as it came. It is sealed in Redis; what is shown may be secret."""
    with doors.client() as client:
        letter = client.dead_letters.show(number)
    if as_json:
        print_json({"number": number, **letter})
        return
    show.print_facts([("number", number), ("since", show.moment(_at(letter))), ("list", _list_of(letter)),
                      ("reason", str(letter.get("reason")))])  # fmt: skip
    click.echo(str(letter.get("raw", "")))


@deadletters.command("drop", epilog=examples("batchyard deadletters drop 3 4", "batchyard deadletters drop --all"))
@click.argument("numbers", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that there are now.")
@json_option
@yard_options
def drop(doors: Doors, numbers: Sequence[str], everything: bool, as_json: bool) -> None:
    """Forget dead letters for good."""
    if bool(numbers) == everything:
        raise click.UsageError("give the numbers of dead letters, or --all")
    with doors.client() as client:
        gone = client.dead_letters.drop_all() if everything else client.dead_letters.drop(numbers)
    print_json({"dropped": gone}) if as_json else click.echo(f"dropped {gone}")


def _at(letter: dict[str, Any]) -> float | None:
    return float(letter["at"]) / 1000 if letter.get("at") else None


def _list_of(letter: dict[str, Any]) -> str:
    return str(letter.get("list") or "").replace("\x06\x16", " at priority ")
