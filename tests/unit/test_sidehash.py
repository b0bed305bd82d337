from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable

import pytest

from batchyard.broker.sidehash import AHEAD, SideHash
from yardtest.wait import until


@pytest.mark.parametrize("sizes", [[], [0], [5], [1 << 20] * 9, [1 << 20, 10, 1 << 20, 300_000, 1], [10] * 50])
def test_it_is_the_sha256_of_all_pieces_in_order(sizes: list[int]) -> None:
    found, wanted = SideHash(), hashlib.sha256()
    rooms = [bytearray(1 << 20) for _ in range(AHEAD + 1)]
    for number, size in enumerate(sizes):
        room = memoryview(rooms[number % len(rooms)])[:size]  # in use no more, says the contract
        room[:] = os.urandom(size)
        wanted.update(room)
        found.update(room)
    assert found.hexdigest() == wanted.hexdigest()
    assert found.hexdigest() == wanted.hexdigest()


def test_many_streams_at_once_do_not_mix() -> None:
    right: list[bool] = []

    def one() -> None:
        data = os.urandom(8 << 20)
        found = SideHash()
        for start in range(0, len(data), 1 << 20):
            found.update(memoryview(data)[start : start + (1 << 20)])
        right.append(found.hexdigest() == hashlib.sha256(data).hexdigest())

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert right == [True] * 8


def test_a_forked_process_has_threads_of_its_own() -> None:
    SideHash().update(memoryview(bytes(1 << 20)))
    pid = os.fork()
    if pid == 0:
        found = SideHash()
        for _ in range(5):
            found.update(memoryview(bytes(1 << 20)))
        os._exit(0 if found.hexdigest() == hashlib.sha256(bytes(5 << 20)).hexdigest() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


class Pool:
    """Keeps what it is given; full: and raises all the same, as a pool does where no thread can be started."""

    def __init__(self) -> None:
        self.full, self.tasks = True, list[Callable[[], object]]()

    def submit(self, act: Callable[..., object], *args: object) -> None:
        self.tasks.append(lambda: act(*args))
        if self.full:
            raise RuntimeError("can't start new thread")


def test_a_task_that_a_pool_kept_without_a_thread_for_it_is_void(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, found, data = Pool(), SideHash(), os.urandom(3 << 20)
    monkeypatch.setattr("batchyard.broker.sidehash._hashers", lambda: pool)
    first, second, third = (memoryview(data)[at << 20 : (at + 1) << 20] for at in range(3))
    found.update(first)
    pool.full = False
    found.update(second)
    found.update(third)
    stray, right = pool.tasks
    stray()
    assert found._busy
    right()
    assert found.hexdigest() == hashlib.sha256(data).hexdigest()


def test_a_sink_gets_each_piece_in_order() -> None:
    found, got = SideHash(), list[bytes]()
    pieces = [os.urandom(size) for size in (1 << 20, 1 << 20, 10, 1 << 20)]
    for piece in pieces:
        found.update(memoryview(piece), lambda view: got.append(bytes(view)))
    assert found.hexdigest() == hashlib.sha256(b"".join(pieces)).hexdigest()
    assert got == pieces


@pytest.mark.parametrize("size", [10, 1 << 20])
def test_what_a_sink_raises_reaches_the_thread_that_moves_the_bytes(size: int) -> None:
    found, got = SideHash(), list[int]()

    def sink(view: memoryview) -> None:
        got.append(len(view))
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        for _ in range(9):
            found.update(memoryview(bytes(size)), sink)
        found.hexdigest()
    assert got == [size]
    found.rest()


def test_no_sink_is_at_work_after_a_rest() -> None:
    found, got, go_on = SideHash(), list[int](), threading.Event()

    def sink(view: memoryview) -> None:
        go_on.wait(10)
        got.append(len(view))

    for _ in range(AHEAD):
        found.update(memoryview(bytes(1 << 20)), sink)

    def go_on_when_cleared() -> None:
        until(lambda: not found._waiting, "it has forgotten what waits")
        go_on.set()

    threading.Thread(target=go_on_when_cleared, daemon=True).start()
    found.rest()
    found.hexdigest()
    assert len(got) == 1
