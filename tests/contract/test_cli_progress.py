"""Bars are for a terminal: bytes of a transfer, jobs that are waited for."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

from batchyard.broker.cli.progress import content_bytes, counted
from batchyard.broker.seal import KeyRing
from batchyard.cache.door import open_store
from batchyard.cache.stores.disk import DirectoryStore

COMMAND = (sys.executable, "-P", "-m", "batchyard.broker.cli")


def on_a_terminal(*words: str) -> tuple[str, str]:
    """stdout and stderr of a command whose stderr is a terminal."""
    ours, its = pty.openpty()
    try:
        with subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=its, env=_environ()) as process:
            os.close(its)
            said = b""
            while piece := _read(ours):  # all along: a terminal holds few bytes
                said += piece
            assert process.stdout is not None
            out = process.stdout.read()
    finally:
        os.close(ours)
    assert process.returncode == 0, said
    return out.decode(), said.decode()


def _environ() -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("BATCHYARD_") and k not in {"NO_COLOR", "COLUMNS"}}
    return {**clean, "TERM": "xterm", "COLUMNS": "100"}


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 1 << 16)
    except OSError:  # the other side is closed
        return b""


def yard(folder: Path, redis_url: str) -> list[str]:
    """A store and keys, and the Redis that hears of what is put."""
    KeyRing.create(folder / "keys")
    DirectoryStore(folder / "store")
    named = {"--broker": redis_url, "--key-file": str(folder / "keys"), "--store": str(folder / "store")}
    return [word for pair in named.items() for word in pair]


def test_put_and_get_show_bytes_on_a_terminal_and_the_result_on_stdout(tmp_path: Path, fresh_redis_url: str) -> None:
    where = yard(tmp_path, fresh_redis_url)
    (tmp_path / "t[red].csv").write_bytes(os.urandom(3 << 20))
    out, err = on_a_terminal("put", str(tmp_path / "t[red].csv"), *where)
    digest = out.strip()
    assert digest.startswith("sha256:")
    assert "put t[red].csv" in err
    assert "3.0 MiB of 3.0 MiB" in err
    out, err = on_a_terminal("get", digest, str(tmp_path / "back"), *where)
    assert out == ""
    assert "3.0 MiB of 3.0 MiB" in err


def test_json_and_a_pipe_get_no_bar(tmp_path: Path, fresh_redis_url: str) -> None:
    where = yard(tmp_path, fresh_redis_url)
    (tmp_path / "t").write_bytes(os.urandom(1 << 20))
    assert on_a_terminal("put", "--json", str(tmp_path / "t"), *where)[1] == ""
    ran = subprocess.run(
        [*COMMAND, "put", str(tmp_path / "t"), *where], capture_output=True, check=True, env=_environ()
    )
    assert ran.stderr == b""


def test_what_put_would_read_is_counted_without_following_links(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert content_bytes(tmp_path / "a") == 5
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "e" / "b").write_bytes(b"123")
    (tmp_path / "d" / "l").symlink_to(tmp_path / "a")
    assert content_bytes(tmp_path / "d") == 3
    assert content_bytes(tmp_path / "nosuch") is None


def test_the_bytes_of_a_transfer_add_up_to_the_content(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_bytes(os.urandom(2_500_000))
    (tmp_path / "d" / "b").write_bytes((tmp_path / "d" / "a").read_bytes())  # known by the time it is put
    (tmp_path / "d" / "none").touch()
    door = open_store(str(tmp_path / "store"), KeyRing.new(), create=True)
    for source in (tmp_path / "d", tmp_path / "d" / "a"):
        total, told, digest = content_bytes(source), list[int](), ""
        for _ in range(2):  # the second time, all of it is there already
            told.clear()
            digest = door.put(source, on_bytes=told.append)["digest"]
            assert sum(told) == total
        told.clear()
        door.get(digest, tmp_path / f"back-{source.name}", on_bytes=told.append)
        assert sum(told) == total
        assert door.look(digest)["size"] == total


def test_a_look_at_a_tree_lists_its_entries(tmp_path: Path) -> None:
    (tmp_path / "d" / "sub").mkdir(parents=True)
    (tmp_path / "d" / "run").write_text("x")
    (tmp_path / "d" / "run").chmod(0o755)
    (tmp_path / "d" / "link").symlink_to("run")
    door = open_store(str(tmp_path / "store"), KeyRing.new(), create=True)
    blob = door.put(tmp_path / "d")
    found = door.look(blob["digest"])
    assert (found["kind"], found["size"]) == ("tree", 1)
    assert [(e["path"], e["type"], e["mode"]) for e in found["entries"]] == [
        ("link", "symlink", "0777"), ("run", "file", "0555"), ("sub", "directory", "0755"),
    ]  # fmt: skip
    assert found["entries"][0]["target"] == "run"


def test_jobs_are_counted_by_what_they_do() -> None:
    states = {"a": "SUCCEEDED", "b": "FAILED", "c": "RUNNING", "d": "STARTING", "e": "RUNNABLE"}
    assert counted(states, 7) == "1 succeeded, 1 failed, 2 running, 3 waiting"
    assert counted({}, 2) == "2 waiting"
