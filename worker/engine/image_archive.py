"""Images in archives: docker's own (`docker save`) or an OCI layout, told apart by what is in them.

What goes into an engine, or into a blob, is always written anew from the config and the layers alone: an archive may
bring names of its own, and must not give an image of this machine another content; and what is written of one image is
the same bytes whenever it is written.

A layer must be what the config says that it is. An engine that has a layer already takes that one, by the digest in the
config, whatever came in the archive: so who knows digests of an image's layers could read what they never had.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import posixpath
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchyard.broker.errors import ImageError, InputError
from batchyard.cache.copies.archive import Content, Member, members, tar_inside

_SMALL_BYTES, _ALL_SMALL_BYTES = 1 << 20, 64 << 20
_MOST_NAMES, _MOST_LAYERS, _MOST_HOPS = 100_000, 256, 8
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
_PIECE_BYTES = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageArchive:
    """Where in an archive an image is: names of its config and of its layers, the lowest first, and their sizes.

    told: the config. contents: of each layer, by its name, the digest that it has when it is not compressed.
    """

    path: Path
    config: str
    layers: tuple[str, ...]
    sizes: Mapping[str, int]
    told: bytes
    contents: Mapping[str, str]


@dataclass(slots=True)
class _Seen:
    """What a first look finds: sizes of files, content of the small ones, what links lead to."""

    sizes: dict[str, int] = field(default_factory=dict[str, int])
    small: dict[str, bytes] = field(default_factory=dict[str, bytes])
    links: dict[str, str] = field(default_factory=dict[str, str])


def find_image(path: Path, machine: str | None = None) -> ImageArchive:
    """The image of this machine in an archive. ImageError: there is none, or there are several.

    That its layers are what its config says is seen by `write_image`.
    """
    seen = _look(path)
    try:
        if "manifest.json" in seen.small:
            config, layers = _of_docker(seen)
        elif "index.json" in seen.small:
            config, layers = _of_oci(seen, _MACHINES.get(machine or platform.machine(), machine or platform.machine()))
        else:
            raise ImageError("it is no image: it has neither manifest.json nor index.json; use `docker save`")
        if len(layers) > _MOST_LAYERS:
            raise ImageError(f"it has {len(layers)} layers, more than {_MOST_LAYERS}")
        names = [_resolved(seen, name) for name in (config, *layers)]
        told = seen.small[names[0]]
        contents = _contents(json.loads(told), names[1:])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ImageError(f"it is no image: its manifest is not as it should be ({error!r:.100})") from error
    sizes = {name: seen.sizes[name] for name in names}
    return ImageArchive(path=path, config=names[0], layers=tuple(names[1:]), sizes=sizes, told=told, contents=contents)


def _contents(config: Mapping[str, Any], layers: Sequence[str]) -> dict[str, str]:
    """What each layer is, as the config says it."""
    told = [str(one) for one in config.get("rootfs", {}).get("diff_ids") or ()]
    contents: dict[str, str] = {}
    if len(told) != len(layers) or any(contents.setdefault(n, is_) != is_ for n, is_ in zip(layers, told, strict=True)):
        raise ImageError("it is no image: its layers are not those of its config")
    return contents


def _look(path: Path) -> _Seen:
    seen, left = _Seen(), _ALL_SMALL_BYTES
    try:
        with members(path) as found:
            for member, content in found:
                name = _plain(member.path)
                if len(seen.sizes) + len(seen.links) > _MOST_NAMES:
                    raise ImageError(f"it is no image: it has more than {_MOST_NAMES} entries")
                if member.kind in ("symlink", "hardlink"):
                    seen.links[name] = _target(name, member)
                elif member.kind == "file":
                    seen.sizes[name] = member.size
                    if member.size <= min(_SMALL_BYTES, left):
                        seen.small[name] = content.read(member.size)
                        left -= member.size
    except InputError as error:
        raise ImageError(f"{str(error).partition(';')[0]}; put what `docker save` writes") from error
    return seen


def _plain(name: str) -> str:
    return posixpath.normpath(name).lstrip("/")


def _target(name: str, link: Member) -> str:
    return _plain(posixpath.join(posixpath.dirname(name), link.target) if link.kind == "symlink" else link.target)


def _resolved(seen: _Seen, name: str) -> str:
    """A file of the archive: older engines write a layer that comes twice as a link."""
    at = _plain(name)
    for _ in range(_MOST_HOPS):
        if at in seen.sizes:
            return at
        at = seen.links.get(at, "")
    raise ImageError(f"it is no whole image: {name[:200]!r} is not in it")


def _of_docker(seen: _Seen) -> tuple[str, Sequence[str]]:
    [*images] = json.loads(seen.small["manifest.json"])
    if len(images) != 1:
        raise ImageError(f"it has {len(images)} images, and a job runs one; save that one")
    return str(images[0]["Config"]), [str(layer) for layer in images[0]["Layers"] or ()]


def _of_oci(seen: _Seen, machine: str) -> tuple[str, Sequence[str]]:
    found = [one for one in _manifests(seen, json.loads(seen.small["index.json"]), 0) if _is_for(seen, one, machine)]
    if len(found) != 1:
        raise ImageError(f"it has {len(found)} images for linux/{machine}, and a job runs one; save that one")
    return _blob(found[0]["config"]), [_blob(layer) for layer in found[0]["layers"]]


def _manifests(seen: _Seen, index: Mapping[str, Any], depth: int) -> Iterator[Mapping[str, Any]]:
    if depth > _MOST_HOPS:
        raise ValueError("indexes in indexes")
    for one in index["manifests"]:
        told = json.loads(seen.small[_resolved(seen, _blob(one))])
        if "manifests" in told:
            yield from _manifests(seen, told, depth + 1)
        else:
            yield told


def _is_for(seen: _Seen, manifest: Mapping[str, Any], machine: str) -> bool:
    """Not an image are attestations, whose platform is unknown."""
    config = json.loads(seen.small[_resolved(seen, _blob(manifest["config"]))])
    return (config.get("os"), config.get("architecture")) == ("linux", machine)


def _blob(descriptor: Mapping[str, Any]) -> str:
    kind, _, name = str(descriptor["digest"]).partition(":")
    return f"blobs/{kind}/{name}"


def write_image(image: ImageArchive, name: str | None) -> Iterator[bytes]:
    """The image as an archive in docker's format that gives it this name, or none. ImageError, before it has come to
    its end: it was changed, or a layer is not what the config says.
    """
    places: dict[str, str] = {}
    for layer in image.layers:
        places.setdefault(layer, f"{len(places):03}.tar")
    manifest = [
        {
            "Config": "config.json",
            "RepoTags": [name] if name else None,
            "Layers": [places[layer] for layer in image.layers],
        }
    ]
    told = json.dumps(manifest, separators=(",", ":")).encode()
    yield _entry("manifest.json", told)
    yield _entry("config.json", image.told)
    try:
        with members(image.path) as found:
            for member, content in found:
                path = _plain(member.path)
                place = places.pop(path, None) if member.kind == "file" else None
                if place is None:
                    continue
                yield _header(place, member.size)
                yield from _layer(member, content, image.contents[path])
                yield _padding(member.size)
    except InputError as error:
        raise ImageError(str(error)) from error
    if places:
        raise ImageError("it was changed while it was read")
    yield bytes(2 * tarfile.BLOCKSIZE)


def _layer(member: Member, content: Content, digest: str) -> Iterator[bytes]:
    """Its bytes as they are. ImageError at their end: they do not have this digest when they are not compressed."""
    copied, told = _Copied(content, member.size), hashlib.sha256()
    with tar_inside(io.BufferedReader(copied, _PIECE_BYTES)) as plain:
        while piece := plain.read(_PIECE_BYTES):
            told.update(piece)
            yield from copied.taken()
    while copied.read(_PIECE_BYTES):  # what may come behind a compressed one
        pass
    yield from copied.taken()
    if copied.left:
        raise ImageError(f"it is cut short in {member.path[:200]!r}")
    if f"sha256:{told.hexdigest()}" != digest:
        raise ImageError(f"its layer {member.path[:200]!r} is another one than its config says; save the image again")


class _Copied(io.RawIOBase):
    """A reader that keeps what was read until it is taken. left: bytes that are still to come."""

    def __init__(self, content: Content, size: int) -> None:
        super().__init__()
        self._content, self.left = content, size
        self._kept: list[bytes] = []

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        piece = self._content.read(min(len(buffer), self.left)) if self.left else b""
        self.left -= len(piece)
        if piece:
            self._kept.append(piece)
        buffer[: len(piece)] = piece
        return len(piece)

    def taken(self) -> list[bytes]:
        taken, self._kept = self._kept, []
        return taken


def _entry(name: str, data: bytes) -> bytes:
    return _header(name, len(data)) + data + _padding(len(data))


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o444
    return entry.tobuf(tarfile.GNU_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)


def small_archive(files: Mapping[str, bytes]) -> bytes:
    """A tar of these files."""
    parts = [_entry(name, data) for name, data in files.items()]
    return b"".join([*parts, bytes(2 * tarfile.BLOCKSIZE)])
