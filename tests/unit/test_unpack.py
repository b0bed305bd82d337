"""Archives become directories: whatever is in them, never outside of them, and never more than there is room for."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import stat
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchyard.broker.errors import DiskFull, InputError
from batchyard.cache.copies import archive as archives
from batchyard.cache.copies import unpack as unpacking
from batchyard.cache.copies.folder import charge_of
from batchyard.cache.copies.unpack import Unpacked, unpack

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PLAIN: dict[str, Any] = {"a": b"1", "d/b": b"22" * 5000, "d/e/c": b"", "run": (b"#!/bin/sh\n", 0o755)}
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "tar": lambda data: data, "gz": gzip.compress, "zst": zstd.compress, "bz2": bz2.compress, "xz": lzma.compress
}  # fmt: skip


def entry(name: str, kind: bytes = tarfile.REGTYPE, **more: Any) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    for field, value in more.items():
        setattr(made, field, value)
    return made


def tar(*entries: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes], **how: Any) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **how) as made:
        for one in entries:
            info, data = one if isinstance(one, tuple) else (one, b"")
            if info.type == tarfile.REGTYPE:
                info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    return out.getvalue()


def tar_of(files: Mapping[str, Any]) -> bytes:
    told = {name: value if isinstance(value, tuple) else (value, 0o644) for name, value in files.items()}
    return tar(*((entry(name, mode=mode), data) for name, (data, mode) in told.items()))


def zip_of(files: Mapping[str, Any], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as made:
        for name, value in files.items():
            data, mode = value if isinstance(value, tuple) else (value, 0o644)
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr, info.compress_type = 3, (stat.S_IFREG | mode) << 16, method
            made.writestr(info, data)
    return out.getvalue()


def unpacked(data: bytes, folder: Path, room: Callable[[int], None] = lambda bytes_: None) -> Unpacked:
    (folder / "archive").write_bytes(data)
    return unpack(folder / "archive", folder / "top", room=room)


def contents(top: Path) -> dict[str, Any]:
    """Files as they were given to `tar_of`, symlinks as `-> target`, empty directories as None."""
    found: dict[str, Any] = {}
    for path in sorted(top.rglob("*")):
        name = str(path.relative_to(top))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_dir():
            if not any(path.iterdir()):
                found[name] = None
        else:
            mode = stat.S_IMODE(path.stat().st_mode)
            found[name] = (path.read_bytes(), 0o755) if mode == 0o555 else path.read_bytes()
            assert mode in (0o444, 0o555)
    return found


def refused(data: bytes, folder: Path, words: str) -> None:
    with pytest.raises(InputError, match=words):
        unpacked(data, folder)
    assert sorted(p.name for p in folder.iterdir()) in (["archive", "top"], ["archive"])


# -- what comes out
@pytest.mark.parametrize("how", COMPRESSIONS)
def test_a_tar_comes_out_as_it_went_in_however_it_is_compressed(how: str, tmp_path: Path) -> None:
    made = unpacked(COMPRESSIONS[how](tar_of(PLAIN)), tmp_path)
    assert contents(tmp_path / "top") == PLAIN
    assert (made.entries, made.size) == (6, 1 + 10000 + 10)
    assert made.charge == charge_of(tmp_path / "top")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_comes_out_as_it_went_in(method: int, tmp_path: Path) -> None:
    made = unpacked(zip_of(PLAIN, method), tmp_path)
    assert contents(tmp_path / "top") == PLAIN
    assert made.charge == charge_of(tmp_path / "top")


@pytest.mark.parametrize("pieces", [gzip.compress, zstd.compress, bz2.compress, lzma.compress])
def test_compressed_streams_one_after_the_other_are_one(pieces: Callable[[bytes], bytes], tmp_path: Path) -> None:
    data = tar_of(PLAIN)
    unpacked(pieces(data[:700]) + pieces(data[700:]), tmp_path)
    assert contents(tmp_path / "top") == PLAIN


def test_empty_archives_are_empty_directories(tmp_path: Path) -> None:
    for n, data in enumerate((tar(), gzip.compress(tar()), zip_of({}))):
        (tmp_path / str(n)).mkdir()
        assert unpacked(data, tmp_path / str(n)).entries == 0
        assert contents(tmp_path / str(n) / "top") == {}


def test_links_within_come_out_and_may_lead_to_nothing(tmp_path: Path) -> None:
    data = tar(
        entry("./d", tarfile.DIRTYPE), (entry("d/a"), b"x"), entry("d/up", tarfile.SYMTYPE, linkname="../d/a"),
        entry("hard", tarfile.LNKTYPE, linkname="./d/a"), entry("none", tarfile.SYMTYPE, linkname="d/nothing"),
        entry("to", tarfile.SYMTYPE, linkname="d"), entry("through", tarfile.SYMTYPE, linkname="to/../d/a"),
    )  # fmt: skip
    made = unpacked(data, tmp_path)
    assert contents(tmp_path / "top") == {
        "d/a": b"x", "d/up": "-> ../d/a", "hard": b"x", "none": "-> d/nothing", "to": "-> d", "through": "-> to/../d/a"
    }  # fmt: skip
    assert made.charge == charge_of(tmp_path / "top")


def test_a_symlink_in_a_zip_is_one(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        made.writestr("a", b"x")
        info = zipfile.ZipInfo("link")
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        made.writestr(info, b"a")
    unpacked(out.getvalue(), tmp_path)
    assert contents(tmp_path / "top") == {"a": b"x", "link": "-> a"}


def test_no_bit_but_that_for_execution_is_kept_and_no_owner(tmp_path: Path) -> None:
    data = tar((entry("s", mode=0o6755, uid=12345, gid=12345), b"x"), (entry("w", mode=0o666, uid=12345), b"y"))
    unpacked(data, tmp_path)
    for name, mode in (("s", 0o555), ("w", 0o444)):
        found = (tmp_path / "top" / name).stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid) == (mode, os.geteuid())


def test_of_files_of_one_name_the_last_counts(tmp_path: Path) -> None:
    made = unpacked(tar((entry("a"), b"one" * 5000), (entry("a"), b"two"), entry("d", tarfile.DIRTYPE),
                        entry("d", tarfile.DIRTYPE)), tmp_path)  # fmt: skip
    assert contents(tmp_path / "top") == {"a": b"two", "d": None}
    assert made.charge == charge_of(tmp_path / "top")


def test_room_is_asked_for_before_it_is_used(tmp_path: Path) -> None:
    asked: list[int] = []

    def room(bytes_: int) -> None:
        assert charge_of(tmp_path / "top") < bytes_
        asked.append(bytes_)
        if bytes_ > 25000:
            raise DiskFull("no room")

    with pytest.raises(DiskFull):
        unpacked(tar_of({str(n): b"x" * 5000 for n in range(9)}), tmp_path, room)
    assert asked == [4096 + n * 8192 for n in (1, 2, 3)]


NAMES = st.lists(st.sampled_from(["a", "b", "c.txt", "é", "-x", "a b", "\udcff"]), min_size=1, max_size=4)
FILES = st.dictionaries(NAMES.map("/".join), st.binary(max_size=2000), max_size=8)


@settings(max_examples=60)
@given(files=FILES, how=st.sampled_from([*COMPRESSIONS]))
def test_what_was_packed_comes_out_again(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], how: str
) -> None:
    folder = tmp_path_factory.mktemp("u")
    clash = any(one != other and other.startswith(f"{one}/") for one in files for other in files)
    data = COMPRESSIONS[how](tar_of(files))
    if clash:
        refused(data, folder, "is a directory, and something else too")
    else:
        assert unpacked(data, folder).charge == charge_of(folder / "top")
        assert contents(folder / "top") == files


# -- hostile ones
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "up": (lambda: tar_of({"../evil": b"x"}), r'contains "\.\."'),
    "up within": (lambda: tar_of({"a/../../evil": b"x"}), r'contains "\.\."'),
    "up in a zip": (lambda: zip_of({"../evil": b"x"}), r'contains "\.\."'),
    "absolute": (lambda: tar_of({"/tmp/evil": b"x"}), "absolute"),
    "absolute in a zip": (lambda: zip_of({"/tmp/evil": b"x"}), "absolute"),
    "symlink out": (lambda: tar(entry("l", tarfile.SYMTYPE, linkname="../evil")), "leads out"),
    "symlink to the root": (lambda: tar(entry("l", tarfile.SYMTYPE, linkname="/etc/passwd")), "leads out"),
    "two symlinks out": (
        lambda: tar(entry("d/x", tarfile.SYMTYPE, linkname=".."), entry("l", tarfile.SYMTYPE, linkname="d/x/../evil")),
        "leads out",
    ),
    "through a symlink": (
        lambda: tar(entry("l", tarfile.SYMTYPE, linkname="d"), (entry("l/evil"), b"x")), "something else too"
    ),
    "in front of a symlink": (
        lambda: tar((entry("l/evil"), b"x"), entry("l", tarfile.SYMTYPE, linkname="..")), "something else too"
    ),
    "a circle": (
        lambda: tar(entry("a", tarfile.SYMTYPE, linkname="b"), entry("b", tarfile.SYMTYPE, linkname="a")), "to itself"
    ),
    "hard link out": (lambda: tar(entry("h", tarfile.LNKTYPE, linkname="../evil")), r'contains "\.\."'),
    "hard link to the root": (lambda: tar(entry("h", tarfile.LNKTYPE, linkname="/etc/passwd")), "absolute"),
    "hard link to a symlink": (
        lambda: tar(entry("s", tarfile.SYMTYPE, linkname="d"), entry("h", tarfile.LNKTYPE, linkname="s")), "no file"
    ),
    "hard link to nothing": (lambda: tar(entry("h", tarfile.LNKTYPE, linkname="none")), "no file before it"),
    "fifo": (lambda: tar(entry("f", tarfile.FIFOTYPE)), "a fifo"),
    "device": (lambda: tar(entry("f", tarfile.BLKTYPE, devmajor=8)), "a block device"),
    "unknown kind": (lambda: tar(entry("f", b"Z")), "of an unknown kind"),
    "a file that is its top": (lambda: tar((entry("./"), b"x")), "not a name|absolute|directory"),
    "a long name": (lambda: tar_of({"n" * 256: b"x"}), "not a name"),
    "a deep one": (lambda: tar_of({"d/" * 101 + "f": b"x"}), "too deep"),
    "a bomb that says so": (lambda: gzip.compress(_claims(100 << 30)), "looks like one that is made to fill disks"),
    "a bomb of headers": (lambda: zstd.compress(_long_header(300 << 20)), "header of more than"),
    "nothing": (lambda: b"", "no archive"),
    "text": (lambda: b"hello" * 1000, "no archive"),
    "a gzip of text": (lambda: gzip.compress(b"hello" * 1000), "damaged"),
    "rubbish": (lambda: random.Random(1).randbytes(5000), "no archive"),
    "an old method": (lambda: zip_of({"a": b"x"}, zipfile.ZIP_LZMA), "method 14"),
    "no end mark": (lambda: tar_of({"a": b"x" * 512})[:1024], "no end mark"),
}  # fmt: skip


def _claims(size: int) -> bytes:
    """A tar whose file says to have so many bytes."""
    return entry("zeros", size=size).tobuf(tarfile.GNU_FORMAT) + bytes(10 << 10)


def _long_header(size: int) -> bytes:
    return entry("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=size).tobuf(tarfile.GNU_FORMAT) + b"n" * (4 << 20)


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_refused_in_words_and_writes_nothing_elsewhere(case: str, tmp_path: Path) -> None:
    make, words = HOSTILE[case]
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    refused(make(), folder, words)
    assert [p.name for p in tmp_path.rglob("*") if "evil" in p.name and folder / "top" not in p.parents] == []


@pytest.mark.parametrize("how", [*COMPRESSIONS, "zip"])
def test_an_archive_that_was_cut_short_anywhere_is_refused(how: str, tmp_path: Path) -> None:
    noise = random.Random(2).randbytes(3000)
    whole = zip_of({"a": noise, "b": noise}) if how == "zip" else COMPRESSIONS[how](tar_of({"a": noise, "b": noise}))
    end = 7400 if how == "tar" else len(whole)  # zeros without end are the end, too
    for n, size in enumerate(range(1, end, end // 40)):
        (tmp_path / str(n)).mkdir()
        with pytest.raises(InputError):
            unpacked(whole[:size], tmp_path / str(n))


@pytest.mark.parametrize("how", ["gz", "zst", "bz2", "xz", "zip"])
def test_one_in_which_a_bit_has_flipped_gives_the_same_or_a_reason(how: str, tmp_path: Path) -> None:
    files = {"a": random.Random(3).randbytes(2000), "b": b"y" * 3000}
    whole = zip_of(files) if how == "zip" else COMPRESSIONS[how](tar_of(files))
    for n, at in enumerate(range(0, len(whole), len(whole) // 50)):
        (tmp_path / str(n)).mkdir()
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        try:
            unpacked(bytes(damaged), tmp_path / str(n))
        except InputError:
            continue
        if how != "zst" and how != "zip":  # zstd's checksum is optional, a zip's names have none
            assert contents(tmp_path / str(n) / "top") == files


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    data = bytearray(zip_of({"a": b"x"}, zipfile.ZIP_STORED))
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        struct.pack_into("<H", data, data.index(mark) + at, 1)
    refused(bytes(data), tmp_path, "encrypted")


def test_a_bomb_ends_before_it_has_filled_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "FREE_BYTES", 1 << 20)
    monkeypatch.setattr(archives, "MOST_RATIO", 10)
    zeros = bytes(40 << 20)
    for n, data in enumerate((zstd.compress(tar_of({"z": zeros})), zip_of({"z": zeros}),
                              zstd.compress(tar_of({"a": b""}) + zeros))):  # fmt: skip
        (tmp_path / str(n)).mkdir()
        refused(data, tmp_path / str(n), "over 10 times its own")
        assert charge_of(tmp_path / str(n) / "top") < 2 << 20


@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_of_too_many_entries_no_more_are_made_than_a_directory_may_have(
    make: Callable[[Mapping[str, Any]], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "MOST_ENTRIES", 50)
    monkeypatch.setattr(archives, "MOST_ENTRIES", 50)
    refused(make({f"d{n}/f": b"" for n in range(40)}), tmp_path, "more than 50 entries")


@pytest.mark.full
def test_a_million_entries_are_refused_in_bounded_time_and_memory(tmp_path: Path) -> None:
    one = entry("f0000000").tobuf(tarfile.USTAR_FORMAT)
    data = b"".join(entry(f"f{n:07}").tobuf(tarfile.USTAR_FORMAT) for n in range(260_000))
    assert len(one) == 512
    refused(zstd.compress(data + bytes(1024)), tmp_path, "more than 250000 entries")
