"""One attempt on an engine that goes away at the worst moment."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from batchyard.broker.config import single_machine
from batchyard.broker.errors import BrokerUnavailable, EngineUnavailable, OutputError, StoreUnavailable
from batchyard.broker.job import Job
from batchyard.broker.record import Claimed
from batchyard.broker.seal import KeyRing, Readable
from batchyard.cache.copies.folder import Folder
from batchyard.cache.copies.local import LocalCopies
from batchyard.cache.index import Index
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.disk import DirectoryStore
from batchyard.cache.stores.memory import MemoryStore
from batchyard.worker import context, keeping
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
from batchyard.worker.uploads import FREE_BYTES, Uploads
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
    return Execution(tools, CLAIMED, job, allocation, container, on_start or (lambda at: None), *more.get("exits", ()))


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
    one._keeping._confirm()
    assert one.stopped is None
    lost = execution(replace(tools, yard=cast(Any, Says([("j", "lost", "")]))), "true")
    with pytest.raises(OutputError):
        lost._keeping._confirm()
    assert lost.stopped is Stop.LOST


# -- after its end


class Gated(MemoryStore):
    """Takes nothing before `gate`, but `reads_first` if so; `away` so many times."""

    reads_first, away = False, 0

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def put_if_absent(self, name: str, source: Readable, size: int) -> bool:
        if self.reads_first:
            source = io.BytesIO(io.BufferedReader(cast(Any, Whole(source))).read())
        assert self.gate.wait(20)
        if self.away:
            self.away -= 1
            raise StoreUnavailable("the store does not answer")
        return super().put_if_absent(name, source, size)


class Whole(io.RawIOBase):
    """A source as a file."""

    def __init__(self, source: Readable) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        return self._source.readinto(memoryview(buffer)) or 0


class Listens:
    """A yard that hears what a job does."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def progress(self, job_id: str, text: str) -> None:
        self.said.append(text)


def uploader(
    tools: Tools, engine: Flaky, store: Gated, *, outputs: int = 1, inputs: dict[str, str] | None = None
) -> tuple[Execution, Listens, threading.Event]:
    """An attempt that writes outputs of 2 MB, what it says, and whether its container has ended."""

    def program(run: Running) -> int:
        work = Path(next(b.source for b in run.spec.binds if b.target == "/work"))
        for n in range(outputs):
            (work / str(n)).write_bytes(bytes([n]) * 2_000_000)
        return 0

    engine.program("work", program)
    heard = Listens()
    with_store = replace(tools, blobs=BlobStore(store, KeyRing.new()), yard=cast(Any, heard))
    names = {f"o{n}": f"/work/{n}" for n in range(outputs)}
    job = Job.parse({"image": "i", "command": ["work"], "user": None, "outputs": names, "inputs": inputs or {}})
    allocation = Allocation(job_id="j", token="1:c", demand=Demand(vcpus=1, memory_mib=64), gpus=())
    exited = threading.Event()
    return Execution(with_store, CLAIMED, job, allocation, None, lambda at: None, exited.set), heard, exited


def test_an_attempt_says_that_its_container_has_ended_before_it_uploads_and_unpins_its_inputs(
    tools: Tools, engine: Flaky
) -> None:
    store, blob = Gated(), tools.blobs.put_bytes(b"x")
    store.reads_first = True
    one, heard, exited = uploader(tools, engine, store, outputs=2, inputs={"/in/x": blob.digest})
    join = in_thread(one)
    assert exited.wait(10)
    assert tools.stage.copies.counts.held_bytes
    assert not tools.stage.copies.is_pinned(blob.digest)
    until(lambda: "uploads outputs (0 of 2, 2.0 MB of 4.0 MB)" in heard.said, "it says how far it is")
    store.gate.set()
    end = join()
    assert end.outcome.fate is Fate.SUCCEEDED
    assert sorted(end.outputs) == ["o0", "o1"]
    assert heard.said[-1] == ""


def test_outputs_wait_for_a_store_that_is_away_and_say_so(tools: Tools, engine: Flaky) -> None:
    store = Gated()
    store.away = 2
    store.gate.set()
    one, heard, _ = uploader(tools, engine, store)
    end = one.run()
    assert (end.outcome.fate, sorted(end.outputs)) == (Fate.SUCCEEDED, ["o0"])
    assert heard.said == ['waits to upload its outputs: output "o0": the store does not answer', ""]


class Halting(Gated):
    """Goes away in the middle of a put, each time further on."""

    def __init__(self, *mib: int) -> None:
        super().__init__()
        self.gate.set()
        self._mib = list(mib)

    def put_if_absent(self, name: str, source: Readable, size: int) -> bool:
        if self._mib:
            io.BufferedReader(Whole(source)).read(self._mib.pop(0) << 20)
            raise StoreUnavailable("it went away")
        return super().put_if_absent(name, source, size)


@pytest.mark.parametrize(("mib", "fate"), [((1, 2), Fate.SUCCEEDED), ((2, 1, 1), Fate.FAILED)])
def test_patience_with_the_store_counts_from_when_it_last_took_something(
    tools: Tools, engine: Flaky, monkeypatch: pytest.MonkeyPatch, mib: tuple[int, ...], fate: Fate
) -> None:
    monkeypatch.setattr(keeping, "UPLOAD_PATIENCE_S", 0.4)  # a refusal is tried again after 0.5 s
    one, _, _ = uploader(tools, engine, Halting(*mib))
    assert one.run().outcome.fate is fate


def test_what_is_just_being_deleted_is_waited_for_as_a_store_that_is_away(
    tools: Tools, engine: Flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    going, away = StoreUnavailable("it is just being deleted"), BrokerUnavailable("Redis does not answer")
    one = uploader(tools, engine, Gated())[0]
    one._keeping._wait_to_put(going)
    one._keeping._wait_to_put(away)
    one.stop(Stop.CANCEL, "not wanted", grace_s=1, first_signal="SIGTERM")
    one._keeping._wait_to_put(away)
    with pytest.raises(StoreUnavailable):
        one._keeping._wait_to_put(going)
    monkeypatch.setattr(keeping, "GOING_PATIENCE_S", -1)
    with pytest.raises(StoreUnavailable):
        uploader(tools, engine, Gated())[0]._keeping._wait_to_put(going)


def test_outputs_that_the_store_does_not_take_for_too_long_fail_the_job(
    tools: Tools, engine: Flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "UPLOAD_PATIENCE_S", 0)
    monkeypatch.setattr(context, "STORE_PATIENCE_S", 0)
    store = Gated()
    store.away = 1000
    store.gate.set()
    one, _, exited = uploader(tools, engine, store)
    end = one.run()
    assert end.outcome.fate is Fate.FAILED
    assert end.outcome.reason.startswith('output "o0": the store does not answer')
    assert exited.is_set()


def test_a_stop_ends_an_upload(tools: Tools, engine: Flaky) -> None:
    store = Gated()
    one, _, exited = uploader(tools, engine, store)
    join = in_thread(one)
    assert exited.wait(10)
    one.stop(Stop.CANCEL, "not wanted", grace_s=1, first_signal="SIGTERM")
    store.gate.set()
    end = join()
    assert (end.outcome.fate, end.outputs) == (Fate.REVOKED, {})
    assert end.log is not None
    assert list(store.names()) == [one._tools.blobs._ring.name(end.log.digest)]


def test_a_stop_ends_the_wait_for_a_turn(tools: Tools, engine: Flaky) -> None:
    store = Gated()
    store.gate.set()
    one, heard, _ = uploader(replace(tools, uploads=Uploads(at_once=1)), engine, store)
    with one._tools.uploads.turn("other", FREE_BYTES + 1, stopped=lambda: False, waits=lambda ahead: None):
        join = in_thread(one)
        until(lambda: heard.said == ["waits to upload: 1 before it"], "it waits")
        one.stop(Stop.CANCEL, "not wanted", grace_s=1, first_signal="SIGTERM")
        assert join().outcome.fate is Fate.REVOKED


def test_a_container_that_may_still_run_is_not_said_to_have_ended(
    tools: Tools, engine: Flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "ENGINE_PATIENCE_S", 0)
    engine.starts = 1
    exited = threading.Event()
    one = execution(tools, "sleep 60", exits=[exited.set])
    assert one.run().outcome.fate is Fate.INTERRUPTED
    assert not exited.is_set()
    one.remove()
    never = execution(tools, "sleep 60", exits=[exited.set], inputs={"/in/x": "sha256:" + "0" * 64})
    assert never.run().outcome.fate is Fate.FAILED
    assert exited.is_set(), "and one that never ran has nothing"
