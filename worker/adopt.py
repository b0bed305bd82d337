"""What an earlier process of this node left: containers to go on with, others to remove, folders to sweep."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable

from batchyard.broker.gangs import Gangs
from batchyard.broker.record import Claimed

from .container import owner_labels
from .context import folder_name
from .engine import Listed
from .gang import quietly, sweep
from .tools import Tools

log = logging.getLogger(__name__)


class Adoption:
    """A container is gone on with when Redis says that this node still holds its job under its token."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    def take_up(self, take: Callable[[Claimed, Listed | None], None]) -> None:
        """Once, before the first claim. A held job without a container goes back to its queue, no attempt used.

        Raises BrokerUnavailable, EngineUnavailable: call again.
        """
        tools = self._tools
        held = {(c.id, c.token): c for c in tools.yard.held(tools.options.name)}
        folders: set[str] = set()
        for listed in tools.engine.list(owner_labels(tools.yard_id, tools.options.name)):
            claimed = held.pop((listed.labels.get("batchyard.job", ""), listed.labels.get("batchyard.token", "")), None)
            if claimed is None or not listed.started:
                tools.engine.remove(listed.id)
                if claimed is not None:
                    tools.yard.give_back(claimed, None)
                continue
            log.info("job %s: its container goes on here", claimed.id)
            take(claimed, listed)
            folders.add(folder_name(claimed))
        for claimed in held.values():
            tools.yard.give_back(claimed, None)
        quietly(self.sweep_networks, "networks stay for the sweep")
        self._sweep_folders(folders)
        tools.stage.copies.keep_pins(folders)

    def sweep(self, known: Callable[[], set[tuple[str, str]]]) -> int:
        """Removes ended containers that no run knows. known is asked after the listing. Raises EngineUnavailable."""
        listed, removed = self._tools.engine.list(owner_labels(self._tools.yard_id, self._tools.options.name)), 0
        runs = known()
        for one in listed:
            owner = (one.labels.get("batchyard.job", ""), one.labels.get("batchyard.token", ""))
            if owner not in runs:
                self._tools.engine.remove(one.id)
                removed += 1
        return removed

    def sweep_networks(self) -> None:
        """Removes networks of gangs that are over, whichever node of the yard had them.

        Raises EngineUnavailable, BrokerUnavailable.
        """
        tools = self._tools
        sweep(tools.engine, tools.yard_id, Gangs(tools.yard).lives)

    def _sweep_folders(self, kept: set[str]) -> None:
        jobs = self._tools.options.files / "jobs"
        for folder in jobs.iterdir() if jobs.exists() else ():
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)
