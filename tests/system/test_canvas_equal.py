"""A canvas of ours ends as one of stock Celery workers does: the same messages, the same results.

Each canvas is sent once; its first messages are copied into two databases. In one, stock workers play `batchyard.run`;
in the other the yard's own intake, claim and settle do, in this process and without containers. The user's own tasks
run on stock workers in both. Compared is every message pushed and every result stored, but for times, tracebacks and
ids that did not exist when the canvas was sent.
"""

from __future__ import annotations

import base64
import codecs
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
from celery import Celery, chain, chord, group

from batchyard.broker import keys
from batchyard.broker.config import Config, Queue
from batchyard.broker.deadletters import DeadLetters
from batchyard.broker.ending import Outbox
from batchyard.broker.environment import Environment
from batchyard.broker.errors import JobFailed
from batchyard.broker.followups import CannotFollow, Followups
from batchyard.broker.intake import Intake
from batchyard.broker.record import Attempt, Claimed
from batchyard.broker.seal import KeyRing
from batchyard.broker.state import State
from batchyard.broker.store import Free, Yard
from yardtest.apart import apart
from yardtest.redis import RedisServer, free_port
from yardtest.stock import outcome

SCRATCH, OURS, STOCK = 0, 1, 2
RETENTION_S, EXPIRES_S = 3600, 86400
SOON = datetime.now(UTC) + timedelta(hours=9)
PAST = datetime(2001, 1, 1, tzinfo=UTC)
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class Make:
    """Makes steps for one producer. A name that starts with "fail" fails."""

    def __init__(self, app: Celery) -> None:
        self.app = app

    def j(self, name: str, *, queue: str | None = "cpu", **options: Any) -> Any:
        """A job."""
        where = {"queue": queue} if queue else {}
        return self.app.signature(
            "batchyard.run", kwargs={"job": {"image": "none:1", "name": name}}, **where, **options
        )

    def u(self, name: str, **options: Any) -> Any:
        """A task of the user's own."""
        return self.app.signature("user.add", kwargs={"n": name}, queue="user", **options)

    def s(self, **options: Any) -> Any:
        """One that takes a chord's results."""
        return self.app.signature("user.sum", queue="user", **options)

    def e(self, name: str = "err") -> Any:
        """The user's own errback."""
        return self.app.signature("user.err", kwargs={"n": name}, queue="user")


def linked(signature: Any, then: tuple[Any, ...] = (), on_error: tuple[Any, ...] = ()) -> Any:
    for one in then:
        signature.link(one)
    for one in on_error:
        signature.link_error(one)
    return signature


def stamped(m: Make) -> Any:
    canvas = chain(m.j("a"), m.j("b"), m.u("c"))
    canvas.stamp(order="77")
    return canvas


CANVASES: dict[str, Callable[[Make], Any]] = {
    "chain of three": lambda m: chain(m.j("a"), m.j("b"), m.j("c")),
    "chain with priorities": lambda m: chain(m.j("a", priority=3), m.j("b", priority=5), m.j("c", priority=9)),
    "chain with .si": lambda m: chain(m.j("a"), m.j("b", immutable=True), m.j("c")),
    "chain through a user's task": lambda m: chain(m.j("a"), m.u("b"), m.j("c")),
    "chain from a user's task": lambda m: chain(m.u("a"), m.j("b"), m.u("c")),
    "chain that fails": lambda m: chain(m.j("a"), m.j("fail"), m.j("c"), m.j("d")),
    "link": lambda m: linked(m.j("a"), (m.j("then"),)),
    "three links": lambda m: linked(m.j("a"), (m.j("x"), m.u("y"), m.j("z"))),
    "link to a group": lambda m: linked(m.j("a"), (group(m.j("x"), m.u("y")),)),
    "link to a chain": lambda m: linked(m.j("a"), (chain(m.j("x"), m.u("y")),)),
    "link_error unused": lambda m: linked(m.j("a"), (m.j("then"),), (m.e(),)),
    "two link_errors": lambda m: linked(m.j("fail"), (m.j("then"),), (m.e("e1"), m.e("e2"))),
    "link_error that is a job": lambda m: linked(m.j("fail"), (), (m.j("onerr", immutable=True),)),
    "link_error of a chain": lambda m: chain(m.j("a"), m.j("fail"), m.j("c")).on_error(m.e()),
    "group": lambda m: group(m.j("a"), m.j("b"), m.u("c")),
    "chord": lambda m: chord([m.j("a"), m.j("b"), m.j("c")], m.j("body")),
    "chord of both, user's body": lambda m: chord([m.j("a"), m.u("b"), m.j("c")], m.s()),
    "chord of user's tasks, our body": lambda m: chord([m.u("a"), m.u("b")], m.j("body")),
    "chord with a chain as body": lambda m: chord([m.j("a"), m.j("b")], chain(m.s(), m.j("x"), m.u("y"))),
    "chord that fails": lambda m: chord([m.j("a"), m.j("fail"), m.j("c")], linked(m.j("body"), (), (m.e(),))),
    "chord that fails, chain as body": lambda m: chord([m.j("a"), m.j("fail")], chain(m.s(), m.j("x"))).on_error(m.e()),
    "chains in a group in a chord": lambda m: chord(
        [chain(m.j("a"), m.j("b")), m.j("c"), chain(m.u("d"), m.j("e"))], m.s()
    ),
    "chord with a chain that fails early": lambda m: chord(
        [chain(m.j("fail"), m.j("b"), m.j("c")), m.j("d")], linked(m.s(), (), (m.e(),))
    ),
    "chain to a group": lambda m: chain(m.j("a"), group(m.j("b"), m.j("c"))),
    "group in a chain": lambda m: chain(m.j("a"), group(m.j("b"), m.u("c")), m.j("d")),
    "chain of two groups": lambda m: chain(m.j("a"), group(m.j("b"), m.j("c")), group(m.j("d"), m.j("e"))),
    "two groups in a chain": lambda m: chain(
        m.j("a"), group(m.j("b"), m.j("c")), m.j("d"), group(m.j("e"), m.u("f")), m.j("g")
    ),
    "chord in a chord": lambda m: chord([chord([m.j("a"), m.j("b")], m.j("in")), m.j("c")], m.s()),
    "chord of nested groups": lambda m: chord([group(m.j("a"), m.j("b")), m.j("c")], m.s()),
    "chord of a chain to a group": lambda m: chord([chain(m.j("a"), group(m.j("b"), m.j("c"))), m.j("d")], m.s()),
    "chord with a group as body": lambda m: chord([m.j("a"), m.j("b")], group(m.j("x"), m.u("y"))),
    "chord that fails, group as body": lambda m: chord(
        [m.j("fail"), m.j("b")], group(linked(m.j("x"), (), (m.e(),)), m.u("y"))
    ),
    "ignore_result": lambda m: chain(m.j("a", ignore_result=True), m.j("b", ignore_result=True), m.j("c")),
    "ignore_result in a chord": lambda m: chord([m.j("a", ignore_result=True), m.j("b")], m.s()),
    "stamps": stamped,
    "expires and countdown": lambda m: chain(m.j("a"), m.j("b", expires=3600), m.u("c", countdown=1)),
    "expires and eta as times": lambda m: chain(m.j("a"), m.j("b", expires=SOON), m.u("c", eta=PAST)),
    "expired user's task": lambda m: chain(m.j("a"), m.u("b", expires=PAST)),
    "options on the chain": lambda m: chain(m.j("a", queue=None), m.j("b"), m.u("c")).set(priority=5, queue="cpu"),
    "chord of one": lambda m: chord([m.j("a")], m.j("body")),
    "headers": lambda m: chain(m.j("a", headers={"mine": "x"}), m.j("b", headers={"mine": "y"})),
    "chord with a user's task that fails": lambda m: chord([m.j("a"), m.u("fail")], linked(m.j("body"), (), (m.e(),))),
}

BETTER: dict[str, Callable[[Make], Any]] = {
    "chord in a chord that fails": lambda m: chord(
        [chord([m.j("fail"), m.j("b")], m.j("in")), m.j("c")], linked(m.s(), (), (m.e(),))
    ),
    "queue on the chain": lambda m: chain(m.j("a", queue=None), m.j("b", queue=None), m.j("c", queue=None)),
}


@dataclass(slots=True, kw_only=True)
class Side:
    """What happened in one database: messages (list, message) and results, by canvas."""

    messages: dict[str, list[str]] = field(default_factory=dict)
    results: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A canvas on its way: the ids that it was sent with, that of its last step, those of its chords' members
    and of the steps that it began with."""

    name: str
    ids: frozenset[str]
    last: str
    members: frozenset[str]
    roots: frozenset[str]


class Us:
    """Intake, claim and settle of one yard, without a node."""

    def __init__(self, url: str) -> None:
        self.yard = Yard(url, KeyRing.new())
        self.yard.prepare()
        self.config = Config(
            queues={"cpu": Queue(environments=("here",))},
            environments={"here": Environment(vcpus=64, memory_mib=1 << 20, disk_gib=1000)},
        )
        self._followups = Followups(url, result_expires_s=EXPIRES_S)
        self._intake = Intake(self.yard)
        self._outbox = Outbox(self.yard, self._followups, retention_s=RETENTION_S)

    def round(self) -> bool:
        """One look at everything. Whether there was something to do."""
        busy = self._intake.run(self.config) > 0
        free = Free(vcpus=64, memory_mib=1 << 20, gpus=0, disk_gib=1000)
        _, jobs = self.yard.claim("stand-in", uuid4().hex, free, ["cpu"], lease_s=60, count=8)
        for claimed in jobs:
            self._settle(claimed)
        return self._outbox.run() > 0 or busy or bool(jobs)

    def _settle(self, claimed: Claimed) -> None:
        document = self.yard.open(claimed.id, claimed.document)
        args, kwargs, _ = document.message.arguments()
        state, fields = State.SUCCEEDED, {}
        try:
            result = outcome(claimed.id, args[0] if args else None, kwargs["job"])
            effects = self._followups.succeeded(document.message, result)
            fields = {"result": json.dumps(result)}
        except JobFailed as error:
            state, effects = State.FAILED, self._followups.failed(document.message, error)
        except CannotFollow as error:
            state, effects = State.FAILED, error.effects
        now = time.time()
        attempt = Attempt(node="stand-in", started=now, ended=now, exit_code=0, reason="")
        assert self.yard.settle(claimed, state, attempt, fields, effects, retention_s=RETENTION_S)


class Monitor:
    """Everything that is pushed to a list, by database, as Redis tells."""

    def __init__(self, server: RedisServer) -> None:
        self.pushed: dict[int, list[tuple[str, bytes]]] = {OURS: [], STOCK: []}
        self._socket = socket.create_connection(("127.0.0.1", server.port))
        self._socket.sendall(b"MONITOR\r\n")
        self._lines = self._socket.makefile("rb")
        self._lines.readline()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with suppress(OSError, ValueError):
            for line in self._lines:
                if (found := re.match(rb"\+[\d.]+ \[(\d+) \S+\] (.*)", line)) and int(found[1]) in self.pushed:
                    words = [codecs.escape_decode(w)[0] for w in re.findall(rb'"((?:[^"\\]|\\.)*)"', found[2])]
                    if words[0].lower() == b"lpush" and b'"task"' in words[2]:
                        self.pushed[int(found[1])].append((words[1].decode(), words[2]))

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(free_port(), tmp_path_factory.mktemp("canvas"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def workers(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Stock workers: the user's own in both databases, the reference in one."""
    log = (tmp_path_factory.mktemp("stock") / "log").open("ab")
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / ".ci" / "ns")])
    processes = []
    for queue, db in (("user", OURS), ("user", STOCK), ("cpu", STOCK)):
        environment = {**os.environ, "PYTHONPATH": path, "STOCK_URL": server.url(db)}
        environment |= {"STOCK_PLAYS_US": "1"} if queue == "cpu" else {}
        options = ["-Q", queue, "--pool", "solo", "-l", "WARNING", "-n", f"{queue}{db}@stock"]
        quiet = ["--without-mingle", "--without-gossip", "--without-heartbeat"]
        command = [sys.executable, "-m", "celery", "-A", "yardtest.stock", "worker", *options, *quiet]
        processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    yield
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()
    log.close()


@pytest.fixture(scope="module")
def sides(server: RedisServer, workers: None) -> dict[int, Side]:
    """All canvases, run to their end in both databases."""
    us, monitor = Us(server.url(OURS)), Monitor(server)
    sent = apart(lambda: [_send(server, name, make) for name, make in {**CANVASES, **BETTER}.items()])
    clients = {db: redis.Redis.from_url(server.url(db)) for db in (OURS, STOCK)}
    lists = [name for queue in ("cpu", "user") for name in keys.priority_lists(queue)]
    idle_since = time.monotonic()
    deadline = idle_since + 45
    before: object = None
    while time.monotonic() - idle_since < 1.0:
        assert time.monotonic() < deadline, "the canvases do not come to an end"
        now = [len(p) for p in monitor.pushed.values()], [c.dbsize() for c in clients.values()]
        waiting = any(c.exists(*lists, "unacked") for c in clients.values())
        if us.round() or waiting or now != before:
            before, idle_since = now, time.monotonic()
        else:
            time.sleep(0.02)
    monitor.close()
    assert DeadLetters(us.yard, KeyRing.new).list() == {}
    assert us.yard.redis.hlen(keys.OUTBOX) == 0
    return {db: _side(clients[db], monitor.pushed[db], sent) for db in (OURS, STOCK)}


def _send(server: RedisServer, name: str, make: Callable[[Make], Any]) -> Sent:
    """Sends a canvas into the scratch database and copies what came of it into the others."""
    scratch: Any = redis.Redis.from_url(server.url(SCRATCH))
    scratch.flushdb()
    app = Celery("producer", broker=server.url(SCRATCH), backend=server.url(SCRATCH), set_as_current=False)
    last = make(Make(app)).apply_async(**({"queue": "cpu"} if name == "queue on the chain" else {})).id
    ids, members, roots = {last}, set(), set()
    # A chord's size first: a member that ends before it is there never completes the chord.
    for key in sorted(scratch.scan_iter(count=1000), key=lambda key: scratch.type(key) == b"list"):
        if key.startswith(b"_kombu"):
            continue
        ids |= set(_UUID.findall(key.decode()))
        for db in (OURS, STOCK):
            other = redis.Redis.from_url(server.url(db))
            if scratch.type(key) == b"list":
                for raw in scratch.lrange(key, 0, -1):
                    message = _decoded(raw)
                    ids |= set(_UUID.findall(json.dumps(message)))
                    members |= {message["headers"]["id"]} if message["body"][2]["chord"] else set()
                    roots.add(message["headers"]["root_id"])
                    other.rpush(key, raw)
            else:
                other.restore(key, max(0, scratch.pttl(key)), scratch.dump(key))
    return Sent(name=name, ids=frozenset(ids), last=last, members=frozenset(members), roots=frozenset(roots))


def _decoded(raw: bytes) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(raw)
    message["body"] = json.loads(base64.b64decode(message["body"]))
    return message


def _side(client: Any, pushed: list[tuple[str, bytes]], sent: list[Sent]) -> Side:
    owner = {one: s for s in sent for one in s.ids}
    members = {one for s in sent for one in s.members}
    messages: list[tuple[Sent, str, dict[str, Any]]] = []
    for key, raw in pushed:
        message = _decoded(raw)
        headers = message["headers"]
        canvas = owner[headers["root_id"]]
        owner.setdefault(headers["id"], canvas)
        messages.append((canvas, key, message))
        if message["body"][2]["chord"]:
            members.add(headers["id"])
    side = Side(messages={s.name: [] for s in sent}, results={s.name: [] for s in sent})
    for canvas, key, message in messages:
        _forget_times(message)
        _forget_last(message["headers"], members, canvas.roots if len(canvas.roots) > 1 else frozenset())
        side.messages[canvas.name].append(_known_only([key, message], canvas.ids))
    for key in client.scan_iter("celery-task-meta-*", count=1000):
        result = json.loads(client.get(key))
        del result["date_done"], result["traceback"]
        canvas = owner[next(one for one in _UUID.findall(result["task_id"] + json.dumps(result)) if one in owner)]
        _forget_last(result, members)
        side.results[canvas.name].append(_known_only(result, canvas.ids))
    for found in (*side.messages.values(), *side.results.values()):
        found.sort()
    return side


def _forget_times(message: dict[str, Any]) -> None:
    headers, properties = message["headers"], message["properties"]
    del properties["delivery_tag"], properties["reply_to"], headers["origin"]
    properties.pop("expiration", None)
    headers["ignore_result"] = bool(headers["ignore_result"])
    for name in ("expires", "eta"):
        headers[name] = headers[name] and "a time"


def _forget_last(fields: dict[str, Any], members: set[str], roots: frozenset[str] = frozenset()) -> None:
    """The parent of a chord's body is the member that happened to end last, and its root that one's root."""
    if fields.get("parent_id") in members:
        fields["parent_id"] = "a member of the chord"
    if fields.get("root_id") in roots:
        fields["root_id"] = "a root of the canvas"


def _known_only(value: object, known: frozenset[str]) -> str:
    """As JSON text, ids that came later made equal."""
    text = re.sub(r'"reply_to": "[^"]*"', '"reply_to": ""', json.dumps(value, sort_keys=True))
    return _UUID.sub(lambda one: one[0] if one[0] in known else "NEW", text)


def _unlike(ours: list[str], stock: list[str]) -> list[str]:
    """Where two lists of JSON texts differ, as paths."""
    only_ours, only_stock = list(ours), list(stock)
    for text in ours:
        if text in only_stock:
            only_ours.remove(text)
            only_stock.remove(text)
    found: list[str] = []
    while only_ours and only_stock and len(ours) == len(stock):
        found += _paths(json.loads(only_ours.pop()), json.loads(only_stock.pop()), "")
    return found + [f"only ours: {t}" for t in only_ours] + [f"only stock: {t}" for t in only_stock]


def _paths(a: Any, b: Any, at: str) -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        return [p for k in sorted({*a, *b}) for p in _paths(a.get(k), b.get(k), f"{at}.{k}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [p for i in range(len(a)) for p in _paths(a[i], b[i], f"{at}[{i}]")]
    return [] if a == b else [f"{at}: ours {a!r}, stock {b!r}"]


@pytest.mark.parametrize("name", CANVASES)
def test_messages_and_results_are_those_of_stock_celery(sides: dict[int, Side], name: str) -> None:
    ours, stock = sides[OURS], sides[STOCK]
    assert _unlike(ours.messages[name], stock.messages[name]) == []
    assert _unlike(ours.results[name], stock.results[name]) == []
    assert ours.results[name], "nothing came of it"


def test_a_chord_whose_member_is_a_failed_chord_ends_where_stock_waits_for_ever(sides: dict[int, Side]) -> None:
    ours, stock = (sides[db].messages["chord in a chord that fails"] for db in (OURS, STOCK))
    assert set(stock) < set(ours)
    assert [json.loads(m)[1]["headers"]["task"] for m in set(ours) - set(stock)] == ["user.err"]


def test_a_queue_given_to_the_whole_chain_reaches_every_step_of_it(sides: dict[int, Side]) -> None:
    assert [json.loads(m)[0] for m in sides[OURS].messages["queue on the chain"]] == ["cpu", "cpu"]
    results = [json.loads(r) for r in sides[OURS].results["queue on the chain"]]
    assert sorted(r["result"]["name"] for r in results) == ["a", "b", "c"]
    # Stock sends the second step to its worker's default queue, where here nobody listens.
    assert len(sides[STOCK].results["queue on the chain"]) == 1
