"""`batchyard controller` and `batchyard flower`: the broker's processes that serve until they are told to stop."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import click

from .doors import Doors, examples, yard_options


@click.command(
    epilog=examples(
        "batchyard controller --config yard.yaml",
        "batchyard controller --broker redis://10.0.0.1:6379/0 --key-file keys.json",
    )
)
@click.option("--config", "config_file", type=click.Path(path_type=Path),
              help="Queues and compute environments (YAML). Kept in Redis; without it, what is there already, else "
                   "queues cpu and gpu on this machine.")  # fmt: skip
@click.option("--secrets", type=click.Path(path_type=Path, file_okay=False, exists=True),
              help="Folder with one file a secret, for `events.webhook.secret`.")  # fmt: skip
@yard_options
def controller(doors: Doors, config_file: Path | None, secrets: Path | None) -> int:
    """Run the controller until SIGTERM. Several may run: one works, the others stand by.

    It prints one line `ready: controller` when it works, or stands by. A Redis that holds no yard yet becomes one; its
    key file is made if it is missing.
    """
    from ..serving import serve_controller

    _log_to_stderr()
    return serve_controller(
        doors.endpoints().broker_url, doors.key_source(), config_file, secrets=secrets, on_ready=_ready
    )


@click.command(
    epilog=examples(
        "batchyard flower", "BATCHYARD_FLOWER_AUTH=me:secret batchyard flower --address 0.0.0.0 --port 5555"
    )
)
@click.option("--port", type=click.IntRange(0, 65535), default=5555, show_default=True, help="0 for any free port.")
@click.option("--address", default="127.0.0.1", show_default=True, help="Others than loopback need a password.")
@yard_options
def flower(doors: Doors, port: int, address: str) -> None:
    """Run Flower: queues with their true depth, nodes, and jobs by image, command and exit code.

    It prints one line `ready: flower http://…`. Everybody on this machine may look and cancel; only with a password, by
    BATCHYARD_FLOWER_AUTH=user:password, are other addresses served, and tasks sent.
    """
    from ..flower import Page, serve

    _log_to_stderr()
    page = Page(address=address, port=port, auth=os.environ.get("BATCHYARD_FLOWER_AUTH") or None)
    serve(doors.endpoints().broker_url, page, on_ready=lambda url: _ready(f"flower {url}"))


def _ready(what: str) -> None:
    click.echo(f"ready: {what}")


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
