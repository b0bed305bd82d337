"""What the controller does with the children of arrays, a bounded chunk in each call."""

from __future__ import annotations

from typing import Any

from . import arrays
from .errors import NotFound
from .functions import Functions
from .store import Yard


class Children:
    """Any number of processes may do this at once, and again: each call does what is left. Raises BrokerUnavailable."""

    def __init__(self, yard: Yard) -> None:
        self._yard, self._functions = yard, Functions(yard.redis)

    def step(self, array: str, *, spawn: bool = True) -> bool:
        """A chunk of what is to be done with the children of an array. True: there is more, call again.

        Without `spawn` no new ones are made, unless to end at once; a Redis without memory refuses that only.
        """
        return bool(self._functions.call("array" if spawn else "array_close", array))

    def end(self, most: int) -> bool:
        """Ends children that no node holds. True: there are more, call again."""
        return bool(self._functions.call("children_end", most))

    def result(self, array: str, ended_s: float) -> dict[str, Any]:
        """What the producer of an array gets whose children have all ended. Raises NotFound."""
        found = self._yard.hashes([array])
        if not found:
            raise NotFound(f'no job "{array}"')
        return arrays.result(array, found[array][0], ended_s)
