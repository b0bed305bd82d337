"""Keys of a running yard are rotated and the old one retired: jobs before, meanwhile and after are none the wiser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchyard.broker.cli import run
from batchyard.broker.keywatch import holders
from batchyard.broker.seal import KeyRing
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.disk import DirectoryStore
from yardtest.wait import until
from yardtest.yard import TestYard, running_yard


@pytest.fixture
def yard(tmp_path: Path, image: str) -> Iterator[TestYard]:
    with running_yard(tmp_path / "y", image) as made:
        yield made
        made.nothing_left()
        made.healthy()


def test_jobs_go_on_over_a_rotation_and_only_the_new_key_is_left(
    yard: TestYard, capsys: pytest.CaptureFixture[str]
) -> None:
    def keys(*words: str) -> None:
        named = ["--broker", yard.url, "--key-file", str(yard.key_file), "--store", str(yard.blobs)]
        assert run(["keys", *words, *named]) == 0, capsys.readouterr().err

    old = yard.ring.current
    assert {one.name.split()[0] for one in holders(yard.store)} == {"controller", "node"}
    keeps: dict[str, Any] = {"outputs": {"o": "/work/o"}}
    before = yard.shell("echo before >/work/o", **keeps).get(timeout=60)["outputs"]["o"]["digest"]
    reads: dict[str, Any] = {"/in/x": before}
    meanwhile = yard.shell("sleep 3; cat /in/x >/work/o", inputs=reads, **keeps)
    yard.running(meanwhile.id)
    keys("rotate")
    keys("retire", old)
    assert meanwhile.get(timeout=60)["outputs"]["o"]["digest"] == before
    after = yard.shell("cat /in/x >/work/o; echo after >>/work/o", inputs=reads, **keeps)
    made = after.get(timeout=60)["outputs"]["o"]["digest"]
    new = KeyRing.load(yard.key_file)
    assert old not in new.ids
    until(lambda: all(one.ids == new.ids for one in holders(yard.store)), "all have the new key alone")
    opened = BlobStore(DirectoryStore(yard.blobs), new)
    assert opened.read_bytes(before, 100) == b"before\n"
    assert opened.read_bytes(made, 100) == b"before\nafter\n"


def test_another_store_is_refused_before_a_key_is_made_or_taken_away(
    yard: TestYard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    DirectoryStore(tmp_path / "other")
    named = ["--broker", yard.url, "--key-file", str(yard.key_file), "--store", str(tmp_path / "other")]
    before = yard.key_file.read_bytes()
    for words in (["keys", "rotate"], ["keys", "retire", "0123456789abcdef"], ["cache", "gc"]):
        assert run([*words, *named]) == 2
        assert "this is not the yard's store: it has no id; correct --store" in capsys.readouterr().err
    assert yard.key_file.read_bytes() == before
