"""The controller as a process: configuration, its threads, signals."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from glob import glob
from pathlib import Path

from . import config as yard_config
from . import keys
from .config import Config
from .controller import LOCK_S, Controller
from .delivery import Delivery, key_finder
from .errors import NotFound
from .followups import Followups
from .keysource import AnySource, as_source, load_or_create_ring, load_ring
from .keywatch import holder_name, watching
from .queues import Queues
from .remote import RevokeEar
from .schedules import Schedules
from .seal import KeyRing
from .store import Yard

log = logging.getLogger(__name__)
_STOP_S = 5.0
_CONFIG_AGE_S = 1.0


def serve_controller(
    url: str,
    key_source: AnySource,
    config_file: Path | None,
    *,
    secrets: Path | None = None,
    on_ready: Callable[[str], None],
) -> int:
    """Runs until SIGTERM or SIGINT; the exit code, 1 when a part of it broke. secrets: a folder, one file a secret.

    Raises InvalidConfig (configuration, key file, Redis settings, a webhook's secret), BrokerUnavailable (Redis does
    not answer at first).
    """
    key = key_finder(secrets)
    yard, config = _prepared(url, key_source, config_file, key)
    followups = Followups(url, result_expires_s=config.result_expires_s)
    working, ear = Controller(yard, CachedConfig(yard), followups), RevokeEar(Yard(url, yard.ring))
    delivery = Delivery(Yard(url, yard.ring), CachedConfig(yard), key)
    stop, broken = threading.Event(), threading.Event()

    def run(part: Callable[[], None]) -> None:
        try:
            part()
        except Exception:
            log.exception("a part of the controller broke")
            broken.set()
        finally:
            stop.set()

    watch = watching(yard, yard.ring, as_source(key_source), holder_name("controller of"))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    parts = {part: threading.Thread(target=run, args=(part.run,), daemon=True) for part in (working, ear, delivery)}
    with watch:
        for thread in parts.values():
            thread.start()
        if _up(yard, working, stop):
            on_ready("controller" if working.working.is_set() else "controller, standing by for the one that works")
        while not stop.wait(1.0):
            pass  # a signal that another thread was given is handled when the main thread wakes
        for part in parts:
            part.stop()
        for part in (working, delivery):
            parts[part].join(_STOP_S)
    return 1 if broken.is_set() else 0


def _prepared(
    url: str, key_source: AnySource, config_file: Path | None, key: Callable[[str], bytes]
) -> tuple[Yard, Config]:
    given = yard_config.load(config_file, lambda: _there(url)) if config_file else None
    if given is not None and given.events.webhook is not None:
        key(given.events.webhook.secret)
    yard = open_yard(url, key_source)
    yard.prepare()
    if given is not None and "schedules" in given.model_fields_set:  # a file that has no such part says nothing of them
        Schedules(yard, lambda: yard.ring).apply(given.schedules)
    return yard, settle_config(yard, given)


def open_yard(url: str, key_source: AnySource) -> Yard:
    """A yard with its keys; a key file of a new yard is made. Raises InvalidConfig, BrokerUnavailable."""
    probe = Yard(url, KeyRing.new())
    try:
        probe.config()
    except NotFound:
        return Yard(url, load_or_create_ring(key_source))
    finally:
        probe.redis.close()
    return Yard(url, load_ring(key_source))


def settle_config(yard: Yard, given: Config | None) -> Config:
    """The configuration that holds from now on: the given one, else what the yard has, else this machine; and always
    what was made at run time. Raises InvalidConfig.
    """
    return Queues(yard).apply(given, this_machine)


def _there(url: str) -> Config | None:
    """The yard's configuration before this start, where there is one."""
    probe = Yard(url, KeyRing.new())
    try:
        return probe.config()
    except NotFound:
        return None
    finally:
        probe.redis.close()


def this_machine() -> Config:
    """Queues cpu and gpu on all that this machine has."""
    memory_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
    disk = os.statvfs("/")
    return yard_config.single_machine(
        vcpus=float(os.cpu_count() or 1),
        memory_mib=int(memory_mib),
        gpus=len(glob("/dev/nvidia[0-9]*")),
        disk_gib=round(disk.f_blocks * disk.f_frsize / 2**30, 1),
    )


class CachedConfig:
    """The yard's configuration, asked of Redis once a second at most."""

    def __init__(self, yard: Yard, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._yard, self._clock = yard, clock
        self._read_at = float("-inf")
        self._config: Config | None = None

    def __call__(self) -> Config:
        """Raises BrokerUnavailable, NotFound."""
        now = self._clock()
        if self._config is None or now - self._read_at >= _CONFIG_AGE_S:
            self._config, self._read_at = self._yard.config(), now
        return self._config


def _up(yard: Yard, controller: Controller, stop: threading.Event) -> bool:
    """Waits until this controller works, or another has worked for longer than a dead one's lock lives."""
    end = time.monotonic() + LOCK_S + 1.0
    while not stop.is_set():
        if controller.working.wait(0.1):
            return True
        if time.monotonic() > end and yard.guard(lambda: yard.redis.exists(keys.CONTROLLER)):
            return True
    return False
