"""Inputs from and outputs to buckets of a real S3 over TLS."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from minio import Minio

from batchyard.broker.errors import InputError, OutputError, StoreUnavailable
from batchyard.broker.job import Job
from batchyard.broker.record import Claimed
from batchyard.broker.seal import KeyRing
from batchyard.cache.copies.folder import Folder
from batchyard.cache.copies.local import LocalCopies
from batchyard.cache.digest import digest_of
from batchyard.cache.index import Index
from batchyard.cache.remote.bucket import Bucket
from batchyard.cache.remote.deliver import AttemptMark
from batchyard.cache.remote.inputs import RemoteInputs, Wanted
from batchyard.cache.remote.known import KnownRemotes
from batchyard.cache.remote.web import Web
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.access import S3Access
from batchyard.cache.stores.disk import DirectoryStore
from batchyard.cache.tree import put_tree
from batchyard.worker.publish import Kept, Publisher
from yardtest.minio import S3Server

DATA = os.urandom(200_000)
CLAIMED = Claimed(id="job 1/..", token="7:abc", attempt=1, queue="cpu", created=1.0, document=b"")
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A bucket of one test."""

    server: S3Server
    name: str
    client: Minio

    def put(self, **objects: bytes) -> None:
        for key, data in objects.items():
            self.put_at(key, data)

    def put_at(self, key: str, data: bytes) -> None:
        self.client.put_object(self.name, key, io.BytesIO(data), len(data))

    def get(self, key: str) -> bytes:
        return self.client.get_object(self.name, key).data

    def all(self) -> list[str]:
        return sorted(str(one.object_name) for one in self.client.list_objects(self.name, recursive=True))


@pytest.fixture(params=["minio", "versitygw"])
def place(request: pytest.FixtureRequest) -> Place:
    server: S3Server = request.getfixturevalue(request.param)
    made = Place(server=server, name=f"remote-{next(_numbers)}-{os.getpid()}", client=server.access().client())
    made.client.make_bucket(made.name)
    return made


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(DirectoryStore(tmp_path / "store"), KeyRing.new())


@pytest.fixture
def copies(tmp_path: Path, blobs: BlobStore) -> Iterator[LocalCopies]:
    root = tmp_path / "copies"
    root.mkdir()
    made = LocalCopies(blobs, Index(root), [Folder(root, 100 << 20)])
    yield made
    made.close()


@pytest.fixture
def inputs(copies: LocalCopies, tmp_path: Path) -> RemoteInputs:
    return RemoteInputs(copies, KnownRemotes(tmp_path / "known"), Web(), most_bytes=1 << 20)


def wanted(place: Place, key: str, **more: Any) -> Wanted:
    return Wanted(uri=f"s3://{place.name}/{key}", secret="s3", access=place.server.access(), **more)


# -- inputs
def test_it_is_told_what_is_fetched(place: Place, inputs: RemoteInputs) -> None:
    place.put_at("k", DATA)
    told: list[str] = []
    inputs.stage(wanted(place, "k"), "a", say=told.append)
    assert told == [f"fetches s3://{place.name}/k"]


def test_who_names_no_endpoint_is_told_that_it_is_amazon() -> None:
    for endpoint in (None, "https://127.0.0.1:1"):
        bucket = Bucket(S3Access(source="nowhere", endpoint_url=endpoint), "bucket", who="us", refused=InputError)
        bucket._calls.client = S3Access(source="nowhere", endpoint_url="https://127.0.0.1:1").client()
        bucket._calls.pause = lambda seconds: None
        with pytest.raises(StoreUnavailable, match="does not answer") as caught, bucket.get("k"):
            pass
        assert "Connection(" not in str(caught.value)
        assert ("name `credentials` with endpoint_url" in str(caught.value)) == (endpoint is None)


def test_an_object_moves_once_until_it_changes(place: Place, inputs: RemoteInputs) -> None:
    key = "dir/with blank+ü%20.bin"
    place.put_at(key, DATA)
    first = inputs.stage(wanted(place, key), "a")
    assert first.read_bytes() == DATA
    assert inputs.stage(wanted(place, key), "b") == first
    assert (inputs.counts.bytes_moved, inputs.counts.unchanged) == (len(DATA), 1)
    place.put_at(key, b"new")
    assert inputs.stage(wanted(place, key), "a").read_bytes() == b"new"


def test_with_a_digest_and_a_copy_here_nobody_is_asked(place: Place, inputs: RemoteInputs) -> None:
    place.put_at("x", DATA)
    want = wanted(place, "x", digest=digest_of(DATA), size=len(DATA))
    inputs.stage(want, "a")
    place.client.remove_object(place.name, "x")
    assert inputs.stage(want, "b").read_bytes() == DATA
    with pytest.raises(InputError, match="NoSuchKey"):
        inputs.stage(wanted(place, "x"), "b")


def test_a_prefix_is_a_directory_and_moves_once_until_something_in_it_changes(
    place: Place, inputs: RemoteInputs, blobs: BlobStore, tmp_path: Path
) -> None:
    for key in ("a", "sub/b", "sub/deep/c"):
        place.put_at(f"in/{key}", key.encode())
    place.put_at(f"in/sub/{AttemptMark.of('yard', 'j', '1:x').folder}0/0", b"of another job, and not yet there")
    place.put_at("inside", b"of another prefix")
    top = inputs.stage(wanted(place, "in/"), "a")
    found = {str(p.relative_to(top)): p.read_bytes() for p in top.rglob("*") if p.is_file()}
    assert found == {"a": b"a", "sub/b": b"sub/b", "sub/deep/c": b"sub/deep/c"}
    assert all(p.stat().st_mode & 0o777 == (0o555 if p.is_dir() else 0o444) for p in (top, *top.rglob("*")))
    assert inputs.stage(wanted(place, "in/"), "b") == top
    assert (inputs.counts.bytes_moved, inputs.counts.unchanged) == (16, 1)
    place.put_at("in/sub/b", b"changed")
    again = inputs.stage(wanted(place, "in/"), "a")
    assert (again / "sub/b").read_bytes() == b"changed"
    assert blobs.name(put_tree(blobs, again).digest) == again.name  # the same digest as anybody's tree
    assert list((tmp_path / "copies").rglob(".new-*")) == []


def test_a_directory_counts_what_it_is_found_to_take_after_a_restart(
    place: Place, inputs: RemoteInputs, copies: LocalCopies, blobs: BlobStore, tmp_path: Path
) -> None:
    for number in range(30):
        place.put_at(f"in/{number % 4}/{number}", b"x" * number * 300)
    top = inputs.stage(wanted(place, "in/"), "a")
    held = copies.counts.held_bytes
    copies.close()
    root = tmp_path / "copies"
    again = LocalCopies(blobs, Index(root), [Folder(root, 100 << 20)])
    assert again.counts.held_bytes == held
    assert RemoteInputs(again, KnownRemotes(tmp_path / "known"), Web()).stage(wanted(place, "in/"), "b") == top
    again.close()


def test_a_directory_that_is_too_large_or_has_a_wrong_digest_is_refused(
    place: Place, inputs: RemoteInputs, tmp_path: Path
) -> None:
    place.put_at("in/a", b"x" * (1 << 19))
    with pytest.raises(InputError, match="has digest sha256:"):
        inputs.stage(wanted(place, "in/", digest="sha256:" + "0" * 64), "a")
    for key in ("in/b", "in/c"):
        place.put_at(key, b"x" * (1 << 19))
    with pytest.raises(InputError, match=r"--fetch-gib"):
        inputs.stage(wanted(place, "in/"), "a")
    with pytest.raises(InputError, match="holds no object"):
        inputs.stage(wanted(place, "none/"), "a")
    assert list((tmp_path / "copies").rglob(".new-*")) == []


def test_what_is_refused_says_whose_keys_they_are_and_shows_none(place: Place, inputs: RemoteInputs) -> None:
    place.put_at("x", DATA)
    access = replace(place.server.access(), secret_key="wr0ng-secret")
    with pytest.raises(InputError, match='is refused to secret "s3"') as caught:
        inputs.stage(replace(wanted(place, "x"), access=access), "a")
    assert "wr0ng" not in str(caught.value)
    with pytest.raises(InputError, match=r"is refused|is not there"):
        inputs.stage(replace(wanted(place, "x"), access=replace(access, access_key=None, secret_key=None)), "a")
    with pytest.raises(InputError, match="NoSuchBucket"):
        inputs.stage(Wanted(uri="s3://no-such-bucket-here/x", secret="s3", access=place.server.access()), "a")


def test_what_one_job_may_read_is_not_given_to_another(place: Place, inputs: RemoteInputs) -> None:
    """The note of what an object was is of those keys; others have to ask themselves."""
    place.put_at("x", DATA)
    inputs.stage(wanted(place, "x"), "a")
    other = replace(place.server.access(), access_key="somebody", secret_key="else")
    with pytest.raises(InputError, match="is refused"):
        inputs.stage(replace(wanted(place, "x"), access=other), "b")


def test_a_server_that_is_away_may_be_back_later(inputs: RemoteInputs, place: Place) -> None:
    access = replace(place.server.access(), endpoint_url="https://127.0.0.1:9")
    with pytest.raises(StoreUnavailable):
        inputs.stage(replace(wanted(place, "x"), access=access), "a")


# -- outputs
class Attempt:
    """An attempt whose command has ended and left files; confirm: what the yard answers."""

    def __init__(self, place: Place, blobs: BlobStore, folder: Path, *, claimed: Claimed = CLAIMED) -> None:
        self._blobs, self._claimed, self._folder = blobs, claimed, folder
        self.work, secrets = folder / "work", folder / "secrets"
        self.work.mkdir(parents=True)
        secrets.mkdir()
        (secrets / "s3").write_bytes(place.server.credentials.read_bytes())
        self.place, self.asked = place, 0
        self.on_confirm: Callable[[], object] = lambda: None

        self.on_stopped: Callable[[], bool] = lambda: False
        self.fresh_s = 60.0

    def publisher(self, **outputs: Any) -> Publisher:
        def spec(value: Any) -> Any:
            if isinstance(value, str):
                return value
            path, key = value
            return {"path": path, "to": f"s3://{self.place.name}/{key}", "credentials": "s3"}

        job = Job.parse({"image": "i", "outputs": {name: spec(value) for name, value in outputs.items()}})
        mark = AttemptMark.of("yard", self._claimed.id, self._claimed.token)
        secrets = self._folder / "secrets"
        return Publisher(
            self._blobs,
            job,
            self.work,
            mark=mark,
            secrets=secrets,
            confirm=self._confirm,
            fresh_s=self.fresh_s,
            stopped=lambda: self.on_stopped(),
        )

    def publish(self, **outputs: Any) -> dict[str, Kept]:
        return self.publisher(**outputs).publish()

    def _confirm(self) -> None:
        self.asked += 1
        self.on_confirm()


@pytest.fixture
def attempt(place: Place, blobs: BlobStore, tmp_path: Path) -> Attempt:
    return Attempt(place, blobs, tmp_path / "attempt")


def test_a_file_goes_to_its_key_or_under_its_name_to_a_prefix(attempt: Attempt, place: Place) -> None:
    (attempt.work / "t.csv").write_bytes(DATA)
    kept = attempt.publish(
        a=("/work/t.csv", "results/table.csv"), b=("/work/t.csv", "results/"), c=("/work/t.csv", ""), d="/work/t.csv"
    )
    assert place.all() == ["results/t.csv", "results/table.csv", "t.csv"]
    assert {place.get(key) for key in place.all()} == {DATA}
    shown = {name: one.as_json() for name, one in kept.items()}
    plain = {"digest": digest_of(DATA), "size": len(DATA), "kind": "file"}
    assert shown["d"] == plain
    assert shown["b"] == {**plain, "uri": f"s3://{place.name}/results/t.csv"}
    assert place.client.stat_object(place.name, "t.csv").content_type == "text/csv"


def test_a_large_file_goes_in_parts(attempt: Attempt, place: Place) -> None:
    data = os.urandom(1 << 20) * 20
    (attempt.work / "big").write_bytes(data)
    attempt.publish(a=("/work/big", "big"))
    assert hashlib.sha256(place.get("big")).digest() == hashlib.sha256(data).digest()
    assert place.all() == ["big"]


def test_a_large_object_is_copied_in_parts(place: Place) -> None:
    data = os.urandom(1 << 20) * 12
    place.put_at("from", data)
    bucket = Bucket(place.server.access(), place.name, who="s", refused=OutputError, copy_bytes=5 << 20)
    bucket.copy("from", "to.csv", len(data), "text/csv")
    assert hashlib.sha256(place.get("to.csv")).digest() == hashlib.sha256(data).digest()
    assert place.client.stat_object(place.name, "to.csv").content_type == "text/csv"
    with pytest.raises(OutputError, match="is not there"):
        bucket.copy("gone", "to.csv", len(data), "text/csv")


def test_a_directory_lies_below_its_prefix(attempt: Attempt, place: Place, blobs: BlobStore) -> None:
    (attempt.work / "out/sub/empty").mkdir(parents=True)
    for path in ("a", "sub/b c", "sub/ü"):
        (attempt.work / "out" / path).write_text(path)
    place.put_at("r/older", b"stays")
    kept = attempt.publish(a=("/work/out", "r/"))
    assert place.all() == ["r/a", "r/older", "r/sub/b c", "r/sub/ü"]
    assert place.get("r/sub/b c") == b"sub/b c"
    assert kept["a"].as_json()["kind"] == "tree"
    assert kept["a"].uri == f"s3://{place.name}/r/"


@pytest.mark.parametrize(
    ("key", "words"),
    [("r", 'output "a": it is a directory, and goes to a prefix only'), ("r/", "'link' is a symlink")],
)
def test_what_a_bucket_cannot_hold_is_refused(attempt: Attempt, place: Place, key: str, words: str) -> None:
    (attempt.work / "out").mkdir()
    (attempt.work / "out/file").write_text("x")
    (attempt.work / "out/link").symlink_to("file")
    with pytest.raises(OutputError, match=words):
        attempt.publish(a=("/work/out", key))
    assert place.all() == []


def test_a_missing_output_or_secret_is_said_with_the_outputs_name(attempt: Attempt, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match='output "a": /work/none was not written'):
        attempt.publish(a=("/work/none", "x"))
    (attempt.work / "t").write_text("x")
    (tmp_path / "attempt/secrets/s3").write_text("no ini")
    with pytest.raises(OutputError, match='output "a": secret "s3" is no credentials file'):
        attempt.publish(a=("/work/t", "x"))


def test_nothing_is_written_before_the_yard_has_said_yes(attempt: Attempt, place: Place) -> None:
    (attempt.work / "t").write_bytes(DATA)
    place.put_at("t", b"older")
    seen: list[list[str]] = []

    def lost() -> None:
        seen.append(place.all())
        raise OutputError("the lease is lost")

    attempt.on_confirm = lost
    publisher = attempt.publisher(a=("/work/t", "t"))
    with pytest.raises(OutputError, match='output "a": the lease is lost'):
        publisher.publish()
    assert [key for key in seen[0] if not key.startswith(".batchyard/yard/")] == ["t"]
    assert place.get("t") == b"older"
    publisher.clean()
    assert place.all() == ["t"]


def test_a_lease_that_is_lost_between_two_files_ends_the_writing(attempt: Attempt, place: Place) -> None:
    (attempt.work / "out").mkdir()
    for number in range(8):
        (attempt.work / "out" / str(number)).write_bytes(DATA)
    attempt.fresh_s = 0

    def third_is_no() -> None:
        if attempt.asked >= 3:
            raise OutputError("the lease is lost")

    attempt.on_confirm = third_is_no
    publisher = attempt.publisher(a=("/work/out", "r/"))
    with pytest.raises(OutputError, match="the lease is lost"):
        publisher.publish()
    publisher.clean()
    assert len(place.all()) == 1


def test_who_was_told_to_stop_writes_no_more(attempt: Attempt, place: Place) -> None:
    (attempt.work / "t").write_bytes(DATA)
    attempt.on_confirm = lambda: setattr(attempt, "on_stopped", lambda: True)
    publisher = attempt.publisher(a=("/work/t", "t"))
    with pytest.raises(StoreUnavailable, match="told to stop"):
        publisher.publish()
    publisher.clean()
    assert place.all() == []


def test_an_attempt_that_was_cut_off_finds_nothing_to_copy_when_it_wakes(
    attempt: Attempt, place: Place, blobs: BlobStore, tmp_path: Path
) -> None:
    """It was told that the job is its own, and slept; meanwhile the job ran elsewhere."""
    (attempt.work / "t").write_text("stale")
    later = Attempt(place, blobs, tmp_path / "later", claimed=replace(CLAIMED, token="8:def"))
    (later.work / "t").write_text("good")
    other = Attempt(place, blobs, tmp_path / "other", claimed=replace(CLAIMED, id="another job"))
    (other.work / "o").write_text("other")

    def sleep() -> None:
        other.on_confirm = lambda: later.publish(a=("/work/t", "t"))
        other.publish(a=("/work/o", "o"))

    attempt.on_confirm = sleep
    with pytest.raises(OutputError, match=r'output "a": .*is not there'):
        attempt.publish(a=("/work/t", "t"))
    assert place.get("t") == b"good"
    assert place.get("o") == b"other"  # whose temporary objects are its own
    assert place.all() == ["o", "t"]


def test_what_a_killed_attempt_left_goes_with_the_next_one(attempt: Attempt, place: Place) -> None:
    mark = AttemptMark.of("yard", CLAIMED.id, "6:old")
    of_another = AttemptMark.of("yard", "another", CLAIMED.token)
    place.put_at(f"r/{mark.folder}0/0", b"left")
    place.put_at(f"r/{of_another.folder}0/0", b"in use")
    (attempt.work / "t").write_text("x")
    attempt.publish(a=("/work/t", "r/t"))
    assert place.all() == sorted([f"r/{of_another.folder}0/0", "r/t"])


def test_publishing_goes_on_where_it_was_interrupted(attempt: Attempt, place: Place) -> None:
    (attempt.work / "t").write_bytes(DATA)
    answers = iter([StoreUnavailable("away"), None, None])

    def answer() -> None:
        if (error := next(answers)) is not None:
            raise error

    attempt.on_confirm = answer
    publisher = attempt.publisher(a=("/work/t", "x"), b=("/work/t", "y"))
    with pytest.raises(StoreUnavailable):
        publisher.publish()
    (attempt.work / "t").unlink()  # it is there already
    assert sorted(publisher.publish()) == ["a", "b"]
    assert place.all() == ["x", "y"]
