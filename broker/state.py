"""States of a job and the one table of its legal moves.

SUBMITTED ─ wait → PENDING → RUNNABLE ─ claim → STARTING → RUNNING → SUCCEEDED | FAILED
                      |         ↑_________ retry, drain, lost node ________|
                      ↑___________________ retry after a backoff __________|
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """AWS Batch's states; PENDING is a job that waits for others to end, for its eta, or for a backoff, and an
    array while its children go on.
    """

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
    State.PENDING: frozenset({State.RUNNABLE, State.FAILED, State.SUCCEEDED}),  # the last for an array only
    State.RUNNABLE: frozenset({State.STARTING, State.FAILED}),
    State.STARTING: frozenset({State.RUNNING, State.PENDING, State.RUNNABLE, State.SUCCEEDED, State.FAILED}),
    State.RUNNING: frozenset({State.PENDING, State.RUNNABLE, State.SUCCEEDED, State.FAILED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
}
