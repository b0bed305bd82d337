"""What a node asks of a container engine for containers that talk to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """One of a listing."""

    name: str
    labels: Mapping[str, str]


class Networks(Protocol):
    """Part of `Engine`. Every method raises `EngineUnavailable` when the engine does not answer."""

    def identity(self) -> str:
        """The same for all who use this engine, so that they can tell that they share its networks."""
        ...

    def create_network(self, name: str, labels: Mapping[str, str], *, internal: bool) -> None:
        """Make a bridge on the engine's machine; nothing happens when there is one of this name.

        internal: its containers reach each other and nothing else.
        """

    def remove_network(self, name: str) -> bool:
        """False while a container that runs is in it; nothing happens when it is gone."""
        ...

    def list_networks(self, labels: Mapping[str, str]) -> Sequence[Network]:
        """Those that carry every one of these labels."""
        ...

    def address(self, container_id: str, network: str) -> str:
        """The IPv4 address of a running container there, "" when it has none. NotFound: it is gone."""
        ...
