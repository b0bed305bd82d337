"""Real nodes and containers: archives as directories, inputs that a job may change, images that are blobs."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from celery import chain

from batchyard.cache.door import Door, open_store
from batchyard.worker.engine.image_archive import small_archive
from yardtest.up import COMMAND
from yardtest.wait import until
from yardtest.website import Page, Website
from yardtest.yard import TestYard, running_yard

FILES = {"a.txt": b"one\n", "d/b.txt": b"two\n"}
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Website]:
    with Website(tmp_path_factory.mktemp("site")) as running:
        yield running


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory, image: str, site: Website) -> Iterator[TestYard]:
    with running_yard(tmp_path_factory.mktemp("yard") / "y", image, nodes=0) as running:
        running.start_node("a", environment={"SSL_CERT_FILE": str(site.ca)}, allow_url_host="localhost", vcpus=2)
        yield running
        running.nothing_left()
        running.healthy()
        assert _volumes(running) == [], "layers of changes stay mounted"
        assert str(running.directory) not in Path("/proc/self/mountinfo").read_text()


def _volumes(yard: TestYard) -> list[str]:
    asked = ["docker", "volume", "ls", "-q", "--filter", f"label=batchyard.yard={yard.id}"]
    return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60).stdout.split()


@pytest.fixture(scope="module")
def door(yard: TestYard) -> Door:
    return open_store(str(yard.blobs), yard.ring)


def put(door: Door, data: bytes, tmp_path: Path) -> str:
    path = tmp_path / f"blob-{next(_numbers)}"
    path.write_bytes(data)
    return str(door.put(path)["digest"])


def tar_gz() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as made:
        for name, data in FILES.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            made.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in FILES.items():
            made.writestr(name, data)
    return out.getvalue()


SEEN = "cd /in/d && test $(cat a.txt d/b.txt | tr '\\n' -) = one-two- && ! touch new 2>/dev/null"


def well(yard: TestYard, script: str, **job: Any) -> dict[str, Any]:
    result: dict[str, Any] = yard.shell(script, **job).get(timeout=60)
    return result


def test_an_archive_is_a_directory_wherever_it_comes_from(
    yard: TestYard, door: Door, site: Website, tmp_path: Path
) -> None:
    site.pages["/a.zip"] = Page(body=zipped(), etag='"1"')
    (yard.shared / "a.tgz").write_bytes(tar_gz())
    here = f"file://{yard.shared}/a.tgz"
    for source in {"digest": put(door, tar_gz(), tmp_path)}, {"uri": site.url("/a.zip")}, {"uri": here}:
        well(yard, SEEN, inputs={"/in/d": {**source, "unpack": True}})
    sent = site.bytes_sent
    well(yard, SEEN, inputs={"/in/d": {"uri": site.url("/a.zip"), "unpack": True}})
    assert site.bytes_sent == sent


def test_an_output_may_be_an_archive_that_the_next_step_sees_unpacked(yard: TestYard) -> None:
    make = "mkdir /work/x && echo one >/work/x/a.txt && tar -czf /work/x.tgz -C /work/x ."
    last = chain(
        yard.signature("sh", "-c", make, outputs={"o": "/work/x.tgz"}),
        yard.signature("sh", "-c", "test $(cat /in/d/a.txt) = one", inputs={"/in/d": {"from": "o", "unpack": True}}),
    ).apply_async()
    assert last.get(timeout=60)["exit_code"] == 0


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"hello" * 1000, "it is no archive that is known here"),
        (tar_gz()[:-20], "it is damaged or cut short"),
        (small_archive({"../../evil": b"x"}), 'contains ".."'),
    ],
)
def test_what_cannot_be_unpacked_ends_the_job_with_the_blobs_name(
    yard: TestYard, door: Door, tmp_path: Path, data: bytes, words: str
) -> None:
    digest = put(door, data, tmp_path)
    reason = yard.reason(yard.shell("true", inputs={"/in/d": {"digest": digest, "unpack": True}}))
    assert reason.startswith(f'input "/in/d": blob {digest} cannot be unpacked: ')
    assert words in reason


@pytest.mark.parametrize("profile", ["strict", "aws"])
def test_what_one_job_changes_the_next_one_does_not_see(
    yard: TestYard, door: Door, tmp_path: Path, profile: str
) -> None:
    folder = tmp_path / "tree"
    (folder / "d").mkdir(parents=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    inputs = {
        "/in/tree": {"digest": door.put(folder)["digest"], "writable": True},
        "/in/arc": {"digest": put(door, tar_gz(), tmp_path), "unpack": True, "writable": True},
        "/in/file": {"digest": put(door, b"whole\n", tmp_path), "writable": True},
    }
    change = (
        "set -e; test $(cat /in/file) = whole; echo more >>/in/file;"
        "for d in tree arc; do cd /in/$d; test $(cat a.txt d/b.txt | tr '\\n' -) = one-two-; echo x >>a.txt;"
        "sed -i s/two/three/ d/b.txt; echo n >d/new; mkdir e; rm d/b.txt;"
        "test $(cat a.txt | tr '\\n' -) = one-x-; done;"
        "test $(cat /in/file | tr '\\n' -) = whole-more-"
    )
    for _ in range(2):
        assert well(yard, change, inputs=inputs, profile=profile)["exit_code"] == 0
    read_only = {path: {**source, "writable": False} for path, source in inputs.items()}
    see = "test $(cat /in/tree/a.txt /in/arc/d/b.txt /in/file | tr '\\n' -) = one-two-whole-"
    well(yard, f"{see} && ! touch /in/tree/a.txt 2>/dev/null", inputs=read_only)


def test_a_node_that_is_killed_leaves_no_layer_behind(yard: TestYard, door: Door, tmp_path: Path) -> None:
    digest = put(door, tar_gz(), tmp_path)
    inputs = {"/in/d": {"digest": digest, "unpack": True, "writable": True}}
    script = "test $(cat /in/d/a.txt) = one && echo x >/in/d/a.txt && sleep 4 && cp /in/d/a.txt /work/o"
    job = yard.shell(script, inputs=inputs, outputs={"o": "/work/o"})
    yard.running(job.id)
    yard.kill9(yard.nodes["a"])
    yard.start_node("a")
    assert job.get(timeout=60)["exit_code"] == 0
    yard.nothing_left()
    until(lambda: not _volumes(yard), "no volume is left")
    well(yard, SEEN, inputs={"/in/d": {"digest": digest, "unpack": True}})


# -- images
def command(yard: TestYard, *words: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BATCHYARD_")} | {
        "BATCHYARD_BROKER_URL": yard.url,
        "BATCHYARD_KEY_FILE": str(yard.key_file),
        "BATCHYARD_STORE": str(yard.blobs),
    }
    ran = subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=False, env=environment, timeout=100)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def docker(*words: str, stdin: bytes | None = None) -> bytes:
    return subprocess.run(["docker", *words], input=stdin, capture_output=True, check=True, timeout=60).stdout


def test_an_image_that_was_put_runs_on_a_node_that_has_not_got_it(yard: TestYard, door: Door) -> None:
    name, build = f"batchyard-test/only-here:{os.getpid()}", f"FROM {yard.image}\nENV MARK=in-the-blob\n".encode()
    docker("build", "-t", name, "-", stdin=build)
    try:
        digest = command(yard, "put", "--image", name).strip()
    finally:
        docker("rmi", name)
    ours = f"batchyard/blob:{yard.ring.name(digest)}"
    try:
        jobs = [yard.shell("test $MARK = in-the-blob", image=digest) for _ in range(2)]
        assert [job.get(timeout=60)["exit_code"] for job in jobs] == [0, 0]
        assert docker("image", "ls", "-q", ours).split()
    finally:
        docker("rmi", "-f", ours)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"hello" * 1000, "it is no archive"),
        (small_archive({"a": b"x"}), "it is no image"),
        (
            small_archive({"manifest.json": b'[{"Config":"c","Layers":["l"]}]', "c": b"{}", "l": b""}),
            "its layers are not those of its config",
        ),
    ],
)
def test_a_blob_that_is_no_image_is_named_in_the_reason(
    yard: TestYard, door: Door, tmp_path: Path, data: bytes, words: str
) -> None:
    digest = put(door, data, tmp_path)
    reason = yard.reason(yard.shell("true", image=digest))
    assert reason.startswith(f"image {digest}: ")
    assert words in reason


def test_a_directory_or_nothing_is_no_image_either(yard: TestYard, door: Door, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    tree = str(door.put(tmp_path / "t")["digest"])
    assert "it is a directory" in yard.reason(yard.shell("true", image=tree))
    assert "is not in the store; put it first" in yard.reason(yard.shell("true", image="sha256:" + "0" * 64))


# -- progress
def test_a_large_input_is_seen_to_come_in_status_and_log(yard: TestYard, site: Website) -> None:
    body, seen = random.Random(4).randbytes(3 << 20), threading.Event()

    def act(handler: BaseHTTPRequestHandler) -> None:
        """Half of it; the rest when that was seen."""
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2])
        assert seen.wait(60)
        handler.wfile.write(body[len(body) // 2 :])

    site.pages["/large"] = Page(act=act)
    job = yard.shell("wc -c </in/l", inputs={"/in/l": site.url("/large")})

    def progress() -> str:
        record = yard.peek(job.id)
        return record.progress if record is not None else ""

    try:
        until(lambda: "fetches 1.6 MB of 3.1 MB of input /in/l" in progress(), "its progress is seen", timeout_s=30)
    finally:
        seen.set()
    assert job.get(timeout=60)["exit_code"] == 0
    assert progress() == ""
    lines = [json.loads(line) for line in command(yard, "logs", job.id, "--json").splitlines()]
    said = [line["text"] for line in lines if line["stream"] == "platform"]
    assert [text for text in said if "of 3.1 MB of input /in/l" in text] != []
