"""Images made on this machine, for one that no registry is reached from: the demo, the tests, first steps.

`python demo/images.py my/busybox:1` makes one that a job can name.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

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
_LINKS = {"sbin": "bin", "usr/bin": "../bin", "usr/sbin": "../bin", "var/tmp": "../tmp"}
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
}


def busybox(tag: str) -> None:
    """Make the image `tag`: a shell and the usual commands, 2 MB, from this machine's static busybox.

    Does nothing when the engine has an image of that name. Raises `RuntimeError`, saying what to do, when no engine
    answers or there is no static busybox.
    """
    if _docker("image", "inspect", tag).returncode == 0:
        return
    made = _docker("import", "--change", 'CMD ["sh"]', "-", tag, stdin=_archive(_static_busybox()))
    if made.returncode != 0:
        said = made.stderr.decode(errors="replace").strip()
        raise RuntimeError(f"image {tag!r} cannot be made: {said}; run this under `.ci/with-engine`, or start dockerd")


def _docker(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["docker", *arguments], input=stdin, capture_output=True, timeout=60, check=False)
    except FileNotFoundError:
        raise RuntimeError("there is no `docker` command here: install docker.io, or run `make setup`") from None


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
