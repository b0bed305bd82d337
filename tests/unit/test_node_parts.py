"""What a node is made of, where it meets what should not be."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from batchyard.broker.errors import InvalidConfig, OutputError
from batchyard.broker.retry import Strategy
from batchyard.worker import bootstep, main
from batchyard.worker.engine.fake import FakeEngine
from batchyard.worker.engine.parked import ParkedNetworks
from batchyard.worker.engine.pause import TAG
from batchyard.worker.engine.protocol import ContainerSpec, Exit
from batchyard.worker.ledger import Demand, Ledger
from batchyard.worker.outcome import Fate, decide
from batchyard.worker.slots import Slots

LABELS = {"batchyard.node": "n"}


def test_a_second_process_on_the_same_state_folder_is_refused(tmp_path: Path) -> None:
    lock = main._only_one(tmp_path)
    with pytest.raises(InvalidConfig, match="already"):
        main._only_one(tmp_path)
    os.close(lock)
    os.close(main._only_one(tmp_path))


def test_an_adopted_container_is_accounted_also_on_a_node_that_has_become_too_small() -> None:
    book = Ledger(vcpus=1, memory_mib=100, disk_gib=1)
    got = book.reserve("j", Demand(vcpus=4, memory_mib=400, gpus=1), gpus=["old-gpu"], runs=True)
    assert got is not None
    assert got.gpus == ("old-gpu",)
    assert book.free().vcpus_milli == book.free().memory_mib == book.free().gpus == 0
    book.release("j")
    assert book.free() == book.capacity


def test_a_slot_without_a_thread_is_still_free(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = Slots(2)

    def no_thread(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError):
            slots.run(lambda slot: None)
    assert slots.free() == 2
    ran = threading.Event()
    slots.run(lambda slot: ran.set())
    assert ran.wait(10)


@pytest.mark.parametrize(
    ("given", "name"), [(None, "SIGTERM"), (9, "SIGKILL"), ("KILL", "SIGKILL"), ("sigint", "SIGINT")]
)
def test_a_signal_is_known_by_name_and_number(given: object, name: str) -> None:
    assert bootstep._signal_name(given) == name


@pytest.mark.parametrize("given", ["NOSUCH", 0, 999, {"a": 1}])
def test_a_signal_that_there_is_not_is_refused(given: object) -> None:
    with pytest.raises(ValueError, match=r"signal|Signals"):
        bootstep._signal_name(given)


def test_a_reason_that_quotes_a_name_that_is_no_text_is_text() -> None:
    error = OutputError("bad\udcff: is a fifo")
    ran = Exit(code=0, oom=False, started_at=1, finished_at=2)
    end = decide(exit=ran, error=error, stop=None, why="", attempt=1, strategy=Strategy())
    assert end.fate is Fate.FAILED
    assert end.reason.encode() == b"bad?: is a fifo"


class Watched(FakeEngine):
    """looks: called between any two steps of a start."""

    looks: Any = None

    def start(self, container_id: str) -> None:
        super().start(container_id)
        if self.looks:
            self.looks()


def test_a_sweep_does_not_see_a_network_that_is_just_being_parked(tmp_path: Path) -> None:
    engine = Watched(tmp_path, images=["i", TAG])
    engine.program("/pause", lambda run: run.sleep(60) or 0)  # type: ignore[func-returns-value]
    parked = ParkedNetworks(engine, machine="x86_64", labels=LABELS)
    seen: list[Any] = []
    engine.looks = lambda: seen.extend(one for one in parked.list(LABELS) if "batchyard.job" not in one.labels)
    container = parked.create(ContainerSpec(image="i", vcpus=1, memory_mib=64, labels={**LABELS, "batchyard.job": "j"}))
    assert seen == []
    assert [one.id for one in parked.list(LABELS)] == [container]
    assert len(ParkedNetworks(engine, machine="x86_64", labels=LABELS).list(LABELS)) == 2  # another process sees both
    parked.remove(container)
    parked.close()
    assert engine.list(LABELS) == ()


def test_an_image_of_the_parked_that_somebody_removed_is_made_again(tmp_path: Path) -> None:
    engine = FakeEngine(tmp_path, images=["i", TAG])
    engine.program("/pause", lambda run: run.sleep(60) or 0)  # type: ignore[func-returns-value]
    parked = ParkedNetworks(engine, machine="x86_64", labels=LABELS, idle=0)
    spec = ContainerSpec(image="i", vcpus=1, memory_mib=64, labels=LABELS)
    parked.remove(parked.create(spec))
    del engine.images[TAG]
    parked.remove(parked.create(spec))
    parked.close()
    assert engine.list(LABELS) == ()
