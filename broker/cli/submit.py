"""`batchyard submit` and `batchyard schema`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import InvalidJob
from .doors import Doors, json_option, print_json, yard_options

if TYPE_CHECKING:
    from ..client import Client

F = TypeVar("F", bound=Callable[..., Any])
_FIELDS = (
    "image",
    "name",
    "vcpus",
    "memory_mib",
    "gpus",
    "disk_gib",
    "timeout_s",
    "attempts",
    "profile",
    "network",
    "user",
)
_MAPS = {"environment": "env", "secrets": "secret", "parameters": "param", "tags": "tag", "outputs": "output"}


def _pairs(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE words as a mapping."""
    pairs: dict[str, str] = {}
    for word in values:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise click.BadParameter(f'"{word}" is not {param.make_metavar(ctx)}', ctx, param)
        pairs[key] = value
    return pairs


def _pairs_option(name: str, metavar: str, text: str) -> Callable[[F], F]:
    return click.option(name, metavar=metavar, multiple=True, callback=_pairs, help=f"{text} Repeatable.")


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.option(
    "-f",
    "--file",
    "file",
    type=click.Path(path_type=Path, allow_dash=True),
    help="The job as JSON or YAML (- for stdin); options override its fields.",
)
@click.option("--image", help="The container image.")
@click.option("--name", help="A name for people.")
@click.option("--vcpus", type=float, help="Fractions are allowed.  [default: 1]")
@click.option("--memory-mib", type=int, help="Above it, the job is killed.  [default: 512]")
@click.option("--gpus", type=int, help="Whole devices, for this job alone.")
@click.option("--disk-gib", type=float, help="Scratch space.  [default: 1]")
@_pairs_option("--env", "NAME=VALUE", "Environment variable.")
@_pairs_option("--secret", "NAME=SECRET", "Environment variable from the node's secret of that name.")
@_pairs_option("--param", "NAME=VALUE", "What Ref::NAME in the command becomes.")
@_pairs_option(
    "--input",
    "PATH=SOURCE",
    "Path in the container; sha256:…, file:///… of the node, or @PATH of this machine, which is put first.",
)
@_pairs_option("--output", "NAME=PATH", "File or directory below /work that is kept at the end.")
@_pairs_option("--tag", "KEY=VALUE", "For people and tools.")
@click.option("--timeout-s", type=int, help="Seconds that an attempt may take.")
@click.option("--attempts", type=int, help="Runs at most, when it fails.  [default: 1]")
@click.option(
    "--profile", type=click.Choice(["strict", "aws"]), help="How the container is confined.  [default: strict]"
)
@click.option("--network", type=click.Choice(["none", "bridge", "host"]), help="[default: none in profile strict]")
@click.option("--user", metavar="UID[:GID]", help="Who the command runs as.")
@click.option("--queue", default="cpu", show_default=True)
@click.option("--priority", type=click.IntRange(0, 9), help="0 is the most urgent.")
@click.option("--countdown-s", type=float, help="Not before so many seconds from now.")
@click.option("--expires-s", type=float, help="Not started after so many seconds from now.")
@click.option("--wait", is_flag=True, help="Wait for the end; exit with the job's exit code.")
@click.option("--follow", is_flag=True, help="Print its log as it comes, then as --wait.")
@json_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@yard_options
def submit(
    doors: Doors,
    file: Path | None,
    command: Sequence[str],
    queue: str,
    priority: int | None,
    countdown_s: float | None,
    expires_s: float | None,
    wait: bool,
    follow: bool,
    as_json: bool,
    **fields: Any,
) -> int:
    """Send a job and print its id. The command follows `--`.

    \b
    batchyard submit --image busybox --vcpus 0.5 --memory-mib 64 \\
        --input /in/a=@table.csv --output n=/work/n --env LANG=C --wait \\
        -- sh -c 'wc -l </in/a >/work/n'
    """  # fmt: skip
    from . import wait as waiting

    with doors.client() as client:
        job = described(_read(file) if file else {}, fields, command)
        job["inputs"] = {path: _source(client, source) for path, source in job.pop("inputs", {}).items()}
        job_id = client.submit(job, queue=queue, priority=priority, countdown=countdown_s, expires=expires_s)
        if not (wait or follow):
            print_json({"id": job_id}) if as_json else click.echo(job_id)
            return 0
        click.echo(job_id, err=True)
        if follow:
            from .logs import print_log

            print_log(client, job_id, follow=True)
        return waiting.wait_and_say(client, [job_id], timeout_s=None, as_json=as_json, quiet=follow)


def described(job: Mapping[str, Any], fields: Mapping[str, Any], command: Sequence[str]) -> dict[str, Any]:
    """The job of a file with what the options and the command say put over it."""
    merged: dict[str, Any] = {**job, **{f: fields[f] for f in _FIELDS if fields.get(f) is not None}}
    for field, option in {**_MAPS, "inputs": "input"}.items():
        if fields.get(option):
            merged[field] = {**(merged.get(field) or {}), **fields[option]}
    if command:
        merged["command"] = list(command)
    return merged


def _source(client: Client, source: Any) -> Any:
    if not (isinstance(source, str) and source.startswith("@")):
        return source
    return client.put(Path(source[1:]).expanduser())


def _read(file: Path) -> dict[str, Any]:
    import yaml  # JSON is YAML

    text = sys.stdin.read() if str(file) == "-" else file.read_text()
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidJob("", str(file), f"is neither JSON nor YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise InvalidJob("", value, f"{file} must hold an object such as {{image: busybox, command: [true]}}")
    return value


@click.command()
def schema() -> None:
    """Print the JSON schema of a job."""
    from ..job import schema as job_schema

    click.echo(json.dumps(job_schema(), indent=2))
