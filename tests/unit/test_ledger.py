"""The ledger accounts each job once and never gives out what is not there."""

from __future__ import annotations

import threading

from batchyard.worker.ledger import Allocation, Demand, Free, Ledger


def ledger(**changes: object) -> Ledger:
    return Ledger(**({"vcpus": 2, "memory_mib": 1000, "disk_gib": 10, "gpus": ("a", "b")} | changes))  # type: ignore[arg-type]


SMALL = Demand(vcpus=0.5, memory_mib=100, disk_gib=1, gpus=1)


def test_a_reservation_takes_and_a_release_gives_back() -> None:
    book = ledger()
    got = book.reserve("j", SMALL, token="t")
    assert got == Allocation(job_id="j", token="t", demand=SMALL, gpus=("a",))
    assert book.free() == Free(vcpus_milli=1500, memory_mib=900, disk_mib=9216, gpus=1)
    book.release("j")
    assert book.free() == book.capacity


def test_what_does_not_fit_takes_nothing() -> None:
    book = ledger()
    for too_much in (
        Demand(vcpus=2.001, memory_mib=1),
        Demand(vcpus=1, memory_mib=1001),
        Demand(vcpus=1, memory_mib=1, disk_gib=10.1),
        Demand(vcpus=1, memory_mib=1, gpus=3),
    ):
        assert book.reserve("j", too_much) is None
    assert book.free() == book.capacity


def test_ten_tenths_of_a_cpu_fit_exactly() -> None:
    book = ledger(vcpus=1)
    tenths = [book.reserve(str(n), Demand(vcpus=0.1, memory_mib=1)) for n in range(11)]
    assert sum(one is not None for one in tenths) == 10


def test_gpus_are_exclusive() -> None:
    book = ledger()
    first, second = book.reserve("1", SMALL), book.reserve("2", SMALL)
    assert first is not None
    assert second is not None
    assert {first.gpus, second.gpus} == {("a",), ("b",)}
    assert book.reserve("3", SMALL) is None


def test_a_job_whose_lease_came_back_is_accounted_once() -> None:
    book = ledger()
    before = book.reserve("j", SMALL, token="old")
    after = book.reserve("j", SMALL, token="new")
    assert before is not None
    assert after is not None
    assert after.gpus == before.gpus
    assert book.free().gpus == 1
    book.release("j", token="old")
    assert book.free().gpus == 1
    book.release("j", token="new")
    assert book.free() == book.capacity


def test_a_release_may_come_twice() -> None:
    book = ledger()
    book.reserve("j", SMALL)
    book.release("j")
    book.release("j")
    book.release("never")
    assert book.free() == book.capacity


def test_an_adopted_container_keeps_its_devices() -> None:
    book = ledger()
    got = book.reserve("j", SMALL, gpus=("b",))
    assert got is not None
    assert got.gpus == ("b",)
    assert book.reserve("k", SMALL, gpus=("b",)) is None


def test_many_threads_never_overbook() -> None:
    book = ledger(vcpus=3, gpus=())
    got: list[Allocation] = []

    def take(n: int) -> None:
        one = book.reserve(str(n), Demand(vcpus=1, memory_mib=1))
        if one is not None:
            got.append(one)

    threads = [threading.Thread(target=take, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 3


def test_a_type_of_gpu_is_given_out_as_asked_and_any_other_first_where_none_is_asked_for() -> None:
    types = {"a": "a100", "b": "t4", "c": "t4", "d": ""}
    book = ledger(gpus=("a", "b", "c", "d"), types=types, vcpus=9)
    assert book.capacity.gpu_types == {"a100": 1, "t4": 2}

    def take(job_id: str, **asked: object) -> tuple[str, ...] | None:
        got = book.reserve(job_id, Demand(vcpus=1, memory_mib=1, **asked))  # type: ignore[arg-type]
        return None if got is None else got.gpus

    assert take("any1", gpus=1) == ("d",)
    assert take("any2", gpus=1) == ("b",)
    assert take("typed", gpus=1, gpu_type="a100") == ("a",)
    assert take("more", gpus=1, gpu_type="a100") is None
    assert book.free().gpu_types == {"t4": 1}
    book.release("typed")
    assert book.free().gpu_types == {"a100": 1, "t4": 1}
