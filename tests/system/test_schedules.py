"""A schedule of every second, while controllers work at once, are killed, and start again: each second comes once."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from batchyard.broker import keys
from batchyard.broker.blobs import LazyBlobs
from batchyard.broker.client import Client
from batchyard.broker.deadletters import DeadLetters
from batchyard.broker.schedule import parse
from batchyard.broker.schedules import job_id_of
from batchyard.broker.seal import KeyRing
from batchyard.broker.store import Yard
from yardtest.redis import RedisServer
from yardtest.wait import until
from yardtest.yard import Child, running_yard

_CONTROLLER = "import sys; from batchyard.broker.cli import main; main(sys.argv[1:])"
CONFIG = """
queues: {cpu: {environments: [here]}}
environments: {here: {vcpus: 4, memory_mib: 4096}}
schedules:
  pulse: {rate: 1s, job: {image: busybox, command: [echo, "Ref::due"]}, catch_up: all}
"""


@pytest.fixture
def controllers(own_redis: RedisServer, tmp_path: Path) -> Iterator[list[Child]]:
    """Two of them on one Redis, with one configuration; the first works."""
    file, key_file = tmp_path / "yard.yaml", tmp_path / "key"
    file.write_text(CONFIG)
    named = ["--broker", own_redis.url(), "--key-file", str(key_file), "--config", str(file)]
    command = [sys.executable, "-c", _CONTROLLER, "controller", *named]
    made = [Child(f"controller {n}", command, tmp_path / f"controller-{n}.log") for n in "ab"]
    try:
        for one in made:
            one.start()
            until(key_file.exists, "the yard's keys are made", timeout_s=30)
        made[0].wait_for("ready:")
        yield made
    finally:
        for one in made:
            one.end()


def sent(yard: Yard) -> list[float]:
    """The times of the jobs that were taken in, in seconds: those that the yard's keys make these ids of."""
    taken = {record.id for record in yard.recent(1000)}
    now = int(yard.now_s())
    times = [at for at in range(now - 120, now + 2) if job_id_of(yard.ring, "pulse", at * 1000) in taken]
    assert len(times) == len(taken), "a job of no time"
    return [float(at) for at in times]


def test_every_second_comes_once_whoever_is_killed(
    own_redis: RedisServer, controllers: list[Child], tmp_path: Path
) -> None:
    yard = Yard(own_redis.url(), KeyRing.load(tmp_path / "key"))
    for _ in range(2):  # both work for a while: each believes that the lock is its own
        seen = len(sent(yard))
        until(lambda seen=seen: len(sent(yard)) >= seen + 2, "two more seconds come", timeout_s=30)  # type: ignore[misc]
        yard.redis.delete(keys.CONTROLLER)
    chance = random.Random(17)
    for one in controllers:
        moment = chance.random()
        until(lambda moment=moment: yard.now_s() % 1 >= moment, "the moment comes", every_s=0.01)  # type: ignore[misc]
        Child.end(one, 9)
        one.start()
        seen = len(sent(yard))
        until(lambda seen=seen: len(sent(yard)) >= seen + 2, "it goes on", timeout_s=30)  # type: ignore[misc]
    own_redis.kill9()
    own_redis.start()
    seen = len(sent(yard))
    until(lambda: len(sent(yard)) >= seen + 2, "it goes on", timeout_s=30)

    client = Client(yard.url, key_file=tmp_path / "key")
    client.schedules.pause("pulse")
    until(lambda: not yard.depth(["cpu"])["cpu"].lists, "all is taken in", timeout_s=10)
    times = sent(yard)
    assert times == [times[0] + n for n in range(len(times))], "a second is missing"
    assert len(times) >= 10
    records = yard.recent(1000)
    assert Counter(r.id for r in records).most_common(1)[0][1] == 1
    assert {(r.state.value, r.queue, r.image) for r in records} == {("RUNNABLE", "cpu", "busybox")}
    assert yard.depth(["cpu"])["cpu"].total == len(times)
    assert DeadLetters(yard, KeyRing.new).list() == {}
    (view,) = client.schedules.list()
    assert (view.origin, view.state, view.last) == ("config", "PAUSED", times[-1])
    for one in controllers:
        assert "Traceback" not in one.said()


def test_a_schedule_of_a_definition_runs_in_a_container_and_knows_its_time(tmp_path: Path, image: str) -> None:
    with running_yard(tmp_path / "y", image) as yard:
        client = Client(yard.url, key_file=yard.key_file)
        client.definitions.register(
            "note",
            {
                "image": image,
                "command": ["sh", "-c", "echo Ref::schedule Ref::due Ref::more >/work/o"],
                "parameters": {"more": "of-the-definition"},
                "outputs": {"o": "/work/o"},
                "memory_mib": 32,
            },
        )
        told = {"name": "pulse", "rate": "1s", "definition": "note", "overlap": "skip"}
        client.schedule(parse(told))
        last = until(lambda: client.schedules.list()[0].last_job, "a second comes", timeout_s=10)
        record = yard.ended(last or "")
        client.schedules.pause("pulse")
        assert (record.state.value, record.definition) == ("SUCCEEDED", "note:1")
        (due,) = [at for at in range(int(record.created) - 60, int(record.created) + 1)
                  if job_id_of(yard.ring, "pulse", at * 1000) == record.id]  # fmt: skip
        moment = datetime.fromtimestamp(due, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        with Client(yard.url, key_file=yard.key_file, blobs=LazyBlobs(str(yard.blobs), yard.key_file)) as reader:
            reader.get(reader.named(f"{record.id}:o")[0], tmp_path / "o")
        assert (tmp_path / "o").read_text() == f"pulse {moment} of-the-definition\n"
        until(lambda: all(r.state.ended for r in yard.store.recent(100)), "all have ended", timeout_s=20)
        yard.nothing_left()
        yard.healthy()
