"""The product from one end to the other on this machine; `make demo` runs it.

A yard with two nodes comes up in build/demo. Three canvases of plain Celery (producer.py) run in it side by side, over
real data: which photographs show the same, a table over 336,776 flights, a film transcoded in segments. Each result is
checked against what is known of it, and all is stopped again. Run it a second time: no input moves again.
"""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import click
from celery import Celery
from celery.result import AsyncResult, GroupResult
from rich.markup import escape

import flights
import images
import photographs
import producer
import results
import yard
from batchyard.broker.client import Client
from batchyard.broker.endpoints import Endpoints
from batchyard.broker.errors import BatchyardError
from batchyard.broker.record import Record
from batchyard.broker.seal import KeyRing
from batchyard.cache.sealed import BlobStore, Counters
from batchyard.cache.stores.place import store_at
from packages import Apt, NoPackages, Tell
from results import Canvas, Digests, Failed
from screen import Part, Screen, Staged, summary

BUILD = Path(__file__).resolve().parents[1] / "build" / "demo"
CSV_PARTS = 8
LIMIT_S = 900
IMAGES = {
    producer.PYTHON: (
        ("python3", "python3-pil", "python3-numpy", "dash"),
        ("python3", "-c", "import json, random, numpy; from PIL import Image, ImageEnhance, ImageOps; Image.init()"),
    ),
    producer.FFMPEG: (("ffmpeg", "dash", "coreutils"), ("ffmpeg", "-version")),
}
"""Image → OS packages, and a command that warms it up."""
_STAGED = re.compile(r"inputs? staged: ([\d.,]+) ([kMGT]?B|bytes?) fetched, (\d+) of (\d+) already here")
_UNITS = {"byte": 1.0, "bytes": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
T = TypeVar("T")


@click.command()
@click.option("--svg", type=click.Path(path_type=Path), help="Also draw what is shown into this file.")
def main(svg: Path | None) -> None:
    """Run the demo. Exit code 0: all parts ran, and everything came out as it should."""
    began = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # so that the yard is stopped
    screen = Screen(svg)
    sys.unraisablehook = lambda _: None  # when it ends early, Celery's results still want to unsubscribe from Redis
    try:
        canvases, lacks = prepare(screen)
        show(screen, canvases)
        if lacks:
            raise Failed("what ran came out right, but something was left out (see above)")
    except (BatchyardError, RuntimeError, yard.NoYard, Failed) as error:
        screen.out.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        screen.out.print("all is stopped")
        sys.exit(130)
    screen.say("")
    screen.done("all came out right, and all is stopped", time.monotonic() - began)
    screen.save()


# -- what it needs, fetched and made once ------------------------------------------------------------------------------


def prepare(screen: Screen) -> tuple[list[Canvas], list[str]]:
    """What can be run here, and what could not be had. Raises Failed, RuntimeError: nothing can be run."""
    images.exists(producer.SHELL)  # without an engine, nothing of the rest makes sense
    apt, lacks = Apt(BUILD / "packages"), list[str]()

    def attempt(what: str, act: Callable[[Tell], T]) -> T | None:
        try:
            with screen.step(what) as tell:
                return act(tell)
        except (NoPackages, photographs.NoPhotographs, flights.NoData, RuntimeError) as error:
            screen.say(f"[yellow]left out:[/] {escape(f'{what}: {error}')}")
            lacks.append(what)
            return None

    shell = attempt("image with a shell, from this machine's busybox", lambda _: shell_image())
    python = attempt("image with Python and numpy, from OS packages", lambda tell: image(producer.PYTHON, apt, tell))
    ffmpeg = attempt("image with ffmpeg, from OS packages", lambda tell: image(producer.FFMPEG, apt, tell))
    files, lack = attempt("photographs", lambda tell: photographs.fetch(BUILD / "photographs", apt, tell)) or ([], "")
    if lack:
        screen.say(f"[yellow]fewer photographs, {len(files)}:[/] {escape(lack)}")
        lacks.append(lack)
    whole = attempt(f"flights, {flights.PACKAGE}", lambda _: flights.fetch(BUILD))
    canvases: list[Canvas] = []
    if python and files:
        canvases.append(results.photographs_alike(files))
    if shell and whole:
        canvases.append(results.flights_table(whole, flights.split(whole, BUILD / "parts", CSV_PARTS)))
    if ffmpeg and files:
        canvases.append(results.film([file for file in files if file.suffix == ".jpg"], BUILD))
    if not canvases:
        raise Failed("nothing that it needs can be had here (see above)")
    return canvases, lacks


def shell_image() -> bool:
    images.busybox(producer.SHELL)
    return True


def image(tag: str, apt: Apt, tell: Tell) -> bool:
    """One of IMAGES, unless the engine has it. Raises NoPackages, RuntimeError."""
    if not images.exists(tag):
        packages, warm = IMAGES[tag]
        if not apt.there():
            tell("there is no apt here: from debian:bookworm-slim")
            images.from_registry(tag, packages)
            return True
        files = apt.closure(packages, tell)
        tell(f"{len(files)} packages into one")
        images.from_packages(tag, files, warm)
    return True


# -- the run -----------------------------------------------------------------------------------------------------------


def show(screen: Screen, canvases: Sequence[Canvas]) -> None:
    """Runs the canvases in a yard, says what they did, and checks it. Raises Failed, NoYard."""
    with ExitStack() as stack:
        with screen.step(f"a yard: Redis, controller, Flower, nodes {' and '.join(producer.NODES)}") as tell:
            ends = stack.enter_context(yard.yard(BUILD, producer.NODES, tell))
        client = stack.enter_context(Client.of(ends))
        screen.say(f"[dim]  flower {ends.flower_url}; blobs in {yard.store_name(ends)}[/]")
        digests, puts = put(screen, ends, canvases)
        began = time.monotonic()
        sent = send(ends, canvases, digests)
        parts = [Part(title=canvas.title, ids=ids_of(result)) for canvas, result in zip(canvases, sent, strict=True)]
        records = watch(screen, client, parts)
        screen.done(f"{len(records)} jobs", time.monotonic() - began)
        staged = {record.id: staged_of(client.logs(record.id)) for record in records}
        screen.section("where each job ran, and what moved")
        screen.say(summary(records, staged, producer.NODES))
        moved(screen, puts, sum(staged.values(), Staged()))
        for canvas, result in zip(canvases, sent, strict=True):
            screen.section(canvas.title)
            canvas.check(screen, client, result.get(timeout=60)["outputs"])
        screen.section("a job that fails")
        fail(screen)


def put(screen: Screen, ends: Endpoints, canvases: Sequence[Canvas]) -> tuple[dict[Path, str], Counters]:
    """The inputs into the blob store: their digests, and what had to be put."""
    blobs = BlobStore(store_at(str(ends.store), create=True), KeyRing.load(Path(str(ends.key_file))))
    files = list(dict.fromkeys(file for canvas in canvases for file in canvas.inputs))
    digests: dict[Path, str] = {}
    size = sum(file.stat().st_size for file in files)
    with screen.step(f"{len(files)} inputs, {size / 1e6:.0f} MB, into the blob store") as tell:
        for n, file in enumerate(files):
            tell(f"{n} of {len(files)}")
            digests[file] = blobs.put_file(file).digest
    return digests, blobs.counters


def send(ends: Endpoints, canvases: Sequence[Canvas], digests: Digests) -> list[AsyncResult[Any]]:
    """All at once, the longest job first. This is all that connects a producer."""
    app = Celery(broker=ends.broker_url, backend=ends.result_backend)
    app.conf.broker_transport_options = ends.transport_options
    app.set_current()
    sent = [canvas.make(digests).apply_async() for canvas in reversed(canvases)]
    return sent[::-1]


def ids_of(result: Any) -> tuple[str, ...]:
    """The jobs behind a canvas' result, as far as they run before it and with it."""
    if result is None:
        return ()
    before = ids_of(result.parent)
    if isinstance(result, GroupResult):
        own = tuple(job for member in result.results or () for job in ids_of(member))
    else:
        own = (str(result.id),)
    return tuple(dict.fromkeys((*before, *own)))


def watch(screen: Screen, client: Client, parts: Sequence[Part]) -> list[Record]:
    """Shows the jobs until all have ended. Raises Failed as soon as one fails. If it ends early, so do the jobs."""
    ids = [job for part in parts for job in part.ids]
    left = set(ids)
    with screen.board(parts) as hear:

        def change(record: Record) -> None:
            hear(record)
            if record.state.ended:
                left.discard(record.id)
            if record.state == "FAILED":
                last = "\n".join(list(client.logs(record.id))[-5:])
                raise Failed(f"job {record.name} failed: {record.reason}; its log ends:\n{last}")

        try:
            return client.wait(ids, timeout_s=LIMIT_S, on_change=change)
        except BaseException:
            for job in left:
                client.cancel(job, "the demo ended early")
            raise


def staged_of(log: Iterable[str]) -> Staged:
    """What a job's log says of its inputs: `3 inputs staged: 12.3 MB fetched, 2 of 3 already here`."""
    for line in log:
        if found := _STAGED.search(line):
            here, inputs = int(found[3]), int(found[4])
            fetched_bytes = float(found[1].replace(",", "")) * _UNITS[found[2]]
            return Staged(fetched=inputs - here, fetched_bytes=fetched_bytes, here=here)
    return Staged()


def fail(screen: Screen) -> None:
    """A failure as a producer sees it. Raises Failed."""
    try:
        producer.failing().apply_async().get(timeout=60)
    except Exception as error:  # Celery makes the class up: a producer has none of ours
        details = error.args[1] if len(error.args) > 1 and isinstance(error.args[1], dict) else {}
        if details.get("exit_code") != 3:
            raise Failed(f"the failing job should have ended with exit code 3, but: {error}") from None
        last = str(details["log_tail"]).strip().splitlines()[-1:]
        screen.say(f"  the producer is told: {escape(details['reason'])}")
        screen.say(f"  and how its log ends: {escape(' '.join(last))}")
    else:
        raise Failed("the failing job did not fail")


def moved(screen: Screen, puts: Counters, staged: Staged) -> None:
    """What had to move into the store, and from there to the nodes."""
    put_mb, staged_mb = puts.sealed_bytes_in / 1e6, staged.fetched_bytes / 1e6
    screen.say(f"  into the store: {puts.puts} blobs put, {put_mb:.1f} MB; {puts.known_puts} were known")
    screen.say(f"  to the nodes: {staged.fetched} inputs fetched, {staged_mb:.1f} MB; {staged.here} were there")
    if puts.puts or staged.fetched:
        screen.say("[dim]  run it again: no input moves a second time[/]")
    else:
        screen.say("  [green]✓[/] no input moved a second time")


if __name__ == "__main__":
    main()
