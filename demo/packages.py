"""OS packages as files: downloaded by this machine's apt, installed nowhere, and no root is needed.

apt gets folders of its own, so that it sees a machine on which nothing is installed and changes nothing on this one.
Where packages come from is what this machine's apt says.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import environ
from pathlib import Path

Tell = Callable[[str], None]
"""Hears in a few words what is going on."""

_QUIET: Tell = lambda _: None  # noqa: E731
_PERCENT = re.compile(r"^dlstatus:[^:]*:([0-9.]+):")


class NoPackages(Exception):
    """The message says what to do."""


class Apt:
    """Downloads into a folder, where they stay: a second time, nothing is asked of the network."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._fresh = folder, False

    @staticmethod
    def there() -> bool:
        """Whether this machine has apt at all."""
        return shutil.which("apt-get") is not None

    def fetch(self, name: str, tell: Tell = _QUIET) -> Path:
        """One package. Raises NoPackages."""
        found = self._kept(name) or self._download(name, ["download", name], tell)
        return found[0]

    def closure(self, names: Sequence[str], tell: Tell = _QUIET) -> list[Path]:
        """Packages with all that they need on an empty machine. Raises NoPackages."""
        key = f"{names[0]}-{hashlib.sha256(' '.join(names).encode()).hexdigest()[:8]}"
        words = ["install", "--yes", "--no-install-recommends", "--download-only", *names]
        return self._kept(key) or self._download(key, words, tell)

    def _kept(self, key: str) -> list[Path]:
        """What an earlier download brought; empty when not all of it is there."""
        listed = self._folder / f"{key}.list"
        names = listed.read_text().split() if listed.exists() else []
        files = [self._folder / key / name for name in names]
        return files if all(file.exists() for file in files) else []

    def _download(self, key: str, words: list[str], tell: Tell) -> list[Path]:
        if not self.there():
            raise NoPackages("there is no apt here; on Debian or Ubuntu this part runs")
        self._update(tell)
        into = self._folder / key
        (into / "partial").mkdir(parents=True, exist_ok=True)
        self._run([*words, "-o", f"Dir::Cache::archives={into}"], into, tell, "downloading")
        files = sorted(into.glob("*.deb"))
        if not files:
            raise NoPackages(f"apt brought nothing for {key}; remove {self._folder} and run this again")
        (self._folder / f"{key}.list").write_text("\n".join(file.name for file in files))
        return files

    def _update(self, tell: Tell) -> None:
        """The lists of packages, once."""
        if not self._fresh:
            for name in ("state/lists/partial", "cache"):
                (self._folder / name).mkdir(parents=True, exist_ok=True)
            (self._folder / "installed").touch()
            self._run(["update"], self._folder, tell, "package lists")
            self._fresh = True

    def _run(self, words: list[str], folder: Path, tell: Tell, what: str) -> None:
        options = [f"Dir::State={self._folder}/state", f"Dir::Cache={self._folder}/cache", "APT::Status-Fd=1"]
        options += [f"Dir::State::status={self._folder}/installed", "Debug::NoLocking=1", "Acquire::Retries=3"]
        options += ["APT::Sandbox::User=root"]  # apt's own user may not write here
        argv = ["apt-get", "-q", *(word for option in options for word in ("-o", option)), *words]
        with subprocess.Popen(
            argv,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**environ, "LC_ALL": "C"},
        ) as process:
            assert process.stdout is not None
            why = ""
            for line in process.stdout:
                if line.startswith(("E:", "Err:")):
                    why = line.strip()
                if found := _PERCENT.match(line):
                    tell(f"{what} {float(found[1]):.0f} %")
        if process.returncode != 0:
            raise NoPackages(f"apt-get {words[0]} failed: {why or 'it did not say why'}; check the network")


@contextmanager
def contents(package: Path) -> Iterator[tarfile.TarFile]:
    """The files of a package, to be read in one go from the first to the last. Raises NoPackages."""
    words = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
                yield tar
                while process.stdout.read(1 << 20):  # dpkg-deb is not to die of a closed pipe
                    pass
        except tarfile.TarError as error:
            raise NoPackages(f"{package} cannot be read ({error}); remove it and run this again") from None
