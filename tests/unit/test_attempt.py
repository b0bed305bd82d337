"""One attempt on an engine that goes away at the worst moment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from batchyard.broker.config import single_machine
from batchyard.broker.errors import EngineUnavailable, OutputError
from batchyard.broker.job import Job
from batchyard.broker.record import Claimed
from batchyard.broker.seal import KeyRing
from batchyard.cache.copies import LocalCopies
from batchyard.cache.disk import DirectoryStore
from batchyard.cache.folder import Folder
from batchyard.cache.index import Index
from batchyard.cache.sealed import BlobStore
from batchyard.worker.attempt import Execution, Finished
from batchyard.worker.capture import LogPoller
from batchyard.worker.engine.fake import FakeEngine, Running
from batchyard.worker.ledger import Allocation, Demand
from batchyard.worker.live import LiveShipper
from batchyard.worker.options import NodeOptions
from batchyard.worker.outcome import Fate, Stop
from batchyard.worker.pull import Puller
from batchyard.worker.staging import Stage
from batchyard.worker.tools import Tools
from yardtest.wait import until

COPIES_BYTES = 1 << 20
CLAIMED = Claimed(id="j", token="1:c", attempt=1, queue="cpu", created=1.0, document=b"")
LABELS = {"batchyard.yard": "y", "batchyard.node": "n"}


class Flaky(FakeEngine):
    """starts: how often a start is made and not answered, the removal after it neither. signals: how often none is."""

    starts = signals = removes = 0

    def start(self, container_id: str) -> None:
        super().start(container_id)
        if self.starts:
            self.starts, self.removes = self.starts - 1, 1
            raise EngineUnavailable("no answer")

    def remove(self, container_id: str, *, force: bool = True) -> None:
        if self.removes:
            self.removes -= 1
            raise EngineUnavailable("no answer")
        super().remove(container_id, force=force)

    def signal(self, container_id: str, name: str) -> bool:
        if self.signals:
            self.signals -= 1
            raise EngineUnavailable("no answer")
        return super().signal(container_id, name)


@pytest.fixture
def engine(tmp_path: Path) -> Flaky:
    return Flaky(tmp_path, images=["i"])


@pytest.fixture
def tools(tmp_path: Path, engine: Flaky) -> Tools:
    nothing = cast(Any, None)
    blobs = BlobStore(DirectoryStore(tmp_path / "store"), KeyRing.new())
    (tmp_path / "copies").mkdir()
    copies = LocalCopies(blobs, Index(tmp_path / "copies"), [Folder(tmp_path / "copies", COPIES_BYTES)])
    options = NodeOptions(
        name="n", state=tmp_path / "state", store=str(tmp_path), queues=(), vcpus=2, memory_mib=512, disk_gib=1
    )
    return Tools(
        yard=nothing,
        yard_id="y",
        hostname="n@batchyard",
        config=single_machine(2, 512, 0, 1),
        options=options,
        engine=engine,
        puller=Puller(engine),
        stage=Stage(copies=copies, allowed_roots=()),
        blobs=blobs,
        followups=nothing,
        poller=LogPoller(),
        live=LiveShipper(nothing),
        reporter=nothing,
    )


def execution(tools: Tools, command: str, *, on_start: Callable[[float], None] | None = None, **more: Any) -> Execution:
    job = Job.parse({"image": "i", "command": command.split(), "user": None, "inputs": more.get("inputs", {})})
    allocation = Allocation(job_id="j", token="1:c", demand=Demand(vcpus=1, memory_mib=64), gpus=())
    container = more.get("container")
    return Execution(tools, CLAIMED, job, allocation, container, on_start or (lambda at: None))


def in_thread(one: Execution) -> Callable[[], Finished]:
    ended: list[Finished] = []
    thread = threading.Thread(target=lambda: ended.append(one.run()), daemon=True)
    thread.start()

    def join() -> Finished:
        thread.join(20)
        return ended[0]

    return join


def test_a_start_that_was_not_answered_does_not_run_the_job_twice_at_once(tools: Tools, engine: Flaky) -> None:
    there: list[int] = []

    def program(run: Running) -> int:
        there.append(len(engine.list(LABELS)))
        run.sleep(60 if len(there) == 1 else 0)
        return 0

    engine.program("work", program)
    engine.starts = 1
    one = execution(tools, "work")
    end = one.run()
    assert end.outcome.fate is Fate.SUCCEEDED
    assert there == [1, 1]
    one.remove()
    assert engine.list(LABELS) == ()


def test_a_stop_reaches_the_container_when_the_engine_is_back(tools: Tools, engine: Flaky) -> None:
    started = threading.Event()
    one = execution(tools, "sleep 60", on_start=lambda at: started.set())
    join = in_thread(one)
    assert started.wait(10)
    engine.signals = 1
    one.stop(Stop.CANCEL, "revoked", grace_s=30, first_signal="SIGTERM")
    end = join()
    assert (end.outcome.fate, end.outcome.exit_code) == (Fate.REVOKED, 143)


def test_an_adopted_container_whose_start_was_never_told_is_told_now(tools: Tools, engine: Flaky) -> None:
    first = execution(tools, "sleep 60")
    join = in_thread(first)
    until(lambda: first.started, "the container runs")
    (listed,) = engine.list(LABELS)
    told: list[float] = []
    second = execution(tools, "sleep 60", container=listed.id, on_start=told.append)
    join_second = in_thread(second)
    until(lambda: told, "the record is told")
    second.stop(Stop.CANCEL, "revoked", grace_s=1, first_signal="SIGTERM")
    assert join_second().outcome.fate is Fate.REVOKED
    join()


def test_a_job_waits_for_room_that_others_inputs_take_and_says_what_moved(tools: Tools, engine: Flaky) -> None:
    engine.program("work", lambda run: 0)
    copies = tools.stage.copies
    large, small = tools.blobs.put_bytes(b"l" * 700_000), tools.blobs.put_bytes(b"s" * 400_000)
    copies.stage(large, "other job")
    one = execution(tools, "work", inputs={"/in/x": small.digest})
    join = in_thread(one)
    until(lambda: copies.is_pinned(small.digest), "it has begun")
    copies.unpin("other job")
    end = join()
    assert end.outcome.fate is Fate.SUCCEEDED
    assert end.log is not None
    assert b"1 input staged: 400.0 kB fetched, 0 of 1 already here" in tools.blobs.read_bytes(end.log.digest, 10_000)
    assert not copies.is_pinned(small.digest)


def test_an_adopted_container_pins_its_inputs_before_it_is_gone_on_with(tools: Tools, engine: Flaky) -> None:
    blob = tools.blobs.put_bytes(b"x")
    execution(tools, "work", container="c", inputs={"/in/x": blob.digest})
    assert tools.stage.copies.is_pinned(blob.digest)


class Says:
    """A yard that answers heartbeats of a job so, one after the other."""

    def __init__(self, *answers: list[tuple[str, str, str]]) -> None:
        self._answers = list(answers)

    def renew(self, *_: object, **__: object) -> list[tuple[str, str, str]]:
        return self._answers.pop(0)


def test_outputs_are_written_also_when_redis_was_not_told_that_a_member_runs(tools: Tools) -> None:
    one = execution(replace(tools, yard=cast(Any, Says([("j", "go", "10.0.0.1")]))), "true")
    one._confirm()
    assert one.stopped is None
    lost = execution(replace(tools, yard=cast(Any, Says([("j", "lost", "")]))), "true")
    with pytest.raises(OutputError):
        lost._confirm()
    assert lost.stopped is Stop.LOST
