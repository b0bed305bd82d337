"""Docker's networks, for `DockerEngine`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from docker.errors import APIError

from batchyard.broker.errors import NotFound

from .networks import Network

_IN_USE = re.compile("active endpoints")


class DockerNetworks:
    """A part of `DockerEngine`, which has the client."""

    def _api(self) -> Any:
        raise NotImplementedError

    def _answers(self, what: str) -> AbstractContextManager[None]:
        raise NotImplementedError

    def identity(self) -> str:
        with self._answers("info"):
            return str(self._api().info()["ID"])

    def create_network(self, name: str, labels: Mapping[str, str], *, internal: bool) -> None:
        with self._answers("create network"):
            try:
                self._api().create_network(
                    name, driver="bridge", check_duplicate=True, internal=internal, labels=dict(labels)
                )
            except APIError as error:
                if error.status_code != 409:
                    raise

    def remove_network(self, name: str) -> bool:
        with self._answers("remove network"):
            try:
                self._api().remove_network(name)
            except APIError as error:
                if error.status_code == 403 or _IN_USE.search(str(error.explanation)):
                    return False
                if error.status_code != 404:
                    raise
        return True

    def list_networks(self, labels: Mapping[str, str]) -> Sequence[Network]:
        with self._answers("list networks"):
            found = self._api().networks(filters={"label": [f"{k}={v}" for k, v in labels.items()]})
        return tuple(Network(name=str(one["Name"]), labels=dict(one["Labels"] or {})) for one in found)

    def address(self, container_id: str, network: str) -> str:
        with self._answers("inspect"):
            try:
                found = self._api().inspect_container(container_id)["NetworkSettings"]["Networks"]
            except APIError as error:
                if error.status_code == 404:
                    raise NotFound(f"container {container_id[:12]} is gone: somebody else removed it") from None
                raise
        return str((found or {}).get(network, {}).get("IPAddress") or "")
