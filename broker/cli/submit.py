"""`batchyard submit` and `batchyard schema`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import InvalidConfig, InvalidJob, NotFound
from . import progress
from .complete import job_ids, queue_names
from .doors import Doors, examples, json_option, print_json, yard_options

if TYPE_CHECKING:
    from ..client import Client
    from .jobfile import FileJob

F = TypeVar("F", bound=Callable[..., Any])
_FIELDS = (
    "definition",
    "image",
    "name",
    "vcpus",
    "memory_mib",
    "gpus",
    "gpu_type",
    "disk_gib",
    "share",
    "scheduling_priority",
    "timeout_s",
    "attempts",
    "backoff_s",
    "infrastructure_retries",
    "profile",
    "network",
    "user",
    "array_size",
    "on_demand_after",
    "nodes",
    "reuse",
)
_MAPS = {
    "environment": "env",
    "secrets": "secret",
    "parameters": "param",
    "tags": "tag",
    "outputs": "output",
    "consumables": "consumable",
}
_QUEUE = "cpu"
_ANY_DIGEST = "sha256:" + "0" * 64  # stands for a file that is put only when all jobs are known to be right


def pairs(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE words as a mapping."""
    pairs: dict[str, str] = {}
    for word in values:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise click.BadParameter(f'"{word}" is not {param.make_metavar(ctx)}', ctx, param)
        pairs[key] = value
    return pairs


def _pairs_option(name: str, metavar: str, text: str) -> Callable[[F], F]:
    return click.option(name, metavar=metavar, multiple=True, callback=pairs, help=f"{text} Repeatable.")


_EXAMPLES = examples(
    "batchyard submit --image busybox --wait -- sh -c 'echo hello; exit 3'",
    "batchyard submit --image busybox --vcpus 0.5 --memory-mib 64 \\",
    "    --input /in/a=@table.csv --output n=/work/n --env LANG=C --wait \\",
    "    -- sh -c 'wc -l </in/a >/work/n'",
    "batchyard submit --image busybox --input /in/site=@site.tar.gz --unpack /in/site -- ls /in/site",
    "batchyard submit --definition nightly --param day=monday --wait",
    "batchyard submit -f jobs.yaml --wait",
    "batchyard submit -f jobs.yaml --queue urgent --dry-run",
    "",
    "jobs.yaml, one document a job (or a list of jobs):",
    "  image: busybox",
    "  command: [sh, -c, wc -l </in/a >/work/n]",
    "  inputs: {/in/a: '@table.csv'}     # relative to this file's folder; also {digest: '@a.zip', unpack: true}",
    "  outputs: {n: /work/n}",
    "  vcpus: 0.5",
    "  memory_mib: 64",
    "  queue: cpu                        # not a job's field, but may stand here;",
    "  priority: 3                       # so may countdown_s and expires_s",
    "  ---",
    "  image: busybox",
    "  command: [sleep, 10]",
)


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False}, epilog=_EXAMPLES)
@click.option(
    "-f",
    "--file",
    "file",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Jobs as JSON or YAML (- for stdin); options override their fields. All are checked before one is sent.",
)
@click.option("--definition", metavar="NAME[:REV]", help="The job definition that says what is not said here.")
@click.option("--image", help="The container image.")
@click.option("--name", help="A name for people.")
@click.option("--vcpus", type=float, help="Fractions are allowed.  [default: 1]")
@click.option("--memory-mib", type=int, help="Above it, the job is killed.  [default: 512]")
@click.option("--gpus", type=int, help="Whole devices, for this job alone.")
@click.option("--gpu-type", metavar="TYPE", help="Of that type, such as a100.")
@click.option("--disk-gib", type=float, help="Scratch space.  [default: 1]")
@_pairs_option("--env", "NAME=VALUE", "Environment variable.")
@_pairs_option("--secret", "NAME=SECRET", "Environment variable from the node's secret of that name.")
@_pairs_option("--param", "NAME=VALUE", "What Ref::NAME in the command becomes.")
@_pairs_option(
    "--input",
    "PATH=SOURCE",
    "Path in the container; sha256:…, s3://…, https://…, file:///… of the node, job:ID:OUTPUT of a job that it depends "
    "on, or @PATH of this machine, put first.",
)
@click.option("--unpack", metavar="PATH", multiple=True,
              help="The input there is an archive; mount a directory of what is in it. Repeatable.")  # fmt: skip
@click.option("--writable", metavar="PATH", multiple=True,
              help="The job may change the input there; its changes go with the attempt. Repeatable.")  # fmt: skip
@_pairs_option("--output", "NAME=PATH", "File or directory below /work that is kept at the end.")
@_pairs_option("--tag", "KEY=VALUE", "For people and tools.")
@click.option("--array", "array_size", metavar="SIZE", type=int,
              help="An array of 2 to 100000 children, each with its AWS_BATCH_JOB_ARRAY_INDEX.")  # fmt: skip
@_pairs_option("--consumable", "NAME=N", "So many of a consumable resource, see `batchyard consumable`.")
@click.option("--share", help="Whose work it is, in a queue with a fair-share policy.")
@click.option("--scheduling-priority", type=int, help="0 to 9999 within its share; higher first.  [default: 0]")
@click.option("--timeout-s", type=int, help="Seconds that an attempt may take.")
@click.option("--attempts", type=int, help="Runs at most, when it fails.  [default: 1]")
@click.option("--backoff-s", type=float, help="Before it is tried again; doubled each time, an hour at most.")
@click.option("--on-demand-after", type=int,
              help="After so many interruptions on spot machines, other ones only.  [default: never]")  # fmt: skip
@click.option(
    "--infrastructure-retries",
    type=int,
    help="How often it may lose its node, or not be started for a passing reason.  [default: 10]",
)
@click.option(
    "--profile", type=click.Choice(["strict", "aws"]), help="How the container is confined.  [default: strict]"
)
@click.option("--network", type=click.Choice(["none", "bridge", "host"]), help="[default: none in profile strict]")
@click.option(
    "--reuse/--no-reuse",
    default=None,
    help="Whether the outputs of an identical job that has succeeded will do, and this one need not run.  "
    "[default: --no-reuse]",
)
@click.option("--nodes", type=int, help="Run on so many nodes at once, one container each.")
@click.option("--user", metavar="UID[:GID]", help="Who the command runs as.")
@click.option(
    "--depends-on",
    metavar="ID",
    multiple=True,
    shell_complete=job_ids,
    help="Not before that job has succeeded; if it fails, so does this one. Repeatable.",
)
@click.option(
    "--n-to-n",
    metavar="ID",
    multiple=True,
    shell_complete=job_ids,
    help="Of an array: each child not before the child of that array with its index has succeeded. Repeatable.",
)
@click.option("--sequential", is_flag=True, help="Of an array: each child not before the one before it has succeeded.")
@click.option("--queue", help=f"[default: the file's, else {_QUEUE}]", shell_complete=queue_names)
@click.option("--priority", type=click.IntRange(0, 9), help="0 is the most urgent.")
@click.option("--countdown-s", type=float, help="Not before so many seconds from now.")
@click.option("--expires-s", type=float, help="Not started after so many seconds from now.")
@click.option("--wait", is_flag=True, help="Wait for the end; exit with the job's exit code.")
@click.option("--follow", is_flag=True, help="Print its log as it comes, then as --wait.")
@click.option("--dry-run", is_flag=True, help="Check, and print as JSON what would be sent. Nothing is put or sent.")
@json_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@yard_options
def submit(
    doors: Doors,
    file: Path | None,
    command: Sequence[str],
    queue: str | None,
    priority: int | None,
    countdown_s: float | None,
    expires_s: float | None,
    wait: bool,
    follow: bool,
    dry_run: bool,
    as_json: bool,
    **fields: Any,
) -> int:
    """Send a job and print its id. The command follows `--`.

    A file may hold several jobs; then one id a line is printed, in the file's order.
    """
    from . import wait as waiting
    from .jobfile import FileJob, read

    if file is None and not fields["image"] and not fields["definition"]:
        raise click.UsageError("no image was named; give --image or --definition, or jobs with -f FILE")
    given = {"queue": queue, "countdown_s": countdown_s, "expires_s": expires_s}
    told = read(file) if file else [FileJob(job={}, sending={}, file="", folder=Path())]
    if follow and len(told) > 1:
        raise click.UsageError(f"--follow is for one job, and {told[0].file} holds {len(told)}; use --wait")
    with doors.client() as client:
        sends = [_Send.of(one, fields, command, given, priority) for one in told]
        for send in sends:
            send.check(client)
        if dry_run:
            shown = [send.shown() for send in sends]
            print_json(shown if len(shown) > 1 else shown[0])
            return 0
        ids = _send_all(client, sends, as_json=as_json, err=wait or follow)
        if not (wait or follow):
            return 0
        if follow:
            from .logs import print_log

            with waiting.going_on(ids):
                try:
                    print_log(client, ids[0], follow=True, awaited=True)
                except (
                    NotFound
                ) as error:  # it ended before it ran, or its log is gone: how it ended is said all the same
                    click.echo(str(error), err=True)
        return waiting.wait_and_say(client, ids, timeout_s=None, as_json=as_json, quiet=follow)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Send:
    """A job with how it is sent, options put over what a file says. files: input path → file of this machine."""

    job: dict[str, Any]
    files: dict[str, Path]
    how: dict[str, Any]
    told: FileJob

    @classmethod
    def of(
        cls, told: FileJob, fields: Mapping[str, Any], command: Sequence[str], given: Mapping[str, Any],
        priority: int | None,
    ) -> _Send:  # fmt: skip
        job, files = described(told.job, fields, command), dict[str, Path]()
        if priority is not None:
            job.pop("priority", None)  # the file's would count more than the message's
        inputs = job.get("inputs")
        for path, source in inputs.items() if isinstance(inputs, Mapping) else ():
            put = source.get("digest") if isinstance(source, Mapping) else source
            if isinstance(put, str) and put.startswith("@"):
                typed = path in (fields.get("input") or {})
                files[path] = (Path() if typed else told.folder) / Path(put[1:]).expanduser()
        how = {**told.sending, **{k: v for k, v in given.items() if v is not None}, "priority": priority}
        return cls(job=job, files=files, how={"queue": _QUEUE, **how}, told=told)

    def check(self, client: Client) -> None:
        """Raises what `Client.submit` would, with file and line where a file said it."""
        try:
            client.check(self._with({path: {"digest": _ANY_DIGEST} for path in self.files}), queue=self.how["queue"])
            for path, file in self.files.items():
                if not file.exists():
                    raise InvalidJob(f"inputs.{path}", f"@{file}", "there is no such file; correct the path")
        except InvalidJob as error:
            raise self.told.explained(error) if self.told.file else error from None
        except NotFound as error:  # an unknown queue is asked wrongly
            raise InvalidConfig(f"{self.told.at('queue')}: {error}" if self.told.file else str(error)) from None

    def shown(self) -> dict[str, Any]:
        """What would be sent."""
        return {**self.job, **{k: v for k, v in self.how.items() if v is not None}}

    def _with(self, blobs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The job with these blobs as inputs, in place of the files of this machine."""
        if not blobs:
            return dict(self.job)
        asked = self.job["inputs"]
        put = {p: {**(asked[p] if isinstance(asked[p], Mapping) else {}), **blob} for p, blob in blobs.items()}
        return {**self.job, "inputs": {**asked, **put}}

    def send(self, client: Client, kept: Mapping[tuple[Path, str], dict[str, Any]], tenant: str) -> str:
        """The job's id. kept: the blobs of its files, by path and tenant."""
        job, how = self._with({path: kept[file, tenant] for path, file in self.files.items()}), self.how
        return client.submit(job, queue=how["queue"], priority=how["priority"], countdown=how.get("countdown_s"),
                             expires=how.get("expires_s"))  # fmt: skip


def _send_all(client: Client, sends: Sequence[_Send], *, as_json: bool, err: bool) -> list[str]:
    """Ids in order, once all files are put. Printed as they come: it is seen which were sent. err: on stderr."""
    ids: list[str] = []
    config = client.yard.config()
    tenants = [config.tenant_of(send.how["queue"]) for send in sends]
    files = [(file, tenant) for send, tenant in zip(sends, tenants, strict=True) for file in send.files.values()]
    kept = {one: _put(client, *one, as_json=as_json) for one in dict.fromkeys(files)}
    try:
        for send, tenant in zip(sends, tenants, strict=True):
            ids.append(send.send(client, kept, tenant))
            if err or not as_json:
                click.echo(ids[-1], err=err)
    except Exception:
        if len(sends) > 1:
            click.echo(f"{len(ids)} of {len(sends)} jobs were sent", err=True)
        raise
    finally:
        if as_json and not err and ids:
            print_json({"id": ids[0]} if len(sends) == 1 else [{"id": i} for i in ids])
    return ids


def _put(client: Client, file: Path, tenant: str, *, as_json: bool) -> dict[str, Any]:
    shown = progress.wanted(as_json=as_json)
    total = progress.content_bytes(file) if shown else None
    with progress.transfer(f"put {file.name}", total, shown=shown) as on_bytes:
        return client.put(file, tenant=tenant, on_bytes=on_bytes)


def described(job: Mapping[str, Any], fields: Mapping[str, Any], command: Sequence[str]) -> dict[str, Any]:
    """The job of a file with what the options and the command say put over it."""
    merged: dict[str, Any] = {**job, **{f: fields[f] for f in _FIELDS if fields.get(f) is not None}}
    for field, option in {**_MAPS, "inputs": "input"}.items():
        if fields.get(option):
            filed = merged.get(field) or {}
            if not isinstance(filed, Mapping):
                raise InvalidConfig(f"the file's {field} must be an object, to which --{option} adds")
            merged[field] = {**filed, **fields[option]}
    for flag in ("unpack", "writable"):
        for path in fields.get(flag) or ():
            merged["inputs"] = _flagged(merged.get("inputs"), path, flag)
    awaited: list[object] = [*(fields.get("depends_on") or ())]
    awaited += [{"job_id": job_id, "type": "N_TO_N"} for job_id in fields.get("n_to_n") or ()]
    awaited += [{"type": "SEQUENTIAL"}] if fields.get("sequential") else []
    if awaited:
        filed = merged.get("depends_on") or []
        if not isinstance(filed, Sequence) or isinstance(filed, str):
            raise InvalidConfig("the file's depends_on must be a list, to which --depends-on adds")
        merged["depends_on"] = [*filed, *awaited]
    if command:
        merged["command"] = list(command)
    return merged


def _flagged(inputs: object, path: str, flag: str) -> dict[str, Any]:
    """The inputs, of which the one at a path has a flag of its own."""
    from ..job import written_out

    source = inputs.get(path) if isinstance(inputs, Mapping) else None
    if not isinstance(inputs, Mapping) or source is None:
        raise InvalidConfig(f'--{flag} "{path}" names no input; give it with --input {path}=SOURCE')
    if isinstance(source, str):
        source = {"digest": source} if source.startswith("@") else written_out(source)
    return {**inputs, path: {**source, flag: True} if isinstance(source, Mapping) else source}


@click.command(epilog=examples("batchyard schema >job.schema.json", "batchyard schema | jq '.properties | keys'"))
def schema() -> None:
    """Print the JSON schema of a job."""
    from ..job import schema as job_schema

    click.echo(json.dumps(job_schema(), indent=2))
