"""What the demo runs, and how it knows that what came out is right: one `Canvas` for each of its three parts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.table import Table

import flights
import photographs
import producer
from batchyard.broker.client import Client
from screen import Screen

PRECISION, RECALL = 0.97, 0.95
"""What is expected of the photographs at least; 1.000 and 0.989 were seen."""
SLIDES, SEGMENTS = 12, 6
PROGRAM = Path(__file__).with_name("fingerprint.py")
Digests = Mapping[Path, str]
Outputs = Mapping[str, Mapping[str, Any]]


class Failed(Exception):
    """The demo did not show what it should; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas:
    """A part of the demo. inputs: files that its jobs name by digest. check: raises Failed."""

    title: str
    inputs: Sequence[Path]
    make: Callable[[Digests], Any]
    check: Callable[[Screen, Client, Outputs], None]


# -- photographs


def photographs_alike(files: Sequence[Path]) -> Canvas:
    """Which images show the same photograph: known, since the copies are made by the first jobs."""

    def check(screen: Screen, client: Client, outputs: Outputs) -> None:
        score = photographs.score(json.loads(_content(client, outputs["groups"])), len(files))
        images = len(files) * (1 + len(photographs.COPIES))
        screen.say(
            f"  {len(files)} and {len(photographs.COPIES)} copies of each, scaled, darkened or cropped: "
            f"{images} images, {images * (images - 1) // 2:,} pairs"
        )
        screen.say(
            f"  {score.truth} pairs show the same; found {score.found}: "
            f"precision [bold]{score.precision:.3f}[/], recall [bold]{score.recall:.3f}[/]"
        )
        if score.missed:
            missed = {files[int(a.partition("/")[0])].stem for pair in score.missed for a in pair}
            screen.say(f"[dim]  pairs were missed of {', '.join(sorted(missed))}[/]")
        if score.precision < PRECISION or score.recall < RECALL:
            raise Failed(f"precision {score.precision:.3f} and recall {score.recall:.3f} are less than they should be")

    return Canvas(
        title="photographs",
        inputs=[PROGRAM, *files],
        make=lambda digests: producer.similar(digests[PROGRAM], [digests[file] for file in files]),
        check=check,
    )


# -- flights


def flights_table(whole: Path, parts: Sequence[Path]) -> Canvas:
    """Delay by carrier: the same is computed here."""

    def check(screen: Screen, client: Client, outputs: Outputs) -> None:
        lines = [line.split() for line in _content(client, outputs["table"]).decode().splitlines()]
        found = {c: flights.Line(flights=int(n), arrived=int(m), delay_min=int(s)) for c, n, m, s in lines}
        if found != flights.by_carrier(whole):
            raise Failed("the jobs' table of flights differs from the one computed here")
        rows = sum(line.flights for line in found.values())
        screen.say(f"  {rows:,} rows, {len(found)} carriers, the same as computed here; worst and best:")
        screen.say(_flights(found))

    return Canvas(
        title="flights",
        inputs=parts,
        make=lambda digests: producer.table([digests[part] for part in parts]),
        check=check,
    )


def _flights(found: Mapping[str, flights.Line]) -> Table:
    """The three worst and the three best carriers."""
    table = Table(box=None, header_style="dim")
    table.add_column("carrier")
    for name in ("flights", "arrived", "mean delay, min"):
        table.add_column(name, justify="right")
    by_delay = sorted(found.items(), key=lambda item: -item[1].delay_min / max(1, item[1].arrived))
    for carrier, line in [*by_delay[:3], *by_delay[-3:]]:
        mean = f"{line.delay_min / line.arrived:.1f}" if line.arrived else ""
        table.add_row(carrier, f"{line.flights:,}", f"{line.arrived:,}", mean)
    return table


# -- film


def film(files: Sequence[Path], folder: Path) -> Canvas:
    """A film of JPEG photographs. ffprobe, in the last job, says what it is."""
    slides = files[: min(SLIDES, len(files) // 3 * 3)]  # so that all segments have as many frames
    length_s = len(slides) * producer.SLIDE_S

    def check(screen: Screen, client: Client, outputs: Outputs) -> None:
        facts = json.loads(_content(client, outputs["facts"]))
        stream, found_s = facts["streams"][0], float(facts["format"]["duration"])
        frames = int(stream["nb_read_frames"])
        what = f"{stream['codec_name']}, {stream['width']}x{stream['height']}, {frames} frames, {found_s:.2f} s"
        right = {"codec_name": "vp9", "width": 640, "height": 360}
        if any(stream[name] != value for name, value in right.items()):
            raise Failed(f"the film is {what}, and should be {right}")
        if frames != length_s * producer.FPS or abs(found_s - length_s) > 0.1:
            raise Failed(f"the film is {what}, and should be of {length_s} s and {length_s * producer.FPS} frames")
        path = folder / "film.webm"
        path.unlink(missing_ok=True)
        client.get(outputs["film"]["digest"], path)
        screen.say(f"  {len(slides)} photographs → h264, 960x540 → {SEGMENTS} segments → {what}")
        screen.say(f"[dim]  in {os.path.relpath(path)}[/]")

    return Canvas(
        title="film",
        inputs=slides,
        make=lambda digests: producer.film([digests[file] for file in slides], SEGMENTS),
        check=check,
    )


def _content(client: Client, output: Mapping[str, Any]) -> bytes:
    """A small output, verified."""
    with TemporaryDirectory() as folder:
        client.get(output["digest"], Path(folder) / "output")
        return (Path(folder) / "output").read_bytes()
