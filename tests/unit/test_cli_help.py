"""Every command's help has examples, and a shell completes what there is."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from batchyard.broker import cli

COMMAND = (sys.executable, "-P", "-m", "batchyard.broker.cli")


def commands(command: click.Command, *path: str) -> Iterator[tuple[str, click.Command]]:
    yield " ".join(path), command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None, name
            yield from commands(below, *path, name)


@pytest.mark.parametrize("name", [name for name, _ in commands(cli.cli, "batchyard")])
def test_every_command_shows_examples_of_itself(name: str) -> None:
    command = dict(commands(cli.cli, "batchyard"))[name]
    shown = command.get_help(click.Context(command, info_name=name))
    _, found, examples = shown.partition("\n  Example")
    assert found, f"`{name} --help` has no examples"
    assert name in examples, f"the examples of `{name} --help` do not show it"


def completed(words: str, count: int, *, shell: str = "bash", **environ: str) -> list[str]:
    """What the completion machinery answers to a Tab."""
    told = {"_BATCHYARD_COMPLETE": f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": str(count), **environ}
    clean = {k: v for k, v in os.environ.items() if not k.startswith("BATCHYARD_")}
    ran = subprocess.run(
        [*COMMAND], env={**clean, **told}, capture_output=True, text=True, check=False, timeout=60
    )  # fmt: skip
    assert ran.stderr == ""
    return [line for line in ran.stdout.splitlines() if line]


def test_a_shell_completes_commands_and_options(tmp_path: Path) -> None:
    assert {"plain,wait", "plain,why", "plain,worker"} == set(completed("batchyard w", 1))
    assert "plain,--memory-mib" in completed("batchyard submit --me", 2)
    assert completed("batchyard completion z", 2) == ["plain,zsh"]


@pytest.mark.parametrize("where", [{"BATCHYARD_STATE": "/nosuch"}, {"BATCHYARD_BROKER_URL": "redis://127.0.0.1:1/0"}])
def test_without_a_yard_completion_is_silent(where: dict[str, str]) -> None:
    assert completed("batchyard why ", 2, **where) == []
    assert completed("batchyard submit --queue ", 3, **where) == []


def test_a_yard_that_does_not_answer_does_not_hold_up_the_shell() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        assert completed("batchyard why ", 2, BATCHYARD_BROKER_URL=url) == []
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_BATCHYARD_COMPLETE={shell}_complete" in script
    assert "batchyard" in script


def test_bash_takes_the_script() -> None:
    script = subprocess.run([*COMMAND, "completion", "bash"], capture_output=True, text=True, check=True).stdout
    ran = subprocess.run(
        ["bash", "--norc", "-c", f"{script}\ncomplete -p batchyard"], capture_output=True, text=True, check=True
    )
    assert "-F _batchyard_completion batchyard" in ran.stdout
