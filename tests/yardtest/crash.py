"""A yard whose parts die: real node and controller processes on a Redis of their own, killed at chosen calls.

Processes are forked from the test's, so that one is there in a tenth of a second. In a child, and only there,
`batchyard.broker.functions.Functions.call` is wrapped: before a chosen Redis function is sent, after it was sent and
before its reply is read, or after its reply, the process or the Redis server gets SIGKILL. `Members.tend()` starts
again what has died.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import redis

from batchyard.broker import controller, functions, keys, serving
from batchyard.broker.functions import Arg, Functions
from batchyard.worker import main as worker_main
from batchyard.worker.engine.fake import FakeEngine, Running
from batchyard.worker.options import NodeOptions

from .redis import RedisServer

IMAGE = "step:1"
STEPS = ("intake", "claim", "start", "settle", "giveback", "finish", "deliver", "release", "array", "children_end")
GANG_STEPS = ("place", "claim", "member_start", "member_settle", "member_giveback")
_STAYS = {
    keys.JOBS,
    keys.SEQUENCE,
    keys.CONFIG,
    keys.NODES,
    keys.CONTROLLER,
    keys.REAPER,
    keys.KEY_HOLDERS,  # which a process takes itself off when it ends in order
    keys.KEY_MARK,
    keys.STORE,
    keys.STAND_IN,
    keys.BLOBS_UNTIL,  # what killed attempts had put
    keys.BLOBS_MADE,
    keys.EVENTS,
    keys.GATES,
    keys.WEBHOOK_LOCK,
    "unacked_mutex",  # kombu's, for its own queues of remote control
}
MOST_DEATHS = 5  # by chance, in one run; with no bound a run would never end
_FORK = multiprocessing.get_context("fork")

When = Literal["before", "sent", "after"]
Victim = Literal["caller", "redis"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Who dies at which moment of the nth call (from 1, in one process) of a Redis function; once in a run."""

    call: str
    when: When
    victim: Victim
    nth: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Folders and addresses of one yard. chance: of a further death at each call of one of STEPS."""

    folder: Path
    url: str
    fault: Fault
    seed: str
    chance: float = 0.0

    @property
    def key_file(self) -> Path:
        return self.folder / "keys.json"

    @property
    def starts(self) -> Path:
        """One line a container that ran: step, job id, attempt."""
        return self.folder / "starts"

    @property
    def deaths(self) -> Path:
        """One line a death: member, function, when, victim."""
        return self.folder / "deaths"

    def state(self, node: str) -> Path:
        return self.folder / node


class Saboteur:
    """What stands between a process and its Redis functions."""

    def __init__(self, member: str, place: Place) -> None:
        self._member, self._place = member, place
        self._random = random.Random(f"{place.seed}:{member}:{os.getpid()}")
        self._count: Counter[str] = Counter()
        self._call = Functions.call

    def install(self) -> None:
        """In this process for good."""
        saboteur, real = self, self._call

        def call(functions: Functions, name: str, *args: Arg) -> Any:
            fault = saboteur.due(name)
            if fault is None:
                return real(functions, name, *args)
            return saboteur.strike(fault, functions, name, args)

        mock.patch.object(Functions, "call", call).start()
        # Of a job's dependants, one is let go in a call: the rest wait for the controller; so do an array's children.
        text = functions.library().replace("AT_ONCE = 64", "AT_ONCE = 1")
        text = re.sub(r"SPAWNED, TOLD, KEPT = \d+, \d+, \d+", "SPAWNED, TOLD, KEPT = 1, 1, 1", text)
        mock.patch.object(functions, "library", return_value=text).start()

    def due(self, name: str) -> Fault | None:
        """The fault that is to happen at this call, if any."""
        self._count[name] += 1
        wanted = self._place.fault
        if name == wanted.call and self._count[name] >= wanted.nth and not self._marker("fault").exists():
            return wanted
        if name in STEPS + GANG_STEPS and self._random.random() < self._place.chance:
            when: When = self._random.choice(("before", "sent", "after"))
            return Fault(call=name, when=when, victim="redis" if self._random.random() < 0.25 else "caller")
        return None

    def strike(self, fault: Fault, functions: Functions, name: str, args: tuple[Arg, ...]) -> Any:
        """The call, with a death in it, unless somebody else was faster or this reply moves nothing."""
        if fault.when == "after":
            reply = self._call(functions, name, *args)
            if name in {"claim", "place"} and len(reply) < 2:  # an empty hand is no step
                return reply
            if self._take(fault):
                self._die(fault, functions)
            return reply
        if self._take(fault):
            if fault.when == "sent":
                self._send(functions, name, args)
            self._die(fault, functions)
        return self._call(functions, name, *args)

    def _send(self, functions: Functions, name: str, args: tuple[Arg, ...]) -> None:
        connection: Any = functions.client.connection_pool.get_connection()
        connection.send_command("FCALL", f"by_{name}", 0, *args)
        time.sleep(self._random.choice((0.0, 0.0005, 0.003)))  # Redis has run it, or not

    def _die(self, fault: Fault, functions: Functions) -> None:
        with self._place.deaths.open("a") as file:
            file.write(f"{self._member} {fault.call} {fault.when} {fault.victim}\n")
        if fault.victim == "caller":
            os.kill(os.getpid(), signal.SIGKILL)
        with suppress(redis.RedisError, OSError):
            os.kill(int(functions.client.info("server")["process_id"]), signal.SIGKILL)

    def _take(self, fault: Fault) -> bool:
        """Whether this death is ours to die."""
        names = ["fault"] if fault is self._place.fault else [f"death-{n}" for n in range(MOST_DEATHS)]
        for name in names:
            with suppress(FileExistsError):
                os.close(os.open(self._marker(name), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                return True
        return False

    def _marker(self, name: str) -> Path:
        return self._place.folder / name


def step(place: Place) -> Callable[[Running], int]:
    """The program of every job: `out` = STEP(contents of the inputs, by path); exit code 3 for FAILURES attempts."""

    def run(running: Running) -> int:
        about = running.spec.environment
        attempt, index = about["AWS_BATCH_JOB_ATTEMPT"], about.get("AWS_BATCH_JOB_ARRAY_INDEX")
        name = about["STEP"] if index is None else f"{about['STEP']}.{index}"
        with place.starts.open("a") as file:
            file.write(f"{name} {about['AWS_BATCH_JOB_ID']} {attempt}\n")
        running.sleep(0.02)
        inputs = sorted((b.target, b.source) for b in running.spec.binds if b.target.startswith("/in"))
        text = "".join(Path(source).read_text() for _, source in inputs)
        work = next(b.source for b in running.spec.binds if b.target == "/work")
        (Path(work) / "out").write_text(f"{name}({text})")
        return 3 if int(attempt) <= int(about["FAILURES"]) else 0

    return run


def _pause(running: Running) -> int:
    running.sleep(3600)
    return 0


def _node(name: str, place: Place) -> None:
    state = place.state(name)
    logs = state / "engine"
    logs.mkdir(parents=True, exist_ok=True)

    def engine() -> FakeEngine:
        made = FakeEngine(logs, images=[IMAGE])
        made.program("step", step(place))
        made.program("/pause", _pause)  # holds a parked namespace
        return made

    options = NodeOptions(
        name=name,
        state=state,
        store=str(place.folder / "store"),
        queues=(),
        vcpus=2,
        memory_mib=512,
        disk_gib=10,
        gang_network="host",  # each has an engine of its own
    )
    with mock.patch.object(worker_main, "DockerEngine", engine):
        sys.exit(worker_main.serve(place.url, place.key_file, options))


def _controller(place: Place) -> None:
    controller.LOCK_S = 1.5  # how long the dead one's lock holds up the next
    sys.exit(serving.serve_controller(place.url, place.key_file, None, on_ready=lambda _: None))


def _child(name: str, place: Place) -> None:
    log = os.open(place.folder / f"{name}.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    Saboteur(name, place).install()
    _controller(place) if name == "controller" else _node(name, place)


class Members:
    """The processes of one yard, by name: `controller` and nodes. Use as a context manager."""

    def __init__(self, place: Place, server: RedisServer, names: list[str]) -> None:
        self._place, self._server = place, server
        self._processes = {name: self._spawn(name) for name in names}
        self.restarts = 0

    def __enter__(self) -> Members:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.join()

    def _spawn(self, name: str) -> Any:
        process = _FORK.Process(target=_child, args=(name, self._place), daemon=True, name=name)
        process.start()
        return process

    def kill(self, name: str) -> None:
        """SIGKILL, at any moment."""
        self._processes[name].kill()

    def bury(self, name: str) -> None:
        """Killed, and never started again."""
        process = self._processes.pop(name)
        process.kill()
        process.join()

    def tend(self) -> None:
        """Starts again what has died."""
        with suppress(AssertionError):  # killed while it loaded its data: the next look starts it
            self._server.start()
        for name, process in list(self._processes.items()):
            if not process.is_alive():
                process.join()
                self._processes[name] = self._spawn(name)
                self.restarts += 1


def leftovers(client: Any) -> list[str]:
    """Keys that should not be there when all jobs have ended. Raises redis errors."""
    left = []
    for raw in client.scan_iter(count=1000):
        key = raw.decode()
        if (
            key in _STAYS
            or key.startswith(("_kombu.", keys.states(""), keys.head("")))
            or (key.startswith("by:node:") and not key.endswith(":jobs"))
        ):
            continue
        kept_a_while = key.startswith(("by:job:", "by:log:", "celery-task-meta-")) or (
            key.startswith("celery-taskset-meta-") and key.endswith(".c")
        )
        if not (kept_a_while and client.ttl(key) > 0):
            left.append(key)
    return sorted(left)


def disagreements(client: Any) -> list[str]:
    """Jobs whose record and Celery result do not say the same. Raises redis errors."""
    wrong = []
    for raw in client.zrange("by:jobs", 0, -1):
        job_id = raw.decode()
        record = {k.decode(): v.decode("utf-8", "replace") for k, v in client.hgetall(f"by:job:{job_id}").items()}
        meta = json.loads(client.get(f"celery-task-meta-{job_id}") or b'{"status": "none"}')
        status, result = meta["status"], meta.get("result")
        if record.get("state") == "SUCCEEDED":
            same = status == "SUCCESS" and result == json.loads(record["result"])
        else:
            same = record.get("state") == "FAILED" and status in {"FAILURE", "REVOKED"}
        if not same:
            wrong.append(f"{job_id}: record {record.get('state')}, result {status} {result}")
    return wrong
