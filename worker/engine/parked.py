"""Network namespaces made beforehand, for containers without a network.

A namespace of its own is two fifths of what starting a container costs. So each container with network `none` joins
the empty namespace of a parked container that does nothing, one at a time, and leaves it to the next one. What stays in
such a namespace is its loopback interface; nothing that runs without CAP_NET_ADMIN can change it.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from batchyard.broker.errors import BatchyardError, ImageError, NotFound, StartError

from . import pause
from .logs import LogSource
from .networks import Network
from .protocol import ContainerSpec, CreateAgain, Engine, Exit, Listed

log = logging.getLogger(__name__)
MEMORY_MIB = 6


class ParkedNetworks:
    """An engine in front of another. labels: those of the node, for its parked containers. idle: how many to keep.

    Use it where the engine's machine is one of `pause.machines()`. Its parked containers are in no listing; those that
    a killed node left are, and may be removed: a namespace lives as long as anybody is in it.
    """

    def __init__(self, engine: Engine, *, machine: str, labels: Mapping[str, str], idle: int = 8) -> None:
        self._engine, self._machine, self._labels, self._most = engine, machine, labels, idle
        self._lock = threading.Lock()
        self._idle: list[str] = []
        self._users: dict[str, str] = {}  # container -> the parked one that it joins
        self._mark = uuid.uuid4().hex  # on what this process parks
        self._ended: set[str] = set()  # in use when one was found gone: not for another container
        self._left: set[str] = set()  # parked containers that could not be removed
        self._imported = self._closed = False

    def create(self, spec: ContainerSpec) -> str:
        if spec.network != "none":
            return self._engine.create(spec)
        park = self._take()
        try:
            container = self._engine.create(replace(spec, network=f"container:{park}"))
        except BaseException as error:
            self._give(park)
            if isinstance(error, StartError | NotFound) and not self._alive(park):
                self._renounce()
                raise CreateAgain(f"the network that it was to join is gone ({error})") from None
            raise
        with self._lock:
            self._users[container] = park
        return container

    def start(self, container_id: str) -> None:
        """CreateAgain: its parked container is gone, as after a restart of the engine."""
        try:
            self._engine.start(container_id)
        except (StartError, NotFound) as error:
            park = self._users.get(container_id)
            if park is None or self._alive(park):
                raise
            self._renounce()
            raise CreateAgain(f"the network that it was to join is gone ({error})") from None

    def remove(self, container_id: str, *, force: bool = True) -> None:
        self._engine.remove(container_id, force=force)
        with self._lock:
            self._left.discard(container_id)
            park = self._users.pop(container_id, None)
        if park is not None:
            self._give(park)

    def list(self, labels: Mapping[str, str]) -> Sequence[Listed]:
        found = self._engine.list(labels)
        with self._lock:
            left = set(self._left)
        return tuple(one for one in found if one.labels.get("batchyard.parked") != self._mark or one.id in left)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for park in idle:
            self._drop(park)
        self._engine.close()

    # -- parked containers
    def _take(self) -> str:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        if not self._imported:
            self._engine.import_image(pause.TAG, pause.image(self._machine))
            self._imported = True
        labels = {**self._labels, "batchyard.parked": self._mark}
        spec = ContainerSpec(
            image=pause.TAG,
            command=pause.COMMAND,
            labels=labels,
            vcpus=0.01,
            memory_mib=MEMORY_MIB,
            user="65534:65534",
            read_only_root=True,
            cap_drop_all=True,
            pids_limit=8,
            init=False,
            stop_signal="SIGKILL",  # it handles none: an engine that is told to go would wait for it
        )
        try:
            park = self._engine.create(spec)
        except ImageError:  # somebody has removed it since
            self._engine.import_image(pause.TAG, pause.image(self._machine))
            park = self._engine.create(spec)
        try:
            self._engine.start(park)
        except BaseException:
            self._drop(park)
            raise
        return park

    def _renounce(self) -> None:
        """One was found gone. What ended it has ended all that there are: none of them is for another container."""
        with self._lock:
            idle, self._idle = self._idle, []
            self._ended |= set(self._users.values())
        for park in idle:
            self._drop(park)

    def _give(self, park: str) -> None:
        with self._lock:
            kept = len(self._idle) < self._most and not self._closed and park not in self._ended
            self._ended.discard(park)
            if kept:
                self._idle.append(park)
                return
        self._drop(park)

    def _drop(self, park: str) -> None:
        try:
            self._engine.remove(park)
        except BatchyardError as error:
            log.warning("a parked container stays for the sweep: %s", error)
            with self._lock:
                self._left.add(park)

    def _alive(self, park: str) -> bool:
        with suppress(NotFound, StartError):
            return self._engine.inspect_exit(park) is None
        return False

    # -- as they are
    def ping(self) -> None:
        self._engine.ping()

    def image_present(self, image: str) -> str | None:
        return self._engine.image_present(image)

    def pull(self, image: str) -> None:
        self._engine.pull(image)

    def import_image(self, image: str, layer: bytes) -> None:
        self._engine.import_image(image, layer)

    def load(self, archive: Path, image: str) -> None:
        self._engine.load(archive, image)

    def save(self, image: str, path: Path) -> None:
        self._engine.save(image, path)

    def wait(self, container_id: str) -> Exit:
        return self._engine.wait(container_id)

    def inspect_exit(self, container_id: str) -> Exit | None:
        return self._engine.inspect_exit(container_id)

    def signal(self, container_id: str, name: str) -> bool:
        return self._engine.signal(container_id, name)

    def kill(self, container_id: str) -> bool:
        return self._engine.kill(container_id)

    def log_source(self, container_id: str) -> LogSource:
        return self._engine.log_source(container_id)

    def identity(self) -> str:
        return self._engine.identity()

    def create_network(self, name: str, labels: Mapping[str, str], *, internal: bool) -> None:
        self._engine.create_network(name, labels, internal=internal)

    def remove_network(self, name: str) -> bool:
        return self._engine.remove_network(name)

    def list_networks(self, labels: Mapping[str, str]) -> Sequence[Network]:
        return self._engine.list_networks(labels)

    def address(self, container_id: str, network: str) -> str:
        return self._engine.address(container_id, network)
