"""Inputs that a job may change: whose they are, and what is not given away."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from batchyard.broker.errors import InputError, StartError
from batchyard.worker.engine import Bind, overlay
from batchyard.worker.writable import writable

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes layers")


@pytest.fixture
def below(tmp_path: Path) -> Path:
    made = tmp_path / "below"
    (made / "d").mkdir(parents=True)
    for name, mode in (("a", 0o444), ("d/run", 0o555), ("secret", 0o400)):
        (made / name).write_text(name)
        (made / name).chmod(mode)
    (made / "closed").mkdir(mode=0o700)
    (made / "link").symlink_to("a")
    os.mkfifo(made / "fifo")
    return made


def test_what_is_read_only_stays_as_it_is(below: Path, tmp_path: Path) -> None:
    bind = Bind(source=str(below), target="/in", read_only=True)
    assert writable([bind], tmp_path / "changes", "5:6") == (bind,)
    assert not (tmp_path / "changes").exists()


@as_root
def test_a_layer_makes_all_the_jobs_own_but_what_not_everybody_may_read(below: Path, tmp_path: Path) -> None:
    [bind] = writable([Bind(source=str(below), target="/in")], tmp_path / "changes", "5:6")
    assert bind.changes is not None
    upper = Path(bind.changes) / "upper"
    assert sorted(str(p.relative_to(upper)) for p in upper.rglob("*")) == ["a", "d", "d/run"]
    for name, mode in ((".", 0o755), ("d", 0o755), ("a", 0o644), ("d/run", 0o755)):
        found = (upper / name).stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (mode, 5, 6)
    assert (upper / "d/run").stat().st_size == len("d/run")
    assert (upper / "d/run").stat().st_blocks * 512 < 4096 + 4096
    assert (below / "a").stat().st_uid == os.geteuid()


@as_root
def test_of_an_image_whose_user_is_not_known_anybody_may_write(below: Path, tmp_path: Path) -> None:
    [bind] = writable([Bind(source=str(below), target="/in")], tmp_path / "changes", None)
    assert stat.S_IMODE((Path(bind.changes or "") / "upper" / "a").stat().st_mode) == 0o666


def test_a_file_is_a_copy_and_begins_anew_each_time(below: Path, tmp_path: Path) -> None:
    uid = os.geteuid()
    for _ in range(2):
        asked = [Bind(source=str(below / name), target=f"/in/{name}") for name in ("a", "d/run")]
        first, second = writable(asked, tmp_path / "changes", f"{uid}:{uid}")
        copy = Path(first.source)
        assert (copy.read_text(), first.target, first.changes) == ("a", "/in/a", None)
        assert stat.S_IMODE(copy.stat().st_mode) == 0o644
        assert stat.S_IMODE(Path(second.source).stat().st_mode) == 0o755
        copy.write_text("changed")
    assert (below / "a").read_text() == "a"


def test_a_file_that_not_everybody_may_read_is_not_given_away(below: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'input "/in": not everybody may read .*secret'):
        writable([Bind(source=str(below / "secret"), target="/in")], tmp_path / "changes", "5:6")


@pytest.mark.parametrize("path", ["/a,b", "/a:b", "/a\\b"])
def test_a_path_that_no_mount_can_name_is_refused_in_words(path: str) -> None:
    with pytest.raises(StartError, match="give the node another --state"):
        overlay.mount_options("/fine", path)
