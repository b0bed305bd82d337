"""Inputs from https://, against a real server that also lies: nothing wrong becomes a copy, nothing moves twice."""

from __future__ import annotations

import gzip
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from batchyard.broker.errors import DiskFull, InputError, StoreUnavailable
from batchyard.broker.seal import KeyRing
from batchyard.cache.copies.folder import Folder
from batchyard.cache.copies.local import LocalCopies
from batchyard.cache.index import Index
from batchyard.cache.newfile import new_file
from batchyard.cache.remote.inputs import RemoteInputs, Wanted
from batchyard.cache.remote.known import KnownRemotes
from batchyard.cache.remote.web import Web, resource_of
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.memory import MemoryStore
from yardtest.website import Page, Website

DATA = os.urandom(300_000)
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Website]:
    with Website(tmp_path_factory.mktemp("site"), ("localhost", "127.0.0.1", "files.example")) as running:
        yield running


@pytest.fixture(autouse=True)
def _trusted(site: Website, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(site.ca))
    site.pages.clear()
    site.asked.clear()
    site.bytes_sent = 0


@pytest.fixture
def copies(tmp_path: Path) -> Iterator[LocalCopies]:
    root = tmp_path / "copies"
    root.mkdir()
    made = LocalCopies(BlobStore(MemoryStore(), KeyRing.new()), Index(root), [Folder(root, 100 << 20)])
    yield made
    made.close()


@pytest.fixture
def inputs(copies: LocalCopies, tmp_path: Path) -> RemoteInputs:
    return RemoteInputs(copies, KnownRemotes(tmp_path / "known"), Web(["localhost"]), most_bytes=1 << 20)


def wanted(site: Website, path: str, **more: object) -> Wanted:
    return Wanted(uri=site.url(path), **more)  # type: ignore[arg-type]


def left(tmp_path: Path) -> list[str]:
    """Files that are no whole copy."""
    return [p.name for p in (tmp_path / "copies").rglob(".new-*")]


# -- what is fetched
def test_a_file_is_fetched_once_and_asked_for_by_its_tag_again(site: Website, inputs: RemoteInputs) -> None:
    site.pages["/data"] = Page(body=DATA, etag='"1"')
    first = inputs.stage(wanted(site, "/data"), "a")
    assert first.read_bytes() == DATA
    assert first.stat().st_mode & 0o777 == 0o444
    assert inputs.stage(wanted(site, "/data"), "b") == first
    assert [headers.get("if-none-match") for _, _, headers in site.asked] == [None, '"1"']
    assert (site.bytes_sent, inputs.counts.bytes_moved, inputs.counts.unchanged) == (len(DATA), len(DATA), 1)


def test_what_has_changed_is_fetched_anew(site: Website, inputs: RemoteInputs) -> None:
    site.pages["/data"] = Page(body=DATA, etag='"1"')
    inputs.stage(wanted(site, "/data"), "a")
    site.pages["/data"] = Page(body=b"new", etag='"2"')
    assert inputs.stage(wanted(site, "/data"), "a").read_bytes() == b"new"


def test_what_has_changed_takes_the_place_of_what_it_was(site: Website, tmp_path: Path) -> None:
    (tmp_path / "copies").mkdir()
    copies = LocalCopies(
        BlobStore(MemoryStore(), KeyRing.new()), Index(tmp_path / "copies"), [Folder(tmp_path / "copies", 400_000)]
    )
    inputs = RemoteInputs(copies, KnownRemotes(tmp_path / "known"), Web(["localhost"]))
    site.pages["/data"] = Page(body=DATA, etag='"1"')
    inputs.stage(wanted(site, "/data"), "a")
    copies.unpin("a")
    other = os.urandom(len(DATA))
    site.pages["/data"] = Page(body=other, etag='"2"')
    assert inputs.stage(wanted(site, "/data"), "b").read_bytes() == other
    assert not copies.is_pinned(DIGEST)
    assert inputs.stage(wanted(site, "/data"), "c").read_bytes() == other
    copies.unpin("b")
    assert copies.is_pinned("sha256:" + hashlib.sha256(other).hexdigest())
    copies.unpin("c")
    assert not copies.is_pinned("sha256:" + hashlib.sha256(other).hexdigest())
    copies.close()


def test_an_input_that_names_its_digest_is_not_asked_for_while_it_is_here(site: Website, inputs: RemoteInputs) -> None:
    site.pages["/data"] = Page(body=DATA)
    for _ in range(2):
        assert inputs.stage(wanted(site, "/data", digest=DIGEST, size=len(DATA)), "a").read_bytes() == DATA
    assert len(site.asked) == 1


@pytest.mark.parametrize("etag", ["", 'W/"1"', "unquoted"])
def test_without_a_strong_tag_the_bytes_move_each_time(site: Website, inputs: RemoteInputs, etag: str) -> None:
    site.pages["/data"] = Page(body=DATA, etag=etag)
    for _ in range(2):
        inputs.stage(wanted(site, "/data"), "a")
    assert site.bytes_sent == 2 * len(DATA)


def test_a_date_that_is_old_enough_serves_as_a_tag(site: Website, inputs: RemoteInputs) -> None:
    old = "Mon, 01 Jan 2024 00:00:00 GMT"
    site.pages["/data"] = Page(body=DATA, headers={"Last-Modified": old})
    inputs.stage(wanted(site, "/data"), "a")
    site.pages["/data"] = Page(status=304)
    inputs.stage(wanted(site, "/data"), "a")
    assert site.asked[1][2]["if-modified-since"] == old


def test_the_same_path_with_another_query_is_something_else(site: Website, inputs: RemoteInputs) -> None:
    site.pages["/data"] = Page(body=DATA, etag='"1"')
    for query in ("?a", "?b"):
        inputs.stage(wanted(site, f"/data{query}"), "a")
    assert [headers.get("if-none-match") for _, _, headers in site.asked] == [None, None]


def test_a_new_signature_of_the_same_object_moves_no_byte(site: Website, inputs: RemoteInputs) -> None:
    site.pages["/data"] = Page(body=DATA, etag='"1"')
    for number in range(3):
        query = f"?versionId=7&X-Amz-Date={number}&X-Amz-Signature={number}"
        assert inputs.stage(wanted(site, f"/data{query}"), "a").read_bytes() == DATA
    assert site.bytes_sent == len(DATA)
    assert [path for _, path, _ in site.asked][2] == "/data?versionId=7&X-Amz-Date=2&X-Amz-Signature=2"


@pytest.mark.parametrize(
    ("uri", "resource"),
    [
        ("https://h/a?x=1&X-Amz-Signature=s&X-Goog-Date=d", "https://h/a?x=1"),
        ("https://h/a?Expires=1&Signature=s&Key-Pair-Id=k", "https://h/a"),
        ("https://h/a?expires=1&b", "https://h/a?expires=1&b"),
        ("https://h/a", "https://h/a"),
        ("s3://bucket/a", "s3://bucket/a"),
    ],
)
def test_what_signs_a_uri_is_no_part_of_what_it_names(uri: str, resource: str) -> None:
    assert resource_of(uri) == resource


def test_what_was_known_before_a_restart_is_known_after_it(
    site: Website, inputs: RemoteInputs, copies: LocalCopies, tmp_path: Path
) -> None:
    site.pages["/data"] = Page(body=DATA, etag='"1"')
    inputs.stage(wanted(site, "/data?signature=SECRET"), "a")
    again = RemoteInputs(copies, KnownRemotes(tmp_path / "known"), Web(["localhost"]))
    again.stage(wanted(site, "/data?signature=SECRET"), "a")
    assert again.counts.unchanged == 1
    assert b"SECRET" not in b"".join(path.read_bytes() for path in tmp_path.glob("known*"))


@pytest.mark.parametrize("damage", [b"no database at all" * 100, b""])
def test_a_damaged_note_of_what_was_known_costs_one_transfer(
    site: Website, copies: LocalCopies, tmp_path: Path, damage: bytes
) -> None:
    (tmp_path / "known").write_bytes(damage)
    inputs = RemoteInputs(copies, KnownRemotes(tmp_path / "known"), Web(["localhost"]))
    site.pages["/data"] = Page(body=DATA, etag='"1"')
    for _ in range(3):
        assert inputs.stage(wanted(site, "/data"), "a").read_bytes() == DATA
    assert inputs.counts.unchanged >= 1


def test_threads_that_want_the_same_share_one_transfer(site: Website, inputs: RemoteInputs) -> None:
    began, go = threading.Event(), threading.Event()

    def slow(handler: BaseHTTPRequestHandler) -> None:
        site.pages["/data"] = Page(body=DATA, etag='"1"')
        began.set()
        assert go.wait(20)
        handler.send_response(200)
        handler.send_header("ETag", '"1"')
        handler.send_header("Content-Length", str(len(DATA)))
        handler.end_headers()
        handler.wfile.write(DATA)

    site.pages["/data"] = Page(act=slow)
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(inputs.stage(wanted(site, "/data"), "a")), daemon=True)
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    assert began.wait(20)
    go.set()
    for thread in threads:
        thread.join(20)
    assert len(set(found)) == 1
    assert len(found) == 4
    assert inputs.counts.bytes_moved == len(DATA)


def test_bytes_are_taken_as_they_are_sent(site: Website, inputs: RemoteInputs) -> None:
    packed = gzip.compress(b"plain" * 1000)
    site.pages["/data"] = Page(body=packed, headers={"Content-Encoding": "gzip"})
    assert inputs.stage(wanted(site, "/data"), "a").read_bytes() == packed
    assert site.asked[0][2]["accept-encoding"] == "identity"


def test_an_empty_file_is_a_file(site: Website, inputs: RemoteInputs) -> None:
    site.pages["/data"] = Page(body=b"", etag='"1"')
    assert inputs.stage(wanted(site, "/data"), "a").read_bytes() == b""


# -- what lies
def test_another_digest_or_size_than_the_job_says_is_refused(
    site: Website, inputs: RemoteInputs, tmp_path: Path
) -> None:
    site.pages["/data"] = Page(body=DATA, etag='"1"')
    with pytest.raises(InputError, match=f"has digest {DIGEST}, not sha256:0"):
        inputs.stage(wanted(site, "/data", digest="sha256:" + "0" * 64), "a")
    with pytest.raises(InputError, match="has 300000 bytes, not 5"):
        inputs.stage(wanted(site, "/data", size=5), "a")
    assert left(tmp_path) == []


@pytest.mark.parametrize("length", [str(len(DATA) + 1), str(len(DATA) * 3)])
def test_a_body_that_ends_before_its_length_is_no_file(
    site: Website, inputs: RemoteInputs, tmp_path: Path, length: str
) -> None:
    site.pages["/data"] = Page(body=DATA, length=length)
    with pytest.raises(StoreUnavailable, match="ended early"):
        inputs.stage(wanted(site, "/data"), "a")
    assert left(tmp_path) == []


def test_chunks_that_stop_before_their_end_are_no_file(site: Website, inputs: RemoteInputs) -> None:
    def chunks(handler: BaseHTTPRequestHandler, end: bytes) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"5\r\nhello\r\n" + end)
        handler.close_connection = True

    site.pages["/cut"] = Page(act=lambda handler: chunks(handler, b""))
    site.pages["/whole"] = Page(act=lambda handler: chunks(handler, b"0\r\n\r\n"))
    with pytest.raises(StoreUnavailable, match="ended early"):
        inputs.stage(wanted(site, "/cut"), "a")
    assert inputs.stage(wanted(site, "/whole"), "a").read_bytes() == b"hello"


def test_what_could_be_cut_off_unseen_needs_a_digest_or_size(site: Website, inputs: RemoteInputs) -> None:
    site.pages["/data"] = Page(body=DATA, length="")
    with pytest.raises(InputError, match="does not say where it ends"):
        inputs.stage(wanted(site, "/data"), "a")
    assert inputs.stage(wanted(site, "/data", digest=DIGEST), "a").read_bytes() == DATA
    site.pages["/data"] = Page(body=DATA[:-1], length="")
    with pytest.raises(InputError, match="has 299999 bytes, not 300000"):
        inputs.stage(wanted(site, "/data", size=len(DATA)), "a")


def test_more_than_the_node_takes_is_refused_also_when_it_was_not_announced(
    site: Website, inputs: RemoteInputs, tmp_path: Path
) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.close_connection = True
        for _ in range(1000):
            handler.wfile.write(b"x" * 65536)

    site.pages["/said"] = Page(body=b"x", length=str(2 << 20))
    site.pages["/endless"] = Page(act=endless)
    for path in ("/said", "/endless"):
        with pytest.raises(InputError, match=r"at most \(--fetch-gib\)"):
            inputs.stage(wanted(site, path, digest=DIGEST), "a")
    assert left(tmp_path) == []


def test_more_than_the_disk_has_is_refused_before_it_moves(site: Website, copies: LocalCopies, tmp_path: Path) -> None:
    site.pages["/data"] = Page(body=b"x", length=str(1 << 60))
    inputs = RemoteInputs(copies, KnownRemotes(tmp_path / "known"), Web(["localhost"]), most_bytes=1 << 62)
    with pytest.raises(DiskFull):
        inputs.stage(wanted(site, "/data"), "a")


def test_headers_that_drip_are_cut_off(site: Website) -> None:
    over = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not over.wait(0.05):
            handler.wfile.write(b"x")
            handler.wfile.flush()

    site.pages["/drip"] = Page(act=drip)
    began = time.monotonic()
    try:
        with pytest.raises(StoreUnavailable), Web(["localhost"], head_s=0.5).get(site.url("/drip")):
            pass
        assert time.monotonic() - began < 10
    finally:
        over.set()


def test_a_body_that_drips_is_given_up(site: Website, tmp_path: Path) -> None:
    over = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        while not over.wait(0.01):
            handler.wfile.write(b"x")

    site.pages["/drip"] = Page(act=drip)
    minutes = iter(range(0, 10_000, 61))
    try:
        with Web(["localhost"]).get(site.url("/drip")) as body, new_file(tmp_path) as new:
            assert body is not None
            with pytest.raises(StoreUnavailable, match="comes too slowly: 1 bytes in 61 s"):
                body.save(new, most_bytes=1 << 20, stopped=lambda: False, now=lambda: float(next(minutes)))
    finally:
        over.set()


def test_nobody_waits_for_bytes_that_nobody_wants(site: Website, inputs: RemoteInputs, tmp_path: Path) -> None:
    site.pages["/data"] = Page(body=DATA)
    with pytest.raises(StoreUnavailable, match="given up"):
        inputs.stage(wanted(site, "/data"), "a", stopped=lambda: True)
    assert left(tmp_path) == []


@pytest.mark.parametrize(("status", "error"), [(404, InputError), (403, InputError), (206, InputError),
                                               (500, StoreUnavailable), (503, StoreUnavailable),
                                               (429, StoreUnavailable)])  # fmt: skip
def test_what_a_server_refuses_is_told_from_what_it_cannot_now(
    site: Website, inputs: RemoteInputs, status: int, error: type[Exception]
) -> None:
    site.pages["/data"] = Page(status=status, body=b"why")
    with pytest.raises(error, match=rf"localhost:\d+/data\?… .*{status}") as caught:
        inputs.stage(wanted(site, "/data?signature=SECRET"), "a")
    assert "SECRET" not in str(caught.value)


def test_a_304_that_nobody_asked_for_is_no_answer(site: Website, inputs: RemoteInputs) -> None:
    site.pages["/data"] = Page(status=304)
    with pytest.raises(InputError, match="304"):
        inputs.stage(wanted(site, "/data"), "a")


# -- where it leads
def test_redirects_are_followed_to_hosts_that_may_be_asked(site: Website, inputs: RemoteInputs) -> None:
    for status, path, to in ((301, "/a", "/b"), (307, "/b", site.url("/c?x=1#part")), (302, "/c", "d")):
        site.pages[path] = Page(status=status, headers={"Location": to})
    site.pages["/d"] = Page(body=DATA, etag='"1"')
    assert inputs.stage(wanted(site, "/a"), "a").read_bytes() == DATA
    inputs.stage(wanted(site, "/a"), "a")
    assert inputs.counts.unchanged == 1
    assert [headers.get("if-none-match") for _, path, headers in site.asked if path != "/d"] == [None] * 6


def test_a_tag_counts_only_where_it_was_given(site: Website, inputs: RemoteInputs) -> None:
    site.pages["/a"] = Page(status=302, headers={"Location": "/b"})
    site.pages["/b"] = Page(body=DATA, etag='"1"')
    inputs.stage(wanted(site, "/a"), "a")
    site.pages["/a"] = Page(status=302, headers={"Location": "/c"})
    site.pages["/c"] = Page(body=b"another", etag='"1"')
    assert inputs.stage(wanted(site, "/a"), "a").read_bytes() == b"another"


def test_the_sixth_redirect_is_one_too_many(site: Website, inputs: RemoteInputs) -> None:
    for number in range(6):
        site.pages[f"/{number}"] = Page(status=302, headers={"Location": f"/{number + 1}"})
    site.pages["/6"] = Page(body=DATA)
    with pytest.raises(InputError, match="more than 5 times"):
        inputs.stage(wanted(site, "/0"), "a")
    assert inputs.stage(wanted(site, "/1"), "a").read_bytes() == DATA


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("https://127.0.0.1:{port}/secret", "leads to 127.0.0.1"),
        ("https://169.254.169.254/latest/meta-data/", "leads to 169.254.169.254"),
        ("https://10.0.0.1/x", "leads to 10.0.0.1"),
        ("https://[::1]:{port}/x", "leads to ::1"),
        ("https://[::ffff:127.0.0.1]:{port}/x", "leads to ::ffff:127.0.0.1"),
        ("https://2130706433:{port}/x", "leads to 127.0.0.1"),
        ("http://localhost:{port}/x", "which is refused"),
        ("file:///etc/passwd", "which is refused"),
        ("//user:password@localhost:{port}/x", "which is refused"),
        ("https://localhost:99999/x", "which is refused"),
        ("", "without saying where"),
    ],
)
def test_a_redirect_leads_nowhere_that_a_job_may_not_name(
    site: Website, inputs: RemoteInputs, to: str, words: str
) -> None:
    site.pages["/a"] = Page(status=302, headers={"Location": to.format(port=site.port)})
    site.pages["/secret"] = site.pages["/x"] = Page(body=b"secret")
    with pytest.raises(InputError, match=words.replace(".", r"\.")) as caught:
        inputs.stage(wanted(site, "/a"), "a")
    assert "user:password" not in str(caught.value)
    assert [path for _, path, _ in site.asked] == ["/a"]


def test_a_host_that_is_not_allowed_is_not_even_connected_to(
    site: Website, copies: LocalCopies, tmp_path: Path
) -> None:
    inputs = RemoteInputs(copies, KnownRemotes(tmp_path / "known"), Web())
    site.pages["/a"] = Page(body=DATA)
    with pytest.raises(InputError, match="--allow-url-host localhost"):
        inputs.stage(wanted(site, "/a"), "a")
    assert site.asked == []


def test_a_name_is_resolved_once_and_the_connection_goes_there(site: Website) -> None:
    """A name that leads somewhere else at a second look (DNS rebinding) is not looked at a second time."""
    answers = [["127.0.0.1"], ["127.0.0.2"]]
    asked: list[str] = []

    def ask(host: str, port: int) -> list[str]:
        asked.append(host)
        return answers[len(asked) - 1]

    site.pages["/a"] = Page(body=DATA)
    with Web(["files.example"], ask=ask).get(site.url("/a", "files.example")) as body:
        assert body is not None
    assert asked == ["files.example"]
    assert site.asked[0][2]["host"] == f"files.example:{site.port}"


def test_a_certificate_must_be_for_the_name_and_from_a_trusted_authority(
    site: Website, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    with (
        pytest.raises(InputError, match="certificate"),
        Web(["other.example"], ask=ask).get(site.url("/a", "other.example")),
    ):
        pass
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(InputError, match="certificate"), Web(["localhost"]).get(site.url("/a")):
        pass
    assert site.asked == []


def test_no_proxy_of_the_environment_is_asked(
    site: Website, inputs: RemoteInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    site.pages["/a"] = Page(body=DATA)
    assert inputs.stage(wanted(site, "/a"), "a").read_bytes() == DATA


def test_a_server_that_is_away_may_be_back_later(inputs: RemoteInputs) -> None:
    with pytest.raises(StoreUnavailable, match="does not answer"):
        inputs.stage(Wanted(uri="https://localhost:9/x?SECRET"), "a")
