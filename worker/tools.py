"""What every attempt on a node works with."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from batchyard.broker.config import Config
from batchyard.broker.expiry import Expiry
from batchyard.broker.followups import Followups
from batchyard.broker.store import Yard
from batchyard.cache.sealed import BlobStore

from .capture import LogPoller
from .engine import Engine
from .levels import Levels
from .live import LiveShipper
from .options import NodeOptions
from .pull import Puller
from .report import Reporter
from .staging import Stage
from .uploads import Uploads


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """hostname: the node's name among Celery workers. yard_id: the yard's name on containers. tenant: whose blobs and
    secrets these are; '' for the yard's own. expiry: None where what is put stays for ever.
    """

    yard: Yard
    yard_id: str
    hostname: str
    config: Config
    options: NodeOptions
    engine: Engine
    puller: Puller
    stage: Stage
    blobs: BlobStore
    followups: Followups
    poller: LogPoller
    live: LiveShipper
    reporter: Reporter
    levels: Levels | None = None
    uploads: Uploads = field(default_factory=Uploads)
    expiry: Expiry | None = None
    tenant: str = ""

    def of(self, tenant: str) -> Tools:
        """For an attempt of one tenant's job: its blobs, its copies of inputs, its secrets, and no other's."""
        if not tenant:
            return self
        secrets = self.options.secrets / tenant if self.options.secrets else None
        stage, blobs = self.stage.of(tenant, secrets), self.blobs.of(tenant)
        return replace(self, tenant=tenant, blobs=blobs, stage=stage, options=replace(self.options, secrets=secrets))
