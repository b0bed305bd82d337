"""What the demo shows: steps with what they wait for, the jobs while they run, and a picture of it all (SVG)."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from batchyard.broker.record import Record
from packages import Tell

WIDTH = 96
_ENDED = {"SUCCEEDED", "FAILED"}
_RUNNING = {"STARTING", "RUNNING"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A canvas under way. ids: of its jobs, in the order in which they may run."""

    title: str
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """Inputs of jobs: blobs that were fetched from the store, and those that the node had."""

    fetched: int = 0
    fetched_bytes: float = 0
    here: int = 0

    def __add__(self, other: Staged) -> Staged:
        return Staged(
            fetched=self.fetched + other.fetched,
            fetched_bytes=self.fetched_bytes + other.fetched_bytes,
            here=self.here + other.here,
        )


class Screen:
    """The terminal, and a copy of what stays on it when a picture is wanted."""

    def __init__(self, picture: Path | None) -> None:
        self.out = Console(highlight=False)
        self._picture = picture
        self._copy = Console(
            record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, highlight=False, color_system="truecolor"
        )

    def say(self, what: RenderableType) -> None:
        """A line or a table that stays. Strings may have rich's markup."""
        self.out.print(what, soft_wrap=isinstance(what, str))
        self._copy.print(what)

    def done(self, what: str, took_s: float) -> None:
        """Something is done."""
        self.say(f"[green]✓[/] {escape(what)} [dim]{took_s:.1f} s[/]")

    def section(self, title: str) -> None:
        """What follows is about this."""
        self.say(f"\n[bold]{escape(title)}[/]")

    @contextmanager
    def step(self, what: str) -> Iterator[Tell]:
        """Says what is done, what it waits for, and in the end how long it took."""
        began = time.monotonic()
        if not self.out.is_terminal:
            self.out.print(f"{what} …", soft_wrap=True)
        with self.out.status(f"{escape(what)} …") as status:
            yield lambda said: status.update(f"{escape(what)}: {escape(said)} …")
        self.done(what, time.monotonic() - began)

    @contextmanager
    def board(self, parts: Sequence[Part]) -> Iterator[Callable[[Record], None]]:
        """Shows jobs as they go on; gives what hears of each change. Without a terminal, a line for each job."""
        seen: dict[str, Record] = {}
        drawn: list[RenderableType] = []
        whole = sum(len(part.ids) for part in parts)

        def hear(record: Record) -> None:
            seen[record.id] = record
            ended = sum(r.state in _ENDED for r in seen.values())
            if record.state in _ENDED and not self.out.is_terminal:
                self.out.print(f"  {ended}/{whole} {record.name}: {record.state} on {record.node}", soft_wrap=True)
            running = {r.node for r in seen.values() if r.state in _RUNNING}
            if not drawn and ended > whole / 3 and len(running) > 1:
                drawn.append(progress(parts, seen))
                self._copy.print(*drawn)

        if not self.out.is_terminal:
            yield hear
            return
        live = Live(console=self.out, get_renderable=lambda: progress(parts, dict(seen)), transient=True)
        with live:
            yield hear

    def save(self) -> None:
        """Writes the picture, if one is wanted."""
        if self._picture is not None:
            self._picture.parent.mkdir(parents=True, exist_ok=True)
            self._copy.save_svg(str(self._picture), title="make demo")


def progress(parts: Sequence[Part], seen: Mapping[str, Record]) -> RenderableType:
    """A bar for each canvas, and what runs on each node."""
    bars = Table.grid(padding=(0, 2), pad_edge=True)
    for part in parts:
        ended = sum(seen[i].state in _ENDED for i in part.ids if i in seen)
        bar = ProgressBar(total=len(part.ids), completed=ended, width=40, complete_style="cyan")
        bars.add_row(Text(part.title), bar, f"{ended}/{len(part.ids)} jobs")
    running: dict[str, list[str]] = {}
    for record in seen.values():
        if record.state in _RUNNING:
            running.setdefault(record.node or "", []).append(record.name)
    lines = [Text(f"  on {node}: {', '.join(names)}", style="cyan") for node, names in sorted(running.items())]
    return Group(bars, *lines)


def summary(records: Sequence[Record], staged: Mapping[str, Staged], nodes: Sequence[str]) -> Table:
    """Where the jobs ran and what their inputs cost, a row for each kind of job."""
    table = Table(box=None, header_style="dim")
    table.add_column("kind")
    for name in ("jobs", *(f"on {node}" for node in nodes), "median s", "inputs", "were there", "fetched"):
        table.add_column(name, justify="right")
    kinds: dict[str, list[Record]] = {}
    for record in records:
        kinds.setdefault(kind_of(record.name), []).append(record)
    for kind, of in [*kinds.items(), ("all", list(records))]:
        where, total = Counter(r.node for r in of), sum((staged[r.id] for r in of), Staged())
        seconds = [r.ended - r.started for r in of if r.started and r.ended]
        table.add_row(
            kind,
            str(len(of)),
            *(str(where[node]) for node in nodes),
            f"{median(seconds):.1f}" if seconds else "",
            str(total.fetched + total.here),
            str(total.here),
            f"{total.fetched_bytes / 1e6:.1f} MB" if total.fetched else "0",
            style="bold" if kind == "all" else None,
        )
    return table


def kind_of(name: str) -> str:
    """`part-3` → `part`: what the jobs of a group have in common."""
    head, dash, number = name.rpartition("-")
    return head if dash and number.isdigit() else name
