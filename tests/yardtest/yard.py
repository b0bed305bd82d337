"""A whole yard of real processes for tests: Redis, controller, nodes; killed and started again at will.

    with running_yard(folder, image) as yard:
        yard.start_node("a")
        result = yard.send("true")
        assert result.get(timeout=30)["exit_code"] == 0
        yard.nothing_left()

A test module makes one in a module-scoped fixture, since starting costs about 2 s. Whatever happens, the processes that
it started, and the containers with its label, are gone at its end.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import redis
from celery import Celery
from celery.canvas import Signature
from celery.result import AsyncResult

from batchyard.broker import keys
from batchyard.broker.config import Config, parse
from batchyard.broker.record import Record
from batchyard.broker.seal import KeyRing
from batchyard.broker.store import Yard
from batchyard.worker import memory

from .redis import RedisServer, free_port
from .wait import until

LEASE_S = 2.0
_WORKER = "from batchyard.worker.commands import worker; worker()"
_CONTROLLER = "import sys; from batchyard.broker.cli import main; main(sys.argv[1:])"
_ENDED_BY_US = {-signal.SIGKILL, -signal.SIGTERM, 0}


class Child:
    """A process of ours, its log in a file that goes on over restarts."""

    def __init__(self, name: str, command: list[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.name, self.command, self.log = name, command, log
        self._environment = {**os.environ, **(environment or {})}
        self._from = 0
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        assert not self.alive, f"{self.name} runs already"
        self._from = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self._environment
            )

    def said(self) -> str:
        """What it wrote since it was last started."""
        return self.log.read_bytes()[self._from :].decode(errors="replace") if self.log.exists() else ""

    def wait_for(self, text: str, *, timeout_s: float = 60.0) -> None:
        """Until it wrote this. AssertionError with the end of its log when it ended before, or took too long."""

        def there() -> bool:
            alive = self.alive  # asked first: what it says before it ends is then there
            if text in self.said():
                return True
            assert alive, f"{self.name} ended before it said {text!r}:\n{self.said()[-3000:]}"
            return False

        try:
            until(there, f"{self.name} says {text!r}", timeout_s=timeout_s, every_s=0.05)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.said()[-3000:]}") from None

    def tell(self, number: int) -> None:
        if self.process is not None and self.alive:
            self.process.send_signal(number)

    def end(self, number: int = signal.SIGTERM, *, timeout_s: float = 20.0) -> int | None:
        """Ends it, with SIGKILL when it takes too long. May be called twice. Its exit code."""
        if self.process is None:
            return None
        self.tell(number)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class TestYard:
    """One Redis, a controller, any number of nodes. `producer` is a stock Celery app; `store` looks at the records."""

    __test__ = False  # no class of tests

    def __init__(self, directory: Path, image: str, *, config: Mapping[str, Any] | None = None) -> None:
        self.directory, self.image = directory, image
        (directory / "redis").mkdir(parents=True)
        self.redis_server = RedisServer(free_port(), directory / "redis")
        self.url = self.redis_server.url()
        self.key_file, self.blobs = directory / "key", directory / "store"
        self.secrets, self.shared = directory / "secrets", directory / "shared"
        for folder in (self.secrets, self.shared):
            folder.mkdir()
        self.shared.chmod(0o755)  # a job's user must get into what is bound from here
        self.config = _config(config or {})
        self.config_file = directory / "yard.yaml"
        self.config_file.write_text(self.config.model_dump_json())  # JSON is YAML
        self.ring = KeyRing.load_or_create(self.key_file)
        self.id = hashlib.sha256(self.ring.mark.encode()).hexdigest()[:16]
        self.nodes: dict[str, Child] = {}
        self.controller: Child | None = None
        self._others: list[Child] = []
        self.store = Yard(self.url, self.ring)
        self.producer = Celery("producer", broker=self.url, backend=self.url, set_as_current=False)
        self._mute = Celery("mute", broker=self.url, set_as_current=False)

    @property
    def redis(self) -> redis.Redis:
        return self.store.redis

    # -- processes
    def start_redis(self) -> None:
        self.redis_server.start()

    def start_controller(self) -> Child:
        """The controller, on its configuration; may be called again after a kill."""
        if self.controller is None:
            named = ["--broker", self.url, "--key-file", str(self.key_file), "--config", str(self.config_file)]
            command = [sys.executable, "-c", _CONTROLLER, "controller", *named]
            self.controller = Child("controller", command, self.directory / "controller.log")
        self.controller.start()
        self.controller.wait_for("ready:")
        return self.controller

    def start_node(
        self, name: str = "a", *, wait: bool = True, environment: Mapping[str, str] | None = None, **options: Any
    ) -> Child:
        """A node, or the same one again after it has ended. options: those of `batchyard worker`, `_` for `-`."""
        node = self.nodes.get(name)
        if node is None or options:
            node = self.nodes[name] = self._node(name, options, environment)
        node.start()
        if wait:
            self.wait_ready(name)
        return node

    def wait_ready(self, *names: str) -> None:
        """Until these nodes claim, by default all."""
        for name in names or tuple(self.nodes):
            self.nodes[name].wait_for("ready: node")

    def _node(self, name: str, options: Mapping[str, Any], environment: Mapping[str, str] | None) -> Child:
        every = {
            "broker": self.url,
            "key_file": self.key_file,
            "store": self.blobs,
            "name": name,
            "state": self.state_of(name),
            "queues": "cpu,other",  # and `tiny` is for nodes that a test starts
            "vcpus": 4,
            "memory_mib": 4096,
            "gpus": 0,
            "disk_gib": 10,
            "copies_gib": 2,
            "copies_memory_mib": 64,
            "secrets": self.secrets,
            "allow_root": self.shared,
            "grace_s": 1,
            "stop_grace_s": 2,
            **options,
        }
        words = [word for key, value in every.items() for word in (f"--{key.replace('_', '-')}", str(value))]
        command = [sys.executable, "-c", _WORKER, *words]
        return Child(f"node {name}", command, self.directory / f"node-{name}.log", environment)

    def forget_node(self, name: str) -> None:
        """Ends a node in order, for good: what it had is not looked at any more."""
        assert self.nodes.pop(name).end() == 0
        memory.remove_folder(self.state_of(name))

    def state_of(self, name: str) -> Path:
        """A node's state folder."""
        return self.directory / f"node-{name}"

    def start_other(self, name: str, command: list[str], *, environment: Mapping[str, str] | None = None) -> Child:
        """Any other process, ended with the yard."""
        child = Child(name, command, self.directory / f"{name}.log", environment)
        self._others.append(child)
        child.start()
        return child

    @staticmethod
    def kill9(child: Child) -> None:
        """As a crash would end it."""
        child.end(signal.SIGKILL)

    def stop(self) -> None:
        """Ends all that was started, nodes first. May be called twice."""
        children = [*self.nodes.values(), *self._others]
        for child in children:
            child.tell(signal.SIGTERM)
        for child in children:
            child.end()
        if self.controller is not None:
            self.controller.end()
        with suppress(redis.RedisError, OSError):
            self.redis.close()
            self.producer.close()
            self._mute.close()
        self.redis_server.stop()
        for state in self.directory.glob("node-*/"):
            memory.remove_folder(state)
        for container in self.containers():
            subprocess.run(["docker", "rm", "-f", "-v", container], capture_output=True, check=False)
        for network in self.networks():
            subprocess.run(["docker", "network", "rm", network], capture_output=True, check=False)

    # -- jobs
    def signature(self, *command: str, queue: str = "cpu", **job: Any) -> Signature:
        """A job of a small demand, as a stock producer would write it."""
        fields = {
            "image": self.image,
            "command": list(command),
            "vcpus": 0.25,
            "memory_mib": 32,
            "disk_gib": 0.1,
            **job,
        }
        return self.producer.signature("batchyard.run", kwargs={"job": fields}, queue=queue)

    def send(self, *command: str, queue: str = "cpu", **job: Any) -> AsyncResult[Any]:
        """Sends a job."""
        return self.signature(*command, queue=queue, **job).apply_async()

    def send_quietly(self, script: str, *, queue: str = "cpu", **job: Any) -> str:
        """Sends a job of a shell script; its id. Nothing of Celery's waits for the result, so Redis may go away."""
        fields = self.signature("sh", "-c", script, **job).kwargs
        return str(self._mute.send_task("batchyard.run", kwargs=dict(fields), queue=queue, ignore_result=False).id)

    def shell(self, script: str, **job: Any) -> AsyncResult[Any]:
        """Sends a job of a shell script."""
        return self.send("sh", "-c", script, **job)

    def ended(self, job_id: str, *, timeout_s: float = 60.0) -> Record:
        """The record once the job has ended."""
        record = until(lambda: self._ended(job_id), f"job {job_id} ends", timeout_s=timeout_s, every_s=0.05)
        assert record is not None
        return record

    def _ended(self, job_id: str) -> Record | None:
        record = self.peek(job_id)
        return record if record is not None and record.state.ended else None

    def result(self, job_id: str) -> Any:
        """What a producer that asks now gets: the result as JSON, of a job that has succeeded."""
        told = json.loads(self.redis.get(keys.result(job_id)) or "{}")
        assert told.get("status") == "SUCCESS", told
        return told["result"]

    def peek(self, job_id: str) -> Record | None:
        """The record, or None while there is none or Redis is away."""
        try:
            return self.store.record(job_id)
        except Exception:
            return None

    def reason(self, result: AsyncResult[Any], *, timeout_s: float = 60.0) -> str:
        """Why a job failed; it must fail, and its producer must be told the same."""
        try:
            value = result.get(timeout=timeout_s)
        except Exception as error:
            told = error
        else:
            raise AssertionError(f"job {result.id} succeeded: {value}")
        record = self.ended(result.id)
        assert record.state.value == "FAILED"
        assert record.reason in str(told.args[0]), (record.reason, told.args)
        return record.reason

    def running(self, job_id: str, *, timeout_s: float = 30.0) -> Record:
        """The record once the job runs."""

        def look() -> Record | None:
            record = self.peek(job_id)
            return record if record is not None and record.state.value == "RUNNING" else None

        record = until(look, f"job {job_id} runs", timeout_s=timeout_s)
        assert record is not None
        return record

    def lease_left_s(self, job_id: str) -> float:
        """How long its lease still runs; below 0 when it has none."""
        deadline_ms = self.redis.zscore(keys.LEASES, job_id) or 0
        return deadline_ms / 1000 - self.store.now_s()

    # -- what is left
    def containers(self, *, jobs_only: bool = False) -> list[str]:
        """Ids of this yard's containers, running or not; a living node parks some without a job."""
        asked = ["docker", "ps", "-aq", "--no-trunc", "--filter", f"label=batchyard.yard={self.id}"]
        asked += ["--filter", "label=batchyard.job"] if jobs_only else []
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60).stdout.split()

    def networks(self) -> list[str]:
        """Ids of the networks of this yard's gangs."""
        asked = ["docker", "network", "ls", "-q", "--filter", f"label=batchyard.yard={self.id}"]
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60).stdout.split()

    def leftovers(self) -> dict[str, object]:
        """What should not be there when no job is: containers, leases, reservations, files, undelivered ends."""
        left: dict[str, object] = {
            "containers": self.containers(jobs_only=True),
            "leases": self.redis.zrange(keys.LEASES, 0, -1),
            "outbox": self.redis.hkeys(keys.OUTBOX),
            "expiring": self.redis.zrange(keys.EXPIRING, 0, -1),
            "lists": {q: d for q, d in self.store.depth(list(self.config.queues)).items() if d.total},
            "class counts": self.redis.keys("by:q:*"),
        }
        for name in self.nodes:
            left[f"{name}: jobs"] = self.redis.smembers(keys.node_jobs(name))
            jobs = self.state_of(name) / "jobs"
            left[f"{name}: files"] = sorted(p.name for p in jobs.iterdir()) if jobs.exists() else []
            fields: dict[Any, Any] = self.redis.hgetall(keys.node(name))
            about = {k.decode(): v.decode() for k, v in fields.items()}
            if self.nodes[name].alive:
                capacity = {
                    what: (about.get(what), about.get(f"free_{what}")) for what in ("vcpus", "memory_mib", "gpus")
                }
                left[f"{name}: reserved"] = {k: v for k, v in capacity.items() if v[0] != v[1] or v[0] is None}
        return {what: found for what, found in left.items() if found}

    def nothing_left(self, *, timeout_s: float = 20.0) -> None:
        """No container, file, lease, queue entry or reservation is left, once the nodes have beaten again."""
        deadline = time.monotonic() + timeout_s
        while left := self.leftovers():
            assert time.monotonic() < deadline, f"left behind: {left}"
            time.sleep(0.1)

    def healthy(self) -> None:
        """All processes that were started still run, and none of them broke inside."""
        for child in (self.controller, *self.nodes.values()):
            assert child is not None
            assert child.alive, f"{child.name} has ended:\n{child.said()[-3000:]}"
            assert "Traceback" not in child.said(), child.said()[-6000:]


def _config(changes: Mapping[str, Any]) -> Config:
    here = {"vcpus": 4, "memory_mib": 4096, "gpus": 0, "disk_gib": 10}
    plain: dict[str, Any] = {
        "queues": {name: {"environments": ["here"]} for name in ("cpu", "other", "tiny")},
        "environments": {"here": here},
        "lease_s": LEASE_S,
        **changes,
    }
    return parse(json.loads(json.dumps(plain)), "the test's configuration")


@contextmanager
def running_yard(
    directory: Path, image: str, *, nodes: int = 1, config: Mapping[str, Any] | None = None
) -> Iterator[TestYard]:
    """A yard with its controller and `nodes` nodes named a, b, c …; stopped at the end."""
    yard = TestYard(directory, image, config=config)
    try:
        yard.start_redis()
        yard.start_controller()
        for name in "abcdefgh"[:nodes]:
            yard.start_node(name, wait=False)
        yard.wait_ready()
        yield yard
    finally:
        yard.stop()
