"""The pure parts of the demo: fingerprints, their score, what is sent, what is shown."""

from __future__ import annotations

import ast
import io
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

import fingerprint
import images
import photographs
import producer
import results
import run
import screen
from packages import Apt, NoPackages

DEMO = Path(run.__file__).parent


def picture(seed: int) -> Image.Image:
    """Soft blobs of all sizes, as photographs have them; another seed gives another one."""
    random = np.random.default_rng(seed)
    whole = np.zeros((300, 400))
    for size in (4, 8, 16, 32, 64):
        noise = Image.fromarray(random.integers(0, 255, (size, size), dtype=np.uint8))
        whole += np.asarray(noise.resize((400, 300), Image.Resampling.BICUBIC), dtype=float) / size
    whole = 255 * (whole - whole.min()) / (whole.max() - whole.min())
    return Image.fromarray(whole.astype(np.uint8)).convert("RGB").filter(ImageFilter.GaussianBlur(1))


def saved(image: Image.Image) -> Image.Image:
    """As it is after a loss by JPEG."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=70)
    return Image.open(file)


# -- fingerprints


def test_a_photograph_is_known_in_its_copies_and_not_in_others() -> None:
    prints: list[Any] = []
    for seed in range(3):
        image = picture(seed)
        copies = [copy for _, copy in fingerprint.near_duplicates(image, Random(seed))]
        prints += [fingerprint.fingerprints(saved(each)) for each in (image, *copies)]
    assert fingerprint.groups(prints) == [list(range(n, n + 5)) for n in (0, 5, 10)]


def test_copies_are_the_same_every_time_and_named_as_the_score_expects() -> None:
    first, second = (list(fingerprint.near_duplicates(picture(1), Random(7))) for _ in range(2))
    assert tuple(name for name, _ in first) == photographs.COPIES
    assert [copy.tobytes() for _, copy in first] == [copy.tobytes() for _, copy in second]


def test_the_first_window_is_the_whole_and_all_lie_within_it() -> None:
    windows = fingerprint.windows()
    assert windows[0] == (0, 0, 1)
    assert len(windows) == 410
    assert all(left >= 0 and top >= 0 and max(left, top) + side <= 1.0001 for left, top, side in windows)


def test_an_image_without_any_contrast_is_like_no_other() -> None:
    flat = fingerprint.fingerprints(Image.new("RGB", (50, 50), "grey"))
    assert fingerprint.groups([flat, flat, fingerprint.fingerprints(picture(1))]) == []


def test_the_jobs_program_does_all_three_steps_on_files(tmp_path: Path) -> None:
    for n in range(2):
        picture(n).save(tmp_path / f"{n}.png")
        fingerprint.main("copies", str(tmp_path / f"{n}.png"), str(tmp_path / f"copies-{n}"))
        (tmp_path / "prints").mkdir(exist_ok=True)
        photograph = tmp_path / "photograph"
        photograph.unlink(missing_ok=True)
        photograph.symlink_to(tmp_path / f"{n}.png")
        words = [str(tmp_path / "prints" / str(n)), str(photograph), str(tmp_path / f"copies-{n}")]
        fingerprint.main("prints", *words)
    fingerprint.main("groups", str(tmp_path / "prints"), str(tmp_path / "groups.json"))
    found = json.loads((tmp_path / "groups.json").read_text())
    score = photographs.score(found, 2)
    assert (score.precision, score.recall, score.truth) == (1.0, 1.0, 20)


# -- the score


def group(n: int, *images: str) -> list[str]:
    return [f"{n}/{image}" for image in images]


ALL = ("photograph", *photographs.COPIES)


def test_all_pairs_found_and_no_others_is_one_and_one() -> None:
    score = photographs.score([group(0, *ALL), group(1, *ALL)], 2)
    assert (score.truth, score.found, score.precision, score.recall, score.missed) == (20, 20, 1.0, 1.0, ())


def test_what_is_not_found_costs_recall_and_is_named() -> None:
    score = photographs.score([group(0, *ALL[:4])], 1)
    assert (score.precision, score.recall) == (1.0, 0.6)
    assert len(score.missed) == 4
    assert all(f"0/{ALL[4]}" in pair for pair in score.missed)


def test_two_photographs_taken_for_one_cost_precision() -> None:
    score = photographs.score([group(0, *ALL) + group(1, *ALL)], 2)
    assert (score.precision, score.recall) == (20 / 45, 1.0)


def test_nothing_found_is_no_division_by_nothing() -> None:
    score = photographs.score([], 3)
    assert (score.precision, score.recall, len(score.missed)) == (0.0, 0.0, 30)


# -- what is sent


def test_the_producer_imports_celery_and_nothing_of_ours() -> None:
    tree = ast.parse((DEMO / "producer.py").read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules == {"__future__", "collections.abc", "typing", "celery"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import)]


def test_each_photograph_is_named_once() -> None:
    names = [name for _, text in (*photographs.PACKAGES.values(), photographs.IN_WHEEL) for name in text.split()]
    assert len(set(names)) == len(names) >= 50


@pytest.mark.parametrize("files", [3, 4, 11, 40])
def test_all_segments_of_the_film_have_as_many_frames(files: int, tmp_path: Path) -> None:
    slides = results.film([tmp_path / f"{n}.jpg" for n in range(files)], tmp_path).inputs
    assert 0 < len(slides) <= results.SLIDES
    assert len(slides) * producer.SLIDE_S * producer.FPS % results.SEGMENTS == 0


# -- images out of packages


@pytest.mark.parametrize(
    ("name", "merged"),
    [("./lib/x86_64-linux-gnu/libc.so.6", "usr/lib/x86_64-linux-gnu/libc.so.6"), ("./bin/sh", "usr/bin/sh"),
     ("./usr/bin/python3", "usr/bin/python3"), ("./lib/", "lib"), ("./", "."), ("./etc/ssl/", "etc/ssl")],
)  # fmt: skip
def test_files_of_a_package_go_below_the_merged_usr(name: str, merged: str) -> None:
    assert images._merged(name) == merged


def test_packages_that_were_downloaded_are_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hello").mkdir()
    (tmp_path / "hello" / "hello_1_all.deb").touch()
    (tmp_path / "hello.list").write_text("hello_1_all.deb")
    monkeypatch.setenv("PATH", "")
    assert Apt(tmp_path).fetch("hello") == tmp_path / "hello" / "hello_1_all.deb"
    (tmp_path / "hello" / "hello_1_all.deb").unlink()
    with pytest.raises(NoPackages, match="no apt here"):
        Apt(tmp_path).fetch("hello")


# -- what is shown


@pytest.mark.parametrize(
    ("line", "staged"),
    [
        ("3 inputs staged: 12.3 MB fetched, 1 of 3 already here", (2, 12.3e6, 1)),
        ("1 input staged: 0 bytes fetched, 1 of 1 already here", (0, 0, 1)),
        ("56 inputs staged: 1,023 bytes fetched, 0 of 56 already here", (56, 1023, 0)),
        ("pulling image x", (0, 0, 0)),
    ],
)
def test_what_a_job_staged_is_read_from_its_log(line: str, staged: tuple[int, float, int]) -> None:
    found = run.staged_of(["2026-01-01T00:00:00Z platform node left takes attempt 1", f"2026-01-01 platform {line}"])
    assert (found.fetched, found.fetched_bytes, found.here) == staged


def test_jobs_of_a_group_are_of_one_kind() -> None:
    assert [screen.kind_of(name) for name in ("part-3", "join", "a-b-12", "x-")] == ["part", "join", "a-b", "x-"]
