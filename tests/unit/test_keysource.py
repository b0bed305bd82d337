from __future__ import annotations

import base64
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from batchyard.broker import cli
from batchyard.broker.blobs import open_blobs
from batchyard.broker.cli.doors import Doors, yard_options
from batchyard.broker.endpoints import Endpoints
from batchyard.broker.errors import InvalidConfig
from batchyard.broker.keysource import (
    KeyCommand,
    KeyFile,
    KeySource,
    KeyText,
    load_or_create_ring,
    load_ring,
    source_of,
)
from batchyard.broker.seal import KeyRing, keyfile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    KeyRing.create(tmp_path / "keys.json")
    return tmp_path / "keys.json"


@pytest.fixture
def text(path: Path) -> str:
    return path.read_text()


def base64_of(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def python(tmp_path: Path, source: str) -> str:
    """A command line that runs this program."""
    (tmp_path / "program.py").write_text(source)
    return f"{sys.executable} '{tmp_path / 'program.py'}'"


def test_all_sources_give_the_same_ring(path: Path, text: str, tmp_path: Path) -> None:
    wrapped = "\n".join(base64_of(text)[at : at + 60] for at in range(0, 1000, 60))
    sources: list[KeySource] = [
        KeyFile(path),
        KeyText(text),
        KeyText(f"\n{base64_of(text)}\n"),
        KeyText(wrapped),
        KeyCommand(f"cat '{path}'"),
        KeyCommand(f"base64 '{path}'"),
    ]
    rings = [load_ring(source) for source in sources]
    assert {ring.mark for ring in rings} == {KeyRing.load(path).mark}
    assert {ring.current for ring in rings} == {KeyRing.load(path).current}
    assert load_ring(path).current == rings[0].current


def test_only_a_file_is_made(tmp_path: Path) -> None:
    assert load_or_create_ring(tmp_path / "new").ids == load_ring(KeyFile(tmp_path / "new")).ids
    with pytest.raises(InvalidConfig, match="cannot be run"):
        load_or_create_ring(KeyCommand("/no/such/program"))


@pytest.mark.parametrize("damage", [lambda text: "", lambda text: text[:-40], lambda text: "{}", lambda text: "a" * 60])
def test_damaged_keys_are_refused_and_none_is_shown(text: str, tmp_path: Path, damage: Callable[[str], str]) -> None:
    given = damage(text)
    (tmp_path / "given").write_text(given)
    for source in (KeyText(given), KeyText(base64_of(given)), KeyCommand(f"cat '{tmp_path / 'given'}'")):
        with pytest.raises(InvalidConfig) as caught:
            source.load()
        assert not any(part in str(caught.value) for part in text.split('"') if len(part) > 20)
        assert str(caught.value).startswith(("BATCHYARD_KEYS", 'key command "cat"'))
        assert text[:30] not in repr(source)


def test_a_command_that_fails_says_its_status_and_last_line_without_what_could_be_a_key(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = base64.b64encode(os.urandom(32)).decode()
    said = (
        f"import sys; print({text!r}); sys.stderr.write('first\\nno access\\x1b[31m to {secret} today\\n'); sys.exit(7)"
    )
    with pytest.raises(InvalidConfig, match=r"failed with 7: \"no access\?\[31m to … today\"") as caught:
        KeyCommand(python(tmp_path, said) + f" --token {secret}").load()
    assert secret not in str(caught.value) + caplog.text
    assert "first" not in str(caught.value)


def test_a_command_that_hangs_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    child = f"import subprocess, sys; p = subprocess.Popen(['sleep', '600']); open({str(tmp_path / 'pid')!r}, 'w')"
    program = f"{child}.write(str(p.pid)); sys.exit(0)"
    began = time.monotonic()
    with pytest.raises(InvalidConfig, match="did not end within 5 s"):
        KeyCommand(python(tmp_path, program), within_s=5).load()
    assert time.monotonic() - began < 30
    pid = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 10
    while _alive(pid) and time.monotonic() < end:
        os.sched_yield()
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_command_that_prints_without_end_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="more than 1 MiB"):
        KeyCommand(python(tmp_path, "print('a' * 3_000_000)")).load()
    with pytest.raises(InvalidConfig, match="did not end"):
        KeyCommand("yes", within_s=0.5).load()


@pytest.mark.parametrize("line", ["", "'", "   "])
def test_what_is_no_command_line_is_refused(line: str) -> None:
    with pytest.raises(InvalidConfig, match="cannot be run: it is no command line"):
        KeyCommand(line).load()


def test_a_command_does_not_get_the_keys_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BATCHYARD_KEYS", "secret")
    with pytest.raises(InvalidConfig, match="failed with 3"):
        KeyCommand(python(tmp_path, "import os, sys; sys.exit(3 if 'BATCHYARD_KEYS' not in os.environ else 4)")).load()


# Which one counts


def test_what_is_typed_counts_more_than_the_environment(path: Path, text: str) -> None:
    environ = {"BATCHYARD_KEYS": text}
    assert source_of(environ={}) is None
    assert source_of(environ=environ) == KeyText(text)
    assert source_of(file=path, environ=environ) == KeyFile(path)
    assert source_of(command="kms", environ=environ) == KeyCommand("kms")
    assert source_of(environ={"BATCHYARD_KEY_COMMAND": "kms"}) == KeyCommand("kms")
    assert source_of(environ={"BATCHYARD_KEY_FILE": str(path)}) == KeyFile(path)
    with pytest.raises(
        InvalidConfig, match="--key-file and --key-command name the yard's keys, each of them; leave one"
    ):
        source_of(file=path, command="kms", environ={})
    with pytest.raises(InvalidConfig, match="BATCHYARD_KEY_COMMAND and BATCHYARD_KEYS"):
        source_of(environ={**environ, "BATCHYARD_KEY_COMMAND": "kms"})


def keys_of(*words: str, **environ: str) -> tuple[KeySource | None, Doors]:
    """What a command with the yard's options finds."""
    got: list[Doors] = []
    command = click.command()(yard_options(lambda doors: got.append(doors)))
    result = CliRunner().invoke(command, words, env=environ)
    assert result.exit_code == 0, result.output
    return got[0].keys, got[0]


def test_commands_take_keys_by_option_by_environment_and_as_the_state_says(
    path: Path, text: str, tmp_path: Path
) -> None:
    Endpoints(broker_url="redis://b", result_backend="redis://b", key_command="kms decrypt").save(tmp_path)
    state = ("--state", str(tmp_path))
    found, doors = keys_of(*state)
    assert found is None
    assert doors.key_source() == KeyCommand("kms decrypt")
    assert keys_of(*state, "--key-file", str(path))[1].key_source() == KeyFile(path)
    assert keys_of(*state, "--key-file", str(path))[1].endpoints().key_command is None
    assert keys_of(*state, BATCHYARD_KEYS=text)[1].key_source() == KeyText(text)
    assert keys_of(*state, "--key-command", "kms", BATCHYARD_KEYS=text)[1].endpoints().key_command == "kms"
    assert text[:20] not in repr(keys_of(*state, BATCHYARD_KEYS=text)[1])


def test_keys_of_the_environment_and_of_a_command_open_what_those_of_the_file_sealed(
    path: Path, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").write_text("data")
    put = open_blobs(str(tmp_path / "store"), KeyRing.load(path), create=True).put
    named = ["--broker", "redis://127.0.0.1:1/0", "--store", str(tmp_path / "store")]
    digest = put(tmp_path / "data")["digest"]
    assert cli.run(["get", digest, str(tmp_path / "one"), *named, "--key-command", f"cat '{path}'"]) == 0
    monkeypatch.setenv("BATCHYARD_KEYS", base64_of(text))
    assert cli.run(["get", digest, str(tmp_path / "two"), *named]) == 0
    assert (tmp_path / "one").read_text() == (tmp_path / "two").read_text() == "data"
    monkeypatch.delenv("BATCHYARD_KEYS")
    assert cli.run(["get", digest, str(tmp_path / "three"), *named]) == 2
    assert "--key-command" in capsys.readouterr().err


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_a_changed_key_file_stays_its_owners(path: Path) -> None:
    os.chown(path, 10001, 10002)
    keyfile.change(path, lambda found: found.added())
    changed = path.stat()
    assert (changed.st_uid, changed.st_gid, changed.st_mode & 0o777) == (10001, 10002, 0o600)
