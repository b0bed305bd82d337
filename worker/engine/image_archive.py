"""Images in archives: docker's own (`docker save`) or an OCI layout, told apart by what is in them.

What goes into an engine, or into a blob, is always written anew from the config and the layers alone: an archive may
bring names of its own, and must not give an image of this machine another content; and what is written of one image is
the same bytes whenever it is written.
"""

from __future__ import annotations

import json
import platform
import posixpath
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchyard.broker.errors import ImageError, InputError
from batchyard.cache.archive import Member, members

_SMALL_BYTES, _ALL_SMALL_BYTES = 1 << 20, 64 << 20
_MOST_NAMES, _MOST_LAYERS, _MOST_HOPS = 100_000, 256, 8
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
_PIECE_BYTES = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageArchive:
    """Where in an archive an image is: names of its config and of its layers, the lowest first, and their sizes."""

    path: Path
    config: str
    layers: tuple[str, ...]
    sizes: Mapping[str, int]


@dataclass(slots=True)
class _Seen:
    """What a first look finds: sizes of files, content of the small ones, what links lead to."""

    sizes: dict[str, int] = field(default_factory=dict[str, int])
    small: dict[str, bytes] = field(default_factory=dict[str, bytes])
    links: dict[str, str] = field(default_factory=dict[str, str])


def find_image(path: Path, machine: str | None = None) -> ImageArchive:
    """The image of this machine in an archive. ImageError: there is none, or there are several."""
    seen = _look(path)
    try:
        if "manifest.json" in seen.small:
            config, layers = _of_docker(seen)
        elif "index.json" in seen.small:
            config, layers = _of_oci(seen, _MACHINES.get(machine or platform.machine(), machine or platform.machine()))
        else:
            raise ImageError("it is no image: it has neither manifest.json nor index.json; use `docker save`")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ImageError(f"it is no image: its manifest is not as it should be ({error!r:.100})") from error
    if len(layers) > _MOST_LAYERS:
        raise ImageError(f"it has {len(layers)} layers, more than {_MOST_LAYERS}")
    names = [_resolved(seen, name) for name in (config, *layers)]
    sizes = {name: seen.sizes[name] for name in names}
    return ImageArchive(path=path, config=names[0], layers=tuple(names[1:]), sizes=sizes)


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
    """The image as an archive in docker's format that gives it this name, or none. ImageError: it was changed."""
    places = {image.config: "config.json"}
    for layer in image.layers:
        places.setdefault(layer, f"{len(places) - 1:03}.tar")
    manifest = [
        {
            "Config": places[image.config],
            "RepoTags": [name] if name else None,
            "Layers": [places[layer] for layer in image.layers],
        }
    ]
    told = json.dumps(manifest, separators=(",", ":")).encode()
    yield _header("manifest.json", len(told)) + told + _padding(len(told))
    with members(image.path) as found:
        for member, content in found:
            place = places.pop(_plain(member.path), None) if member.kind == "file" else None
            if place is None:
                continue
            yield _header(place, member.size)
            left = member.size
            while left:
                piece = content.read(min(left, _PIECE_BYTES))
                if not piece:
                    raise ImageError(f"it is cut short in {member.path[:200]!r}")
                left -= len(piece)
                yield piece
            yield _padding(member.size)
    yield bytes(2 * tarfile.BLOCKSIZE)


def read_config(image: ImageArchive) -> bytes:
    """The image's config, whose digest is the image's."""
    with members(image.path) as found:
        for member, content in found:
            if member.kind == "file" and _plain(member.path) == image.config:
                return content.read(member.size)
    raise ImageError("it was changed while it was read")


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o444
    return entry.tobuf(tarfile.GNU_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)


def small_archive(files: Mapping[str, bytes]) -> bytes:
    """A tar of these files."""
    parts = [_header(name, len(data)) + data + _padding(len(data)) for name, data in files.items()]
    return b"".join([*parts, bytes(2 * tarfile.BLOCKSIZE)])
