"""The command line against a Redis and a controller, without a node."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from batchyard.broker import cli
from batchyard.broker.endpoints import Endpoints
from batchyard.cache.stores.place import store_at

_COMMAND = (sys.executable, "-P", "-m", "batchyard.broker.cli")


@pytest.fixture
def controller(
    fresh_redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[subprocess.Popen[str]]:
    """A controller that works; its yard is that of the environment's state folder, `tmp_path`, and has a store."""
    for name in ("BATCHYARD_BROKER_URL", "BATCHYARD_KEY_FILE", "BATCHYARD_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BATCHYARD_STATE", str(tmp_path))
    store = str(tmp_path / "store")
    store_at(store, create=True)  # as the yard's first start does
    Endpoints(
        broker_url=fresh_redis_url, result_backend=fresh_redis_url, key_file=str(tmp_path / "keys.json"), store=store
    ).save(tmp_path)
    with (tmp_path / "controller.log").open("w") as log:
        process = subprocess.Popen([*_COMMAND, "controller"], stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready: controller\n", (tmp_path / "controller.log").read_text()
        yield process
    finally:
        process.terminate()
        assert process.wait(15) == 0


@pytest.fixture
def batchyard(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line: exit code, stdout, stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.run(words)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run
