"""Any directory comes back as it was, equal ones are one blob, and no manifest names bytes that are not there."""

from __future__ import annotations

import copy
import json
import os
import random
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from batchyard.broker.errors import InputError
from batchyard.broker.seal import KeyRing
from batchyard.cache.digest import digest_of
from batchyard.cache.manifest import Directory, Entry, File, decode, encode, in_order
from batchyard.cache.packs import MOST_PACK_BYTES, SMALL_BYTES, Packer
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.memory import MemoryStore
from batchyard.cache.tree import fetch_tree, put_tree

names = st.sampled_from(["a", "b", "a.txt", "a b", "A", "é", "-", "z" * 60, os.fsdecode(b"\xff")])
sizes = st.sampled_from([0, 1, 2, 1000, 70_000, SMALL_BYTES - 1, SMALL_BYTES, SMALL_BYTES + 1, 1 << 20])
contents = st.tuples(sizes, st.integers(0, 5), st.booleans())
"""size, which content of that size, executable"""
folders = st.recursive(
    st.dictionaries(names, contents, max_size=6),
    lambda inner: st.dictionaries(names, st.one_of(contents, inner), max_size=6),
    max_leaves=25,
)


def make(top: Path, spec: Mapping[str, Any], order: random.Random) -> None:
    """The directory, its things made in any order."""
    top.mkdir()
    for name in order.sample(sorted(spec), len(spec)):
        one = spec[name]
        if isinstance(one, dict):
            make(top / name, one, order)
            continue
        size, which, executable = one
        (top / name).write_bytes(bytes([which]) * size)
        (top / name).chmod(0o700 if executable else 0o600)


def found(top: Path) -> dict[str, Any]:
    return {
        path.name: found(path)
        if path.is_dir()
        else (path.stat().st_size, path.read_bytes()[:1], bool(path.stat().st_mode & 0o100))
        for path in top.iterdir()
    }


def expected(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: expected(one) if isinstance(one, dict) else (one[0], bytes([one[1]]) if one[0] else b"", one[2])
        for name, one in spec.items()
    }


@contextmanager
def a_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="trees-") as folder:
        yield Path(folder)


@settings(max_examples=40)
@given(spec=folders, seed=st.integers(0, 1000))
def test_a_directory_comes_back_and_equal_ones_have_one_digest(spec: Mapping[str, Any], seed: int) -> None:
    blobs = BlobStore(MemoryStore(), KeyRing.new())
    with a_folder() as top:
        make(top / "one", spec, random.Random(seed))
        make(top / "two", spec, random.Random(seed + 1))
        heard: list[int] = []
        blob = put_tree(blobs, top / "one", heard.append)
        assert put_tree(BlobStore(MemoryStore(), KeyRing.new()), top / "two") == blob
        size = fetch_tree(blobs, blob.digest, top / "out")
        assert sum(heard) == size
        assert found(top / "out") == expected(spec)
        assert put_tree(blobs, top / "out") == blob


@settings(max_examples=40)
@given(sizes=st.lists(st.integers(1, SMALL_BYTES), min_size=1, max_size=120), seed=st.integers(0, 1000))
def test_packs_hold_every_file_and_nothing_else(sizes: list[int], seed: int) -> None:
    dice, kept = random.Random(seed), list[bytes]()

    def keep(data: bytes) -> str:
        kept.append(data)
        return digest_of(data)

    packer = Packer(keep)
    files = [dice.randbytes(size) if dice.random() < 0.9 else b"same" for size in sizes]
    places = [packer.add(digest_of(data), data) for data in files]
    packs = packer.end()
    assert [digest_of(data) for data in kept] == [pack.digest for pack in packs]
    assert all(0 < len(data) <= MOST_PACK_BYTES for data in kept)
    assert sum(map(len, kept)) == sum(len(data) for data in set(files))
    for data, place in zip(files, places, strict=True):
        assert kept[place.pack][place.at : place.at + len(data)] == data


def a_manifest() -> dict[str, Any]:
    entries: list[Entry] = [Directory(path="d"), Directory(path="d/e")]
    packer, data = Packer(digest_of), [bytes([n]) * SMALL_BYTES for n in range(100)]
    for number, one in enumerate([*data, data[3], b"end"]):
        place = packer.add(digest_of(one), one)
        entries.append(File(path=f"d/{number:03d}", digest=digest_of(one), size=len(one), place=place))
    entries.append(File(path="d/large", digest=digest_of(b"large"), size=1 << 30))
    entries.sort(key=in_order)
    whole: dict[str, Any] = json.loads(encode(entries, packer.end()))
    return whole


MANIFEST = a_manifest()
values = st.one_of(
    st.integers(-2, 5), st.integers(0, 1 << 60), st.none(), st.booleans(), st.text(max_size=3), st.floats(),
    st.sampled_from([entry.get("size", 0) for entry in MANIFEST["entries"]]),
    st.sampled_from([entry.get("at", 0) for entry in MANIFEST["entries"]]),
    st.sampled_from([entry.get("digest", "") for entry in MANIFEST["entries"]]),
)  # fmt: skip
fields = st.sampled_from(["path", "digest", "size", "at", "pack", "executable", "type"])


@settings(max_examples=150)
@given(changes=st.lists(st.tuples(st.integers(0, 120), fields, values), min_size=1, max_size=3), swap=st.booleans())
def test_a_manifest_that_was_tampered_with_is_refused_or_true_to_its_packs(
    changes: list[tuple[int, str, Any]], swap: bool
) -> None:
    whole = copy.deepcopy(MANIFEST)
    every = [*whole["entries"], *whole["packs"]]
    for number, field, value in changes:
        every[number % len(every)][field] = value
    if swap:
        whole["packs"].reverse()
    data = json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()
    try:
        tree = decode(data, digest_of(data))
    except InputError:
        return
    assert encode(tree.entries, tree.packs) == data
    assert all(0 < pack.size <= MOST_PACK_BYTES for pack in tree.packs)
    inside = {(file.place, file.size) for file in tree.files if file.place}
    assert all(place.at + size <= tree.packs[place.pack].size for place, size in inside)
    assert sum(size for _, size in inside) == sum(pack.size for pack in tree.packs)
