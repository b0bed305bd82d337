"""An S3 that answers wrongly, slowly or half: a clear reason, nothing deleted for it, and the right bytes later."""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchyard.broker.errors import BlobMissing, DiskFull, StoreUnavailable
from batchyard.broker.seal import KeyRing
from batchyard.cache.digest import Blob
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores import access
from batchyard.cache.stores.s3 import S3Store
from yardtest.minio import S3Server
from yardtest.moody import Mood, MoodyS3

NAME = "ab" * 32
SIZE = 300_000


@pytest.fixture
def moody(minio: S3Server, tmp_path: Path) -> Iterator[MoodyS3]:
    with MoodyS3(minio, tmp_path) as made:
        yield made


@pytest.fixture
def store(moody: MoodyS3) -> S3Store:
    made = S3Store(moody.access(), f"moody-{secrets.token_hex(8)}", create=True)
    made._calls.pause = lambda seconds: None
    moody.forget()
    return made


@pytest.fixture
def blobs(store: S3Store) -> BlobStore:
    return BlobStore(store, KeyRing.new())


@pytest.fixture
def kept(blobs: BlobStore, moody: MoodyS3) -> tuple[Blob, bytes]:
    data = os.urandom(SIZE)
    blob = blobs.put_bytes(data)
    moody.forget()
    return blob, data


def methods(moody: MoodyS3) -> list[str]:
    return [method for method, _ in moody.asked]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_server_in_trouble_is_asked_again(
    moody: MoodyS3, blobs: BlobStore, kept: tuple[Blob, bytes], status: int
) -> None:
    moody.mood = lambda method, path, number: Mood(status=status, code="InternalError") if number < 2 else None
    assert blobs.read_bytes(kept[0].digest, SIZE) == kept[1]
    assert methods(moody) == ["GET"] * 3


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (500, "InternalError", r"answers 500 \(InternalError\) for object .*; try again, or see its log"),
        (503, "SlowDown", r"answers 503 \(SlowDown\)"),
        (403, "AccessDenied", r"refuses us \(AccessDenied\); correct the keys in"),
        (403, "RequestTimeTooSkewed", "has another time than this machine; set the clocks"),
        (404, "NoSuchBucket", "there is no such bucket; make it"),
        (400, "Nonsense", r"answers 400 \(Nonsense\)"),
        (301, "PermanentRedirect", r"answers 301 \(PermanentRedirect\)"),
    ],
)
def test_what_a_server_goes_on_to_say_is_told_and_nothing_is_deleted_for_it(
    moody: MoodyS3, blobs: BlobStore, kept: tuple[Blob, bytes], tmp_path: Path, status: int, code: str, words: str
) -> None:
    blob, data = kept
    moody.mood = lambda *_: Mood(status=status, code=code)
    with pytest.raises(StoreUnavailable, match=words):
        blobs.fetch(blob.digest, None, tmp_path / "out")
    with pytest.raises(StoreUnavailable):
        blobs.put_bytes(b"another")
    assert "DELETE" not in methods(moody)
    assert not (tmp_path / "out").exists()
    moody.mood = lambda *_: None
    assert blobs.read_bytes(blob.digest, SIZE) == data
    assert blobs.counters.corrupt == 0


def test_an_object_that_a_server_does_not_have_is_missing(moody: MoodyS3, blobs: BlobStore) -> None:
    moody.mood = lambda *_: Mood(status=404, code="NoSuchKey")
    with pytest.raises(BlobMissing, match="is not in the store; put it first"):
        blobs.read_bytes("sha256:" + "0" * 64, 10)
    assert methods(moody) == ["GET"]


@pytest.mark.parametrize("code", ["XMinioStorageFull", "QuotaExceeded"])
def test_a_server_that_is_full_says_so(moody: MoodyS3, store: S3Store, code: str) -> None:
    moody.mood = lambda method, path, number: Mood(status=507, code=code) if method == "PUT" else None
    with pytest.raises(DiskFull, match=rf"no space left in .*\({code}\); free some"):
        store.put_if_absent(NAME, io.BytesIO(b"x"), 1)
    assert store.stat(NAME) is None


def test_a_put_that_is_answered_with_a_fault_is_made_once(moody: MoodyS3, store: S3Store) -> None:
    moody.mood = lambda method, path, number: (
        Mood(status=500, code="InternalError") if method == "PUT" and number < 3 else None
    )
    assert store.put_if_absent(NAME, io.BytesIO(b"x"), 1)
    assert methods(moody) == ["HEAD", "PUT", "PUT", "PUT"]
    assert list(store.names()) == [NAME]


@pytest.mark.parametrize("then", ["close", "half close"])
@pytest.mark.parametrize("after_bytes", [0, 1, SIZE // 2])
def test_a_body_that_is_half_closed_goes_on_over_another_connection(
    moody: MoodyS3, blobs: BlobStore, kept: tuple[Blob, bytes], then: str, after_bytes: int
) -> None:
    mood = Mood(then="close" if then == "close" else "half close", after_bytes=after_bytes)
    moody.mood = lambda method, path, number: mood if number < 2 else None
    assert blobs.read_bytes(kept[0].digest, SIZE) == kept[1]
    assert methods(moody) == ["GET"] * 3


def test_a_body_that_always_ends_early_is_no_reason_to_delete(
    moody: MoodyS3, blobs: BlobStore, kept: tuple[Blob, bytes]
) -> None:
    moody.mood = lambda method, path, number: Mood(then="half close", after_bytes=0) if method == "GET" else None
    with pytest.raises(StoreUnavailable, match="ended early, at byte 0"):
        blobs.read_bytes(kept[0].digest, SIZE)
    assert "DELETE" not in methods(moody)
    moody.mood = lambda *_: None
    assert blobs.read_bytes(kept[0].digest, SIZE) == kept[1]


def test_a_body_that_drips_comes_whole(moody: MoodyS3, blobs: BlobStore, kept: tuple[Blob, bytes]) -> None:
    moody.mood = lambda *_: Mood(then="drip", after_bytes=100)
    assert blobs.read_bytes(kept[0].digest, SIZE) == kept[1]


def test_a_body_that_stalls_is_given_up_and_asked_for_again(
    moody: MoodyS3, minio: S3Server, kept: tuple[Blob, bytes], blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hasty(read_s: float) -> BlobStore:
        monkeypatch.setattr(access, "_READ_S", read_s)
        store = S3Store(moody.access(), blobs._store._calls.bucket)  # type: ignore[attr-defined]
        store._calls.pause = lambda seconds: None
        return BlobStore(store, blobs._ring)

    moody.mood = lambda method, path, number: Mood(then="stall", after_bytes=5000) if number < 2 else None
    assert hasty(1.5).read_bytes(kept[0].digest, SIZE) == kept[1]
    moody.mood = lambda *_: Mood(then="stall", after_bytes=5000)
    with pytest.raises(StoreUnavailable, match=r"timed out|ended early"):
        hasty(0.3).read_bytes(kept[0].digest, SIZE)
    assert "DELETE" not in methods(moody)
