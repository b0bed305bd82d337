"""A node put together and run as a Celery worker."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import warnings
from contextlib import suppress
from pathlib import Path

from batchyard.broker.config import Config, single_machine
from batchyard.broker.errors import BrokerUnavailable, InvalidConfig, NotFound
from batchyard.broker.expiry import Expiry
from batchyard.broker.followups import Followups
from batchyard.broker.keysource import AnySource, as_source, load_ring
from batchyard.broker.keywatch import holder_name, watching
from batchyard.broker.logs import LiveTail
from batchyard.broker.remote import celery_app
from batchyard.broker.store import Yard
from batchyard.cache.remote.inputs import RemoteInputs
from batchyard.cache.remote.known import KnownRemotes
from batchyard.cache.remote.web import Web

from . import memory
from .bootstep import attach
from .capture import LogPoller
from .container import owner_labels
from .engine import Engine, pause
from .engine.docker import DockerEngine
from .engine.parked import ParkedNetworks
from .levels import open_levels
from .live import LiveShipper
from .node import Node
from .options import NodeOptions
from .pull import Puller
from .report import Reporter
from .staging import Stage
from .tools import Tools
from .uploads import Uploads


def serve(url: str, key_source: AnySource, options: NodeOptions) -> int:
    """Runs until SIGTERM or SIGINT; the process's exit code. Raises InvalidConfig for what is wrong at the start."""
    options.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = _only_one(options.state)
    yard = Yard(url, load_ring(key_source))
    config = _first_config(yard, options)
    if unknown := set(options.queues) - set(config.queues):
        raise InvalidConfig(f'queue "{min(unknown)}" is not configured; the yard has {", ".join(config.queues)}')
    node = Node(_tools(yard, options, config))
    with suppress(BrokerUnavailable):  # the node looks again once Redis is there
        node.be_alone()
    app = celery_app(url)
    app.set_current()
    app.conf.update(
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_send_task_events=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_soft_shutdown_timeout=0,
    )
    attach(app, node, config.served(options.environment, options.queues))
    warnings.filterwarnings(
        "ignore", "You're running the worker with superuser"
    )  # for pickle's sake; we take JSON only
    worker = app.Worker(
        hostname=f"{options.name}@batchyard",
        pool="solo",
        task_events=True,
        loglevel="INFO",
        without_gossip=True,
        without_mingle=True,
        quiet=True,  # a banner of queues and tasks that a node does not have
    )
    with watching(yard, yard.ring, as_source(key_source), holder_name("node", options.name)):
        worker.start()
    if node.ready.is_set() and node.empty():  # else a container may read there
        with suppress(OSError):
            memory.remove_folder(options.state)
    os.close(lock)
    if node.refused is not None:
        raise node.refused
    return int(worker.exitcode or 0)


def _only_one(state: Path) -> int:
    """A lock on the state folder as long as this process lives: two nodes would remove each other's containers."""
    lock = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise InvalidConfig(f"a node runs on {state} already; give this one another --state and --name") from None
    return lock


def _tools(yard: Yard, options: NodeOptions, config: Config) -> Tools:
    levels = open_levels(options, yard)
    blobs, copies = levels.blobs, levels.copies
    yard_id = hashlib.sha256(yard.ring.mark.encode()).hexdigest()[:16]
    engine = _engine(owner_labels(yard_id, options.name))
    return Tools(
        yard=yard,
        yard_id=yard_id,
        hostname=f"{options.name}@batchyard",
        config=config,
        options=options,
        engine=engine,
        puller=Puller(engine),
        levels=levels,
        expiry=Expiry(yard),
        stage=Stage(
            copies=copies,
            allowed_roots=options.allowed_roots,
            remote=RemoteInputs(
                copies,
                KnownRemotes(options.files / "copies" / "remote.sqlite"),
                Web(options.url_hosts),
                most_bytes=int(options.fetch_gib * 2**30),
            ),
            secrets=options.secrets,
        ),
        blobs=blobs,
        followups=Followups(yard.url, result_expires_s=config.result_expires_s),
        poller=LogPoller(),
        live=LiveShipper(LiveTail(yard)),
        reporter=Reporter(),
        uploads=Uploads(at_once=options.uploads, most=options.most_uploads, most_bytes=int(options.disk_gib * 2**30)),
    )


def _engine(labels: dict[str, str]) -> Engine:
    docker = DockerEngine()
    machine = platform.machine()
    return ParkedNetworks(docker, machine=machine, labels=labels) if machine in pause.machines() else docker


def _first_config(yard: Yard, options: NodeOptions) -> Config:
    """The yard's configuration; until Redis and a controller are there, this machine's own."""
    try:
        yard.prepare()
        return yard.config()
    except (NotFound, BrokerUnavailable):
        made_up = single_machine(options.vcpus, options.memory_mib, len(options.gpus), options.disk_gib)
        asked_for = dict.fromkeys(options.queues, made_up.queues["cpu"])
        return made_up.model_copy(update={"queues": asked_for}) if asked_for else made_up
