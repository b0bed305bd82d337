"""Who asks what a starting job does hears how far its inputs are; the log hears it seldom."""

from __future__ import annotations

import threading

import pytest

from batchyard.worker.progress import Progress, fetched, uploaded


def test_it_is_told_by_another_thread_at_most_once_a_time_and_logged_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("batchyard.worker.progress.FIRST_LINE_S", 3600.0)
    told, lines, enough = [], list[str](), threading.Event()

    def tell(text: str) -> None:
        told.append((threading.current_thread(), text))
        if len(told) == 3:
            enough.set()

    with Progress(tell, lines.append, every_s=0.01) as progress:
        done = 0
        while not enough.is_set():
            done += 1
            progress.hear("input /in/a", done, 10**9)
    assert all(thread is not threading.current_thread() for thread, _ in told)
    assert len(told) < done
    assert lines == [], "the first line comes later"


def test_what_is_here_already_starts_no_thread() -> None:
    with Progress(print, print) as progress:
        assert progress._thread is None


def test_after_its_end_nothing_is_told_any_more() -> None:
    told: list[str] = []
    progress = Progress(told.append, told.append, every_s=0.001)
    with progress:
        pass
    progress.hear("input /in/a", 1, 2)
    assert progress._thread is None
    assert told == []


def test_words_say_how_much_of_what() -> None:
    assert fetched("input /in/a", 1_200_000_000, 5_000_000_000) == "fetches 1.2 GB of 5.0 GB of input /in/a"
    assert fetched("the image", 2_000, 0) == "fetches 2.0 kB of the image"
    assert fetched("input /in/a", 5_000, 5_000) == "has fetched 5.0 kB of input /in/a, and makes it ready"
    assert uploaded("3 of 7", 1_200_000_000, 5_000_000_000) == "uploads outputs (3 of 7, 1.2 GB of 5.0 GB)"
