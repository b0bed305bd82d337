"""`kill -9` of a node, the controller or Redis before, in and after every step of a job's life.

One run is one canvas of jobs on a fresh yard with one death at a chosen place, and a few more by chance. Afterwards
every record and result agree, each next step has started under one id, results are what the steps make of each other's
outputs, and nothing is left behind. A job whose node died may have run again: effects outside the yard are at least
once.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
from celery import Celery, chain, chord, group
from celery.canvas import Signature

from batchyard.broker.config import Config, Queue
from batchyard.broker.environment import Environment
from batchyard.broker.seal import KeyRing
from batchyard.broker.store import Yard
from yardtest.apart import apart
from yardtest.crash import GANG_STEPS, IMAGE, STEPS, Fault, Members, Place, Victim, When, disagreements, leftovers
from yardtest.redis import RedisServer, free_port
from yardtest.wait import until

TIMEOUT_S = 90.0
FULL, SHORT = range(120), (0, 3, 8, 13, 18, 23, 25, 27, 32, 37, 42, 45, 49, 53, 57, 81, 92)
CONFIG = Config(
    queues={"cpu": Queue(environments=("here",))},
    environments={"here": Environment(vcpus=2, memory_mib=512, disk_gib=10)},
    lease_s=1,
)
PAST = datetime(2001, 1, 1, tzinfo=UTC)


class Several:
    """Jobs that are sent one by one; the result is that of the last."""

    def __init__(self, *jobs: Signature) -> None:
        self._jobs = jobs

    def apply_async(self) -> Any:
        return [job.apply_async() for job in self._jobs][-1]


class Steps:
    """Makes the steps of a canvas for one producer."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def first(self, name: str, *, fails: int = 0, attempts: int = 1, **options: Any) -> Any:
        """A step with no inputs. fails: how many of its attempts end with exit code 3."""
        return self._job(name, {}, fails, attempts, options)

    def gang(self, name: str, *, fails: int = 0, attempts: int = 1) -> Any:
        """A step on two nodes at once."""
        step = self.first(name, fails=fails, attempts=attempts)
        step.kwargs["job"]["nodes"] = 2
        return step

    def dependants(self) -> Several:
        """`c` runs after `a` and any end of `b`; `d` and `e` hang on `b`, which fails; `f` runs after `a`."""
        ids = {name: str(uuid4()) for name in "abcdef"}

        def one(name: str, *parents: object, fails: int = 0) -> Any:
            step = self.first(name, fails=fails, task_id=ids[name])
            step.kwargs["job"]["depends_on"] = list(parents)
            return step

        any_end = {"job_id": ids["b"], "on_failure": "CONTINUE"}
        return Several(
            one("e", ids["d"]), one("d", ids["b"]), one("b", fails=9), one("a"), one("f", ids["a"]),
            one("c", ids["a"], any_end),
        )  # fmt: skip

    def arrays(self) -> Several:
        """`b` child by child after `a`, `c` after all of `b`; `d` one by one, and its first child fails."""
        ids = {name: str(uuid4()) for name in "abcd"}

        def one(name: str, *parents: object, size: int | None = 2, of: str = "", fails: int = 0) -> Any:
            step = self.first(name, fails=fails, task_id=ids[name])
            inputs = {"inputs": {"/in": {"job": ids[of], "from": "out"}}} if of else {}
            step.kwargs["job"] |= {"depends_on": list(parents), "array_size": size, **inputs}
            return step

        return Several(
            one("d", {"type": "SEQUENTIAL"}, size=3, fails=9), one("a"),
            one("b", {"job_id": ids["a"], "type": "N_TO_N"}, of="a"), one("c", ids["b"], size=None, of="b"),
        )  # fmt: skip

    def then(self, name: str, *, output: str = "out", **options: Any) -> Any:
        """A step that reads the output of this name of what came before it."""
        return self._job(name, {"/in": {"from": output}}, 0, 1, options)

    def on_error(self, signature: Any) -> Any:
        """With an errback that is a job."""
        signature.link_error(self.first("err", immutable=True))
        return signature

    def _job(
        self, name: str, inputs: dict[str, object], fails: int, attempts: int, options: dict[str, Any]
    ) -> Signature:
        job = {
            "image": IMAGE,
            "name": name,
            "command": ["step"],
            "environment": {"STEP": name, "FAILURES": str(fails)},
            "memory_mib": 16,
            "disk_gib": 0.1,
            "inputs": inputs,
            "outputs": {"out": "/work/out"},
            "attempts": attempts,
        }
        return self._app.signature("batchyard.run", kwargs={"job": job}, queue="cpu", **options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas:
    """make: what is sent. text: of the last step's output, or None where the last step must fail. runs: the steps that
    must have started, all others must not."""

    name: str
    make: Callable[[Steps], Any]
    text: str | None
    runs: str
    calls: Sequence[str] = ("intake", "claim", "start", "settle")


CANVASES = (
    Canvas(name="job", make=lambda s: s.first("a"), text="a()", runs="a"),
    Canvas(name="chain", make=lambda s: chain(s.first("a"), s.then("b"), s.then("c")), text="c(b(a()))", runs="a b c"),
    Canvas(
        name="chord",
        make=lambda s: chord([s.first("h0"), s.first("h1"), s.first("h2")], s.then("body")),
        text="body(h0()h1()h2())",
        runs="h0 h1 h2 body",
        calls=("intake", "claim", "start", "settle", "deliver"),
    ),
    Canvas(
        name="chain of groups",
        make=lambda s: chain(s.first("a"), group(s.then("b"), s.then("c")), s.then("d"), s.then("e")),
        text="e(d(b(a())c(a())))",
        runs="a b c d e",
        calls=("intake", "claim", "settle", "deliver"),
    ),
    Canvas(
        name="chord with a failing member",
        make=lambda s: chord([s.first("h0"), s.first("h1", fails=9), s.first("h2")], s.on_error(s.then("body"))),
        text=None,
        runs="h0 h1 h2 err",
        calls=("settle", "deliver"),
    ),
    Canvas(
        name="chain with a retry",
        make=lambda s: chain(s.first("a", fails=1, attempts=2), s.then("b")),
        text="b(a())",
        runs="a b",
        calls=("giveback",),
    ),
    Canvas(
        name="chain refused at the door",
        make=lambda s: chain(s.first("a"), s.on_error(s.then("b", output="none")), s.then("c")),
        text=None,
        runs="a err",
        calls=("finish",),
    ),
    Canvas(
        name="dependants",
        make=lambda s: s.dependants(),
        text="c()",
        runs="a b c f",
        calls=("intake", "settle", "finish", "release"),
    ),
    Canvas(
        name="arrays",
        make=lambda s: s.arrays(),
        text="c(b.0(a.0())b.1(a.1()))",
        runs="a.0 a.1 b.0 b.1 c d.0",
        calls=("claim", "settle", "finish", "array", "children_end"),
    ),
    Canvas(
        name="chain with an expired step",
        make=lambda s: chain(s.first("a"), s.on_error(s.then("b", expires=PAST)), s.then("c")),
        text=None,
        runs="a err",
        calls=("finish",),
    ),
)
GANGS = (
    Canvas(
        name="a gang, then a step",
        make=lambda s: chain(s.gang("a"), s.then("b")),
        text="b(a())",
        runs="a b",
        calls=("place", "claim", "member_start", "member_settle"),
    ),
    Canvas(
        name="two gangs, one that fails once",
        make=lambda s: chord([s.gang("h0"), s.gang("h1", fails=1, attempts=2)], s.then("body")),
        text="body(h0()h1())",
        runs="h0 h1 body",
        calls=GANG_STEPS,
    ),
)
VICTIMS: tuple[Victim, ...] = ("caller", "redis")
WHENS: tuple[When, ...] = ("before", "sent", "after")
CELLS: list[tuple[str, When, Victim]] = [(call, when, victim) for call in STEPS for when in WHENS for victim in VICTIMS]


GANG_CELLS: list[tuple[str, When, Victim]] = [
    (c, when, victim) for c in GANG_STEPS for when in WHENS for victim in VICTIMS
]
GANGS_FULL, GANGS_SHORT = range(60), (5, 12, 20, 27)


@pytest.mark.parametrize("seed", [pytest.param(n, marks=[] if n in SHORT else [pytest.mark.full]) for n in FULL])
def test_every_next_step_starts_once_whoever_dies(seed: int, tmp_path: Path) -> None:
    rnd = random.Random(seed)
    call, when, victim = CELLS[seed % len(CELLS)]
    canvas = rnd.choice([c for c in CANVASES if call in c.calls])
    fault = Fault(call=call, when=when, victim=victim, nth=rnd.randint(1, 2) if call == "claim" else 1)
    server = RedisServer(free_port(), tmp_path)
    server.start()
    try:
        place = Place(folder=tmp_path, url=server.url(), fault=fault, seed=str(seed), chance=0.03)
        _run(canvas, place, server, rnd, with_controller=seed // len(CELLS) != 1)
    finally:
        server.stop()


_PUTS: list[tuple[When, Victim]] = [(when, victim) for when in WHENS for victim in VICTIMS]


@pytest.mark.parametrize(
    ("when", "victim"),
    [pytest.param(*cell, marks=[] if cell == ("sent", "caller") else [pytest.mark.full]) for cell in _PUTS],
)
def test_every_next_step_starts_once_whoever_dies_about_a_put(when: When, victim: Victim, tmp_path: Path) -> None:
    server = RedisServer(free_port(), tmp_path)
    server.start()
    try:
        fault = Fault(call="blobs_put", when=when, victim=victim, nth=2)
        place = Place(folder=tmp_path, url=server.url(), fault=fault, seed=f"{when} {victim}", chance=0.02)
        _run(CANVASES[0], place, server, random.Random(0), with_controller=True)
    finally:
        server.stop()


@pytest.mark.parametrize(
    "seed", [pytest.param(n, marks=[] if n in GANGS_SHORT else [pytest.mark.full]) for n in GANGS_FULL]
)
def test_a_job_of_several_nodes_ends_once_whoever_dies(seed: int, tmp_path: Path) -> None:
    rnd = random.Random(seed)
    call, when, victim = GANG_CELLS[seed % len(GANG_CELLS)]
    canvas = rnd.choice([c for c in GANGS if call in c.calls])
    # `place` is called all the time; `claim` too, with empty hands
    fault = Fault(call=call, when=when, victim=victim, nth=rnd.randint(1, 8) if call == "place" else rnd.randint(1, 2))
    server = RedisServer(free_port(), tmp_path)
    server.start()
    try:
        place = Place(folder=tmp_path, url=server.url(), fault=fault, seed=str(seed), chance=0.02)
        _run(canvas, place, server, rnd, with_controller=seed // len(GANG_CELLS) != 1)
    finally:
        server.stop()


def _run(canvas: Canvas, place: Place, server: RedisServer, rnd: random.Random, *, with_controller: bool) -> None:
    yard = Yard(place.url, KeyRing.load_or_create(place.key_file))
    yard.prepare()
    yard.configure(CONFIG)
    last = apart(lambda: str(canvas.make(Steps(_producer(place))).apply_async().id))
    place.starts.touch()
    place.deaths.touch()
    names = (["controller"] if with_controller else []) + ["n0", "n1"]
    kill_at = sorted((rnd.uniform(0.2, 2.5), rnd.choice(names)) for _ in range(rnd.randint(0, 2)))
    client = redis.Redis.from_url(place.url)
    began = time.monotonic()
    with Members(place, server, names) as members:
        quiet_since: float | None = None
        while quiet_since is None or time.monotonic() - quiet_since < 0.15:
            if kill_at and time.monotonic() - began > kill_at[0][0]:
                members.kill(kill_at.pop(0)[1])
            members.tend()
            open_ = _open(client, canvas, place, names)
            quiet_since = None if open_ else quiet_since or time.monotonic()
            if time.monotonic() - began > TIMEOUT_S:
                pytest.fail(f"{canvas.name}, {place.fault}: after {TIMEOUT_S:g} s {open_}; {_story(place)}")
            time.sleep(0.02)
    until(lambda: _back(server, client), "Redis is back")  # a member with nothing more to do may have killed it
    _check(client, canvas, place, last)


def _back(server: RedisServer, client: redis.Redis) -> bool:
    server.start()
    try:
        return bool(client.ping())
    except redis.ConnectionError:  # it was still dying
        return False


def _producer(place: Place) -> Celery:
    return Celery("producer", broker=place.url, backend=place.url, set_as_current=False)


def _open(client: redis.Redis, canvas: Canvas, place: Place, names: list[str]) -> str:
    """What is still to come, or ''."""
    started = {line.split()[0] for line in place.starts.read_text().splitlines()}
    if missing := set(canvas.runs.split()) - started:
        return f"{missing} have not started"
    with suppress(redis.RedisError, OSError):
        if left := leftovers(client):
            return f"left {left}"
        folders = [f for n in names for f in (place.state(n) / "jobs").glob("*")]
        return f"left {folders}" if folders else ""
    return "Redis is down"


def _check(client: redis.Redis, canvas: Canvas, place: Place, last: str) -> None:
    story = f"{canvas.name}, {place.fault}; {_story(place)}"
    assert disagreements(client) == [], story
    ids = defaultdict(set)
    for line in place.starts.read_text().splitlines():
        name, job_id, _ = line.split()
        ids[name].add(job_id.partition("#")[0])
    assert {name: len(found) for name, found in ids.items()} == dict.fromkeys(canvas.runs.split(), 1), story
    state, digest = apart(lambda: _result(place, last))
    if canvas.text is None:
        assert state in {"FAILURE", "REVOKED"}, story
    else:
        assert (state, digest) == ("SUCCESS", "sha256:" + hashlib.sha256(canvas.text.encode()).hexdigest()), story


def _result(place: Place, job_id: str) -> tuple[str, str]:
    """What the producer gets: the state, and the digest of the output where there is one."""
    result = _producer(place).AsyncResult(job_id)
    value = result.get(timeout=5, propagate=False)
    return result.state, value["outputs"]["out"]["digest"] if result.successful() else ""


def _story(place: Place) -> str:
    return f"starts: {place.starts.read_text().split(chr(10))}, deaths: {place.deaths.read_text().split(chr(10))}"
