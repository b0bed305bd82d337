"""What lets the containers of one gang talk: their network, and where the main one is reached.

A node says by `gangs` in its heartbeat with which others it can have a network in common (`domain`); all nodes of a
gang have the same. With `bridge`, the default, these are the nodes of one container engine, and each gang has a bridge
of its own there; with `host` or a network that the operator has made, any that say the same.
"""

from __future__ import annotations

import hashlib
import logging
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

from batchyard.broker.errors import BatchyardError, NotFound
from batchyard.broker.job import Job
from batchyard.broker.record import Membership

from .engine import Engine

log = logging.getLogger(__name__)


def domain(mode: str, engine: Callable[[], str]) -> str:
    """Nodes that say the same here can have a gang together. mode: `--gang-network`. Raises EngineUnavailable."""
    return f"engine:{engine()}" if mode == "bridge" else f"network:{mode}"


class GangNetwork:
    """One member's. mode: `--gang-network`; address: where this machine is reached by others."""

    def __init__(self, engine: Engine, job: Job, member: Membership, *, yard: str, mode: str, address: str) -> None:
        self._engine, self._member, self._yard, self._address = engine, member, yard, address
        self._own = False
        self._joined = False
        if job.network in {"none", "host"}:
            self.name: str = job.network
        elif mode == "bridge":
            self._own, self.name = True, network_name(yard, member)
        else:
            self.name = mode
        self._internal = job.networking == "none"

    def make(self) -> None:
        """Before the container is created; main makes it, and is there before the others. Raises EngineUnavailable."""
        self._joined = True
        if self._own and self._member.is_main:
            self._engine.create_network(self.name, labels(self._yard, self._member), internal=self._internal)

    def address_of(self, container_id: str) -> str:
        """Where the others reach this container. Raises EngineUnavailable."""
        if self.name == "none":
            return ""
        if self.name == "host":
            return self._address
        try:
            return self._engine.address(container_id, self.name)
        except NotFound:
            return ""

    def remove(self) -> bool:
        """After the container is gone: the last one of the gang takes the network away. Raises EngineUnavailable."""
        return not (self._own and self._joined) or self._engine.remove_network(self.name)


def network_name(yard: str, member: Membership) -> str:
    """One for each placement of a gang in a yard. A job's id is its producer's word, a name is not."""
    gang = hashlib.sha256(member.job_id.encode()).hexdigest()[:16]
    return f"batchyard-{yard[:8]}-{gang}-{member.placement}"


def labels(yard: str, member: Membership) -> dict[str, str]:
    """What a gang's network carries."""
    return {
        "batchyard.yard": yard,
        "batchyard.gang": member.job_id,
        "batchyard.placement": str(member.placement),
    }


def sweep(engine: Engine, yard: str, lives: Callable[[str, int], bool]) -> None:
    """Removes the networks of gangs that are over. lives: (job id, placement); asked after the listing.

    Raises EngineUnavailable, BrokerUnavailable.
    """
    for network in engine.list_networks({"batchyard.yard": yard}):
        job_id, placement = network.labels.get("batchyard.gang"), network.labels.get("batchyard.placement", "")
        if job_id and not lives(job_id, int(placement) if placement.isdigit() else 0):
            engine.remove_network(network.name)


def machine_address(broker_url: str) -> str:
    """This machine's address on the way to the broker."""
    parts = urlsplit(broker_url)
    if parts.scheme not in {"redis", "rediss"} or not parts.hostname:
        return "127.0.0.1"
    try:
        family, _, _, _, where = socket.getaddrinfo(parts.hostname, parts.port or 6379, socket.AF_INET)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:  # nothing is sent
            probe.connect(where)
            return str(probe.getsockname()[0])
    except OSError as error:
        log.warning("this machine's address is not known (%s); give --address", error)
        return "127.0.0.1"


def quietly(act: Callable[[], object], what: str) -> None:
    """What the next sweep does too."""
    try:
        act()
    except BatchyardError as error:
        log.warning("%s: %s", what, error)
