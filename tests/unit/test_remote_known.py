"""The note of what was read from elsewhere: a note that may be lost, never one that is wrong."""

from __future__ import annotations

import itertools
from pathlib import Path

from batchyard.cache.remote.known import Known, KnownRemotes, name_of
from batchyard.cache.stores.access import S3Access

ONE = Known(validator="v", digest="sha256:" + "a" * 64)


def test_what_was_put_is_there_after_a_restart_until_it_is_forgotten(tmp_path: Path) -> None:
    table = KnownRemotes(tmp_path / "known")
    table.put("x", ONE)
    table.close()
    again = KnownRemotes(tmp_path / "known")
    assert again.get("x") == ONE
    assert again.get("y") is None
    again.forget("x")
    assert again.get("x") is None


def test_the_oldest_go_when_there_are_too_many(tmp_path: Path) -> None:
    clock = itertools.count()
    table = KnownRemotes(tmp_path / "known", most_rows=10, now_s=lambda: float(next(clock)))
    for number in range(257):
        table.put(str(number), ONE)
    assert [number for number in range(257) if table.get(str(number))] == list(range(247, 257))


def test_where_it_cannot_be_kept_nothing_is_known_and_nothing_fails(tmp_path: Path) -> None:
    table = KnownRemotes(tmp_path / "no" / "folder" / "known")
    table.put("x", ONE)
    assert table.get("x") is None


def test_a_uri_is_another_one_with_other_keys_or_at_another_endpoint() -> None:
    plain = S3Access(source="s")
    names = {
        name_of(uri, secret, access)
        for uri, secret, access in (
            ("s3://b/x", None, None),
            ("s3://b/y", None, None),
            ("s3://b/x", "s", plain),
            ("s3://b/x", "t", plain),
            ("s3://b/x", "s", S3Access(source="s", access_key="k", secret_key="x")),
            ("s3://b/x", "s", S3Access(source="s", endpoint_url="https://other")),
        )
    }
    assert len(names) == 6
    assert all(len(name) == 64 for name in names)
