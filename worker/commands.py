"""`batchyard worker`."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import click

from batchyard.broker.cli.doors import named_keys
from batchyard.broker.endpoints import Endpoints, absolute_store, default_state
from batchyard.broker.errors import InvalidConfig
from batchyard.broker.keysource import KeySource

from . import gpu, memory, options

_NAME_YARD = (
    "give --broker, --key-file or --key-command, and --store (BATCHYARD_BROKER_URL, BATCHYARD_KEY_FILE, "
    "BATCHYARD_KEY_COMMAND or BATCHYARD_KEYS, BATCHYARD_STORE), "
    "or start `batchyard up` here"
)

allow_root_option = click.option(
    "--allow-root",
    "allowed_roots",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder from which file:// inputs may come. May be repeated.",
)
allow_url_host_option = click.option(
    "--allow-url-host",
    "url_hosts",
    multiple=True,
    metavar="HOST",
    help="Host that https:// inputs may name although its addresses are not public. May be repeated.",
)


@click.command()
@click.option(
    "--broker",
    envvar="BATCHYARD_BROKER_URL",
    show_envvar=True,
    help="The yard's Redis, redis://…  [default: that of the `batchyard up` on this machine]",
)
@click.option(
    "--key-file",
    envvar="BATCHYARD_KEY_FILE",
    show_envvar=True,
    type=click.Path(path_type=Path),
    help="The yard's keys.  [default: likewise]",
)
@click.option(
    "--key-command",
    envvar="BATCHYARD_KEY_COMMAND",
    show_envvar=True,
    metavar="COMMAND",
    help="What prints the yard's keys, for instance by a KMS; not --key-file.",
)
@click.option(
    "--store",
    envvar="BATCHYARD_STORE",
    show_envvar=True,
    help="The yard's durable store: a folder, or s3://BUCKET[/PREFIX]?credentials=FILE.  [default: likewise]",
)
@click.option("--new-store", is_flag=True, help="Make --store the yard's, in place of the one that it has.")
@click.option("--name", default=options.machine_name, help="Unique in the yard.  [default: this host's name]")
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    default=Path("~/.batchyard/node"),
    show_default=True,
    help="The node's own folder.",
)
@click.option("--queues", default="", help="Queues to serve, by comma.  [default: those of its compute environment]")
@click.option("--vcpus", type=click.FloatRange(min=0, min_open=True), help="[default: all processors]")
@click.option("--memory-mib", type=click.IntRange(min=6), help="[default: nine tenths of the machine's, less copies]")
@click.option("--gpus", help="Devices by comma; or declared ones: a number, or a100=2,t4=1.  [default: the driver's]")
@click.option("--disk-gib", type=click.FloatRange(min=0), help="[default: most of what is free, less copies]")
@click.option(
    "--scratch",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for copies of inputs and for jobs' work folders.  [default: in --state]",
)
@click.option(
    "--copies-gib", type=click.FloatRange(min=0), help="What copies may take there.  [default: two fifths of the free]"
)
@click.option(
    "--copies-memory-mib",
    type=click.IntRange(min=0),
    help="What copies may take below /dev/shm, 0 for nothing.  [default: a sixteenth of memory; 0 in a container]",
)
@click.option("--near", help="A store of this node alone, as --store has it: it keeps sealed what was used last.")
@click.option("--near-gib", type=click.FloatRange(min=0), default=20.0, show_default=True, help="What --near may take.")
@click.option(
    "--peer-address",
    metavar="HOST[:PORT]",
    help="Give other nodes what is in --near, and get what is in theirs; listen there, on a private network.",
)
@click.option(
    "--scrub-mib-s",
    type=click.FloatRange(min=0),
    default=4.0,
    show_default=True,
    help="How much of copies and --near is read again each second, to find what is damaged; 0 for nothing.",
)
@click.option("--labels", default="", help="k=v,k=v; environment=NAME says which compute environment this node is in.")
@click.option("--secrets", type=click.Path(path_type=Path, file_okay=False), help="Folder with one file a secret.")
@allow_root_option
@allow_url_host_option
@click.option(
    "--fetch-gib",
    type=click.FloatRange(min=0, min_open=True),
    default=100.0,
    show_default=True,
    help="The most that an input from s3:// or https:// may have; of a directory, all files together.",
)
@click.option(
    "--grace-s",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    help="What running jobs get when the node is told to go.",
)
@click.option(
    "--stop-grace-s",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="From SIGTERM to SIGKILL of a cancelled job.",
)
@click.option(
    "--partition-grace-s",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    help="How long jobs go on without Redis.",
)
@click.option(
    "--uploads",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Jobs whose outputs are uploaded side by side; as many with few MiB besides.",
)
@click.option(
    "--most-uploads",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="With so many ended jobs whose outputs are not uploaded yet, the node takes no more jobs.",
)
@click.option(
    "--gang-network",
    default="bridge",
    show_default=True,
    metavar="bridge|host|NAME",
    help="How the containers of one job on several nodes reach each other: by a bridge on the engine that all of its "
    "nodes use, by the hosts' network, or by a network of the engine that you have made, which spans hosts.",
)
@click.option("--address", help="Where other nodes reach this host.  [default: the one on the way to the broker]")
@click.pass_context
def worker(
    ctx: click.Context,
    /,
    broker: str | None,
    key_file: Path | None,
    key_command: str | None,
    store: str | None,
    new_store: bool,
    name: str,
    state: Path,
    queues: str,
    vcpus: float | None,
    memory_mib: int | None,
    gpus: str | None,
    disk_gib: float | None,
    scratch: Path | None,
    copies_gib: float | None,
    copies_memory_mib: int | None,
    near: str | None,
    near_gib: float,
    peer_address: str | None,
    scrub_mib_s: float,
    labels: str,
    secrets: Path | None,
    allowed_roots: tuple[Path, ...],
    url_hosts: tuple[str, ...],
    fetch_gib: float,
    grace_s: float,
    stop_grace_s: float,
    partition_grace_s: float,
    uploads: int,
    most_uploads: int,
    gang_network: str,
    address: str | None,
) -> None:
    """Run a node: claim jobs that fit, run their containers.

    \b
    Examples:
      batchyard worker --name big --vcpus 8 --memory-mib 16000 --queues cpu
      batchyard worker --name two --state ~/.batchyard-two --vcpus 1     beside the node of a `batchyard up`
    """
    from .gang import machine_address
    from .main import serve

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    broker, keys, store = _yard(broker, named_keys(ctx), store)
    pairs = _labels(labels)
    state = state.expanduser().absolute()
    scratch = scratch.expanduser().absolute() if scratch is not None else None
    if copies_gib is None:
        copies_gib = options.machine_copies_gib(scratch or state)
    if copies_memory_mib is None:
        copies_memory_mib = memory.default_mib()
    raise SystemExit(
        serve(
            broker,
            keys,
            options.NodeOptions(
                name=_checked(name),
                state=state,
                store=absolute_store(store),
                queues=tuple(q for q in queues.split(",") if q),
                vcpus=vcpus or os.cpu_count() or 1,
                memory_mib=memory_mib or options.machine_memory_mib(copies_memory_mib),
                disk_gib=options.machine_disk_gib(scratch or state, copies_gib) if disk_gib is None else disk_gib,
                scratch=scratch,
                copies_gib=copies_gib,
                copies_memory_mib=copies_memory_mib,
                near=absolute_store(near) if near is not None else None,
                near_gib=near_gib,
                peer_address=peer_address,
                scrub_mib_s=scrub_mib_s,
                gpus=gpu.discover(gpus),
                labels=pairs,
                secrets=secrets,
                allowed_roots=allowed_roots,
                url_hosts=url_hosts,
                new_store=new_store,
                fetch_gib=fetch_gib,
                environment=pairs.get("environment", "here"),
                grace_s=grace_s,
                stop_grace_s=stop_grace_s,
                partition_grace_s=partition_grace_s,
                uploads=uploads,
                most_uploads=most_uploads,
                gang_network=_network(gang_network),
                address=address or machine_address(broker),
            ),
        )
    )


def _yard(broker: str | None, keys: KeySource | None, store: str | None) -> tuple[str, KeySource, str]:
    """What was not named is taken of the `batchyard up` on this machine, if no other Redis was named."""
    if broker is None:
        try:
            ends = Endpoints.load(default_state())
        except InvalidConfig as error:
            raise InvalidConfig(f"{str(error).partition(';')[0]}; {_NAME_YARD}") from None
        broker, keys = ends.broker_url, keys or ends.key_source()
        store = store or ends.store
    if keys is None or store is None:
        raise InvalidConfig(f"{'no key file' if keys is None else 'no store'} was named; {_NAME_YARD}")
    return broker, keys, store


def _checked(name: str) -> str:
    if not name or len(name) > 128 or not all(c.isalnum() or c in "-_." for c in name):
        raise InvalidConfig(f'node name "{name}": use letters, digits, ".", "-" and "_"')
    return name


def _network(name: str) -> str:
    if name == "none" or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", name):
        raise InvalidConfig(f'--gang-network "{name}": write bridge, host, or the name of a network of the engine')
    return name


def _labels(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",") if part]
    for key, equals, _ in pairs:
        if not equals or not key:
            raise InvalidConfig(f'--labels "{text}": write k=v,k=v')
    return {key: value for key, _, value in pairs}
