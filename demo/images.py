"""Images made on this machine, for one that no registry is reached from: the demo, the tests, first steps.

`python demo/images.py my/busybox:1` makes one that a job can name: a shell. `from_packages` makes one of OS packages.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

from packages import contents

_DIRECTORIES = {
    "bin": 0o755,
    "dev": 0o755,
    "etc": 0o755,
    "proc": 0o755,
    "root": 0o700,
    "sys": 0o755,
    "tmp": 0o1777,
    "usr": 0o755,
    "var": 0o755,
}
_MERGED = {"bin": "usr/bin", "lib": "usr/lib", "lib32": "usr/lib32", "lib64": "usr/lib64", "sbin": "usr/sbin"}
"""Debian's merged /usr: older packages still have files in these folders of the root."""
_LEFT_OUT = re.compile(r"usr/share/(doc|man|info|locale|lintian)/.")
_CHOSEN = re.compile(r"(usr/lib/[^/]+)/((?:blas|lapack)/(lib[a-z]+\.so\.\d+))")
"""What an installation would choose of several: libblas.so.3 and liblapack.so.3 are in folders of their own."""
_LINKS = {"sbin": "bin", "usr/bin": "../bin", "usr/sbin": "../bin", "var/tmp": "../tmp"}
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
}


def exists(tag: str) -> bool:
    """Whether the engine has an image of that name. Raises `RuntimeError`, saying what to do, when there is none."""
    return _docker("image", "inspect", tag).returncode == 0


def from_packages(tag: str, packages: Iterable[Path], warm: Sequence[str]) -> None:
    """Make the image `tag` of .deb files: their files in place, none of their scripts run.

    warm: a command that runs once in it and may write, so that it starts faster afterwards (Python keeps what it has
    compiled). Raises `RuntimeError`, saying what to do.
    """
    raw = f"{tag}-raw-{uuid.uuid4().hex[:8]}"
    with subprocess.Popen(
        ["docker", "import", "-", raw], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as importing:
        assert importing.stdin is not None
        assert importing.stderr is not None
        try:
            with importing.stdin, tarfile.open(fileobj=importing.stdin, mode="w|") as tar:
                _root(tar, packages)
        except BrokenPipeError:
            pass
        _must(tag, importing.wait(), importing.stderr.read())
    name = raw.replace("/", "-").replace(":", "-")
    try:
        ran = _docker("run", "--name", name, "--network", "none", raw, *warm)
        _must(tag, ran.returncode, ran.stderr)
        made = _docker("commit", "--change", 'CMD ["sh"]', name, tag)
        _must(tag, made.returncode, made.stderr)
    finally:
        _docker("rm", "-f", name)
        _docker("rmi", raw)


def from_registry(tag: str, packages: Sequence[str]) -> None:
    """The same where there is no apt, but an image registry answers. Raises `RuntimeError`."""
    names = " ".join(packages)
    lines = f"FROM debian:bookworm-slim\nRUN apt-get update && apt-get install -y --no-install-recommends {names}\n"
    made = _docker("build", "-t", tag, "-", stdin=lines.encode(), timeout_s=900)
    if made.returncode != 0:
        last = made.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"there is no apt here, and no image debian:bookworm-slim to begin with: {' '.join(last)}")


def _root(out: tarfile.TarFile, packages: Iterable[Path]) -> None:
    """Writes a root file system: the packages' files, one over the other, under a merged /usr."""
    seen = {"."}
    for name, mode in _DIRECTORIES.items():
        if name not in _MERGED:
            _add(out, name, tarfile.DIRTYPE, mode=mode)
            seen.add(name)
    for name, target in _MERGED.items():
        _add(out, target, tarfile.DIRTYPE, mode=0o755)
        _add(out, name, tarfile.SYMTYPE, target=target)
        seen |= {name, target}
    for name, text in _FILES.items():
        _add(out, name, content=text.encode())
    for package in packages:
        with contents(package) as tar:
            for entry in tar:
                entry.name, entry.pax_headers = _merged(entry.name), {}
                if entry.name in seen or _LEFT_OUT.match(entry.name):
                    continue
                seen.add(entry.name)
                if entry.islnk():
                    entry.linkname = _merged(entry.linkname)
                out.addfile(entry, tar.extractfile(entry) if entry.isreg() else None)
                if chosen := _CHOSEN.fullmatch(entry.name):
                    _add(out, f"{chosen[1]}/{chosen[3]}", tarfile.SYMTYPE, target=chosen[2])


def _merged(name: str) -> str:
    """`./lib/x` → `usr/lib/x`: the name as it is below a merged /usr."""
    name = name.removeprefix("./").strip("/") or "."
    top, slash, rest = name.partition("/")
    return f"{_MERGED[top]}/{rest}" if slash and top in _MERGED else name


def _must(tag: str, code: int, said: bytes) -> None:
    if code != 0:
        last = said.decode(errors="replace").strip().splitlines()[-1:] or [f"exit code {code}"]
        raise RuntimeError(f"image {tag!r} cannot be made: {last[0]}")


def busybox(tag: str) -> None:
    """Make the image `tag`: a shell and the usual commands, 2 MB, from this machine's static busybox.

    Does nothing when the engine has an image of that name. Raises `RuntimeError`, saying what to do, when no engine
    answers or there is no static busybox.
    """
    if exists(tag):
        return
    made = _docker("import", "--change", 'CMD ["sh"]', "-", tag, stdin=_archive(_static_busybox()))
    _must(tag, made.returncode, made.stderr)


def _docker(*arguments: str, stdin: bytes = b"", timeout_s: float = 120) -> subprocess.CompletedProcess[bytes]:
    try:
        ran = subprocess.run(["docker", *arguments], input=stdin, capture_output=True, timeout=timeout_s, check=False)
    except FileNotFoundError:
        raise RuntimeError("there is no `docker` command here: install docker.io, or run `make setup`") from None
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"`docker {arguments[0]}` took more than {timeout_s:g} s; is the engine well?") from None
    if ran.returncode != 0 and b"connect to the Docker daemon" in ran.stderr:
        raise RuntimeError("no engine answers: run this under `.ci/with-engine`, or start dockerd")
    return ran


def _static_busybox() -> Path:
    found = shutil.which("busybox", path="/bin:/usr/bin:/usr/local/bin")
    if found is None or subprocess.run(["ldd", found], capture_output=True, check=False).returncode == 0:
        raise RuntimeError("there is no static busybox here: install busybox-static, or run `make setup`")
    return Path(found)


def _archive(busybox: Path) -> bytes:
    """A root file system as a tar archive; the same bytes for the same busybox."""
    applets = subprocess.run([busybox, "--list"], capture_output=True, check=True, text=True).stdout.split()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, mode in _DIRECTORIES.items():
            _add(tar, name, tarfile.DIRTYPE, mode=mode)
        _add(tar, "bin/busybox", content=busybox.read_bytes(), mode=0o755)
        for applet in applets:
            if applet != "busybox":
                _add(tar, f"bin/{applet}", tarfile.SYMTYPE, target="busybox")
        for name, target in _LINKS.items():
            _add(tar, name, tarfile.SYMTYPE, target=target)
        for name, text in _FILES.items():
            _add(tar, name, content=text.encode())
    return out.getvalue()


def _add(
    tar: tarfile.TarFile,
    name: str,
    kind: bytes = tarfile.REGTYPE,
    *,
    content: bytes = b"",
    mode: int = 0o644,
    target: str = "",
) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.linkname, entry.size = kind, mode, target, len(content)
    tar.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        busybox(wanted)
        print(wanted)
