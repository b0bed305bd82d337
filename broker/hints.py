"""Where a sealed object is beside the durable store: hints that nodes give each other, each with an expiry.

A hint may be wrong: what it costs is a question to a node that answers no. An object goes by its name in the store,
which is an HMAC and a tenant's own, never by its digest. A few bytes a hint, in Redis:

    by:blob:NAME:holders   the nodes that have it, until when
    by:blob:NAME:flight    the node that fetches it from the durable store, so that others wait for it
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .functions import Functions
from .store import Yard

HELD_S = 900.0
"""How long a node is believed to have an object; who still has it says so again before."""
FLIGHT_S = 30.0
"""How long a fetch is believed to go on without a sign of it."""
_SILENT_S = 60.0
_MOST = 4
_AT_ONCE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A node, and the host and port of its peer door."""

    node: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sought:
    """mine: this node is to fetch it, and is known to. flies: the one peer fetches it. Else the peers have it."""

    peers: tuple[Peer, ...] = ()
    flies: bool = False

    @property
    def mine(self) -> bool:
        return not self.peers


class Hints:
    """One node's view. All raise BrokerUnavailable."""

    def __init__(self, yard: Yard, node: str) -> None:
        self._node = node
        self._functions = Functions(yard.redis)

    def seek(self, name: str, *, without: Iterable[str] = ()) -> Sought:
        """Who has the object or fetches it, but for these nodes; if nobody does, this node is the one that does now."""
        what, *rest = self._functions.call("seek", name, self._node, _ms(FLIGHT_S), _ms(_SILENT_S), _MOST, *without)
        words = [one.decode() for one in rest]
        peers = tuple(Peer(node=words[n], address=words[n + 1]) for n in range(0, len(words), 2))
        return Sought(peers=peers, flies=what == b"flies")

    def fly(self, name: str) -> bool:
        """This node's fetch goes on. False: another one may have begun."""
        return bool(self._functions.call("fly", name, self._node, _ms(FLIGHT_S)))

    def land(self, names: Sequence[str]) -> None:
        """This node fetches these no more, and does not have them."""
        self._hold(names, 0)

    def hold(self, names: Sequence[str]) -> None:
        """This node has these, for HELD_S as far as it knows, and fetches none of them any more."""
        self._hold(names, _ms(HELD_S))

    def _hold(self, names: Sequence[str], held_ms: int) -> None:
        for at in range(0, len(names), _AT_ONCE):
            self._functions.call("hold", self._node, held_ms, *names[at : at + _AT_ONCE])

    def drop(self, names: Sequence[str], node: str | None = None) -> None:
        """A node, by default this one, does not have these."""
        for at in range(0, len(names), _AT_ONCE):
            self._functions.call("drop", node or self._node, *names[at : at + _AT_ONCE])

    def forget(self, name: str) -> None:
        """It was deleted: as far as is known, nobody has it."""
        self._functions.call("drop", "", name)


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
