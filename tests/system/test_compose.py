"""The compose stack, of images from OS packages: jobs by plain Celery, Flower in a browser, a node killed, all gone."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import struct
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from batchyard.broker.blobs import Blobs, open_blobs
from batchyard.broker.seal import KeyRing
from batchyard.broker.store import Yard
from batchyard.worker import memory
from yardtest.stack import IMAGES_S, Stack, docker, inspected, remove_jobs, running_stack
from yardtest.wait import until

pytestmark = pytest.mark.timeout(IMAGES_S + 300)  # the first one may have to make the images

PICTURE = Path(__file__).resolve().parents[2] / "build" / "flower.png"
WIDTH, HEIGHT = 2100, 700
BUCKETS = {"minio-durable/yard", "minio-near/node"}
SECRETS = ("redis.password", "flower_auth", "minio-durable/password", "minio-near/password", "minio-durable/user")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("compose")) as stack:
        yield stack
    remove_jobs(yard_id(stack))
    memory.remove_folder(stack.root / "node")


@pytest.fixture(scope="module")
def yard(stack: Stack) -> Yard:
    """The record, once the node is there."""
    yard = Yard(stack.ends().broker_url, ring(stack))
    until(lambda: "smith" in yard.nodes(), "the node is up", timeout_s=60)
    return yard


@pytest.fixture(scope="module")
def producer(stack: Stack, yard: Yard) -> Celery:
    """A program that has Celery and nothing of ours."""
    ends = stack.ends()
    app = Celery(broker=ends.broker_url, backend=ends.result_backend, set_as_current=False)
    app.conf.broker_transport_options = ends.transport_options
    return app


@pytest.fixture(scope="module")
def blobs(stack: Stack) -> Blobs:
    """The durable store as a program on this host has it."""
    store = stack.ends().store
    assert store is not None
    assert store.startswith("s3://")
    return open_blobs(store, ring(stack), create=True)


def ring(stack: Stack) -> KeyRing:
    return KeyRing.load(stack.secrets / "keys.json")


def yard_id(stack: Stack) -> str:
    return hashlib.sha256(ring(stack).mark.encode()).hexdigest()[:16]


def send(producer: Celery, image: str, script: str, **fields: Any) -> Any:
    job = {"image": image, "command": ["sh", "-c", script], "vcpus": 0.5, "memory_mib": 64, "disk_gib": 0.1, **fields}
    return producer.send_task("batchyard.run", kwargs={"job": job}, queue="cpu")


def job_container(stack: Stack, job_id: str) -> str:
    return docker("ps", "-q", "--no-trunc", "--filter", f"label=batchyard.job={job_id}").strip()


def flower(stack: Stack, path: str, *, password: bool = True) -> Any:
    asked = urllib.request.Request(f"{stack.ends().flower_url}{path}")
    if password:
        user = (stack.secrets / "flower_auth").read_bytes()
        asked.add_header("Authorization", f"Basic {base64.b64encode(user).decode()}")
    with urllib.request.urlopen(asked, timeout=10) as answer:
        return json.load(answer)


def test_a_job_of_plain_celery_reads_and_writes_the_durable_store(
    stack: Stack, producer: Celery, blobs: Blobs, image: str, tmp_path: Path
) -> None:
    (tmp_path / "in").write_text("twelve bytes")
    kept = blobs.put(tmp_path / "in")
    sent = send(
        producer,
        image,
        "wc -c </in/t >/work/n",
        inputs={"/in/t": kept["digest"]},
        outputs={"n": "/work/n"},
    )
    result = sent.get(timeout=60)
    assert result["exit_code"] == 0
    assert result["node"] == "smith"
    blobs.get(result["outputs"]["n"]["digest"], tmp_path / "out")
    assert (tmp_path / "out").read_text() == "12\n"
    assert {p for p in BUCKETS if any((stack.root / p).iterdir())} == BUCKETS
    in_memory = memory.folder_of(stack.root / "node") / "file" / ring(stack).name(kept["digest"])
    assert in_memory.read_text() == "twelve bytes"
    for name in BUCKETS:
        stored = [p for p in (stack.root / name).rglob("*") if p.is_file()]
        assert not any(b"twelve bytes" in p.read_bytes() for p in stored), f"it lies in clear in {name}"


def test_flower_shows_the_job_to_whoever_has_its_password(stack: Stack, producer: Celery, image: str) -> None:
    sent = send(producer, image, "echo looked at")
    sent.get(timeout=60)
    shown = until(
        lambda: [t for t in flower(stack, "/api/tasks").values() if t["uuid"] == sent.id and t["state"] == "SUCCESS"],
        "Flower shows the job's end",
    )
    assert shown[0]["kwargs"] == f"image={image} command=sh -c 'echo looked at'"
    with pytest.raises(urllib.error.HTTPError) as refused:
        flower(stack, "/api/tasks", password=False)
    assert refused.value.code == 401


def test_flower_has_its_picture_taken(stack: Stack, producer: Celery, image: str, tmp_path: Path) -> None:
    """To be looked at by a person: `build/flower.png`."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium here")
    failed = send(producer, image, "echo so; exit 3")
    with pytest.raises(Exception, match="exit code 3"):
        failed.get(timeout=60)
    until(lambda: flower(stack, f"/api/task/info/{failed.id}")["state"] == "FAILURE", "Flower shows the failure")
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.unlink(missing_ok=True)
    url = f"http://{(stack.secrets / 'flower_auth').read_text()}@127.0.0.1:{stack.environment['BATCHYARD_FLOWER_PORT']}"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
               f"--window-size={WIDTH},{HEIGHT}", "--virtual-time-budget=8000"]  # fmt: skip
    words = [browser, *options, f"--user-data-dir={tmp_path}", f"--screenshot={PICTURE}", f"{url}/tasks"]
    subprocess.run(words, capture_output=True, check=True, timeout=90)
    picture = PICTURE.read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", picture[16:24]) == (WIDTH, HEIGHT)
    assert len(picture) > 30_000, "there is next to nothing on it"


def test_a_job_goes_on_in_its_container_while_the_nodes_is_killed_and_started(
    stack: Stack, producer: Celery, yard: Yard, image: str
) -> None:
    sent = send(producer, image, "sleep 8; echo through >/work/n", outputs={"n": "/work/n"})
    before = until(lambda: job_container(stack, sent.id), "the job runs", timeout_s=30)
    stack.compose("kill", "worker")
    assert job_container(stack, sent.id) == before
    stack.compose("start", "worker")
    result = sent.get(timeout=60)
    assert (result["exit_code"], result["attempt"]) == (0, 1)
    assert yard.record(sent.id).state.value == "SUCCEEDED"
    assert f"job {sent.id}: its container goes on here" in stack.compose("logs", "worker")


def test_no_secret_is_to_be_seen_from_outside(stack: Stack) -> None:
    values = [(stack.secrets / name).read_text() for name in SECRETS]
    values = [value.rpartition(":")[2] for value in values]
    seen = inspected(*stack.compose("ps", "-q").split()) + stack.compose("logs") + stack.settings.read_text()
    assert not [name for name, value in zip(SECRETS, values, strict=True) if value in seen]
    for path in (stack.secrets, *stack.secrets.rglob("*"), stack.settings):
        assert path.stat().st_mode & 0o077 == 0, f"{path} is open to others"


def test_ports_are_open_on_loopback_only(stack: Stack) -> None:
    containers = json.loads(inspected(*stack.compose("ps", "-q").split()))
    bound = [b for c in containers for bs in c["NetworkSettings"]["Ports"].values() for b in bs or ()]
    assert {b["HostIp"] for b in bound} == {"127.0.0.1"}
    assert len(bound) == 3


def test_only_the_node_has_capabilities_and_the_engine(stack: Stack) -> None:
    for container in json.loads(inspected(*stack.compose("ps", "-q").split())):
        host, service = container["HostConfig"], container["Config"]["Labels"]["com.docker.compose.service"]
        node = service == "worker"
        assert host["CapDrop"] == ["ALL"], service
        assert bool(host["CapAdd"]) == node, service
        assert host["ReadonlyRootfs"], service
        assert not host["Privileged"], service
        assert any("no-new-privileges" in option for option in host["SecurityOpt"]), service
        assert any("docker.sock" in mount["Source"] for mount in container["Mounts"]) == node, service
        assert (container["Config"]["User"] in {"0:0", "", "root"}) == node, service


def test_preparing_again_changes_no_secret(stack: Stack) -> None:
    def made() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in stack.secrets.rglob("*") if p.is_file() and p.parent.name != "host"}

    before = made()
    assert len(before) >= 15
    stack.prepare()
    assert made() == before


def test_the_gpu_node_comes_only_with_its_profile(stack: Stack) -> None:
    running = json.loads(inspected(*stack.compose("ps", "-q").split()))
    services = {container["Config"]["Labels"]["com.docker.compose.service"] for container in running}
    assert services == {"redis", "minio-durable", "minio-near", "controller", "worker", "flower"}
    assert "worker-gpu" in stack.compose("--profile", "gpu", "config", "--services").split()


def test_taken_down_it_leaves_nothing_but_its_data(stack: Stack) -> None:
    stack.down()
    assert stack.left() == {}
    assert remove_jobs(yard_id(stack)) == [], "the node left containers of its own"
    assert os.listdir(stack.root / "redis")
