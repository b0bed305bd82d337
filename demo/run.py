"""The product from one end to the other on this machine; `make demo` runs it.

A yard comes up in build/demo. Real data is cut into parts, a Celery chord runs one job over each part and one that
joins their outputs, a failing job says why, and all is stopped again. What is under "a plain Celery producer" is all
that a program of yours needs: it uses nothing of Batchyard.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from os import getpid
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from celery import Celery, chord, signature
from rich.console import Console
from rich.live import Live
from rich.table import Table

import flights
import images
from batchyard.broker.client import Client
from batchyard.broker.endpoints import Endpoints
from batchyard.broker.errors import BatchyardError
from batchyard.broker.record import Record
from batchyard.worker.supervise import tie_to

BUILD = Path(__file__).resolve().parents[1] / "build" / "demo"
IMAGE = "batchyard-demo/busybox:1"
PARTS = 8
STOP_S = 120.0

COUNT = (
    f'awk -F, \'{{n[${flights.CARRIER}]++; if (${flights.DELAY} != "" && ${flights.DELAY} != "NA")'
    f" {{m[${flights.CARRIER}]++; s[${flights.CARRIER}] += ${flights.DELAY}}}}}"
    ' END {for (c in n) printf "%s %d %d %d\\n", c, n[c], m[c], s[c]}\' /in/part.csv >/work/carriers'
    " && echo $(wc -l </in/part.csv) rows, $(wc -l </work/carriers) carriers"
)
JOIN = (
    "cat /in/parts/*/carriers | awk '{n[$1] += $2; m[$1] += $3; s[$1] += $4}"
    ' END {for (c in n) printf "%s %d %d %d\\n", c, n[c], m[c], s[c]}\' | sort >/work/table'
    " && echo joined $(ls /in/parts | wc -l) outputs"
)

out = Console(highlight=False)


class Failed(Exception):
    """The demo did not show what it should; the message says why."""


# -- a plain Celery producer -------------------------------------------------------------------------------------------


def part_job(digest: str, n: int) -> Any:
    """Count flights and minutes of delay by carrier in one part."""
    job = {
        "image": IMAGE,
        "name": f"part-{n}",
        "command": ["sh", "-c", COUNT],
        "vcpus": 0.25,
        "memory_mib": 64,
        "inputs": {"/in/part.csv": digest},
        "outputs": {"carriers": "/work/carriers"},
    }
    return signature("batchyard.run", kwargs={"job": job}, queue="cpu")


def join_job() -> Any:
    """Add up what the parts counted: the output `carriers` of each is /in/parts/<n>/carriers."""
    job = {
        "image": IMAGE,
        "name": "join",
        "command": ["sh", "-c", JOIN],
        "vcpus": 0.25,
        "memory_mib": 64,
        "inputs": {"/in/parts": {"from": "carriers"}},
        "outputs": {"table": "/work/table"},
    }
    return signature("batchyard.run", kwargs={"job": job}, queue="cpu")


def failing_job() -> Any:
    """A job that fails."""
    command = ["sh", "-c", "echo 'there is no 337th thousand' >&2; exit 3"]
    job = {"image": IMAGE, "name": "failing", "command": command, "vcpus": 0.25, "memory_mib": 64}
    return signature("batchyard.run", kwargs={"job": job}, queue="cpu")


# -- the demo ----------------------------------------------------------------------------------------------------------


def main() -> int:
    """The exit code: 0 when everything came out as it should."""
    began = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # so that the yard is stopped
    try:
        with step("the image, from this machine's busybox"):
            images.busybox(IMAGE)
        with step(f"the data, {flights.PACKAGE}"):
            whole = flights.fetch(BUILD)
            parts = flights.split(whole, BUILD / "parts", PARTS)
        with yard(BUILD / "state") as ends:
            show(ends, whole, parts, began)
    except (BatchyardError, RuntimeError, flights.NoData, Failed) as error:
        out.print(f"[red]error:[/] {error}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        sys.unraisablehook = lambda _: None  # Celery's pending results want to unsubscribe, and Redis is gone
        return 130
    out.print(f"all well, and all stopped, in {time.monotonic() - began:.1f} s")
    return 0


def show(ends: Endpoints, whole: Path, parts: list[Path], began: float) -> None:
    """Runs the jobs and prints what they did. Raises Failed."""
    app = Celery(broker=ends.broker_url, backend=ends.result_backend)  # signatures use it: it is the current app
    app.conf.broker_transport_options = ends.transport_options
    with Client.of(ends) as client:
        with step(f"{len(parts)} parts into the blob store"):
            blobs = [client.put(part) for part in parts]
        out.print(f"a chord of {len(parts)} jobs over {sum(b['size'] for b in blobs) / 1e6:.0f} MB, and one that joins")
        joined = chord([part_job(blob["digest"], n) for n, blob in enumerate(blobs)], join_job()).apply_async()
        members: Any = joined.parent
        watch(client, [*(member.id for member in members.results), joined.id], began)
        result = joined.get(timeout=60)
        print_table(whole, read_table(client, result["outputs"]["table"]["digest"]))
        fail()


def watch(client: Client, ids: list[str], began: float) -> None:
    """Shows the jobs until all have ended, and how long the first one took. Raises Failed."""
    seen: dict[str, Record] = {}
    first: list[float] = []

    def change(record: Record) -> None:
        seen[record.id] = record
        if record.state.ended and not first:
            first.append(time.monotonic() - began)
        if out.is_terminal:
            live.update(board(seen, ids))
        elif record.state.ended:
            out.print(f"  {record.name}: {record.state} on {record.node}", soft_wrap=True)

    with Live(board(seen, ids), console=out, refresh_per_second=10, transient=not out.is_terminal) as live:
        if not out.is_terminal:
            live.stop()
        records = client.wait(ids, timeout_s=300, on_change=change)
    if bad := [r for r in records if r.state != "SUCCEEDED"]:
        raise Failed(f"job {bad[0].name or bad[0].id} failed: {bad[0].reason}")
    out.print(f"the first job's result came [bold]{first[0]:.1f} s[/] after `make demo` began")


def board(seen: dict[str, Record], ids: list[str]) -> Table:
    """The jobs as they are now."""
    table = Table("job", "state", "node", "seconds", box=None, pad_edge=False)
    colours = {"SUCCEEDED": "green", "FAILED": "red", "RUNNING": "cyan", "STARTING": "cyan"}
    for job_id in ids:
        r = seen.get(job_id)
        if r is None:
            table.add_row(job_id[:8], "waits", "", "")
            continue
        ran = f"{r.ended - r.started:.1f}" if r.started and r.ended else ""
        table.add_row(r.name, f"[{colours.get(r.state, 'default')}]{r.state}[/]", r.node or "", ran)
    return table


def read_table(client: Client, digest: str) -> dict[str, flights.Line]:
    """The joined output."""
    with TemporaryDirectory() as folder:
        client.get(digest, Path(folder) / "table")
        lines = [line.split() for line in (Path(folder) / "table").read_text().splitlines()]
    return {c: flights.Line(flights=int(n), arrived=int(m), delay_min=int(s)) for c, n, m, s in lines}


def print_table(whole: Path, found: dict[str, flights.Line]) -> None:
    """Prints it, worst carrier first, and compares with the same computed here. Raises Failed."""
    table = Table("carrier", title="2013, from New York City", box=None, pad_edge=False)
    for name in ("flights", "arrived", "mean delay, min"):
        table.add_column(name, justify="right")
    for carrier, line in sorted(found.items(), key=lambda item: -item[1].delay_min / max(1, item[1].arrived)):
        mean = f"{line.delay_min / line.arrived:.1f}" if line.arrived else ""
        table.add_row(carrier, f"{line.flights:,}", f"{line.arrived:,}", mean)
    out.print(table)
    if found != flights.by_carrier(whole):
        raise Failed("the jobs' table differs from the one computed here")
    out.print(f"the same as computed here, from {sum(line.flights for line in found.values()):,} rows")


def fail() -> None:
    """A failure as a producer sees it. Raises Failed."""
    try:
        failing_job().apply_async().get(timeout=60)
    except Exception as error:  # Celery makes the class up: a producer has none of ours
        details = error.args[1] if len(error.args) > 1 and isinstance(error.args[1], dict) else {}
        if details.get("exit_code") != 3:
            raise Failed(f"the failing job should have ended with exit code 3, but: {error}") from None
        last = str(details["log_tail"]).strip().splitlines()[-1:]
        out.print(f"a failing job says why: {details['reason']}; its log ends: {' '.join(last)}", soft_wrap=True)
    else:
        raise Failed("the failing job did not fail")


@contextmanager
def step(what: str) -> Iterator[None]:
    """Says what is done and how long it took."""
    at = time.monotonic()
    yield
    out.print(f"{what}: {time.monotonic() - at:.1f} s", soft_wrap=True)


@contextmanager
def yard(state: Path) -> Iterator[Endpoints]:
    """`batchyard up` on a state folder that is kept; stopped at the end. Raises Failed."""
    at = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "batchyard.broker.cli", "up", "--state", str(state), "--grace-s", "1"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a Ctrl-C comes here first
        preexec_fn=tie_to(getpid(), signal.SIGTERM),  # noqa: PLW1509 (this process has one thread)
    )
    assert process.stdout is not None
    try:
        ready = process.stdout.readline().strip()
        if not ready.startswith("ready"):
            raise Failed("the yard did not come up (see above)")
        out.print(
            f"the yard is up after {time.monotonic() - at:.1f} s: {ready.removeprefix('ready: ')}", soft_wrap=True
        )
        yield Endpoints.load(state)
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
