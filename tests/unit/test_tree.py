from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from batchyard.broker.errors import InputError, IntegrityError, NotFound, OutputError
from batchyard.broker.seal import KeyRing
from batchyard.cache.digest import Blob, digest_of
from batchyard.cache.manifest import EMPTY, Directory, Entry, File, Symlink, Tree, decode, encode, is_manifest
from batchyard.cache.packs import MOST_PACK_BYTES, SMALL_BYTES
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.memory import MemoryStore
from batchyard.cache.tree import fetch_tree, put_tree, read_tree, remove_tree


@pytest.fixture
def blobs() -> BlobStore:
    return BlobStore(MemoryStore(), KeyRing.new())


def sample(root: Path) -> None:
    (root / "bin").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "bin" / "run").write_bytes(b"#!/bin/sh\n")
    (root / "bin" / "run").chmod(0o750)
    (root / "data").write_bytes(b"data")
    (root / "latest").symlink_to("bin")
    (root / "bin" / "up").symlink_to("../latest/run")
    (root / os.fsdecode(b"not-utf8-\xff")).write_bytes(b"")


def shown(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_dir():
            found[name] = None
        else:
            found[name] = (path.read_bytes(), oct(path.stat().st_mode & 0o7777))
    return found


def test_a_tree_comes_back_with_links_empty_directories_and_execute_bits(blobs: BlobStore, tmp_path: Path) -> None:
    sample(tmp_path / "in")
    blob = put_tree(blobs, tmp_path / "in")
    assert blob.kind == "tree"
    assert fetch_tree(blobs, blob.digest, tmp_path / "out") == 14
    assert shown(tmp_path / "out") == {
        "bin": None,
        "bin/run": (b"#!/bin/sh\n", "0o555"),
        "bin/up": "../latest/run",
        "data": (b"data", "0o444"),
        "empty": None,
        "latest": "bin",
        os.fsdecode(b"not-utf8-\xff"): (b"", "0o444"),
    }
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]
    assert put_tree(blobs, tmp_path / "out") == blob


def test_an_empty_directory_is_a_tree(blobs: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    fetch_tree(blobs, put_tree(blobs, tmp_path / "in").digest, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_times_owners_and_umask_do_not_change_the_digest(blobs: BlobStore, tmp_path: Path) -> None:
    sample(tmp_path / "one")
    sample(tmp_path / "two")
    os.utime(tmp_path / "two" / "data", (1, 1))
    (tmp_path / "two" / "data").chmod(0o600)
    (tmp_path / "two" / "empty").chmod(0o700)
    assert put_tree(blobs, tmp_path / "one") == put_tree(blobs, tmp_path / "two")


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("/etc/passwd", "make it relative"),
        ("../outside", "leaves the tree"),
        ("deep/../../outside", "leaves the tree"),
        ("turn/../../outside", "leaves the tree"),
        ("missing", "leads to nothing"),
        ("data/..", "leads to nothing"),
        ("link", "leads to itself"),
    ],
)
def test_a_symlink_must_lead_to_something_in_the_tree(
    blobs: BlobStore, tmp_path: Path, target: str, reason: str
) -> None:
    root = tmp_path / "in"
    (root / "deep" / "er").mkdir(parents=True)
    (tmp_path / "outside").write_bytes(b"secret")
    (root / "data").write_bytes(b"data")
    (root / "turn").symlink_to("deep/er/..")
    (root / "link").symlink_to(target)
    with pytest.raises(OutputError, match=f"'link' is a symlink.*{reason}"):
        put_tree(blobs, root)


def test_a_symlink_through_a_symlink_is_followed_as_the_kernel_does(blobs: BlobStore, tmp_path: Path) -> None:
    root = tmp_path / "in"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "file").write_bytes(b"x")
    (root / "short").symlink_to("a/b")
    (root / "link").symlink_to("short/../file")  # as text: "file" at the top, which is not there
    put_tree(blobs, root)
    (root / "link").unlink()
    (root / "link").symlink_to("short/../../../file")
    with pytest.raises(OutputError, match="leaves the tree"):
        put_tree(blobs, root)


def plant(kind: str, path: Path) -> None:
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(path.parent)  # socket addresses are short
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
        os.chdir(here)
    else:
        os.mknod(path, 0o020666, os.makedev(1, 3))


@pytest.mark.parametrize("kind", ["fifo", "socket", "character device"])
def test_special_files_are_refused_by_name_without_waiting(blobs: BlobStore, tmp_path: Path, kind: str) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    try:
        plant(kind, tmp_path / "in" / "sub" / "thing")
    except PermissionError:
        pytest.skip(f"making a {kind} is not permitted here")
    with pytest.raises(OutputError, match=f"'sub/thing' is a {kind}"):
        put_tree(blobs, tmp_path / "in")


@pytest.mark.parametrize("size", [10, SMALL_BYTES + 1])
def test_a_damaged_blob_leaves_no_directory_and_is_deleted_and_put_again(tmp_path: Path, size: int) -> None:
    store = MemoryStore()
    blobs = BlobStore(store, KeyRing.new())
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_bytes(b"x" * size)
    blob = put_tree(blobs, tmp_path / "in")
    (damaged,) = read_tree(blobs, blob.digest).blobs
    name = blobs._ring.name(damaged)
    data = bytearray(store._objects[name])
    data[-1] ^= 1
    store._objects[name] = bytes(data)
    with pytest.raises(IntegrityError, match=f"{damaged} does not open .* it was deleted"):
        fetch_tree(blobs, blob.digest, tmp_path / "out")
    assert blobs.counters.corrupt == 1
    with pytest.raises(NotFound, match=f"{damaged} is not in the store"):
        fetch_tree(blobs, blob.digest, tmp_path / "out")
    assert os.listdir(tmp_path) == ["in"]
    assert put_tree(blobs, tmp_path / "in") == blob
    fetch_tree(blobs, blob.digest, tmp_path / "out")


def test_an_existing_destination_is_kept(blobs: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="exists already"):
        fetch_tree(blobs, put_tree(blobs, tmp_path / "in").digest, tmp_path / "in")


def test_a_very_deep_directory_is_refused_and_can_be_removed(blobs: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "in" / "/".join("d" * 150)).mkdir(parents=True)
    with pytest.raises(OutputError, match="too deep"):
        put_tree(blobs, tmp_path / "in")
    remove_tree(tmp_path / "in")
    assert os.listdir(tmp_path) == []


# Hostile manifests

X, Y = digest_of(b"x"), digest_of(b"y")


def raw(*entries: dict[str, object], packs: object = ()) -> bytes:
    shown = {"batchyard_tree": 1, "entries": list(entries), "packs": packs}
    return json.dumps(shown, sort_keys=True, separators=(",", ":")).encode()


def a_file(path: object, **more: object) -> dict[str, object]:
    return {"type": "file", "path": path, "digest": X, "size": 1, "executable": False, **more}


def a_packed(path: object, pack: object, at: object, digest: str = X, **more: object) -> dict[str, object]:
    return a_file(path, pack=pack, at=at, digest=digest, **more)


def a_pack(size: object, digest: str = X) -> dict[str, object]:
    return {"digest": digest, "size": size}


def a_directory(path: object) -> dict[str, object]:
    return {"type": "directory", "path": path}


def a_link(path: object, target: object) -> dict[str, object]:
    return {"type": "symlink", "path": path, "target": target}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (raw(a_file("/etc/passwd")), "is absolute"),
        (raw(a_file("../up")), r'contains "\.\."'),
        (raw(a_directory("a"), a_file("a/../../up")), r'contains "\.\."'),
        (raw(a_file("")), "not a plain relative path"),
        (raw(a_file(".")), "not a plain relative path"),
        (raw(a_directory("a"), a_file("a//b")), "not a plain relative path"),
        (raw(a_directory("a/")), "not a plain relative path"),
        (raw(a_file("a\0b")), "not a plain relative path"),
        (raw(a_file("\ud800")), "not a file name"),
        (raw(a_file("a" * 256)), "is longer than"),
        (raw(a_file("a"), a_file("a")), "there twice"),
        (raw(a_file("a"), a_link("a", "b")), "there twice"),
        (raw(a_file("b"), a_file("a")), "out of order"),
        (raw(a_file("a/b")), "is in something that is not a directory"),
        (raw(a_file("a"), a_file("a/b")), "is in something that is not a directory"),
        (raw(a_directory("d"), a_link("l", "d"), a_file("l/x")), "is in something that is not a directory"),
        (raw(a_link("l", "/etc")), "make it relative"),
        (raw(a_link("l", "../..")), "leaves the tree"),
        (raw(a_link("l", "l")), "leads to itself"),
        (raw(a_link("l", "")), "not a path"),
        (raw(a_link("l", "a\0")), "not a path"),
        (raw(a_link("l", 7)), "no target"),
        (raw(a_file("a", size=-1)), "not a file"),
        (raw(a_file("a", size=True)), "not a file"),
        (raw(a_file("a", size=1e3)), "not a file"),
        (raw(a_file("a", executable=1)), "not a file"),
        (raw(a_file("a", digest="sha256:x")), "not a digest"),
        (raw(a_file(7)), "no path"),
        (raw({"type": "device", "path": "a"}), "not a file, directory or symlink"),
        (raw(a_file("a", mode=0o4755)), "not in canonical form"),
        (raw(a_file("a"))[:-1] + b',"x":1}', "not in canonical form"),
        (raw(a_file("a")) + b"\n", "not in canonical form"),
        (raw(a_file("a", size=0)), "is empty, and has a digest"),
        (raw(a_packed("a", 0, 0, EMPTY, size=0), packs=[a_pack(1)]), "is empty, and has a digest or a place"),
        (raw(a_file("a"), a_file("b", size=2)), "has the digest of 'a', and another size"),
        (raw(a_packed("a", 0, 0), a_file("b"), packs=[a_pack(1)]), "has the digest of 'a', and another size or place"),
        (raw(a_packed("a", 0, 0), a_packed("b", 0, 1), packs=[a_pack(2)]), "has the digest of 'a'"),
        (raw(a_packed("a", 0, 1), packs=[a_pack(2)]), "is not at byte 0 of pack 0"),
        (raw(a_packed("a", 0, 0), a_packed("b", 0, 2, Y), packs=[a_pack(3)]), "is not at byte 1 of pack 0"),
        (raw(a_packed("a", 0, 0), a_packed("b", 0, 0, Y), packs=[a_pack(2)]), "is not at byte 1 of pack 0"),
        (raw(a_packed("a", 1, 0), packs=[a_pack(1), a_pack(1)]), "is not at byte 0 of pack 0"),
        (raw(a_packed("a", 0, 0), a_packed("b", 1, 0, Y), packs=[a_pack(2), a_pack(1)]), "is not at byte 1 of pack 0"),
        (raw(a_packed("a", 0, 0, size=3), packs=[a_pack(2)]), "ends after the end of pack 0"),
        (raw(a_packed("a", 0, 0)), "ends after the end of pack 0"),
        (raw(a_packed("a", 0, 0), packs=[a_pack(2)]), "has bytes that are in no file"),
        (raw(a_packed("a", 0, 0), packs=[a_pack(1), a_pack(1)]), "has bytes that are in no file"),
        (raw(a_file("a"), packs=[a_pack(1)]), "has bytes that are in no file"),
        (raw(packs=[a_pack(1)]), "has bytes that are in no file"),
        (raw(a_packed("a", 0, -1), packs=[a_pack(1)]), "is in no pack as"),
        (raw(a_packed("a", True, 0), packs=[a_pack(1)]), "is in no pack as"),
        (raw(a_packed("a", 0, None), packs=[a_pack(1)]), "is in no pack as"),
        (raw(a_packed("a", 0, 1 << 60), packs=[a_pack(1)]), "is in no pack as"),
        (raw(packs=[a_pack(0)]), "is no pack of 1 to"),
        (raw(packs=[a_pack(MOST_PACK_BYTES + 1)]), "is no pack of 1 to"),
        (raw(packs=[a_pack("1")]), "is no pack of 1 to"),
        (raw(packs=["pack"]), "is no pack of 1 to"),
        (raw(packs=[a_pack(1, "sha256:x")]), "not a digest"),
        (raw(a_packed("a", 0, 0), packs=[a_pack(1) | {"more": 1}]), "not in canonical form"),
        (raw(a_file("a", pack=None, at=None)), "not in canonical form"),
        (raw(packs={}), "is not a tree"),
        (b'{"batchyard_tree":1,"entries":[]}', "is not a tree"),
        (b"data", "is not a tree"),
        (raw(a_file("a"))[:-1], "is not a tree"),
        (b'{"batchyard_tree":1,"entries":[' + b"[" * 100_000, "is not a tree"),
    ],
)
def test_a_hostile_manifest_is_refused(blobs: BlobStore, tmp_path: Path, data: bytes, reason: str) -> None:
    blobs.put_bytes(b"x")
    blob = blobs.put_bytes(data, "tree")
    with pytest.raises(InputError, match=reason):
        fetch_tree(blobs, blob.digest, tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_symlinks_that_are_long_to_follow_are_refused_soon() -> None:
    names = [f"l{number:04d}" for number in range(4000)]
    loop = "d/../" * 590 + "d"
    entries: list[Entry] = [Directory(path="d"), *(Symlink(path=name, target=loop) for name in names)]
    with pytest.raises(ValueError, match="too many"):
        encode(entries)


def test_a_tree_declaring_a_wrong_size_of_a_file_is_refused(blobs: BlobStore, tmp_path: Path) -> None:
    blobs.put_bytes(b"x")
    blob = blobs.put_bytes(raw(a_file("a", size=2)), "tree")
    with pytest.raises(InputError, match="has 1 bytes, not 2"):
        fetch_tree(blobs, blob.digest, tmp_path / "out")
    assert os.listdir(tmp_path) == []
    assert blobs.has(X)


def test_a_manifest_does_not_depend_on_the_order_given() -> None:
    entries: list[Entry] = [Directory(path="a"), File(path="a/x", digest=X, size=1), Symlink(path="b", target="a/x")]
    data = encode(entries)
    assert encode(entries[::-1]) == data
    assert is_manifest(data)
    assert decode(data, digest_of(data)) == Tree(entries=tuple(entries))
    assert Blob(digest=digest_of(data), size=len(data), kind="tree").kind == "tree"
