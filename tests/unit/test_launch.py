"""Create and start, with nothing left behind; and what the fake engine plays for other tests."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from batchyard.broker.errors import EngineUnavailable, NotFound, StartError
from batchyard.worker.engine import ContainerSpec, InitMissing, launch
from batchyard.worker.engine.docker import LOG_CONFIG, body
from batchyard.worker.engine.fake import FakeEngine, Running
from batchyard.worker.engine.parked import ParkedNetworks

SPEC = ContainerSpec(image="a:1", vcpus=1, memory_mib=64, command=("sleep", "60"), labels={"l": "1"})


class WithoutInit(FakeEngine):
    """Fails the first start, as Docker does where docker-init is missing."""

    missing = True

    def start(self, container_id: str) -> None:
        if self.missing:
            self.missing = False
            raise InitMissing("the engine has no init binary")
        super().start(container_id)


def test_without_an_init_binary_the_job_runs_and_its_log_says_so(tmp_path: Path) -> None:
    engine = WithoutInit(tmp_path, images=["a:1"])
    said: list[str] = []
    container = launch(engine, SPEC, say=said.append)
    assert [one.id for one in engine.list({"l": "1"})] == [container]
    (line,) = said
    assert "no init" in line


def test_the_id_is_told_before_the_start(tmp_path: Path) -> None:
    engine = FakeEngine(tmp_path, images=["a:1"])
    told: list[str] = []

    def created(container_id: str) -> None:
        assert engine.calls == ["create"]
        told.append(container_id)

    assert [launch(engine, SPEC, say=print, created=created)] == told


def test_who_refuses_the_id_leaves_nothing(tmp_path: Path) -> None:
    engine = FakeEngine(tmp_path, images=["a:1"])

    def created(container_id: str) -> None:
        raise NotFound("the lease is gone")

    with pytest.raises(NotFound):
        launch(engine, SPEC, say=print, created=created)
    assert engine.list({}) == ()


def test_an_engine_that_was_away_when_a_signal_ended_the_container_is_under_suspicion(tmp_path: Path) -> None:
    engine = FakeEngine(tmp_path, images=["a:1"])
    container = launch(engine, SPEC, say=print)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(engine.wait, container)
        engine.go_away()
        with pytest.raises(EngineUnavailable):
            engine.ping()
        running = engine._containers[container].running
        assert running is not None
        running.deliver("SIGKILL")
        engine.come_back()
        ended = waiting.result(10)
    assert ended.code == 137


def test_a_program_of_the_test_runs_as_a_container(tmp_path: Path) -> None:
    engine = FakeEngine(tmp_path, images=["a:1"])

    def count(run: Running) -> int:
        for n in range(3):
            run.out(f"{run.spec.environment['WORD']} {n}\n")
        return 4

    engine.program("count", count)
    spec = ContainerSpec(image="a:1", vcpus=1, memory_mib=6, command=("count",), environment={"WORD": "w"})
    container = launch(engine, spec, say=print)
    assert engine.wait(container).code == 4
    assert [text for _, _, text, _ in engine.log_source(container).read(1000)] == [b"w 0", b"w 1", b"w 2"]


def test_running_out_of_memory_can_be_played(tmp_path: Path) -> None:
    engine = FakeEngine(tmp_path, images=["a:1"])
    container = launch(engine, SPEC, say=print)
    engine.run_out_of_memory(container)
    ended = engine.wait(container)
    assert (ended.code, ended.oom) == (137, True)


def test_docker_is_never_asked_for_more_cpus_than_it_has_nor_to_rotate_or_remove() -> None:
    asked = body(ContainerSpec(image="a:1", vcpus=64, memory_mib=1), cpus=2, init=True)
    host = asked["HostConfig"]
    assert host["NanoCpus"] == 2_000_000_000
    assert host["Memory"] == host["MemorySwap"] == 6 << 20
    assert host["LogConfig"] == LOG_CONFIG
    assert not host["AutoRemove"]
    assert "Cmd" not in asked


class Parkable(FakeEngine):
    """Starts no container whose network is gone, as Docker does."""

    def start(self, container_id: str) -> None:
        park = self.spec(container_id).network.removeprefix("container:")
        if park != "none" and self.inspect_exit(park) is not None:
            raise StartError("cannot join network of a non running container")
        super().start(container_id)


def test_networks_that_ended_while_in_use_serve_nobody_again(tmp_path: Path) -> None:
    engine = Parkable(tmp_path, images=["a:1"])

    def pause(run: Running) -> int:
        run.sleep(60)
        return 0

    engine.program("/pause", pause)
    parked = ParkedNetworks(engine, machine="x86_64", labels={"l": "1"})
    before = [launch(parked, SPEC, say=print) for _ in range(3)]
    for one in engine.list({"l": "1"}):  # a restart of the engine
        engine.kill(one.id)
        engine.wait(one.id)
    said: list[str] = []
    parked.remove(before[0])
    first = launch(parked, SPEC, say=said.append)
    for ended in before[1:]:
        parked.remove(ended)
    second = launch(parked, SPEC, say=said.append)
    assert len(said) == 1
    for container in (first, second):
        parked.remove(container)
    parked.close()
    assert engine.list({"l": "1"}) == ()
