"""A Docker engine of a test's own, to be stopped and started while jobs run. Linux and root only.

It shares nothing with the machine's engine: its own folders, socket, containerd, bridge, and no rules in the firewall.
Never start a second engine with `--bridge none`: that deletes the first one's bridge.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from .wait import until
from .yard import Child

BRIDGE = "byt%d"


class PrivateEngine:
    """`start()` and `stop()` may be called in turn; `remove()` at the end."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "docker.sock"
        self.host = f"unix://{self.socket}"
        self.bridge = BRIDGE % (os.getpid() % 100_000)
        _run("ip", "link", "add", self.bridge, "type", "bridge")
        _run("ip", "address", "add", f"198.18.{os.getpid() % 250}.1/24", "dev", self.bridge)
        words = {
            "--data-root": directory / "data",
            "--exec-root": directory / "exec",
            "--pidfile": directory / "pid",
            "--host": self.host,
            "--bridge": self.bridge,
            "--iptables": "false",
            "--ip-forward": "false",
            "--ip-masq": "false",
            "--containerd-namespace": f"test-{os.getpid()}",
            "--containerd-plugins-namespace": f"test-plugins-{os.getpid()}",
        }
        command = ["dockerd", *(f"{name}={value}" for name, value in words.items())]
        self.child = Child("private dockerd", command, directory / "dockerd.log")

    def start(self) -> None:
        """Returns when it answers."""
        self.child.start()

        def answers() -> bool:
            assert self.child.alive, self.child.said()[-3000:]
            return self.docker("version", check=False).returncode == 0

        until(answers, "the private engine answers", timeout_s=60, every_s=0.2)

    def docker(self, *words: str, stdin: bytes | None = None, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """`docker …` on this engine."""
        return subprocess.run(
            ["docker", "--host", self.host, *words], input=stdin, capture_output=True, check=check, timeout=60
        )

    def take_image(self, image: str) -> None:
        """A copy of one of the machine's images."""
        saved = subprocess.run(["docker", "save", image], capture_output=True, check=True, timeout=60)
        self.docker("load", stdin=saved.stdout)

    def stop(self) -> None:
        """In order, as a restart of the service does: its containers end too. May be called twice."""
        self.child.end(timeout_s=40)

    def remove(self) -> None:
        """With its containers, its folders and its bridge."""
        if self.child.alive:
            for container in self.docker("ps", "-aq", check=False).stdout.decode().split():
                self.docker("rm", "-f", container, check=False)
            self.stop()
        subprocess.run(["ip", "link", "delete", self.bridge], capture_output=True, check=False)
        for line in Path("/proc/mounts").read_text().splitlines():
            if str(self.directory) in line:
                subprocess.run(["umount", "-l", line.split()[1]], capture_output=True, check=False)
        shutil.rmtree(self.directory, ignore_errors=True)


def _run(*words: str) -> None:
    subprocess.run(words, capture_output=True, check=True)
