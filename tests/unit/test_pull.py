"""An image is pulled once at a time, few are pulled at once, and a failure is not remembered."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from batchyard.broker.errors import ImageError, NotFound, StartError
from batchyard.worker.engine.fake import FakeEngine, digest_of
from batchyard.worker.pull import Puller
from yardtest.wait import until


class SlowEngine(FakeEngine):
    """Pulls wait at a gate; `most` is how many were there at once."""

    gate: threading.Event
    now = most = 0

    def pull(self, image: str) -> None:
        with self._changed:
            self.now += 1
            self.most = max(self.most, self.now)
        self.gate.wait(30)
        with self._changed:
            self.now -= 1
        super().pull(image)


def slow(tmp_path: Path, *registry: str) -> SlowEngine:
    engine = SlowEngine(tmp_path, registry=registry)
    engine.gate = threading.Event()
    return engine


def test_many_callers_share_one_pull(tmp_path: Path) -> None:
    engine = slow(tmp_path, "a:1")
    puller = Puller(engine)
    with ThreadPoolExecutor(8) as pool:
        waiting = threading.Semaphore(0)
        asked = [pool.submit(puller.ensure, "a:1", pulling=waiting.release) for _ in range(8)]
        for _ in range(8):
            assert waiting.acquire(timeout=10)
        engine.gate.set()
        assert {one.result(10) for one in asked} == {digest_of("a:1")}
    assert engine.pulls == ["a:1"]


def test_at_most_so_many_images_are_pulled_at_once(tmp_path: Path) -> None:
    images = [f"a:{n}" for n in range(6)]
    engine = slow(tmp_path, *images)
    puller = Puller(engine, parallel=2)
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(puller.ensure, image) for image in images]
        until(lambda: engine.now == 2, "2 pulls are under way")
        engine.gate.set()
        assert [one.result(10) for one in asked] == [digest_of(image) for image in images]
    assert engine.most == 2


def test_a_failure_reaches_the_waiting_and_nobody_else(tmp_path: Path) -> None:
    engine = slow(tmp_path)
    puller = Puller(engine)
    with ThreadPoolExecutor(3) as pool:
        waiting = threading.Semaphore(0)
        asked = [pool.submit(puller.ensure, "a:1", pulling=waiting.release) for _ in range(3)]
        for _ in range(3):
            assert waiting.acquire(timeout=10)
        until(lambda: engine.now == 1, "1 pulls are under way")
        engine.gate.set()
        for one in asked:
            with pytest.raises(ImageError):
                one.result(10)
    engine.registry.add("a:1")
    assert puller.ensure("a:1") == digest_of("a:1")


def test_an_image_seen_lately_is_not_asked_for_again(tmp_path: Path) -> None:
    now = [0.0]
    engine = FakeEngine(tmp_path, images=["a:1"])
    puller = Puller(engine, fresh_s=30, clock=lambda: now[0])
    for at, asked in ((0.0, 1), (29.0, 1), (31.0, 2)):
        now[0] = at
        puller.ensure("a:1")
        assert engine.calls.count("image_present") == asked
    puller.forget("a:1")
    puller.ensure("a:1")
    assert engine.calls.count("image_present") == 3


def test_who_is_told_to_stop_waits_no_longer_and_the_pull_goes_on(tmp_path: Path) -> None:
    engine, stop = slow(tmp_path, "a:1"), threading.Event()
    puller = Puller(engine)
    with ThreadPoolExecutor(2) as pool:
        waiting = threading.Semaphore(0)
        told = pool.submit(puller.ensure, "a:1", pulling=waiting.release, stopped=stop.is_set)
        other = pool.submit(puller.ensure, "a:1", pulling=waiting.release)
        for _ in range(2):
            assert waiting.acquire(timeout=10)
        stop.set()
        with pytest.raises(StartError, match="a:1"):
            told.result(10)
        assert not other.done()
        engine.gate.set()
        assert other.result(10) == digest_of("a:1")
    assert engine.pulls == ["a:1"]


def test_an_image_that_is_a_blob_is_loaded_once_and_never_pulled(tmp_path: Path) -> None:
    engine = slow(tmp_path)
    engine.images["made:1"] = digest_of("made:1")
    engine.save("made:1", tmp_path / "archive")
    opened: list[Path] = []

    @contextmanager
    def archive() -> Iterator[Path]:
        opened.append(tmp_path / "archive")
        assert engine.gate.wait(30)
        yield tmp_path / "archive"

    puller = Puller(engine)
    with ThreadPoolExecutor(8) as pool:
        waiting = threading.Semaphore(0)
        asked = [pool.submit(puller.ensure, "blob:1", archive=archive, pulling=waiting.release) for _ in range(8)]
        for _ in range(8):
            assert waiting.acquire(timeout=10)
        engine.gate.set()
        assert {one.result(10) for one in asked} == {digest_of("made:1")}
    puller.forget("blob:1")
    assert puller.ensure("blob:1", archive=archive) == digest_of("made:1")
    assert (len(opened), engine.calls.count("load"), engine.pulls) == (1, 1, [])


def test_a_blob_that_cannot_be_had_fails_all_that_wait_and_is_tried_again_by_the_next(tmp_path: Path) -> None:
    engine, tries = slow(tmp_path), list[int]()

    @contextmanager
    def archive() -> Iterator[Path]:
        tries.append(1)
        raise NotFound("blob is not in the store")
        yield

    puller = Puller(engine)
    for _ in range(2):
        with pytest.raises(NotFound):
            puller.ensure("blob:1", archive=archive)
    assert len(tries) == 2
