"""Queues and environments changed while the yard runs, against a real Redis: at once, by many, and what claims give."""

from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from batchyard.broker import keys
from batchyard.broker.cli import run
from batchyard.broker.config import Config, parse
from batchyard.broker.controller import Controller, Duties
from batchyard.broker.errors import InvalidConfig, NotFound
from batchyard.broker.followups import Followups
from batchyard.broker.queues import Queues, Removals
from batchyard.broker.record import Attempt, Claimed
from batchyard.broker.serving import CachedConfig, settle_config
from batchyard.broker.state import State
from batchyard.broker.store import Free, Incoming, Yard
from yardtest.poison import envelope
from yardtest.wait import until

pytestmark = pytest.mark.system
ROOM = Free(vcpus=100, memory_mib=1 << 20, gpus=0, disk_gib=1000)
NODE = {"vcpus": 8, "memory_mib": 4096}
CONFIG = parse({"queues": {"cpu": {"environments": ["here"]}}, "environments": {"here": NODE}}, "test")
JOB = {"image": "busybox", "vcpus": 0.5, "memory_mib": 64}
_numbers = itertools.count()


@pytest.fixture
def queues(yard: Yard) -> Queues:
    yard.configure(CONFIG)
    return Queues(yard)


def send(yard: Yard, job_id: str, queue: str, **fields: Any) -> str:
    plain: dict[str, Any] = {"vcpus": 1, "memory_mib": 64, "disk_gib": 1, "document": b"x"}
    one = Incoming(list_key=queue, raw=job_id.encode(), kind="job", id=job_id, queue=queue, **plain | fields)
    yard.redis.lpush(queue, one.raw)
    assert yard.intake([one]) == 1
    return job_id


def claim(yard: Yard, node: str, queue: str) -> list[Claimed]:
    return yard.claim(node, f"c{next(_numbers)}", ROOM, [queue], lease_s=30, count=8)[1]


def beat(yard: Yard, node: str, environment: str) -> None:
    yard.renew(node, {"environment": environment, "state": "READY"}, {}, lease_s=30)


def test_changes_of_many_at_once_are_all_kept(yard: Yard, queues: Queues) -> None:
    def make(n: int) -> None:
        Queues(Yard(yard.url, yard.ring)).create("queue", f"q{n}", {"environments": ["here"]})

    threads = [threading.Thread(target=make, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(yard.config().queues) == sorted(["cpu", *(f"q{n}" for n in range(12))])


def test_a_refused_change_leaves_all_as_it_is(yard: Yard, queues: Queues) -> None:
    before = yard.redis.get(keys.CONFIG)
    with pytest.raises(InvalidConfig):
        queues.create("queue", "x", {"environments": ["nosuch"]})
    with pytest.raises(NotFound):
        queues.update("queue", "nosuch", {"priority": 2})
    assert yard.redis.get(keys.CONFIG) == before


def test_a_configuration_that_changed_meanwhile_is_not_overwritten(yard: Yard, queues: Queues) -> None:
    config, text = yard.config_and_text()
    queues.create("queue", "x", {"environments": ["here"]})
    assert not yard.configure(config, expected=text)
    assert "x" in yard.config().queues


def test_a_controller_that_starts_again_keeps_what_was_made_at_run_time(yard: Yard, queues: Queues) -> None:
    queues.create("environment", "there", NODE)
    queues.create("queue", "night", {"environments": ["there"]})
    queues.update("queue", "cpu", {"state": "DISABLED"})
    for given in (None, CONFIG):
        config = settle_config(yard, given)
        assert sorted(config.queues) == ["cpu", "night"]
        assert config.queues["cpu"].state == "DISABLED"
    assert {name: one["origin"] for name, one in queues.view("queue").items()} == {"cpu": "file", "night": "runtime"}


def test_nodes_and_controllers_are_told_at_once(yard: Yard, queues: Queues) -> None:
    heard = yard.pubsub()
    heard.subscribe(keys.CONTROL, keys.DUTY)
    queues.create("queue", "x", {"environments": ["here"]})
    said: list[Any] = [until(lambda: heard.get_message(timeout=1), "a message", timeout_s=5) for _ in range(2)]
    assert {(one["channel"].decode(), one["data"]) for one in said} == {
        (keys.CONTROL, b"* config"), (keys.DUTY, b"config"),
    }  # fmt: skip
    heard.close()


def test_a_working_controller_takes_in_from_a_queue_made_meanwhile(yard: Yard, queues: Queues) -> None:
    followups = Followups(yard.url, result_expires_s=100)
    controller = Controller(yard, CachedConfig(yard), followups)
    thread = threading.Thread(target=controller.run, daemon=True)
    thread.start()
    try:
        assert controller.working.wait(10)
        queues.create("queue", "night", {"environments": ["here"]})
        yard.redis.lpush("night", json.dumps(envelope("a", JOB)))
        until(lambda: yard.exists("a"), "it is taken in", timeout_s=30)
        assert yard.record("a").state == "RUNNABLE"
    finally:
        controller.stop()
        thread.join(10)


def test_a_deleted_queue_ends_its_jobs_wherever_they_stand_and_goes_then(yard: Yard, queues: Queues) -> None:
    queues.create("queue", "night", {"environments": ["here"]})
    for n in range(300):
        send(yard, f"other{n}", "cpu")
    send(yard, "runs", "night")
    (runs,) = claim(yard, "n1", "night")
    yard.start(runs, started_s=1.0, celery="", expires_s=10)
    send(yard, "ready", "night")
    send(yard, "later", "night", eta_ms=1 << 45)
    yard.redis.lpush("night", json.dumps(envelope("at the door".replace(" ", "-"), JOB)))
    with pytest.raises(InvalidConfig, match="first `batchyard queue disable"):
        queues.delete("queue", "night")
    queues.update("queue", "night", {"state": "DISABLED"})
    queues.delete("queue", "night")
    duties = Duties(yard, yard.config, Followups(yard.url, result_expires_s=100))
    waited = ("ready", "later")
    until(lambda: (duties.round(), all(yard.record(i).state.ended for i in waited))[1], "they ended", timeout_s=20)
    until(lambda: (duties.round(), yard.record("at-the-door").state.ended)[1], "what came has ended", timeout_s=10)
    assert "deleted" in yard.record("ready").reason
    assert yard.record("runs").cancelling  # its node is told to stop it
    assert "night" in yard.config().queues

    gone = Attempt(node="n1", started=1.0, ended=2.0, exit_code=137, reason="stopped")
    assert yard.settle(runs, State.FAILED, gone, {"reason": "stopped"}, [], retention_s=100)
    until(lambda: (duties.round(), "night" not in yard.config().queues)[1], "the queue is gone", timeout_s=20)
    assert not yard.redis.exists(keys.states("night"))
    assert yard.depth(["cpu"])["cpu"].index == 300
    queues.create("queue", "night", {"environments": ["here"]})  # and its name is free again


def test_nothing_is_left_of_a_deleted_queues_shares(yard: Yard, queues: Queues) -> None:
    shares = {"shares": [{"share": "A*", "weight": 2}]}
    queues.create("queue", "lab", {"environments": ["here"], "fair_share": shares})
    send(yard, "j", "lab", clear={"share": "A1"})
    (job,) = claim(yard, "n1", "lab")
    done = Attempt(node="n1", started=1.0, ended=2.0, exit_code=0, reason="done")
    assert yard.settle(job, State.SUCCEEDED, done, {}, [], retention_s=100)
    queues.update("queue", "lab", {"state": "DISABLED"})
    queues.delete("queue", "lab")
    removals = Removals(yard)
    until(lambda: (removals.round(yard.config()), "lab" not in yard.config().queues)[1], "it is gone", timeout_s=10)
    assert yard.redis.keys("by:*:lab*") == []


def test_an_environment_with_nodes_is_not_deleted(yard: Yard, queues: Queues) -> None:
    queues.create("environment", "there", NODE)
    queues.update("environment", "there", {"state": "DISABLED"})
    beat(yard, "n1", "there")
    with pytest.raises(InvalidConfig, match="n1; stop them first"):
        queues.delete("environment", "there")
    yard.leave("n1")
    queues.delete("environment", "there")
    assert sorted(yard.config().environments) == ["here"]


@pytest.mark.parametrize("fair", [False, True])
@pytest.mark.parametrize("shapes", [1, 200])
def test_what_is_left_to_earlier_environments_does_not_hide_what_is_not(yard: Yard, fair: bool, shapes: int) -> None:
    queue = {"environments": ["here", "large"], "overflow_s": 60, **({"fair_share": {}} if fair else {})}
    large = {**NODE, "vcpus": 16}
    yard.configure(parse({"queues": {"cpu": queue}, "environments": {"here": NODE, "large": large}}, "test"))
    beat(yard, "n1", "large")
    waits = send(yard, "waits", "cpu", vcpus=16, priority=5, **({"clear": {"share": "B"}} if fair else {}))
    yard.redis.hset(keys.job(waits), "ready", 1)
    for n in range(shapes):
        send(yard, f"new{n}", "cpu", vcpus=(n + 1) / 1000, **({"clear": {"share": "A"}} if fair else {}))
    found = [job.id for _ in range(12) for job in claim(yard, "n1", "cpu")]
    assert found == [waits]


def test_a_node_of_a_later_environment_takes_what_the_earlier_ones_have_left(yard: Yard, queues: Queues) -> None:
    queues.create("environment", "there", NODE)
    queues.create("queue", "both", {"environments": ["here", "there"], "overflow_s": 60})
    beat(yard, "first", "here")
    beat(yard, "second", "there")
    beat(yard, "outside", "elsewhere")
    for n in range(3):
        send(yard, f"j{n}", "both")
    assert claim(yard, "second", "both") == []
    yard.redis.hincrby(keys.job("j0"), "ready", -30_000)
    assert claim(yard, "second", "both") == []
    yard.redis.hincrby(keys.job("j0"), "ready", -30_001)
    assert [job.id for job in claim(yard, "second", "both")] == ["j0"]
    assert [job.id for job in claim(yard, "first", "both")] == ["j1", "j2"]
    send(yard, "late", "both")
    yard.redis.hincrby(keys.job("late"), "ready", 3_600_000)  # the clock went back an hour
    assert [job.id for job in claim(yard, "second", "both")] == ["late"]
    send(yard, "x", "both")
    assert [job.id for job in claim(yard, "outside", "both")] == ["x"]  # it was told to serve that queue
    queues.update("queue", "both", {"overflow_s": 0})
    send(yard, "y", "both")
    assert [job.id for job in claim(yard, "second", "both")] == ["y"]


def words(yard: Yard, key_file: Path, *what: str) -> list[str]:
    return [*what, "--broker", yard.url, "--key-file", str(key_file)]


def test_the_command_line_makes_changes_shows_and_deletes(
    yard: Yard, queues: Queues, key_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*what: str) -> tuple[int, str, str]:
        code = run(words(yard, key_file, *what))
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    code, out, _ = call("environment", "create", "there", "--kind", "SPOT", "--max-vcpus", "64",
                        "--set", "shapes=[{name: m5, vcpus: 2, memory_mib: 8000}]")  # fmt: skip
    assert (code, out) == (0, "environment there is made, and ENABLED\n")
    assert call("queue", "create", "night", "-e", "there", "-e", "here", "--priority", "7", "--disabled")[0] == 0
    file = tmp_path / "q.yaml"
    file.write_text("environments: [here]\npriority: 2\n")
    assert call("queue", "create", "filed", "-f", str(file), "--priority", "3")[0] == 0
    shown = json.loads(call("queue", "list", "--json")[1])
    assert [(q["name"], q["priority"], q["state"], q["origin"]) for q in shown] == [
        ("cpu", 1, "ENABLED", "file"), ("filed", 3, "ENABLED", "runtime"), ("night", 7, "DISABLED", "runtime"),
    ]  # fmt: skip
    assert "m5" in call("environment", "show", "there")[1]
    assert "SPOT" in call("environment", "list")[1]
    assert call("queue", "enable", "night")[1] == "queue night is changed, and ENABLED\n"
    assert json.loads(call("queue", "update", "night", "--set", "overflow_s=5", "--json")[1])["overflow_s"] == 5
    assert "overflow s" in call("queue", "show", "night")[1]
    for wrong, said in (
        (("queue", "update", "night"), "nothing was said"),
        (("queue", "update", "night", "--set", "x"), "FIELD=VALUE"),
        (("queue", "update", "night", "--set", "x=1"), "no such field"),
        (("queue", "update", "cpu", "--priority", "5"), "change it there"),
        (("queue", "delete", "night"), "first `batchyard queue disable night`"),
        (("queue", "create", "x"), "environments"),
        (("queue", "create", "x", "-f", str(tmp_path / "nosuch")), "cannot be read"),
        (("environment", "delete", "there"), "first `batchyard environment disable there`"),
    ):
        code, out, err = call(*wrong)
        assert (code, out) == (2, ""), wrong
        assert said in err, err
    assert call("queue", "show", "nosuch")[0] == 1
    call("queue", "disable", "night")
    assert call("queue", "delete", "night")[1] == "queue night goes when its jobs have ended\n"
    assert "DELETING" in call("queue", "list")[1]


def test_a_first_configuration_is_this_machine_when_no_file_says_one(yard: Yard) -> None:
    yard.redis.delete(keys.CONFIG)
    config: Config = settle_config(yard, None)
    assert sorted(config.queues) == ["cpu", "gpu"]
    assert settle_config(yard, CONFIG).by_priority() == ["cpu"]
