"""What every engine must do; the fake runs it first, then Docker."""

from __future__ import annotations

import gzip
import hashlib
import json
import platform
import signal
import subprocess
import tarfile
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
from batchyard.worker.engine import Bind, ContainerSpec, Engine, launch, overlay
from batchyard.worker.engine.docker import DockerEngine
from batchyard.worker.engine.fake import FakeEngine
from batchyard.worker.engine.image_archive import find_image, small_archive
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


def test_a_name_that_could_be_the_beginning_of_an_id_is_a_name(engine: Engine, make: Make) -> None:
    """Else a few hex digits, soon guessed, are an image that somebody else put."""
    spec = make("true")
    digest = engine.image_present(spec.image)
    assert digest is not None
    for name in (digest[7:15], digest[7:19], digest.removeprefix("sha256:"), digest[:15], digest[:-1]):
        assert engine.image_present(name) is None
        with pytest.raises(ImageError):
            engine.create(replace(spec, image=name))


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


# -- layers of changes


@pytest.mark.parametrize("user", ["65534:65534", "1234:5", None])
def test_what_is_written_over_a_directory_is_not_written_into_it(
    engine: Engine, make: Make, tmp_path: Path, user: str | None
) -> None:
    below, changes = tmp_path / "below", tmp_path / "changes"
    (below / "d").mkdir(parents=True)
    for name, text in (("a", "one\n"), ("d/b", "two\n"), ("run", "#!/bin/sh\n")):
        (below / name).write_text(text)
        (below / name).chmod(0o555 if name == "run" else 0o444)
    for folder in (below / "d", below):
        folder.chmod(0o555)
    owner = None if user is None else tuple(map(int, user.split(":")))
    overlay.prepare(below, changes, owner)  # type: ignore[arg-type]
    script = (
        "cd /in; set -e; test $(cat d/b) = two; echo more >>a; rm d/b; echo new >d/n; mv d e; test -x run; test -w run;"
        "test $(cat a | tr '\\n' -) = one-more-; rm -r e; mkdir d; ls d"
    )
    bind = Bind(source=str(below), target="/in", changes=str(changes))
    container = launch(engine, make("sh", "-c", script, binds=(bind,), user=user, cap_drop_all=True), say=print)
    ended = engine.wait(container)
    engine.remove(container)
    assert (below / "a").read_text() + (below / "d" / "b").read_text() == "one\ntwo\n"
    assert sorted(str(p.relative_to(below)) for p in below.rglob("*")) == ["a", "d", "d/b", "run"]
    if not isinstance(engine, FakeEngine):
        assert ended.code == 0
        assert (changes / "upper" / "a").read_text() == "one\nmore\n"
        assert str(below) not in Path("/proc/self/mountinfo").read_text()


def test_a_directory_without_its_layer_of_changes_is_refused(engine: Engine, make: Make, tmp_path: Path) -> None:
    bind = Bind(source=str(tmp_path), target="/in", changes=str(tmp_path / "none"))
    with pytest.raises(StartError):
        launch(engine, make("true", binds=(bind,)), say=print)


# -- images in archives


@pytest.fixture
def loaded(engine: Engine) -> Iterator[str]:
    """A name for an image, which is gone after the test."""
    name = f"batchyard-test/loaded:{uuid4().hex}"
    yield name
    if not isinstance(engine, FakeEngine):
        subprocess.run(["docker", "rmi", "-f", name], capture_output=True, check=False, timeout=60)


def test_an_image_that_was_saved_is_the_same_when_it_is_loaded(
    engine: Engine, make: Make, tmp_path: Path, loaded: str
) -> None:
    image = make().image
    for name in ("one", "two"):
        engine.save(image, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert engine.image_present(loaded) is None
    engine.load(tmp_path / "one", loaded)
    engine.load(tmp_path / "two", loaded)
    assert engine.image_present(loaded) == engine.image_present(image)
    engine.save(loaded, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "one").read_bytes()
    assert engine.wait(launch(engine, make("sh", "-c", "exit 4", image=loaded), say=print)).code == 4


def test_an_image_that_is_not_here_cannot_be_saved(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="batchyard-test/none"):
        engine.save("batchyard-test/none:1", tmp_path / "a")


def test_what_is_no_image_is_not_loaded(engine: Engine, tmp_path: Path, loaded: str) -> None:
    def manifest(value: object) -> bytes:
        return small_archive({"manifest.json": json.dumps(value).encode(), "c": b"", "l": b"x"})

    one = {"Config": "c", "Layers": ["l"], "RepoTags": [loaded]}
    for bad in (
        b"", b"hello" * 1000, small_archive({"a": b"x"}), manifest([]), manifest([one, one]), manifest({"a": 1}),
        manifest([{"Config": "none", "Layers": []}]), manifest([{"Config": "/etc/passwd", "Layers": ["../../x"]}]),
        manifest([one]), small_archive({"index.json": b'{"manifests": [{"digest": "sha256:0"}]}'}),
    ):  # fmt: skip
        (tmp_path / "bad").write_bytes(bad)
        with pytest.raises(ImageError):
            engine.load(tmp_path / "bad", loaded)
        assert engine.image_present(loaded) is None


def test_an_oci_layout_is_loaded_and_no_other_name_is_given(
    engine: Engine, make: Make, tmp_path: Path, loaded: str
) -> None:
    """As buildah, skopeo and newer Dockers write it; with names of its own, one of which is another image's."""
    image = make().image
    engine.save(image, tmp_path / "saved")
    found = find_image(tmp_path / "saved")
    with tarfile.open(tmp_path / "saved") as tar:
        files = {name: tar.extractfile(name).read() for name in (found.config, *found.layers)}  # type: ignore[union-attr]
    if isinstance(engine, FakeEngine):
        files[found.config] = json.dumps({"os": "linux", "architecture": "amd64", "rootfs": {}}).encode()
    blobs: dict[str, bytes] = {}

    def blob(data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"digest": f"sha256:{digest}", "size": len(data)}

    told = {"config": blob(files[found.config]), "layers": [blob(gzip.compress(files[n])) for n in found.layers]}
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    other = {"config": blob(json.dumps({"os": "unknown", "architecture": machine}).encode()), "layers": []}
    index = {"manifests": [blob(json.dumps(one).encode()) for one in (told, other)]}
    for one in index["manifests"]:
        one["annotations"] = {"org.opencontainers.image.ref.name": image}
    layout = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": json.dumps(index).encode(), **blobs}
    before = engine.image_present(image)
    (tmp_path / "oci").write_bytes(small_archive(layout))
    if isinstance(engine, FakeEngine) and machine != "amd64":
        return
    engine.load(tmp_path / "oci", loaded)
    assert engine.image_present(loaded) is not None
    assert engine.image_present(image) == before
    if not isinstance(engine, FakeEngine):
        assert engine.image_present(loaded) == before
        assert engine.wait(launch(engine, make("sh", "-c", "exit 5", image=loaded), say=print)).code == 5


def test_an_archive_gives_its_image_no_name_of_its_own(engine: Engine, make: Make, tmp_path: Path, loaded: str) -> None:
    victim = f"batchyard-test/victim:{uuid4().hex}"
    engine.save(make().image, tmp_path / "saved")
    with tarfile.open(tmp_path / "saved") as tar:
        files = {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]
    [manifest] = json.loads(files["manifest.json"])
    files["manifest.json"] = json.dumps([{**manifest, "RepoTags": [victim]}]).encode()
    (tmp_path / "evil").write_bytes(small_archive(files))
    engine.load(tmp_path / "evil", loaded)
    assert engine.image_present(victim) is None
    assert engine.image_present(loaded) is not None


def test_a_layer_of_another_image_is_nobodys_who_does_not_have_it(
    engine: Engine, make: Make, tmp_path: Path, loaded: str
) -> None:
    """An engine takes a layer that it knows by the digest in the config, and does not look at what came."""
    engine.save(make().image, tmp_path / "saved")
    with tarfile.open(tmp_path / "saved") as tar:
        files = {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]
    [manifest] = json.loads(files["manifest.json"])
    if isinstance(engine, FakeEngine):
        layer = small_archive({"a": b"layer"})
        manifest["Layers"] = ["000.tar"]
        config = {"rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]}}
        files |= {"config.json": json.dumps(config).encode(), "000.tar": layer}
        files["manifest.json"] = json.dumps([manifest]).encode()
        (tmp_path / "whole").write_bytes(small_archive(files))
        engine.load(tmp_path / "whole", make().image)
    for name in manifest["Layers"]:
        files[name] = small_archive({"nothing": b"of it"})
    (tmp_path / "forged").write_bytes(small_archive(files))
    with pytest.raises(ImageError, match="layer"):
        engine.load(tmp_path / "forged", loaded)
    assert engine.image_present(loaded) is None
