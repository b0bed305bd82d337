"""Archives as a sequence of what is in them: zip, and tar, plain or compressed with gzip, zstd, bzip2 or xz.

What an archive is, is told by its first bytes, never by its name. It is somebody else's word from end to end: headers
are read in bounded portions, and of a compressed one no more is unpacked than `most_bytes` says.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from batchyard.broker.errors import BatchyardError, InputError

from ..manifest import MOST_ENTRIES

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FREE_BYTES, MOST_RATIO = 256 << 20, 1000
_HEADER_BYTES, _DIRECTORY_BYTES = 1 << 20, 32 << 20
_PIECE_BYTES = 1 << 18
_BLOCK = 512
_XZ_MEMORY_BYTES = 256 << 20
_ZIP_ENTRY = b"PK\x01\x02"
_DAMAGED = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, zstd.ZstdError, EOFError, OSError, struct.error,
    ValueError, RuntimeError, OverflowError,
)  # fmt: skip
_SPECIAL = {tarfile.FIFOTYPE: "a fifo", tarfile.CHRTYPE: "a character device", tarfile.BLKTYPE: "a block device"}
_ZIP_KINDS = {0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK}

Kind: TypeAlias = Literal["file", "directory", "symlink", "hardlink"]


class Content(Protocol):
    """A member's bytes. Read them before the next member is asked for, or leave them."""

    def read(self, count: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """path and target as the archive has them. size: in bytes, of a file; what `Content` gives, or it is damaged."""

    path: str
    kind: Kind
    size: int = 0
    target: str = ""
    executable: bool = False


def most_bytes(archive_bytes: int) -> int:
    """What an archive of this size may give: beyond that it is made to fill disks."""
    return max(FREE_BYTES, MOST_RATIO * archive_bytes)


def bomb(given: int, archive_bytes: int) -> InputError:
    return InputError(
        f"it gives {given} bytes or more, over {MOST_RATIO} times its own {archive_bytes}: it looks like one that is "
        "made to fill disks; unpack it yourself and put the directory"
    )


@contextmanager
def members(archive: Path) -> Iterator[Iterator[tuple[Member, Content]]]:
    """What is in an archive, in its order. InputError, also while it is read: it is none, is damaged, cut short or
    encrypted, holds what no directory of files can have, or gives too much. The message starts with `it …`.
    """
    with ExitStack() as stack:
        with _sound():
            file = stack.enter_context(archive.open("rb"))
            size = os.fstat(file.fileno()).st_size
            head = file.read(_BLOCK)
            file.seek(0)
        if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            with _sound():
                guarded = stack.enter_context(_Guarded(archive))
                opened = stack.enter_context(zipfile.ZipFile(guarded))
            yield _of_zip(opened)
        else:
            yield _of_tar(_Forward(_plain(file, head, stack), size, compressed=not _is_tar(head)))


@contextmanager
def _sound() -> Iterator[None]:
    try:
        yield
    except BatchyardError:
        raise
    except _DAMAGED as error:
        raise InputError(f"it is damaged or cut short ({str(error) or type(error).__name__})") from error


@contextmanager
def tar_inside(file: io.BufferedReader) -> Iterator[Content]:
    """The bytes of a tar, which may come compressed. InputError, also while it is read: it is none, or is damaged."""
    with ExitStack() as stack:
        with _sound():
            plain = _plain(file, file.peek(_BLOCK)[:_BLOCK], stack)
        yield _Sound(plain)


class _Sound:
    """A member's content whose failure is the archive's."""

    def __init__(self, content: Any) -> None:
        self._content = content

    def read(self, count: int, /) -> bytes:
        with _sound():
            return bytes(self._content.read(count))


# -- tar
def _is_tar(head: bytes) -> bool:
    if len(head) == _BLOCK and not head.strip(b"\0"):
        return True  # an empty one
    try:
        tarfile.TarInfo.frombuf(head, tarfile.ENCODING, "surrogateescape")
    except tarfile.TarError:
        return False
    return True


def _plain(file: io.BufferedReader, head: bytes, stack: ExitStack) -> Any:
    """What reads the tar inside. InputError: there is none."""
    if head.startswith(b"\x1f\x8b"):
        return stack.enter_context(gzip.GzipFile(fileobj=file))
    if head.startswith(b"\x28\xb5\x2f\xfd") or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5):
        return io.BufferedReader(_Decompressed(file, zstd.ZstdDecompressor), _PIECE_BYTES)
    if head.startswith(b"BZh"):
        return io.BufferedReader(_Decompressed(file, bz2.BZ2Decompressor), _PIECE_BYTES)
    if head.startswith(b"\xfd7zXZ\0"):
        return io.BufferedReader(_Decompressed(file, _xz), _PIECE_BYTES)
    if not _is_tar(head):
        raise InputError("it is no archive that is known here; give a zip, tar, tar.gz, tar.zst, tar.bz2 or tar.xz")
    return file


def _xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(memlimit=_XZ_MEMORY_BYTES)


class _Decompressed(io.RawIOBase):
    """One compressed stream after the other, each to its end, in bounded memory. EOFError: the last one is cut."""

    def __init__(self, file: io.BufferedReader, make: Callable[[], Any]) -> None:
        self._file, self._make, self._stream = file, make, make()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while True:
            data = b""
            if self._stream.eof:
                data = self._stream.unused_data or self._file.read(_PIECE_BYTES)
                if not data:
                    return 0
                self._stream = self._make()
            elif self._stream.needs_input:
                data = self._file.read(_PIECE_BYTES)
                if not data:
                    raise EOFError("its end is missing")
            if out := self._stream.decompress(data, len(buffer)):
                buffer[: len(out)] = out
                return len(out)


class _Forward:
    """What `tarfile` reads from: goes forward only, gives no endless header, and not more than the archive may give.

    left: what it may still read of a header; None while a file's content is read.
    """

    def __init__(self, file: Any, archive_bytes: int, *, compressed: bool) -> None:
        self._file, self._archive_bytes, self._compressed = file, archive_bytes, compressed
        self._at, self._last = 0, b""
        self.left: int | None = None

    def tell(self) -> int:
        return self._at

    def seek(self, to: int, whence: int = 0, /) -> int:
        if whence != 0 or to < self._at:
            raise tarfile.ReadError("it leads backwards")
        while self._at < to and self._take(min(to - self._at, _PIECE_BYTES)):
            pass
        return self._at

    def read(self, count: int, /) -> bytes:
        if self.left is not None:
            self.left -= count
            if count < 0 or self.left < 0:
                raise InputError(f"it has a header of more than {_HEADER_BYTES} bytes")
        return self._take(count)

    def _take(self, count: int) -> bytes:
        found = bytes(self._file.read(count))
        self._at += len(found)
        self._last = (self._last + found)[-_BLOCK:] if len(found) < _BLOCK else found[-_BLOCK:]
        if self._compressed and self._at > most_bytes(self._archive_bytes):
            raise bomb(self._at, self._archive_bytes)
        return found

    def end(self) -> None:
        """Reads what is behind the last member: that is where checksums are. InputError: the end is missing."""
        if self._last.strip(b"\0") or len(self._last) < _BLOCK:
            raise InputError("it is cut short: it has no end mark")
        while self._take(_PIECE_BYTES):
            pass


def _of_tar(source: _Forward) -> Iterator[tuple[Member, Content]]:
    with _sound():
        source.left = _HEADER_BYTES
        tar = tarfile.TarFile(fileobj=source)  # type: ignore[arg-type]
    while True:
        with _sound():
            source.left = _HEADER_BYTES
            one = tar.next()
            if one is None:
                source.end()
                return
            source.left = None
            tar.members = []  # type: ignore[attr-defined]  # or it keeps them all
            member = _of_tarinfo(one)
            content: Any = tar.extractfile(one) if member.kind == "file" else io.BytesIO()
        yield member, _Sound(content)


def _of_tarinfo(one: tarfile.TarInfo) -> Member:
    if one.isdir():
        return Member(path=one.name, kind="directory")
    if one.issym():
        return Member(path=one.name, kind="symlink", target=one.linkname)
    if one.islnk():
        return Member(path=one.name, kind="hardlink", target=one.linkname)
    if not one.isfile():
        what = _SPECIAL.get(one.type, "of an unknown kind")
        raise InputError(f"{one.name[:200]!r} in it is {what}; only files, directories and links are unpacked")
    return Member(path=one.name, kind="file", size=one.size, executable=bool(one.mode & 0o111))


# -- zip
class _Guarded(io.BufferedReader):
    """A zip's file, whose list of contents is of a bounded size: `zipfile` reads it whole."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))

    def read(self, count: int | None = -1, /) -> bytes:
        if count is not None and count > _DIRECTORY_BYTES:
            raise InputError(f"its list of contents has {count} bytes, more than {_DIRECTORY_BYTES}")
        found = super().read(count)
        if len(found) > MOST_ENTRIES and found.count(_ZIP_ENTRY) > MOST_ENTRIES:
            raise InputError(f"it has more than {MOST_ENTRIES} entries")
        return found


def _of_zip(opened: zipfile.ZipFile) -> Iterator[tuple[Member, Content]]:
    for one in opened.infolist():
        shown = repr(one.filename[:200])
        mode = one.external_attr >> 16 if one.create_system == 3 else 0
        if one.flag_bits & 0x1 or one.flag_bits & 0x40:
            raise InputError(f"{shown} in it is encrypted; give one that is not")
        if one.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise InputError(f"{shown} in it is compressed by method {one.compress_type}; use deflate, or a tar.zst")
        if stat.S_IFMT(mode) not in _ZIP_KINDS:
            raise InputError(f"{shown} in it is no file, directory or symlink")
        if one.is_dir():
            yield Member(path=one.filename, kind="directory"), io.BytesIO()
            continue
        with _sound():
            content = opened.open(one)
        with content:
            if stat.S_ISLNK(mode):
                yield _link(one, _Sound(content)), io.BytesIO()
            else:
                executable = bool(mode & 0o111)
                yield Member(path=one.filename, kind="file", size=one.file_size, executable=executable), _Sound(content)


def _link(one: zipfile.ZipInfo, content: Content) -> Member:
    target = content.read(_HEADER_BYTES)
    return Member(path=one.filename, kind="symlink", target=os.fsdecode(target))
