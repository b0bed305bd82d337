"""Bars on stderr, for people at a terminal: bytes of a transfer, and jobs that are waited for.

A pipe, a file and `--json` get none. A bar goes away when it is done; what is printed on stdout is the result.
"""

from __future__ import annotations

import os
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .show import one_line, size

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, Task
    from rich.text import Text

    from ..arrays import Array
    from ..record import Record

_BAR = 24


def wanted(*, as_json: bool = False, quiet: bool = False) -> bool:
    """Whether somebody would see it."""
    return not (as_json or quiet) and sys.stderr.isatty()


@contextmanager
def transfer(what: str, total_bytes: int | None, *, shown: bool) -> Iterator[Callable[[int], None] | None]:
    """A bar of bytes, rate and time left. Gives what is to be told of each step in bytes, or None when not shown.

    total_bytes: None where it is not known.
    """
    if not shown:
        yield None
        return
    from rich.markup import escape
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(_BAR), _bytes_column(), TimeRemainingColumn())
    with _progress(*columns) as progress:
        task = progress.add_task(escape(what), total=total_bytes)
        yield lambda count: progress.advance(task, count)


def content_bytes(path: Path) -> int | None:
    """What `put` would read of a file or directory, about; None where nobody can say yet."""
    total = 0
    try:
        if not path.is_dir():
            return path.stat().st_size
        for folder, _, names in os.walk(path):
            for name in names:
                found = os.lstat(os.path.join(folder, name))
                total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    except OSError:
        return None  # `put` says what is wrong
    return total


@contextmanager
def jobs(count: int, *, shown: bool) -> Iterator[Callable[[Record], None] | None]:
    """A bar of jobs that have ended, of an array its children. Gives what hears of each change of a job, or None when
    not shown.
    """
    if not shown:
        yield None
        return
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

    with _progress(
        BarColumn(_BAR), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    ) as progress:
        task, states = progress.add_task("", total=count), dict[str, str]()
        arrays: dict[str, Array] = {}

        def hear(record: Record) -> None:
            states[record.id] = str(record.state)
            if record.array is not None:
                arrays[record.id] = record.array
            said = one_line(record).partition(" ")[2] if count == 1 else counted(states, count)
            ended = sum(state in {"SUCCEEDED", "FAILED"} for i, state in states.items() if i not in arrays)
            done = ended + sum(one.ended for one in arrays.values())
            total = count - len(arrays) + sum(one.size for one in arrays.values())
            progress.update(task, completed=done, total=total, description=escape(said))

        yield hear


def counted(states: Mapping[str, str], count: int) -> str:
    """`3 succeeded, 1 failed, 4 running, 2 waiting`: id → state of those seen, of `count` jobs."""
    by = Counter(states.values())
    running = by["RUNNING"] + by["STARTING"]
    parts = {
        "succeeded": by["SUCCEEDED"],
        "failed": by["FAILED"],
        "running": running,
        "waiting": count - by["SUCCEEDED"] - by["FAILED"] - running,
    }
    return ", ".join(f"{n} {word}" for word, n in parts.items() if n)


def _progress(*columns: ProgressColumn) -> Progress:
    from rich.console import Console
    from rich.progress import Progress

    return Progress(*columns, console=Console(stderr=True), transient=True)


def _bytes_column() -> ProgressColumn:
    from rich.progress import ProgressColumn
    from rich.table import Column
    from rich.text import Text

    class Bytes(ProgressColumn):
        """`1.5 MiB of 3.0 GiB, 120.3 MiB/s`."""

        def render(self, task: Task) -> Text:
            of = "" if task.total is None else f" of {size(task.total)}"
            rate = task.finished_speed or task.speed
            return Text(f"{size(task.completed)}{of}" + (f", {size(rate)}/s" if rate else ""))

    return Bytes(table_column=Column(no_wrap=True))
