"""The command line without a yard: what it prints, refuses and exits with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from batchyard.broker import cli
from batchyard.broker.cli.doors import Doors, yard_options
from batchyard.broker.cli.show import one_line, size, span
from batchyard.broker.cli.submit import described
from batchyard.broker.cli.wait import exit_code
from batchyard.broker.definition import merge
from batchyard.broker.endpoints import Endpoints, default_state
from batchyard.broker.errors import InvalidConfig
from batchyard.broker.job import Job
from batchyard.broker.record import Record, from_hash

YARD = ("BATCHYARD_STATE", "BATCHYARD_BROKER_URL", "BATCHYARD_KEY_FILE", "BATCHYARD_STORE")


@pytest.fixture(autouse=True)
def _no_yard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in YARD:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def record(state: str, exit_code: int | None = None, **fields: str) -> Record:
    told = {"state": state, **({} if exit_code is None else {"exit_code": str(exit_code)}), **fields}
    return from_hash("j1", {k.encode(): v.encode() for k, v in told.items()})


def test_help_lists_all_commands_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    said = capsys.readouterr().out
    assert "batchyard submit --image busybox --wait" in said
    assert [name for name in cli.COMMANDS if f"  {name} " not in said] == []


@pytest.mark.parametrize(
    "name", ["", "status", "list", "ls", "logs", "submit", "wait", "why", "cancel", "queues", "nodes"]
)
def test_help_loads_neither_celery_nor_redis_nor_the_layers_above(name: str) -> None:
    code = (
        f"import sys; from batchyard.broker.cli import run; run([*{name!r}.split(), '--help']); "
        "print([m for m in sys.modules if m.split('.')[0] in {'celery', 'redis', 'pydantic', 'rich', 'flower'} "
        "or m.startswith(('batchyard.worker', 'batchyard.cache'))])"
    )
    ran = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([name, "--help"]) == 0
    assert f"Usage: batchyard {name}" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["nosuch"], ["wait"], ["submit", "--nosuch"], ["submit", "--env", "novalue"],
                                   ["deadletters", "drop"]])  # fmt: skip
def test_a_wrong_command_line_exits_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(words) == 2
    assert "Usage: batchyard" in capsys.readouterr().err


def test_a_job_needs_an_image_or_a_definition(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["submit", "--", "true"]) == 2
    assert "--image or --definition" in capsys.readouterr().err
    assert cli.run(["submit", "--definition", "nightly"]) == 2
    assert "no yard is known here" in capsys.readouterr().err  # so far it gets


def test_without_a_yard_a_command_says_how_to_get_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["list"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: no yard is known here")
    assert "batchyard up" in said


def test_a_redis_that_is_away_is_an_error_of_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["list", "--broker", "redis://:secret@127.0.0.1:1/0"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: Redis does not answer")
    assert said.count("\n") == 1
    assert "secret" not in said


def test_an_unforeseen_error_shows_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("batchyard.broker.job.schema", broken)
    assert cli.run(["schema"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ZeroDivisionError: division by zero")
    assert "Traceback" not in said


def test_the_schema_describes_every_field_of_a_job(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"].keys() == Job.model_fields.keys()


def test_options_and_command_are_put_over_the_job_of_a_file() -> None:
    filed = {"image": "a", "environment": {"A": "1", "B": "1"}, "command": ["old"], "vcpus": 2}
    fields = {"image": "b", "env": {"B": "2"}, "input": {}, "output": {"t": "/work/t"}, "vcpus": None}
    assert described(filed, fields, ["new", "-x"]) == {
        "image": "b", "environment": {"A": "1", "B": "2"}, "command": ["new", "-x"], "vcpus": 2,
        "outputs": {"t": "/work/t"},
    }  # fmt: skip


def test_flags_of_an_input_are_put_over_its_source_however_it_is_written() -> None:
    digest = "sha256:" + "a" * 64
    inputs = {"/a": digest, "/b": "@b.zip", "/c": "job:x:o", "/d": {"uri": "s3://b/d"}, "/e": "https://h/e"}
    fields = {"input": inputs, "unpack": ["/a", "/b", "/c", "/d"], "writable": ["/a", "/e"]}
    assert described({"image": "a"}, fields, [])["inputs"] == {
        "/a": {"digest": digest, "unpack": True, "writable": True},
        "/b": {"digest": "@b.zip", "unpack": True},
        "/c": {"job": "x", "from": "o", "unpack": True},
        "/d": {"uri": "s3://b/d", "unpack": True},
        "/e": {"uri": "https://h/e", "writable": True},
    }
    with pytest.raises(InvalidConfig, match=r'--unpack "/in" names no input'):
        described({"image": "a"}, {"unpack": ["/in"]}, [])


@pytest.mark.parametrize(
    ("filed", "option", "reuse"),
    [(True, None, True), (True, False, False), (False, True, True), (None, True, True), (None, False, False)],
)
def test_whether_a_job_is_reused_is_said_by_the_option_before_the_file(
    filed: bool | None, option: bool | None, reuse: bool
) -> None:
    said = described({"image": "a", **({} if filed is None else {"reuse": filed})}, {"reuse": option}, [])
    assert said["reuse"] is reuse
    assert merge({"image": "b", "reuse": not reuse}, said)["reuse"] is reuse


@pytest.mark.parametrize(
    ("ended", "cancelled", "code"),
    [
        (record("SUCCEEDED", 0), False, 0),
        (record("FAILED", 7), False, 7),
        (record("FAILED"), False, 1),
        (record("FAILED", 0), False, 1),
        (record("FAILED", 143), True, 130),
        (record("FAILED"), True, 130),
        (record("FAILED", 3221225477), False, 1),
    ],
)
def test_wait_exits_with_the_jobs_exit_code(ended: Record, cancelled: bool, code: int) -> None:
    assert exit_code(ended, cancelled=cancelled) == code


def test_a_record_in_one_line_says_state_node_reason_and_exit_code() -> None:
    assert one_line(record("FAILED", 3, node="n1", reason="it broke")) == "j1 FAILED on n1: it broke (exit 3)"
    assert one_line(record("SUCCEEDED", 0, reused="j0")) == "j1 SUCCEEDED (exit 0), not run: reused from j0"
    assert one_line(record("RUNNING", node="n1", reason="the node drained")) == "j1 RUNNING on n1"


def test_times_and_sizes_are_short() -> None:
    assert [span(s) for s in (0.44, 12, 185, 7800, 273600)] == ["0.4s", "12s", "3m05s", "2h10m", "3d04h"]
    assert [size(n) for n in (812, 1536, 5 << 20, 3 << 40)] == ["812 B", "1.5 KiB", "5.0 MiB", "3.0 TiB"]


def doors_of(*words: str, **environ: str) -> Doors:
    """What a command with the yard's options gets."""
    got: list[Doors] = []
    command = click.command()(yard_options(lambda doors: got.append(doors)))
    result = CliRunner().invoke(command, words, env=environ)
    assert result.exit_code == 0, result.output
    return got[0]


def test_a_typed_state_counts_more_than_a_broker_in_the_environment() -> None:
    environ = {"BATCHYARD_BROKER_URL": "redis://env"}
    assert doors_of("--state", "/s", **environ).broker is None
    assert doors_of("--broker", "redis://typed", **environ).broker == "redis://typed"
    assert doors_of(**environ).broker == "redis://env"


def test_single_options_replace_what_the_state_folder_says(tmp_path: Path) -> None:
    Endpoints(broker_url="redis://b", result_backend="redis://b", key_file="/k", store="/s").save(tmp_path)
    ends = doors_of("--state", str(tmp_path), "--store", "/other").endpoints()
    assert (ends.broker_url, ends.key_file, ends.store) == ("redis://b", "/k", "/other")


def test_endpoints_survive_a_round_trip_and_are_their_owners_alone(tmp_path: Path) -> None:
    ends = Endpoints(broker_url="redis://:p@h/0", result_backend="redis://:p@h/0", transport_options={"a": [1]}, pid=7)
    path = ends.save(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Endpoints.load(tmp_path) == ends
    assert [p.name for p in tmp_path.iterdir()] == ["endpoints.json"]


def test_endpoints_of_a_later_version_are_read(tmp_path: Path) -> None:
    (tmp_path / "endpoints.json").write_text('{"broker_url": "redis://b", "api_url": "http://a"}')
    assert Endpoints.load(tmp_path) == Endpoints(broker_url="redis://b", result_backend="redis://b")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"broker_url": 1}'])
def test_damaged_endpoints_say_what_to_do(text: str, tmp_path: Path) -> None:
    (tmp_path / "endpoints.json").write_text(text)
    with pytest.raises(InvalidConfig, match="delete it and start `batchyard up` again"):
        Endpoints.load(tmp_path)


def test_the_default_state_is_in_the_environment_or_at_home() -> None:
    assert default_state({"BATCHYARD_STATE": "/x"}) == Path("/x")
    assert default_state({}) == Path.home() / ".batchyard"


def test_the_readme_has_the_schema_that_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["schema"]) == 0
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    assert capsys.readouterr().out in readme, "put the output of `batchyard schema` into README.md"
