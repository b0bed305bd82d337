"""One line of the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """goal: in words, of the ratio where there is a peer, else of ours."""

    row: str
    ours: float
    unit: str
    goal: str
    holds: bool
    peer: float | None = None
    peer_name: str | None = None

    @property
    def ratio(self) -> float | None:
        return None if self.peer is None else round(self.ours / self.peer, 3)

    def as_json(self) -> dict[str, Any]:
        fields = asdict(self) | {"ratio": self.ratio}
        order = ("row", "ours", "peer", "peer_name", "unit", "ratio", "goal", "holds")
        return {name: fields[name] for name in order}


def show(rows: Sequence[Row]) -> None:
    """The table, on standard output."""
    table = Table(title="bench")
    for column in ("row", "ours", "peer", "unit", "ratio", "goal", "holds"):
        table.add_column(column, justify="left" if column in {"row", "goal", "unit"} else "right", overflow="fold")
    for row in rows:
        peer = "" if row.peer is None else f"{row.peer:.4g} ({row.peer_name})"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        table.add_row(row.row, f"{row.ours:.4g}", peer, row.unit, ratio, row.goal, "yes" if row.holds else "NO")
    Console(width=150).print(table)
