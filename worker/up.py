"""`batchyard up`: a whole yard on one machine, in the foreground.

state/lock             held while it runs, by it and all its processes
state/endpoints.json   where everything is (0600: it has Redis's password)
state/keys.json        the yard's keys
state/redis, store, node, logs, machine.yaml
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import click
import yaml
from click.core import ParameterSource

from batchyard.broker import config as yard_config
from batchyard.broker.cli.doors import examples, key_options, named_keys
from batchyard.broker.config import Config
from batchyard.broker.endpoints import Endpoints, absolute_store, default_state
from batchyard.broker.errors import EngineUnavailable, InvalidConfig, NotFound
from batchyard.broker.keysource import COMMAND_VARIABLE, VARIABLES, KeyFile, KeySource, load_or_create_ring
from batchyard.broker.remote import TRANSPORT_OPTIONS
from batchyard.broker.schedules import Schedules
from batchyard.broker.store import Yard

from . import checks, gpu, minio_server, options
from .binaries import find_or_build
from .commands import allow_root_option, allow_url_host_option
from .engine.docker import DockerEngine
from .redis_server import READY, pick_port, redis_binary, write_conf
from .supervise import Family, Part, Stopped

_LOCK_WAIT_S = 5.0
_NODE_STOP_S = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What `up` was told. Ports: None for the earlier or any free one. minio: None for as before. new_store: see
    NodeOptions. scratch: the node's, in state if None. node: further words for `batchyard worker`.
    """

    state: Path
    config: Path | None
    port_redis: int | None
    port_flower: int | None
    port_minio: int | None
    minio: bool | None
    minio_data: Path | None
    new_store: bool
    scratch: Path | None
    name: str
    vcpus: float
    memory_mib: int
    gpus: str | None
    disk_gib: float
    keys: KeySource
    node: tuple[str, ...]


@click.command(
    epilog=examples(
        "batchyard up", "batchyard up --config yard.yaml --vcpus 6 --memory-mib 12000", "batchyard up --state /srv/yard"
    )
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="Queues and compute environments (YAML).  [default: as before; at first queues cpu and gpu on this machine]",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    envvar="BATCHYARD_STATE",
    help="Where everything is kept.  [default: ~/.batchyard]",
)
@click.option("--port-redis", type=click.IntRange(1, 65535), help="[default: the earlier one, or any free one]")
@click.option("--port-flower", type=click.IntRange(1, 65535), help="[default: the earlier one, or any free one]")
@click.option(
    "--minio/--no-minio", default=None, help="Keep blobs in a MinIO of its own.  [default: as before; at first no]"
)
@click.option(
    "--minio-data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where that MinIO keeps its bytes.  [default: in --state]",
)
@key_options[0]
@key_options[1]
@click.option("--new-store", is_flag=True, help="Go on with a store that is not the one of before, or was emptied.")
@click.option("--port-minio", type=click.IntRange(1, 65535), help="[default: the earlier one, or any free one]")
@click.option("--name", default=options.machine_name, help="The node's.  [default: this host's name]")
@click.option("--vcpus", type=click.FloatRange(min=0, min_open=True), help="[default: all processors]")
@click.option("--memory-mib", type=click.IntRange(min=6), help="[default: nine tenths of the machine's]")
@click.option("--gpus", help="Devices by comma; or declared ones: a number, or a100=2,t4=1.  [default: the driver's]")
@click.option("--disk-gib", type=click.FloatRange(min=0), help="[default: most of what is free]")
@click.option(
    "--copies-gib", type=click.FloatRange(min=0), help="For copies of inputs on disk.  [default: a share of it]"
)
@click.option("--copies-memory-mib", type=click.IntRange(min=0), help="And in memory.  [default: a sixteenth of it]")
@click.option(
    "--scratch",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for copies of inputs and for jobs' work folders.  [default: in --state]",
)
@click.option("--near", help="A store of the node alone, see `batchyard worker --help`.")
@click.option("--fetch-gib", type=click.FloatRange(min=0, min_open=True), help="The most of an input.  [default: 100]")
@click.option(
    "--secrets",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder with one file a secret.",
)
@allow_root_option
@allow_url_host_option
@click.option("--grace-s", type=click.FloatRange(min=0), help="What running jobs get at the end.  [default: 10]")
@click.option(
    "--stop-grace-s", type=click.FloatRange(min=0), help="A cancelled job, SIGTERM to SIGKILL.  [default: 30]"
)
@click.pass_context
def up(
    ctx: click.Context,
    /,
    config_file: Path | None,
    state: Path | None,
    key_file: Path | None,
    key_command: str | None,
    port_redis: int | None,
    port_flower: int | None,
    minio: bool | None,
    minio_data: Path | None,
    new_store: bool,
    port_minio: int | None,
    name: str,
    vcpus: float | None,
    memory_mib: int | None,
    gpus: str | None,
    disk_gib: float | None,
    copies_gib: float | None,
    copies_memory_mib: int | None,
    scratch: Path | None,
    near: str | None,
    fetch_gib: float | None,
    secrets: Path | None,
    allowed_roots: Sequence[Path],
    url_hosts: Sequence[str],
    grace_s: float | None,
    stop_grace_s: float | None,
) -> int:
    """Run a whole yard on this machine: Redis, controller, one node, Flower; on loopback, until Ctrl-C.

    It prints one line `ready: flower http://…` when all work. Jobs, results and ports are kept in the state folder: the
    next `up` goes on with them. Other commands find the yard there.
    """  # fmt: skip
    state = (state or default_state()).expanduser().absolute()
    scratch = scratch.expanduser().absolute() if scratch is not None else None
    node = [*(["--scratch", str(scratch)] if scratch else []),
            *(["--near", absolute_store(near)] if near is not None else []),
            *(["--fetch-gib", str(fetch_gib)] if fetch_gib is not None else []),
            *(["--secrets", str(secrets.absolute())] if secrets else []),
            *(["--grace-s", str(grace_s)] if grace_s is not None else []),
            *(["--stop-grace-s", str(stop_grace_s)] if stop_grace_s is not None else []),
            *(["--copies-gib", str(copies_gib)] if copies_gib is not None else []),
            *(["--copies-memory-mib", str(copies_memory_mib)] if copies_memory_mib is not None else [])]  # fmt: skip
    for root in allowed_roots:
        node += ["--allow-root", str(root.absolute())]
    for host in url_hosts:
        node += ["--allow-url-host", host]
    _make(state)
    return run(
        Settings(
            state=state,
            config=config_file,
            port_redis=port_redis,
            port_flower=port_flower,
            port_minio=port_minio,
            minio=minio,
            minio_data=minio_data,
            new_store=new_store,
            scratch=scratch,
            name=name,
            vcpus=vcpus or os.cpu_count() or 1,
            memory_mib=memory_mib or options.machine_memory_mib(copies_memory_mib),
            gpus=gpus,
            disk_gib=options.machine_disk_gib(scratch or state / "node", copies_gib) if disk_gib is None else disk_gib,
            keys=_keys(ctx, state / "keys.json"),
            node=tuple(node),
        )
    )


def run(settings: Settings) -> int:
    """Until a signal; the exit code. Raises InvalidConfig, DidNotStart."""
    state = settings.state
    if settings.config is not None:
        yard_config.load(settings.config, lambda: _here(settings))  # before anything is started
    _check_machine(settings)
    redis_server = redis_binary()
    minio = find_or_build("minio", _say) if _wants_minio(settings) else None
    lock = _lock(state)
    family = Family(_make(state / "logs"), lock, _say)
    try:
        ends = _start(settings, family, redis_server, minio)
        with suppress(OSError):
            click.echo(f"ready: flower {ends.flower_url}, state {state}")
        family.watch()
        _say("stopping: running jobs get their grace, what does not end goes back to the queue")
    except Stopped:
        _say("stopping")
    finally:
        family.stop(["node"], ["flower", "controller"], ["redis", "minio"])
        _leave(state)
        os.close(lock)
    _say("stopped")
    return 0


def _start(settings: Settings, family: Family, redis_server: str, minio: Path | None) -> Endpoints:
    state, earlier = settings.state, _earlier(settings.state)
    port = pick_port("Redis", settings.port_redis, _port(earlier.broker_url) if earlier else None)
    flower_port = pick_port("Flower", settings.port_flower, _port(earlier.flower_url) if earlier else None)
    conf, password = write_conf(state / "redis", port)
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    ring = load_or_create_ring(settings.keys)
    store = _folder_store(settings) if minio is None else _start_minio(settings, family, minio)
    plain = {
        **{k: v for k, v in os.environ.items() if k not in {"BATCHYARD_STATE", *VARIABLES}},
        "BATCHYARD_BROKER_URL": url,
        "BATCHYARD_STORE": store,
        "PYTHONUNBUFFERED": "1",
    }
    environ = {**plain, **settings.keys.environ}
    ends = Endpoints(
        broker_url=url,
        result_backend=url,
        transport_options=TRANSPORT_OPTIONS,
        flower_url=f"http://127.0.0.1:{flower_port}",
        key_file=str(settings.keys.path) if settings.keys.path else None,
        key_command=settings.keys.environ.get(COMMAND_VARIABLE),
        store=store,
        scratch=str(settings.scratch or state / "node"),
        pid=os.getpid(),
    )
    family.start(Part(name="redis", argv=(redis_server, str(conf)), ready=READY, environ=plain, start_s=600))
    yard = Yard(url, ring)
    if settings.new_store or (earlier is not None and earlier.store != store):
        yard.forget_store()  # before the file names the other one: who is killed in between does it again
    ends.save(state)
    config_file = settings.config or _machine(settings, yard)
    family.start(_part("controller", (*_config_words(config_file), *_secrets_words(settings.node)), environ))
    environment = next(iter(yard.config().environments))
    yard.redis.close()
    family.start(
        _part("node", _node_words(settings, environment), environ, command="worker", stop_s=_NODE_STOP_S),
        _part("flower", ("--port", str(flower_port)), plain),
    )
    return ends


def _wants_minio(settings: Settings) -> bool:
    if settings.minio is not None:
        return settings.minio
    earlier = _earlier(settings.state)
    return settings.minio_data is not None or (earlier is not None and (earlier.store or "").startswith("s3://"))


def _check_machine(settings: Settings) -> None:
    """Before anything is started. Raises EngineUnavailable."""
    try:
        DockerEngine().ping()
    except EngineUnavailable as error:
        raise EngineUnavailable(f"{error}; {checks.START_ENGINE}") from None
    unlisted = [one.id for one in gpu.discover(settings.gpus) if one.declared]
    if unlisted and not (settings.gpus or "").strip().isdigit() and "=" not in (settings.gpus or ""):
        _say(f"the driver does not list GPU {', '.join(unlisted)}: declared ones are counted, and no job can use them")


def _folder_store(settings: Settings) -> str:
    """The store's spec."""
    earlier = _earlier(settings.state)
    if earlier is not None and (earlier.store or "").startswith("s3://"):
        _say("blobs kept until now stay in the MinIO and are not seen; put them again, or start with --minio")
    return str(settings.state / "store")


def _start_minio(settings: Settings, family: Family, binary: Path) -> str:
    """The store's spec."""
    folder = settings.state / "minio"
    if not folder.exists() and (settings.state / "store").exists():
        _say(f'blobs kept until now stay in "{settings.state / "store"}" and are not seen; put them again')
    port = pick_port("MinIO", settings.port_minio, minio_server.earlier_port(folder))
    data = settings.minio_data or folder / "data"
    server = minio_server.MinioServer.prepare(folder, data.expanduser().absolute(), port)
    family.start(server.part(binary, {k: v for k, v in os.environ.items() if k not in VARIABLES}))
    server.admit_yard()
    return server.spec


def _part(name: str, words: Sequence[str], environ: dict[str, str], *, command: str = "", stop_s: float = 15.0) -> Part:
    argv = (sys.executable, "-P", "-m", "batchyard.broker.cli", command or name, *words)
    return Part(name=name, argv=argv, ready="^ready", environ=environ, stop_s=stop_s)


def _config_words(config_file: Path | None) -> tuple[str, ...]:
    return () if config_file is None else ("--config", str(config_file.absolute()))


def _secrets_words(node: Sequence[str]) -> Sequence[str]:
    """The controller finds the secret of a webhook where the node finds its own."""
    return node[node.index("--secrets") :][:2] if "--secrets" in node else ()


def _node_words(settings: Settings, environment: str) -> tuple[str, ...]:
    words = ["--name", settings.name, "--state", str(settings.state / "node"), "--vcpus", f"{settings.vcpus:g}"]
    words += ["--memory-mib", str(settings.memory_mib), "--disk-gib", f"{settings.disk_gib:g}"]
    words += ["--gpus", settings.gpus] if settings.gpus is not None else []
    return (*words, "--labels", f"environment={environment}", *settings.node)


def _machine(settings: Settings, yard: Yard) -> Path | None:
    """The configuration of a yard that is this machine; None where Redis has one that somebody made."""
    here = _here(settings)
    try:
        if not _is_machine(there := yard.config()) or _has_schedules(yard):
            _say(f"queues as configured before ({', '.join(there.by_priority())}); --config FILE changes them")
            return None
    except NotFound:
        pass
    path = settings.state / "machine.yaml"
    path.write_text("# Written by `batchyard up` at each start; copy it to begin one for --config.\n"
                    + yaml.safe_dump(here.model_dump(mode="json", exclude={"made"}), sort_keys=False))  # fmt: skip
    return path


def _here(settings: Settings) -> Config:
    gpus = gpu.discover(settings.gpus)
    return yard_config.single_machine(
        settings.vcpus, settings.memory_mib, len(gpus), settings.disk_gib, gpu_types=sorted(gpu.types_of(gpus))
    )


def _has_schedules(yard: Yard) -> bool:
    """Whether a configuration that somebody made left schedules; one of `up` has none."""
    return any(one.origin == "config" for one in Schedules(yard, lambda: yard.ring).list())


def _is_machine(config: Config) -> bool:
    """Whether a configuration is one that `up` made, perhaps for other figures of the machine."""
    there = config.environments.get("here")
    return there is not None and config == yard_config.single_machine(
        there.vcpus, there.memory_mib, there.gpus, there.disk_gib, gpu_types=there.gpu_types
    )


def _keys(ctx: click.Context, here: Path) -> KeySource:
    """Where the keys are: as was typed, else those that this state has already, else by the environment, else here."""
    typed = any(ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in ("key_file", "key_command"))
    return (named_keys(ctx) if typed or not here.exists() else None) or KeyFile(here)


def _lock(state: Path) -> int:
    """A descriptor that holds the state's lock; children inherit it, so it is free when the last one is gone."""
    fd = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    end = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            # one that was killed leaves children that are about to die
            if Path(f"/proc/{holder}").exists() or time.monotonic() >= end:
                os.close(fd)
                raise InvalidConfig(
                    f'a yard runs already on state "{state}" (pid {holder}); stop it, or give another --state'
                ) from None
            time.sleep(0.05)
    os.ftruncate(fd, 0)
    os.pwrite(fd, str(os.getpid()).encode(), 0)
    return fd


def _make(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise InvalidConfig(f'"{folder}" cannot be made: {error.strerror}; give another --state') from None
    return folder


def _earlier(state: Path) -> Endpoints | None:
    try:
        return Endpoints.load(state)
    except InvalidConfig:
        return None


def _leave(state: Path) -> None:
    """The file stays, so that the next `up` takes the same ports; it names no process any more."""
    with suppress(InvalidConfig):
        ends = Endpoints.load(state)
        if ends.pid == os.getpid():
            replace(ends, pid=None).save(state)


def _port(url: str | None) -> int | None:
    try:
        return urlsplit(url or "").port
    except ValueError:
        return None


def _say(text: str) -> None:
    with suppress(OSError):
        click.echo(f"batchyard: {text}", err=True)
