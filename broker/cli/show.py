"""What people see: tables and short forms. Times are local."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from ..record import Record

COLOURS = {
    "SUCCEEDED": "green",
    "FAILED": "red",
    "RUNNING": "cyan",
    "STARTING": "cyan",
    "ok": "green",
    "warn": "yellow",
    "fail": "red",
}
_WIDE = 10_000  # of a pipe or a file: whole lines


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str, cut: Collection[str] = ()
) -> None:
    """Rows of text; the first column is never cut. A state is coloured by its name. cut: where some are named, each row
    has one line, and where the terminal is too narrow these columns give way first.
    """
    from rich.table import Table
    from rich.text import Text

    alike: dict[str, Any] = {"no_wrap": True, "overflow": "ellipsis"} if cut else {}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for n, column in enumerate(columns):
        whole = n == 0 or (bool(cut) and column not in cut)
        table.add_column(Text(column, **alike), no_wrap=whole, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=COLOURS.get(cell, ""), **alike) for cell in row))
    if table.row_count:
        print_rich(table)
    else:
        print(empty)


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Name and value, one a line; those without a value are left out."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        if value:
            table.add_row(name, Text(value, style=COLOURS.get(value, "")))
    print_rich(table)


def print_rich(table: Table) -> None:
    """On a terminal as wide as it is; else as wide as the table."""
    from rich.console import Console

    if sys.stdout.isatty():
        Console(highlight=False).print(table)
        return
    console = Console(width=_WIDE, highlight=False)
    with console.capture() as whole:
        console.print(table)
    print("\n".join(line.rstrip() for line in whole.get().splitlines()))


def shortened(text: str, most: int) -> str:
    """One line of at most so many characters, with … where it was cut."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def printable(text: str) -> str:
    """Text of others for a terminal: what is no sign is shown as Python writes it, `\\x1b`."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def moment(seconds: float | None) -> str:
    """`2026-01-31 12:00:00 CET`, local time."""
    return "" if seconds is None else datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def span(seconds: float) -> str:
    """`0.4s`, `12s`, `3m05s`, `2h10m`, `3d04h`."""
    seconds = max(0.0, seconds)
    if seconds < 10:
        return f"{seconds:.1f}s"
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes, hours, days = int(seconds) // 60, int(seconds) // 3600, int(seconds) // 86400
    if hours < 1:
        return f"{minutes}m{int(seconds) % 60:02}s"
    return f"{hours}h{minutes % 60:02}m" if days < 1 else f"{days}d{hours % 24:02}h"


def size(count: float) -> str:
    """`812 B`, `1.5 MiB`."""
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} TiB"


def took(record: Record, now_s: float) -> str:
    """How long the job has run, or ran."""
    if record.started is None:
        return ""
    return span((now_s if record.ended is None else record.ended) - record.started)


def one_line(record: Record) -> str:
    """`<id> FAILED on n1: <reason> (exit 3)`; of an array also its children by state, and whether it was not run."""
    where = f" on {record.node}" if record.node else ""
    why = f": {record.reason}" if record.reason and record.state in {"FAILED", "RUNNABLE"} else ""
    code = "" if record.exit_code is None else f" (exit {record.exit_code})"
    children = f" ({record.array.told()})" if record.array else ""
    reused = f", not run: reused from {record.reused}" if record.reused else ""
    return f"{record.id} {record.state}{where}{why}{code}{children}{reused}"
