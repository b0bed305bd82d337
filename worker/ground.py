"""What a folder lies on: its file system, and whether what is written there is encrypted on the disk."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_IN_MEMORY = {"tmpfs", "ramfs"}
_ENCRYPTING = {"ecryptfs", "fuse.gocryptfs", "fuse.encfs", "fuse.cryfs", "fuse.securefs"}
_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """encrypted: None where nobody can say (network, overlay, loop). memory: it is never written to a disk but swap."""

    file_system: str
    source: str
    memory: bool
    encrypted: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mount:
    point: str
    device: str
    file_system: str
    source: str


def ground(folder: Path, *, mounts: str | None = None, system: Path = Path("/sys")) -> Ground:
    """Of a folder that exists. mounts: the text of /proc/self/mountinfo; system: where sysfs is."""
    text = Path("/proc/self/mountinfo").read_text(errors="replace") if mounts is None else mounts
    mount = _mount_of(os.path.realpath(folder), [_parsed(line) for line in text.splitlines() if " - " in line])
    encrypted: bool | None = mount.file_system in _ENCRYPTING or None
    device = _device(mount, system)
    if encrypted is None and device is not None:
        encrypted = _is_encrypted(device, depth=8)
    return Ground(
        file_system=mount.file_system,
        source=mount.source,
        memory=mount.file_system in _IN_MEMORY,
        encrypted=encrypted,
    )


def _parsed(line: str) -> _Mount:
    """`36 35 254:0 /root /point rw … - ext4 /dev/vda rw`, as in proc(5)."""
    before, _, after = line.partition(" - ")
    fields, more = before.split(" "), after.split(" ")
    return _Mount(point=_plain(fields[4]), device=fields[2], file_system=more[0], source=_plain(more[1]))


def _plain(text: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text)


def _mount_of(path: str, mounts: list[_Mount]) -> _Mount:
    """The mount with the longest path above this one; of several on one point, the last."""
    best = _Mount(point="", device="0:0", file_system="unknown", source="unknown")
    for mount in mounts:
        above = path == mount.point or path.startswith(mount.point.rstrip("/") + "/")
        if above and len(mount.point) >= len(best.point):
            best = mount
    return best


def _device(mount: _Mount, system: Path) -> Path | None:
    """The block device in sysfs; by its name where the file system has made up a number (btrfs)."""
    places = [system / "dev/block" / mount.device]
    if mount.source.startswith("/dev/"):
        places.append(system / "class/block" / os.path.basename(os.path.realpath(mount.source)))
    return next((place.resolve() for place in places if place.exists()), None)


def _is_encrypted(device: Path, depth: int) -> bool | None:
    """dm-crypt itself, or a volume whose every part lies on one."""
    if depth == 0 or device.name.startswith(("loop", "nbd", "zd")):
        return None
    uuid = device / "dm/uuid"
    if uuid.exists() and uuid.read_text(errors="replace").startswith("CRYPT-"):
        return True
    below = [part.resolve() for part in (device / "slaves").iterdir()] if (device / "slaves").is_dir() else []
    if not below:
        return False
    answers = {_is_encrypted(part, depth - 1) for part in below}
    return next((answer for answer in (False, None) if answer in answers), True)
