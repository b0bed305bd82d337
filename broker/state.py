"""States of a job and the one table of its legal moves.

SUBMITTED ─ eta? → PENDING → RUNNABLE ─ claim → STARTING → RUNNING → SUCCEEDED | FAILED
                                ↑_________ retry, drain, lost node ________|
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """AWS Batch's states; PENDING is a job whose eta has not come."""

    SUBMITTED = "SUBMITTED"
    PENDING = "PENDING"
    RUNNABLE = "RUNNABLE"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"

    @property
    def ended(self) -> bool:
        return self in {State.SUCCEEDED, State.FAILED}


MOVES: dict[State, frozenset[State]] = {
    State.SUBMITTED: frozenset({State.PENDING, State.RUNNABLE, State.FAILED}),
    State.PENDING: frozenset({State.RUNNABLE, State.FAILED}),
    State.RUNNABLE: frozenset({State.STARTING, State.FAILED}),
    State.STARTING: frozenset({State.RUNNING, State.RUNNABLE, State.SUCCEEDED, State.FAILED}),
    State.RUNNING: frozenset({State.RUNNABLE, State.SUCCEEDED, State.FAILED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
}
