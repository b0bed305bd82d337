"""What `doctor` makes of what it sees, without an engine, a Redis or a disk of any kind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchyard.broker.errors import StoreUnavailable
from batchyard.broker.seal import KeyRing, Readable
from batchyard.cache.stores.memory import MemoryStore
from batchyard.worker import checks, doctor, services
from batchyard.worker.checks import Check
from batchyard.worker.ground import ground


def statuses(found: Iterator[Check] | list[Check]) -> dict[str, str]:
    return {one.name: one.status for one in found}


@pytest.mark.parametrize(
    ("facts", "name", "status"),
    [
        ({"CgroupVersion": "2"}, "engine cgroup", "ok"),
        ({"CgroupVersion": "1"}, "engine cgroup", "warn"),
        ({}, "engine cgroup", "warn"),
        ({"Driver": "overlay2"}, "engine storage", "ok"),
        ({"Driver": "vfs"}, "engine storage", "warn"),
        ({"MemoryLimit": False}, "engine limits", "fail"),
        ({"SwapLimit": False}, "engine limits", "warn"),
    ],
)
def test_the_engines_facts_are_judged(facts: dict[str, object], name: str, status: str) -> None:
    assert statuses(checks.engine_facts(facts))[name] == status


@pytest.mark.parametrize(
    ("changes", "name", "status"),
    [
        ({}, "redis on disk", "ok"),
        ({"appendfsync": "everysec"}, "redis on disk", "warn"),
        ({"appendonly": "no"}, "redis on disk", "fail"),
        ({}, "redis eviction", "ok"),
        ({"maxmemory-policy": "allkeys-lru"}, "redis eviction", "fail"),
        ({"notify-keyspace-events": "KA"}, "redis events", "ok"),
        ({"notify-keyspace-events": "Ex"}, "redis events", "warn"),
    ],
)
def test_the_settings_of_redis_are_judged(changes: dict[str, str], name: str, status: str) -> None:
    good = {
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
        "notify-keyspace-events": "Kl",
    }
    assert statuses(services.redis_settings({**good, **changes}))[name] == status


@pytest.mark.parametrize(
    ("offset_s", "round_trip_s", "status"),
    [(0.2, 0.01, "ok"), (-1.2, 0.01, "warn"), (1.2, 0.5, "ok"), (400, 0.01, "fail"), (-400, 0.01, "fail")],
)
def test_a_clock_that_is_off_is_told_from_a_slow_answer(offset_s: float, round_trip_s: float, status: str) -> None:
    found = services.clock_offset(offset_s, round_trip_s)
    assert found.status == status
    assert ("ahead of" if offset_s > 0 else "behind") in found.said


class Overwriting(MemoryStore):
    """Takes every put, whatever is there."""

    def put_if_absent(self, name: str, source: Readable, size: int) -> bool:
        other = MemoryStore()
        other.put_if_absent(name, source, size)
        self._objects[name] = other._objects[name]
        return True


class Damaging(MemoryStore):
    def put_if_absent(self, name: str, source: Readable, size: int) -> bool:
        made = super().put_if_absent(name, source, size)
        kept = self._objects[name]
        self._objects[name] = bytes([kept[0] ^ 1]) + kept[1:]
        return made


class Forgetful(MemoryStore):
    def put_if_absent(self, name: str, source: Readable, size: int) -> bool:
        return True


class Dead(MemoryStore):
    def put_if_absent(self, name: str, source: Readable, size: int) -> bool:
        raise StoreUnavailable("s3://b does not answer")


@pytest.mark.parametrize(
    ("store", "expected"),
    [
        (MemoryStore(), {"store": "ok", "store conditions": "ok"}),
        (Overwriting(), {"store": "ok", "store conditions": "fail"}),
        (Damaging(), {"store": "fail", "store conditions": "ok"}),
        (Forgetful(), {"store": "fail", "store conditions": "fail"}),
        (Dead(), {"store": "fail"}),
    ],
)
def test_a_store_is_tried_and_left_as_it_was(
    store: MemoryStore, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "store_at", lambda spec: store)
    assert statuses(services.blob_store("spec")) == expected
    assert list(store.names()) == []


def test_a_store_in_a_folder_passes_and_a_missing_one_does_not(tmp_path: Path) -> None:
    from batchyard.cache.stores.disk import DirectoryStore

    DirectoryStore(tmp_path / "store")
    assert set(statuses(services.blob_store(str(tmp_path / "store"))).values()) == {"ok"}
    assert statuses(services.blob_store(str(tmp_path / "none"))) == {"store": "fail"}
    assert not (tmp_path / "none").exists()


def test_a_probe_that_hangs_is_left_behind_with_what_it_had_found() -> None:
    never = threading.Event()

    def hangs() -> Iterator[Check]:
        yield checks.ok("store", "put")
        never.wait(60)

    found = doctor.within({"store": hangs, "gpus": lambda: iter([checks.ok("gpus", "none")])}, 2)
    never.set()
    assert [one.status for one in found] == ["ok", "fail", "ok"]
    assert "no answer within 2 s" in found[1].said


def test_a_probe_that_breaks_is_a_failure_and_no_traceback() -> None:
    def breaks() -> Iterator[Check]:
        yield checks.ok("x", "y")
        raise ZeroDivisionError("division by zero")

    assert [one.status for one in doctor.within({"x": breaks}, 5)] == ["ok", "fail"]


def test_a_key_file_must_be_there_whole_and_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    assert statuses(services.key_file(path, None)) == {"keys": "fail"}
    KeyRing.create(path)
    assert statuses(services.key_file(path, None)) == {"keys": "warn"}  # there is no yard to compare it with
    path.chmod(0o644)
    (found,) = services.key_file(path, None)
    assert (found.status, "open to others" in found.said) == ("fail", True)


def test_a_redis_that_is_away_is_a_failure_without_its_password() -> None:
    found = list(services.redis_server("redis://:secret@127.0.0.1:1/0"))
    assert statuses(found) == {"redis": "fail"}
    assert "secret" not in found[0].said
    assert statuses(services.clock("redis://127.0.0.1:1/0")) == {"clock": "warn"}


# -- what a folder lies on

MOUNTS = """\
22 1 254:0 / / rw - ext4 /dev/vda rw
23 22 0:20 / /shm rw - tmpfs tmpfs rw
24 22 253:1 / /secret rw - ext4 /dev/mapper/secret rw
25 22 253:2 / /volume rw - xfs /dev/mapper/vg-lv rw
26 22 253:3 / /mixed rw - xfs /dev/mapper/vg-mixed rw
27 22 0:40 / /with\\040space rw - overlay overlay rw
28 22 7:0 / /loop rw - ext4 /dev/loop0 rw
29 22 0:41 / /vault rw - fuse.gocryptfs /home/cipher rw
"""


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """A sysfs: vda; dm-1 is dm-crypt on vda; dm-2 a volume on dm-1; dm-3 one on dm-1 and vda."""
    numbers = {"vda": "254:0", "dm-1": "253:1", "dm-2": "253:2", "dm-3": "253:3", "loop0": "7:0"}
    (tmp_path / "dev/block").mkdir(parents=True)
    for name, number in numbers.items():
        (tmp_path / "devices" / name / "slaves").mkdir(parents=True)
        (tmp_path / "dev/block" / number).symlink_to(tmp_path / "devices" / name)
    for name, uuid in (("dm-1", "CRYPT-LUKS2-abc"), ("dm-2", "LVM-abc"), ("dm-3", "LVM-def")):
        (tmp_path / "devices" / name / "dm").mkdir()
        (tmp_path / "devices" / name / "dm/uuid").write_text(f"{uuid}\n")
    for name, below in (("dm-1", "vda"), ("dm-2", "dm-1"), ("dm-3", "dm-1"), ("dm-3", "vda")):
        (tmp_path / "devices" / name / "slaves" / below).symlink_to(tmp_path / "devices" / below)
    return tmp_path


@pytest.mark.parametrize(
    ("folder", "file_system", "memory", "encrypted"),
    [
        ("/data", "ext4", False, False),
        ("/shm/x", "tmpfs", True, None),
        ("/shmx", "ext4", False, False),
        ("/secret/a/b", "ext4", False, True),
        ("/volume", "xfs", False, True),
        ("/mixed", "xfs", False, False),
        ("/with space/x", "overlay", False, None),
        ("/loop", "ext4", False, None),
        ("/vault", "fuse.gocryptfs", False, True),
    ],
)
def test_what_a_folder_lies_on_is_read_from_mounts_and_sysfs(
    system: Path, folder: str, file_system: str, memory: bool, encrypted: bool | None
) -> None:
    on = ground(Path(folder), mounts=MOUNTS, system=system)
    assert (on.file_system, on.memory, on.encrypted) == (file_system, memory, encrypted)


def test_this_machines_own_folders_are_found(tmp_path: Path) -> None:
    assert ground(tmp_path).file_system != "unknown"
    assert statuses(checks.scratch_folder(tmp_path / "not" / "there"))["scratch"] in {"ok", "warn"}
