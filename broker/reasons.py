"""One thing that there is to know of a job, for people and for programs."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One thing to know. code: for programs; text: for people; details: figures behind the text, JSON types."""

    code: str
    text: str
    details: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """JSON types only."""
        return {"code": self.code, "text": self.text, **self.details}


def told(code: str, text: str, **details: Any) -> Reason:
    """A reason, with its details by name."""
    return Reason(code=code, text=text, details=details)


def count(n: int, what: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def moment(seconds: float) -> str:
    """Local time."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def span(seconds: float) -> str:
    """`0.4 s`, `3 min 5 s`, `2 h 10 min`."""
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    hours, minutes = divmod(int(seconds) // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {int(seconds) % 60} s"
