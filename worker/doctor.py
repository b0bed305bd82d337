"""`batchyard doctor`: what the yard stands on, looked at from this machine."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import click

from batchyard.broker.cli import show
from batchyard.broker.cli.doors import Doors, examples, json_option, print_json, yard_options
from batchyard.broker.endpoints import Endpoints, default_state
from batchyard.broker.errors import BatchyardError, InvalidConfig
from batchyard.broker.keysource import KeySource

from . import checks, services
from .checks import Check, Probe
from .redis_server import redis_binary

ABOUT = ("engine", "redis", "clock", "store", "keys", "scratch", "gpus")


@click.command(
    epilog=examples(
        "batchyard doctor",
        "batchyard doctor --only redis --only store",
        "batchyard doctor --scratch /mnt/scratch",
        "batchyard doctor --json | jq '.[] | select(.status != \"ok\")'",
    )
)
@click.option(
    "--scratch",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where this machine's node works.  [default: as endpoints.json says, else node in --state]",
)
@click.option("--only", type=click.Choice(ABOUT), multiple=True, help="Look at this alone. Repeatable.")
@click.option("--timeout-s", type=click.FloatRange(min=0.1), default=15.0, show_default=True, help="At most so long.")
@json_option
@yard_options
def doctor(doors: Doors, scratch: Path | None, only: Sequence[str], timeout_s: float, as_json: bool) -> int:
    """Check what the yard stands on: engine, Redis, clock, blob store, keys, scratch, GPUs.

    Each finding is ok, warn or fail, and says what to do. Exits with 1 if one is fail. The store gets two small
    objects, which are deleted; nothing else is changed.
    """
    found, ends = _yard(doors)
    told = Path(ends.scratch) if ends is not None and ends.scratch else doors.state / "node"
    folder = (scratch or told).expanduser().absolute()
    found += within({n: p for n, p in _probes(folder, ends, doors.keys).items() if not only or n in only}, timeout_s)
    if as_json:
        print_json([one.as_json() for one in found])
    else:
        rows = [(c.name, c.status, f"{c.said}{f'; {c.todo}' if c.todo else ''}") for c in found]
        show.print_table(("WHAT", "STATE", "FOUND"), [(n, s, show.printable(t)) for n, s, t in rows], empty="")
    return 1 if any(one.status == "fail" for one in found) else 0


def _yard(doors: Doors) -> tuple[list[Check], Endpoints | None]:
    """Where the yard is. On a machine that never had one, what `up` needs instead."""
    try:
        return [], doors.endpoints()
    except InvalidConfig as error:
        fresh = doors.state == default_state() and not doors.state.exists() and "BATCHYARD_STATE" not in os.environ
        if not fresh:
            return [checks.fail("yard", str(error), "see --help")], None
    found = [checks.warn("yard", "none is known here", "start one with `batchyard up`, or name one with --broker")]
    try:
        return [*found, checks.ok("redis-server", redis_binary())], None
    except InvalidConfig as error:
        return [*found, checks.warn("redis-server", str(error), "`batchyard up` needs it")], None


def _probes(scratch: Path, ends: Endpoints | None, named: KeySource | None) -> Mapping[str, Probe]:
    probes: dict[str, Probe] = {"engine": partial(checks.engine, scratch)}
    if ends is not None:
        probes["redis"] = partial(services.redis_server, ends.broker_url)
        probes["clock"] = partial(services.clock, ends.broker_url)
        source = named or ends.key_source()
        if ends.store:
            probes["store"] = partial(services.blob_store, ends.store, ends, source)
        if source is not None:
            probes["keys"] = partial(services.key_file, source, ends.broker_url)
    return {**probes, "scratch": partial(checks.scratch_folder, scratch), "gpus": checks.gpus}


def within(probes: Mapping[str, Probe], timeout_s: float) -> list[Check]:
    """What probes found in this time, all at once. One that hangs is left behind: this process ends soon."""
    found: dict[str, list[Check]] = {name: [] for name in probes}
    threads = [threading.Thread(target=_look, args=(n, p, found[n]), daemon=True) for n, p in probes.items()]
    end = time.monotonic() + timeout_s
    for thread in threads:
        thread.start()
    said: list[Check] = []
    for name, thread in zip(probes, threads, strict=True):
        thread.join(max(0.0, end - time.monotonic()))
        said += list(found[name])
        if thread.is_alive():
            said.append(checks.fail(name, f"no answer within {timeout_s:g} s", "see that it is up and can be reached"))
    return said


def _look(name: str, probe: Probe, found: list[Check]) -> None:
    try:
        for one in probe():
            found.append(one)
    except (BatchyardError, OSError) as error:
        found.append(checks.fail(name, str(error), "see that it is there, and that this user may use it"))
    except Exception as error:
        found.append(checks.fail(name, f"{type(error).__name__}: {error}", "this is a fault of `doctor`; report it"))
