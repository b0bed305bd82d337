"""The peer: a stock Celery worker whose tasks run containers by docker-py, as one would write it in an afternoon.

`celery -A bench.peer worker -P threads -c 4`, with PEER_URL and PEER_IMAGE in the environment.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import docker
from celery import Celery

QUEUE = "peer"
app = Celery("peer", broker=os.environ.get("PEER_URL"), backend=os.environ.get("PEER_URL"), set_as_current=False)
app.conf.update(task_default_queue=QUEUE, worker_hijack_root_logger=False, broker_connection_retry_on_startup=True)
_local = threading.local()


def client() -> Any:
    """This thread's docker client."""
    if not hasattr(_local, "client"):
        _local.client = docker.from_env()
    return _local.client


@app.task(name="peer.noop")
def noop() -> dict[str, Any]:
    """Create, start, wait, logs, remove."""
    container = client().containers.create(os.environ["PEER_IMAGE"], ["true"], network_mode="none")
    started = time.time()
    container.start()
    exit_code = container.wait()["StatusCode"]
    log = container.logs().decode()
    container.remove()
    return {"exit_code": exit_code, "log": log, "started": started, "ended": time.time()}
