"""Queues and compute environments of a running yard: made, changed, deleted, looked at. `changes` has the rules.

Each change replaces the whole configuration if it is still the one that the change was made from; nodes and
controllers hear of it at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from . import changes, keys
from .changes import What
from .config import Config
from .errors import BrokerUnavailable, InvalidConfig
from .functions import Functions
from .state import State
from .store import Yard

log = logging.getLogger(__name__)
_TRIES = 50
AT_ONCE = 256  # records that are looked at in one step of a deletion


class Queues:
    """Changes of a yard. All raise InvalidConfig, NotFound (no such name, no yard), BrokerUnavailable."""

    def __init__(self, yard: Yard) -> None:
        self._yard = yard

    def create(self, what: What, name: str, fields: Mapping[str, Any]) -> None:
        """fields: as a file says them, see `config.Queue` and `environment.Environment`."""
        self.change(lambda config: changes.create(config, what, name, fields))

    def update(self, what: What, name: str, fields: Mapping[str, Any]) -> None:
        """Other values of these fields; jobs that wait stay, also if they fit nowhere any more."""
        self.change(lambda config: changes.update(config, what, name, fields))

    def delete(self, what: What, name: str) -> None:
        """An environment is gone at once; a queue as soon as its jobs are ended, which the controller does."""
        if what == "environment" and (up := self._nodes_of(name)):
            raise InvalidConfig(f'environment "{name}" has the nodes {", ".join(up)}; stop them first')
        self.change(lambda config: changes.delete(config, what, name))

    def apply(self, given: Config | None, otherwise: Callable[[], Config]) -> Config:
        """A file's configuration beside what was made at run time; without a file what is there, else another one."""
        for _ in range(_TRIES):
            before, text = self._before()
            if given is None and before is not None:
                return before
            after = changes.of_file(before, given or otherwise())
            if self._yard.configure(after, expected=text):
                return after
        raise _contended()

    def view(self, what: What) -> dict[str, dict[str, Any]]:
        """By name: what a file would say, `origin` (file, runtime) and, of queues, `deleting`. JSON types only."""
        config = self._yard.config()
        plain = config.model_dump(mode="json", exclude_none=True)["queues" if what == "queue" else "environments"]
        deleting = {"deleting": True}
        return {
            name: {
                **one,
                "origin": changes.origin(config, what, name),
                **(deleting if what == "queue" and name in config.made.deleting else {}),
            }
            for name, one in sorted(plain.items())
        }

    def _before(self) -> tuple[Config | None, bytes]:
        text: bytes | None = self._yard.guard(lambda: self._yard.redis.get(keys.CONFIG))
        return (None, b"") if text is None else self._yard.config_and_text()

    def change(self, change: Callable[[Config], Config]) -> None:
        """Makes the next configuration out of that which holds, called again when another one came between."""
        for _ in range(_TRIES):
            config, text = self._yard.config_and_text()
            after = change(config)
            if after == config or self._yard.configure(after, expected=text):
                return
        raise _contended()

    def _nodes_of(self, environment: str) -> list[str]:
        since = self._yard.now_s() - self._yard.config().lease_s
        found = self._yard.nodes().items()
        return sorted(
            n for n, about in found if about.get("environment") == environment and float(about["seen"]) > since
        )


class Removals:
    """Ends the jobs of queues that are being deleted, some at each round, and then takes the queue away.

    Any number of processes may do it. All records of the yard are gone through once or more: it is rare.
    """

    def __init__(self, yard: Yard) -> None:
        self._yard, self._cursor = yard, 0
        self._queues, self._functions = Queues(yard), Functions(yard.redis)

    def round(self, config: Config) -> bool:
        """True when there is more to do at once. Raises BrokerUnavailable."""
        deleting = frozenset(config.made.deleting)
        if not deleting:
            return False
        redis = self._yard.redis
        self._cursor, found = self._yard.guard(lambda: redis.zscan(keys.JOBS, self._cursor, count=AT_ONCE))
        ids = [job_id.decode() for job_id, _ in found]
        pipe = redis.pipeline(transaction=False)
        for job_id in ids:
            pipe.hmget(keys.job(job_id), "queue", "state")
        for job_id, (queue, state) in zip(ids, self._yard.guard(pipe.execute) if ids else [], strict=True):
            if queue is not None and queue.decode() in deleting and not State(state.decode()).ended:
                self._yard.cancel(job_id, f'queue "{queue.decode()}" was deleted', terminate=True)
        for name in deleting:
            self._take_away(name)
        return self._cursor != 0

    def _take_away(self, name: str) -> None:
        """Once nothing of it is left."""
        if self._yard.depth([name])[name].total or not self._functions.call("queue_gone", name):
            return
        self._queues.change(lambda config: changes.deleted(config, name))
        log.info("queue %s is deleted", name)


def _contended() -> BrokerUnavailable:
    return BrokerUnavailable("the yard's configuration is changed by many at once; try again")
