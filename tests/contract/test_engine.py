"""What every engine must do; the fake runs it first, then Docker."""

from __future__ import annotations

import platform
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from batchyard.broker.errors import EngineUnavailable, ImageError, ImageUnavailable, NotFound, Permanent, StartError
from batchyard.worker.engine import Bind, ContainerSpec, Engine, launch
from batchyard.worker.engine.docker import DockerEngine
from batchyard.worker.engine.fake import FakeEngine
from batchyard.worker.engine.parked import ParkedNetworks

Make = Callable[..., ContainerSpec]


@pytest.fixture
def label() -> dict[str, str]:
    return {"batchyard.test": uuid4().hex}


@pytest.fixture(params=["fake", *(pytest.param(name, marks=pytest.mark.system) for name in ("docker", "parked"))])
def engine(request: pytest.FixtureRequest, tmp_path: Path, label: dict[str, str]) -> Iterator[Engine]:
    if request.param == "fake":
        yield FakeEngine(tmp_path, images=["fake:1"])
    elif request.param == "docker":
        yield DockerEngine()
    else:
        parked = ParkedNetworks(DockerEngine(), machine=platform.machine(), labels=label)
        yield parked
        parked.close()
        assert DockerEngine().list(label) == ()


@pytest.fixture
def make(engine: Engine, label: dict[str, str], request: pytest.FixtureRequest) -> Iterator[Make]:
    """Specs whose containers are gone after the test."""
    image = "fake:1" if isinstance(engine, FakeEngine) else request.getfixturevalue("image")

    def spec(*command: str, **more: Any) -> ContainerSpec:
        fields: dict[str, Any] = {"image": image, "command": command, "vcpus": 0.5, "memory_mib": 64, "labels": label}
        return ContainerSpec(**fields | more)

    yield spec
    for one in engine.list(label):
        engine.remove(one.id)


def test_an_image_is_present_by_its_digest_or_not_at_all(engine: Engine, make: Make) -> None:
    engine.ping()
    digest = engine.image_present(make().image)
    assert digest is not None
    assert digest.startswith("sha256:")
    assert engine.image_present("batchyard-test/none:1") is None


def test_a_container_is_of_an_image_that_is_named_by_its_digest(engine: Engine, make: Make) -> None:
    spec = make("true")
    digest = engine.image_present(spec.image)
    assert digest is not None
    container = launch(engine, replace(spec, image=digest), say=print)
    assert engine.wait(container).code == 0


def test_an_image_that_nobody_has_is_an_image_error(engine: Engine, make: Make) -> None:
    with pytest.raises((ImageError, ImageUnavailable), match="localhost:1/none"):  # by a registry that is not there
        engine.pull("localhost:1/none:1")
    with pytest.raises(ImageError):
        engine.create(replace(make("true"), image="batchyard-test/none:1"))


def test_an_exit_code_comes_back_with_its_times(engine: Engine, make: Make) -> None:
    for command, code in ((("true",), 0), (("sh", "-c", "exit 3"), 3)):
        container = launch(engine, make(*command), say=print)
        ended = engine.wait(container)
        assert (ended.code, ended.oom, ended.error) == (code, False, "")
        assert 1.7e9 < ended.started_at <= ended.finished_at
        again = engine.wait(container)
        assert again.code == code
        inspected = engine.inspect_exit(container)
        assert inspected is not None
        assert inspected.code == code
        engine.remove(container)


def test_a_missing_command_is_told(engine: Engine, make: Make) -> None:
    ended = engine.wait(launch(engine, make("nosuch"), say=print))
    assert ended.code == 127
    assert "nosuch" in ended.error


def test_a_failed_start_leaves_nothing_after_launch(engine: Engine, make: Make, label: dict[str, str]) -> None:
    for spec in (make("nosuch", init=False), make("true", gpus=("GPU-none",))):
        with pytest.raises(StartError):
            launch(engine, spec, say=print)
    assert engine.list(label) == ()


def test_a_failed_start_keeps_the_created_container(engine: Engine, make: Make) -> None:
    container = engine.create(make("nosuch", init=False))
    with pytest.raises(StartError):
        engine.start(container)
    with pytest.raises(StartError, match="never started"):
        engine.wait(container)


def test_a_bind_without_its_source_is_refused(engine: Engine, make: Make, tmp_path: Path) -> None:
    with pytest.raises(StartError):
        launch(engine, make("true", binds=(Bind(source=str(tmp_path / "none"), target="/in"),)), say=print)


def test_starting_twice_is_starting_once(engine: Engine, make: Make) -> None:
    container = engine.create(make("sleep", "60"))
    engine.start(container)
    engine.start(container)
    assert engine.inspect_exit(container) is None


def test_a_container_that_was_never_started_has_no_exit(engine: Engine, make: Make, label: dict[str, str]) -> None:
    container = engine.create(make("true"))
    (listed,) = engine.list(label)
    assert (listed.id, listed.running, listed.started) == (container, False, False)
    with pytest.raises(StartError):
        engine.wait(container)
    with pytest.raises(StartError):
        engine.inspect_exit(container)


def test_a_signal_reaches_the_command(engine: Engine, make: Make) -> None:
    for name in ("SIGTERM", "SIGKILL"):
        container = launch(engine, make("sleep", "60"), say=print)
        assert engine.signal(container, name)
        ended = engine.wait(container)
        assert ended.code == 128 + signal.Signals[name].value
        assert not ended.oom
        assert not engine.signal(container, name)
        assert not engine.kill(container)


def test_kill_ends_a_container_that_somebody_waits_for(engine: Engine, make: Make) -> None:
    container = launch(engine, make("sleep", "60"), say=print)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(engine.wait, container)
        assert engine.kill(container)
        assert waiting.result(30).code == 137


def test_listing_is_by_all_labels(engine: Engine, make: Make, label: dict[str, str]) -> None:
    mine = launch(engine, make("sleep", "60", labels=label | {"job": "1"}), say=print)
    launch(engine, make("true", labels=label | {"job": "2"}), say=print)
    assert len(engine.list(label)) == 2
    (found,) = engine.list(label | {"job": "1"})
    assert (found.id, found.running, found.started, found.labels["job"]) == (mine, True, True, "1")


def test_removing_twice_is_removing_once(engine: Engine, make: Make, label: dict[str, str]) -> None:
    container = launch(engine, make("sleep", "60"), say=print)
    with pytest.raises(Permanent):
        engine.remove(container, force=False)
    engine.remove(container)
    engine.remove(container)
    assert engine.list(label) == ()
    for ask in (engine.wait, engine.inspect_exit, engine.start):
        with pytest.raises(NotFound):
            ask(container)
    assert not engine.kill(container)


def test_who_waits_hears_that_the_container_is_gone(engine: Engine, make: Make) -> None:
    container = launch(engine, make("sleep", "60"), say=print)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(engine.wait, container)
        engine.remove(container)
        with suppress(NotFound):  # it was killed first, and the engine may say so
            assert waiting.result(30).code == 137


def test_lines_come_from_the_log_source(engine: Engine, make: Make) -> None:
    container = launch(engine, make("sh", "-c", "echo one; echo two >&2; echo three"), say=print)
    engine.wait(container)
    source = engine.log_source(container)
    got = []
    while entries := source.read(1 << 20, ended=True):
        got += entries
    source.close()
    assert sorted((stream, text, whole) for stream, _, text, whole in got) == [
        (b"stderr", b"two", True),
        (b"stdout", b"one", True),
        (b"stdout", b"three", True),
    ]
    assert all(time.endswith(b"Z") for _, time, _, _ in got)


@pytest.mark.system
def test_a_parked_network_that_is_gone_is_made_again(image: str, label: dict[str, str]) -> None:
    docker = DockerEngine()
    parked = ParkedNetworks(docker, machine=platform.machine(), labels=label)
    spec = ContainerSpec(image=image, command=("ip", "-o", "link"), vcpus=0.5, memory_mib=64, labels=label)
    said: list[str] = []
    parks = set()
    try:
        for _ in range(2):
            container = launch(parked, spec, say=print)
            assert parked.wait(container).code == 0
            parked.remove(container)
            parks |= {one.id for one in docker.list(label)}
            assert parked.list(label) == ()
        (park,) = parks  # one serves both, until it is gone
        docker.remove(park)
        container = launch(parked, spec, say=said.append)
        assert parked.wait(container).code == 0
        assert len(said) == 1
        parked.remove(container)
    finally:
        parked.close()
        left = docker.list(label)
        for one in left:
            docker.remove(one.id)
    assert left == ()


def test_close_lets_every_wait_return(engine: Engine, make: Make, tmp_path: Path) -> None:
    container = launch(engine, make("sleep", "60"), say=print)
    failed = threading.Event()

    def wait() -> None:
        with suppress(NotFound):  # Docker notices the close later than this test ends
            try:
                engine.wait(container)
            except EngineUnavailable:
                failed.set()

    threading.Thread(target=wait, daemon=True).start()
    engine.close()
    if isinstance(engine, FakeEngine):
        assert failed.wait(30)
    engine.close()


# -- networks


def test_containers_of_a_network_reach_each_other_by_address(engine: Engine, make: Make, label: dict[str, str]) -> None:
    name = f"batchyard-test-{uuid4().hex[:12]}"
    engine.create_network(name, label, internal=True)
    try:
        engine.create_network(name, label, internal=True)  # once more: nothing happens
        assert [one.name for one in engine.list_networks(label)] == [name]
        container = launch(engine, make("sleep", "60", network=name), say=print)
        assert engine.address(container, name).count(".") == 3
        assert engine.address(container, "bridge") == ""
        assert not engine.remove_network(name), "somebody is in it"
        engine.kill(container)
        engine.wait(container)
        assert engine.address(container, name) == ""
        engine.remove(container)
        with pytest.raises(NotFound):
            engine.address(container, name)
    finally:
        assert engine.remove_network(name)
    assert engine.remove_network(name), "gone already"
    assert engine.list_networks(label) == ()


def test_a_container_of_a_network_that_is_not_there_is_refused(engine: Engine, make: Make) -> None:
    with pytest.raises((StartError, ImageError)):
        launch(engine, make("true", network="batchyard-test-none"), say=print)


def test_an_engine_is_known_again(engine: Engine) -> None:
    assert engine.identity() == engine.identity() != ""
