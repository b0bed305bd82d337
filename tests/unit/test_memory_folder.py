"""Where copies in memory are, and how a machine's memory and disk are shared out by default."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from batchyard.cache.index import Index
from batchyard.cache.shelf import Entry
from batchyard.worker import memory, options


@pytest.fixture
def shm(tmp_path: Path) -> Path:
    (tmp_path / "shm").mkdir()
    return tmp_path / "shm"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


def test_a_node_has_a_folder_of_its_own_that_nobody_else_may_enter(shm: Path, state: Path) -> None:
    folder = memory.open_folder(state, 1 << 20, shm)
    assert folder is not None
    assert folder.root == memory.folder_of(state, shm)
    assert folder.root.stat().st_mode & 0o777 == 0o700
    assert memory.folder_of(state / "other", shm) != folder.root
    folder.close()
    memory.remove_folder(state, shm)
    memory.remove_folder(state, shm)
    assert os.listdir(shm) == []


@pytest.mark.parametrize("what", ["open to others", "a symlink", "a file"])
def test_a_folder_that_is_not_ours_alone_is_not_used(
    shm: Path, state: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = memory.folder_of(state, shm)
    if what == "a symlink":
        (shm / "elsewhere").mkdir(mode=0o700)
        root.symlink_to(shm / "elsewhere")
    elif what == "a file":
        root.touch(0o700)
    else:
        root.mkdir()
        root.chmod(0o777)
    assert memory.open_folder(state, 1 << 20, shm) is None
    assert "no copies are kept in memory" in caplog.text


def test_what_nodes_left_that_are_gone_for_good_is_freed_at_the_next_start_of_any(shm: Path, tmp_path: Path) -> None:
    folders = {}
    for name in ("gone", "gone but running", "stopped", "here"):
        (tmp_path / name).mkdir()
        folders[name] = memory.open_folder(tmp_path / name, 1 << 20, shm)
    for name in ("gone", "stopped"):
        opened = folders[name]
        assert opened is not None
        opened.close()
    for name in ("gone", "gone but running"):
        (tmp_path / name).rmdir()
    memory.remove_folder(tmp_path / "here", shm)
    memory.open_folder(tmp_path / "here", 1 << 20, shm)
    left = {memory.folder_of(tmp_path / name, shm).name for name in ("gone but running", "stopped", "here")}
    assert set(os.listdir(shm)) == left


def test_in_a_container_nothing_is_kept_in_memory_unless_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_CONTAINER_MARKS", ())
    assert memory.default_mib() > 0
    monkeypatch.setattr(memory, "_CONTAINER_MARKS", (tmp_path,))
    assert memory.default_mib() == 0


def test_copies_and_jobs_share_what_the_machine_has(tmp_path: Path) -> None:
    copies, jobs = options.machine_copies_gib(tmp_path), options.machine_disk_gib(tmp_path)
    free = os.statvfs(tmp_path)
    assert copies + jobs <= free.f_bavail * free.f_frsize / 2**30 * 0.81 + 0.2
    assert options.machine_disk_gib(tmp_path, 0) == pytest.approx(copies + jobs, abs=1)
    assert options.machine_disk_gib(tmp_path, 1e9) == 0
    assert options.machine_memory_mib(1000) == options.machine_memory_mib(0) - 1000


def test_copies_that_are_there_do_not_make_the_share_of_copies_smaller(tmp_path: Path) -> None:
    before = options.machine_copies_gib(tmp_path)
    (tmp_path / "copies").mkdir()
    Index(tmp_path / "copies").save("copies", "scratch", Entry(key="file/x", bytes=100 << 30, used=1))
    assert options.machine_copies_gib(tmp_path) == pytest.approx(before + 40, abs=2)
