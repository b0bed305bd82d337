"""An image that is a blob is its tenant's, and comes from verified bytes alone."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from batchyard.broker.errors import ImageError, NotFound
from batchyard.broker.seal import KeyRing
from batchyard.cache.copies.folder import Folder
from batchyard.cache.copies.local import LocalCopies
from batchyard.cache.index import Index
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.memory import MemoryStore
from batchyard.cache.tree import put_tree
from batchyard.worker.engine.image_archive import find_image, small_archive, write_image
from batchyard.worker.image_blob import ImageBlob

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def config_of(*layers: bytes, **more: str) -> bytes:
    told = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    return json.dumps({**more, "rootfs": {"type": "layers", "diff_ids": told}}).encode()


@pytest.fixture
def copies(tmp_path: Path) -> LocalCopies:
    (tmp_path / "l1").mkdir()
    blobs = BlobStore(MemoryStore(), KeyRing.new())
    return LocalCopies(blobs, Index(tmp_path / "l1"), [Folder(tmp_path / "l1", 1 << 30)])


def test_only_a_whole_digest_is_a_blob(copies: LocalCopies) -> None:
    digest = "sha256:" + "a" * 64
    assert ImageBlob.of(digest, copies) is not None
    for name in ("busybox:1", "sha256:abc", f"repo@{digest}", f"{digest}0"):
        assert ImageBlob.of(name, copies) is None


def test_another_tenant_neither_has_it_nor_can_name_it(copies: LocalCopies) -> None:
    one, two = copies.of("one"), copies.of("two")
    digest = one.blobs.put_bytes(b"archive").digest
    mine, theirs = ImageBlob(digest=digest, copies=one), ImageBlob(digest=digest, copies=two)
    with mine.archive() as path:
        assert path.read_bytes() == b"archive"
    with pytest.raises(NotFound), theirs.archive():
        pass
    assert mine.name != theirs.name
    assert digest.removeprefix("sha256:") not in mine.name


def test_its_archive_stays_only_while_it_is_loaded(copies: LocalCopies) -> None:
    digest = copies.blobs.put_bytes(b"archive").digest
    with ImageBlob(digest=digest, copies=copies).archive():
        assert copies.is_pinned(digest)
    assert not copies.is_pinned(digest)


def test_a_directory_is_no_image(copies: LocalCopies, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    tree = put_tree(copies.blobs, tmp_path / "t")
    with pytest.raises(ImageError, match="it is a directory"), ImageBlob(digest=tree.digest, copies=copies).archive():
        pass


def test_what_goes_into_an_engine_is_config_and_layers_and_a_name_of_ours(tmp_path: Path) -> None:
    manifest = [{"Config": "x.json", "RepoTags": ["busybox:latest"], "Layers": ["l/layer.tar", "m/layer.tar"]}]
    one, two = small_archive({"a": b"1"}), small_archive({"b": b"2"})
    files = {
        "x.json": config_of(one, two), "l/layer.tar": one, "m/layer.tar": gzip.compress(two),
        "repositories": b'{"busybox": {}}', "evil": b"x",
        "manifest.json": json.dumps(manifest).encode(),
    }  # fmt: skip
    (tmp_path / "a").write_bytes(small_archive(files))
    (tmp_path / "b").write_bytes(b"".join(write_image(find_image(tmp_path / "a"), "ours:1")))
    found = find_image(tmp_path / "b")
    assert (found.config, found.layers) == ("config.json", ("000.tar", "001.tar"))
    assert b"busybox" not in (tmp_path / "b").read_bytes()
    assert b'"RepoTags":["ours:1"]' in (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("packed", [bytes, gzip.compress, bz2.compress, lzma.compress, zstd.compress])
def test_a_layer_is_what_its_config_says_however_it_is_compressed(
    tmp_path: Path, packed: Callable[[bytes], bytes]
) -> None:
    """Else an engine that has the layer of that digest would give it to who has only the digest."""
    mine, theirs = small_archive({"a": b"mine"}), small_archive({"a": b"theirs"})
    for config, layer in (
        (config_of(theirs), packed(mine)), (config_of(theirs), packed(theirs)[:-20]), (config_of(theirs), b"theirs"),
        (config_of(theirs), b""), (config_of(theirs, mine), packed(theirs)), (config_of(), packed(mine)), (b"{}", mine),
    ):  # fmt: skip
        manifest = json.dumps([{"Config": "c", "Layers": ["l"]}]).encode()
        (tmp_path / "a").write_bytes(small_archive({"manifest.json": manifest, "c": config, "l": layer}))
        with pytest.raises(ImageError):
            list(write_image(find_image(tmp_path / "a"), "ours:1"))
    (tmp_path / "a").write_bytes(small_archive({"manifest.json": manifest, "c": config_of(mine), "l": packed(mine)}))
    (tmp_path / "b").write_bytes(b"".join(write_image(find_image(tmp_path / "a"), "ours:1")))
    with tarfile.open(tmp_path / "b") as tar:
        assert tar.extractfile("000.tar").read() == packed(mine)  # type: ignore[union-attr]
        assert tar.extractfile("config.json").read() == config_of(mine)  # type: ignore[union-attr]


def test_a_config_that_comes_twice_is_the_one_that_was_looked_at(tmp_path: Path) -> None:
    mine, theirs = small_archive({"a": b"mine"}), small_archive({"a": b"theirs"})
    manifest = json.dumps([{"Config": "c", "Layers": ["l"]}]).encode()
    first = small_archive({"c": config_of(theirs)})[: -2 * tarfile.BLOCKSIZE]
    (tmp_path / "a").write_bytes(first + small_archive({"manifest.json": manifest, "c": config_of(mine), "l": mine}))
    written = b"".join(write_image(find_image(tmp_path / "a"), None))
    assert config_of(mine) in written
    assert config_of(theirs) not in written


def test_the_image_of_this_machine_is_taken_of_several(tmp_path: Path) -> None:
    def layout(*machines: str) -> Path:
        files, listed = dict[str, bytes](), []
        for n, machine in enumerate(machines):
            told = {"config": {"digest": f"sha256:c{n}"}, "layers": [{"digest": "sha256:l"}]}
            files[f"blobs/sha256/c{n}"] = config_of(b"x", os="linux", architecture=machine)
            files[f"blobs/sha256/m{n}"] = json.dumps(told).encode()
            listed.append({"digest": f"sha256:m{n}"})
        inner = {"manifests": listed}
        files |= {"blobs/sha256/i": json.dumps(inner).encode(), "blobs/sha256/l": b"x"}
        files["index.json"] = json.dumps({"manifests": [{"digest": "sha256:i"}]}).encode()
        (tmp_path / "oci").write_bytes(small_archive(files))
        return tmp_path / "oci"

    assert find_image(layout("arm64", "amd64"), "x86_64").config == "blobs/sha256/c1"
    assert find_image(layout("arm64", "amd64"), "aarch64").config == "blobs/sha256/c0"
    for machines in (("arm64",), ("amd64", "amd64"), ()):
        with pytest.raises(ImageError, match="images for linux/amd64"):
            find_image(layout(*machines), "x86_64")
    endless = {"index.json": b'{"manifests": [{"digest": "sha256:i"}]}'}
    endless["blobs/sha256/i"] = endless["index.json"]
    (tmp_path / "endless").write_bytes(small_archive(endless))
    with pytest.raises(ImageError, match="manifest is not as it should be"):
        find_image(tmp_path / "endless", "x86_64")


def test_what_is_no_archive_says_what_an_image_is(tmp_path: Path) -> None:
    (tmp_path / "table").write_bytes(b"a,b\n" * 1000)
    with pytest.raises(ImageError, match="it is no archive that is known here; put what `docker save` writes"):
        find_image(tmp_path / "table")
