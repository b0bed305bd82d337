"""What runs in the containers of the photographs' part: numpy and Pillow, and nothing of Batchyard or Celery.

fingerprint.py copies PHOTOGRAPH FOLDER         near-duplicates of a photograph: scaled, darkened, cropped
fingerprint.py prints FOLDER FILE|FOLDER…       the fingerprints of images
fingerprint.py groups FOLDER FILE               which images show the same, from all fingerprints

A fingerprint is a unit vector: the low frequencies of a small grey picture, higher ones weighted up, as photographs
have less of them. The cosine of two of them says how alike two pictures are, whatever their size, format or
brightness. To know a crop, an image has a fingerprint of itself and of 410 windows in it: the crop's is close to that
of one window of the whole.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

SAME = 0.88
"""Cosine from which on two images are the same: photographs that differ stay below 0.86, most copies reach 0.93."""

_SIDE_PX, _GREY_PX, _MOST = 32, 256, 10
_SCALES = [1 - 0.035 * n for n in range(11)]
_STEP = 0.04
_X, _Y = np.meshgrid(np.arange(_SIDE_PX), np.arange(_SIDE_PX))
_FREQUENCY = np.hypot(_X, _Y)
_KEPT = (_FREQUENCY > 0) & (_FREQUENCY <= _MOST)
_COSINES = np.cos(np.pi * (2 * _X + 1) * _Y / (2 * _SIDE_PX))


def near_duplicates(image: Image.Image, random: Random) -> Iterator[tuple[str, Image.Image]]:
    """Four copies of a photograph, none of them aligned with the windows of a fingerprint."""
    yield "small", ImageOps.contain(image, (320, 320))
    yield (
        "dark",
        ImageOps.contain(ImageEnhance.Contrast(ImageEnhance.Brightness(image).enhance(0.7)).enhance(0.8), (640, 640)),
    )
    for name in ("crop", "detail"):
        side = random.uniform(0.8, 0.92) if name == "crop" else random.uniform(0.66, 0.8)
        left, top = random.uniform(0, 1 - side), random.uniform(0, 1 - side)
        box = [
            round(part * length)
            for part, length in zip((left, top, left + side, top + side), image.size * 2, strict=True)
        ]
        yield name, ImageOps.contain(image.crop((box[0], box[1], box[2], box[3])), (600, 600))


def fingerprints(image: Image.Image) -> Any:
    """Of the whole and of the windows in it: an array of 410 unit vectors of 89 float16."""
    grey = image.convert("L").resize((_GREY_PX, _GREY_PX), Image.Resampling.LANCZOS)
    found = []
    for left, top, side in windows():
        box = (left * _GREY_PX, top * _GREY_PX, (left + side) * _GREY_PX, (top + side) * _GREY_PX)
        small = np.asarray(grey.resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BOX, box=box), dtype=np.float64)
        vector = ((_COSINES @ small @ _COSINES.T) * _FREQUENCY)[_KEPT]
        found.append(vector / max(float(np.linalg.norm(vector)), 1.0))  # of a flat picture only rounding is left
    return np.array(found, dtype=np.float16)


def windows() -> list[tuple[float, float, float]]:
    """(left, top, side) as parts of the image's width and height; the first is the whole."""
    found = []
    for side in _SCALES:
        places = np.linspace(0, 1 - side, round((1 - side) / _STEP) + 1)
        found += [(float(left), float(top), side) for top in places for left in places]
    return found


def groups(prints: Sequence[Any], same: float = SAME) -> list[list[int]]:
    """Images that show the same, by their places in `prints`: those alike, and those alike to a third one."""
    wholes = np.array([found[0] for found in prints], dtype=np.float32)
    group = list(range(len(prints)))
    for n, found in enumerate(prints):
        alike = (found.astype(np.float32) @ wholes.T).max(axis=0) >= same
        for other in np.flatnonzero(alike):
            old, new = sorted((group[n], group[other]))
            group = [old if g == new else g for g in group]
    return [members for g in dict.fromkeys(group) if len(members := [n for n, of in enumerate(group) if of == g]) > 1]


def load(path: Path) -> Image.Image:
    """At most 1,024 pixels a side: more says no more here."""
    image = Image.open(path)
    image.draft("RGB", (1024, 1024))
    return ImageOps.contain(image.convert("RGB"), (1024, 1024))


def main(command: str, *words: str) -> None:
    paths = [Path(word) for word in words]
    if command == "copies":
        image = load(paths[0])
        paths[1].mkdir()
        for name, copy in near_duplicates(image, Random(image.tobytes())):
            copy.save(paths[1] / f"{name}.jpg", quality=70)
        print("4 copies of a photograph of", *image.size, "pixels")
    elif command == "prints":
        files = [f for path in paths[1:] for f in (sorted(path.iterdir()) if path.is_dir() else [path])]
        paths[0].mkdir()
        (paths[0] / "names.json").write_text(json.dumps([file.stem for file in files]))
        np.save(paths[0] / "prints.npy", np.array([fingerprints(load(file)) for file in files]))
        print("fingerprints of", len(files), "images")
    elif command == "groups":
        names, prints = [], []
        for folder in sorted(paths[0].iterdir(), key=lambda path: int(path.name)):
            names += [f"{folder.name}/{name}" for name in json.loads((folder / "names.json").read_text())]
            prints += list(np.load(folder / "prints.npy"))
        found = [[names[n] for n in members] for members in groups(prints)]
        paths[1].write_text(json.dumps(found))
        print(len(names), "images,", len(found), "groups that show the same")
    else:
        raise SystemExit(f"no such command: {command}")


if __name__ == "__main__":
    main(*sys.argv[1:])
