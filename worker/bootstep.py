"""The node inside a Celery worker: a step of the worker blueprint, and remote control through our records.

A consumer step would be stopped and started at each reconnect; this one is created and started once. Celery's consumer
pops no task queue at all.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from celery import Celery, bootsteps
from celery.signals import celeryd_after_setup
from celery.worker import state as worker_state
from celery.worker.control import control_command, inspect_command
from kombu import Queue

from batchyard.broker.errors import BatchyardError
from batchyard.broker.remote import ids_of

from .node import Node

log = logging.getLogger(__name__)
_StartStopStep: Any = bootsteps.StartStopStep  # its stub says that info() gives nothing
_PIPE_BYTES = 1 << 16
KILL_S = 2.0  # from SIGTERM to SIGKILL when a drain's grace is over


class NodeStep(_StartStopStep):  # type: ignore[misc]
    """Starts with the worker, drains before it goes. `node` is set by `attach`."""

    requires = ("celery.worker.components:Hub", "celery.worker.components:Pool")
    node: Node

    def create(self, parent: Any) -> None:
        parent.node = self.node

    def start(self, parent: Any) -> None:
        """Main thread, before the broker connection exists."""
        self._signals, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        self.node.start()
        threading.Thread(target=self._announce, daemon=True).start()

    def _announce(self) -> None:
        self.node.ready.wait()
        options = self.node.tools.options
        print(
            f"ready: node {options.name} serves {','.join(self.node.queues())} with {options.vcpus:g} vCPUs, "
            f"{options.memory_mib} MiB, {len(options.gpus)} GPUs, {options.disk_gib:g} GiB",
            flush=True,
        )

    def register_with_event_loop(self, worker: Any, hub: Any) -> None:
        """Main thread, after every (re)connect."""
        self.node.tools.reporter.connected(worker.consumer)
        hub.add_reader(self._signals, os.read, self._signals, _PIPE_BYTES)  # else a SIGTERM waits for the hub's timer
        hub.call_soon(self.node.tools.reporter.flush)

    def info(self, obj: Any) -> dict[str, Any]:
        """Part of `inspect stats`; `pool` replaces what the pool said."""
        jobs = len(self.node.runs)
        return {
            "pool": {**obj.pool.info, "max-concurrency": self.node.tools.options.most_jobs, "processes": []},
            "batchyard": {"running": jobs},
        }

    def close(self, parent: Any) -> None:
        """First hook of warm and cold shutdown, on the main thread; the broker connection is still there."""
        node, end = self.node, time.monotonic() + self.node.tools.options.grace_s
        node.drain()
        _pump(parent, lambda: not node.empty() and time.monotonic() < end and not worker_state.should_terminate)
        node.give_back_all(KILL_S)
        end = time.monotonic() + KILL_S + 5
        _pump(parent, lambda: not node.empty() and time.monotonic() < end)
        node.tools.reporter.flush()
        if parent.consumer and parent.consumer.event_dispatcher:
            parent.consumer.event_dispatcher.flush()
        node.close()


def _pump(worker: Any, going_on: Callable[[], bool]) -> None:
    """Runs the hub meanwhile, so that ping, inspect and revoke are answered; without a broker it only waits."""
    loop, pumping = None, worker.consumer is not None and worker.consumer.connection is not None
    while going_on():
        if not pumping:
            time.sleep(0.1)
            continue
        try:
            loop = loop or worker.hub.create_loop()
            next(loop)
        except StopIteration:
            loop = None
        except SystemExit:
            pass  # a second remote shutdown
        except Exception as error:
            log.warning("drain goes on without remote control: %s", error)
            pumping = False


def attach(app: Celery, node: Node, queues: list[str]) -> None:
    """Makes the app's worker a node. queues: shown to Celery, popped by nobody."""
    app.conf.task_queues = [Queue(q, routing_key=q) for q in queues]
    app.steps["worker"].add(type("Node", (NodeStep,), {"node": node, "name": "batchyard.node"}))

    @celeryd_after_setup.connect(weak=False)
    def no_task_queues(sender: object, instance: Any, conf: object, **_: object) -> None:
        instance.app.amqp.queues.deselect(queues)


def _signal_name(value: object) -> str:
    """Raises ValueError: a container that cannot be told this signal would not be told to stop at all."""
    if isinstance(value, int):
        return signal.Signals(value).name
    name = "SIG" + str(value).upper().removeprefix("SIG") if value else "SIGTERM"
    if name not in signal.Signals.__members__:
        raise ValueError(f'no signal "{value}"')
    return name


@control_command(variadic="task_id", signature="[id1 [id2 [... [idN]]]]")
def revoke(state: Any, task_id: object, terminate: bool = False, signal: object = None, **_: object) -> dict[str, Any]:
    """Cancel jobs: stored, then told to those that run here."""
    node: Node = state.consumer.controller.node
    try:
        return {
            "ok": {
                i: node.cancel(
                    i, "terminated" if terminate else "revoked", terminate=terminate, first_signal=_signal_name(signal)
                )
                for i in ids_of(task_id)
            }
        }
    except (BatchyardError, ValueError) as error:
        return {"error": str(error)}


@control_command(variadic="task_id", args=[("signal", str)], signature="<signal> [id1 [id2 [... [idN]]]]")
def terminate(state: Any, signal: object, task_id: object, **_: object) -> dict[str, Any]:
    """The built-in command would call the built-in revoke."""
    answer: dict[str, Any] = revoke(state, task_id, terminate=True, signal=signal)
    return answer


@control_command(variadic="headers", signature="[key1=value1 [... [keyN=valueN]]]")
def revoke_by_stamped_headers(
    state: Any, headers: Any, terminate: bool = False, signal: object = None, **_: object
) -> dict[str, Any]:
    """Of the jobs that run here, those with one of these stamps."""
    wanted = dict(h.split("=", 1) for h in headers) if isinstance(headers, list) else headers
    node: Node = state.consumer.controller.node
    hit = [
        run.claimed.id
        for run in list(node.runs.values())
        if any(set(ids_of(run.view.stamps.get(k))) & set(ids_of(v)) for k, v in wanted.items() if k in run.view.stamps)
    ]
    answer: dict[str, Any] = revoke(state, hit, terminate, signal)
    return answer


@inspect_command()
def active_queues(state: Any) -> list[dict[str, Any]]:
    """What this node serves, though Celery pops none of it."""
    return [Queue(q, routing_key=q).as_dict(recurse=True) for q in state.consumer.controller.node.queues()]


def _refuse(name: str) -> None:
    control_command(name=name)(lambda state, **_: {"error": f"{name} does not apply to a Batchyard node"})


for _name in (
    "add_consumer",
    "cancel_consumer",
    "pool_grow",
    "pool_shrink",
    "pool_restart",
    "autoscale",
    "rate_limit",
    "time_limit",
):
    _refuse(_name)
