"""Create and start as one step that leaves nothing behind when it fails."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from batchyard.broker.errors import BatchyardError

from .protocol import ContainerSpec, CreateAgain, Engine, InitMissing


def launch(
    engine: Engine, spec: ContainerSpec, *, say: Callable[[str], None], created: Callable[[str], None] | None = None
) -> str:
    """Create and start a container, and return its id.

    `created` hears of the id between the two calls (to record it); `say` gets a line for the job's log when the
    container runs without an init process. Errors are those of `Engine.create` and `Engine.start`; the created
    container is removed first, as far as the engine answers.
    """
    try:
        return _once(engine, spec, created)
    except InitMissing as error:
        say(f"{error}; this job runs without an init process: signals reach only its first process")
    except CreateAgain as error:
        say(f"{error}; started again")
    return _once(engine, spec, created)


def _once(engine: Engine, spec: ContainerSpec, created: Callable[[str], None] | None) -> str:
    container_id = engine.create(spec)
    try:
        if created is not None:
            created(container_id)
        engine.start(container_id)
    except BaseException:
        with suppress(BatchyardError):  # the sweep by label finds it when the engine is back
            engine.remove(container_id)
        raise
    return container_id
