"""What may be changed of queues and environments at run time, what not, and how a file's word goes with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from batchyard.broker import changes
from batchyard.broker.changes import What
from batchyard.broker.config import Config, load, parse
from batchyard.broker.errors import InvalidConfig, NotFound
from batchyard.broker.job import Job

NODE = {"vcpus": 8, "memory_mib": 16000}
FILE = {"queues": {"cpu": {"environments": ["here"]}}, "environments": {"here": NODE}}


def config(data: Any = FILE) -> Config:
    return parse(data, "test")


def refused(act: Any) -> str:
    with pytest.raises((InvalidConfig, NotFound)) as caught:
        act()
    return str(caught.value)


def grown() -> Config:
    """With an environment and a queue made at run time."""
    made = changes.create(config(), "environment", "there", NODE)
    return changes.create(made, "queue", "night", {"environments": ["there", "here"], "priority": 3})


def test_what_was_made_at_run_time_is_there_and_known_as_such() -> None:
    made = grown()
    assert made.by_priority() == ["night", "cpu"]
    assert [changes.origin(made, "queue", q) for q in ("night", "cpu")] == ["runtime", "file"]
    assert parse(json.loads(made.model_dump_json()), "test") == made


@pytest.mark.parametrize(
    ("what", "name", "fields", "words"),
    [
        ("queue", "cpu", {"environments": ["here"]}, ["there already"]),
        ("queue", "x", {"environments": ["nosuch"]}, ['"nosuch" is not defined']),
        ("queue", "x", {"environments": []}, ["queues.x.environments"]),
        ("queue", "x", {"environments": ["here"] * 2}, ["twice"]),
        ("queue", "x", {}, ["queues.x.environments", "required"]),
        ("queue", "x", {"environments": ["here"], "prio": 1}, ["no such field", "priority"]),
        ("queue", "a b", {"environments": ["here"]}, ["a name is"]),
        ("environment", "here", NODE, ["there already"]),
        ("environment", "x", {"vcpus": 1}, ["memory_mib", "required"]),
        ("environment", "x", {**NODE, "kind": "CLOUD"}, ["environments.x.kind"]),
        ("environment", "x", {**NODE, "min_vcpus": 9, "max_vcpus": 8}, ["less than min_vcpus"]),
        ("environment", "x", {"shapes": [{"name": "a", **NODE}] * 2}, ["twice"]),
        ("environment", "x", {"shapes": [{"name": "a", "cpus": 2}]}, ["no such field", "vcpus"]),
    ],
)
def test_what_breaks_a_rule_is_refused(what: What, name: str, fields: dict[str, Any], words: list[str]) -> None:
    said = refused(lambda: changes.create(config(), what, name, fields))
    assert all(word in said for word in words), said


def test_fargate_is_not_mixed_with_other_machines_and_a_queue_has_three_environments_at_most() -> None:
    plain = {f"e{n}": NODE for n in range(4)} | {"f": {**NODE, "kind": "FARGATE"}}
    both = {"queues": {"q": {"environments": ["e1", "f"]}}, "environments": plain}
    assert "do not mix FARGATE" in refused(lambda: config(both))
    four = {"queues": {"q": {"environments": ["e0", "e1", "e2", "e3"]}}, "environments": plain}
    assert "at most 3" in refused(lambda: config(four))


def test_only_the_state_of_what_a_file_says_may_be_changed_and_stays_until_the_file_says_another() -> None:
    assert "file; change it there" in refused(lambda: changes.update(config(), "queue", "cpu", {"priority": 5}))
    assert "file; change it there" in refused(lambda: changes.delete(config(), "queue", "cpu"))
    off = changes.update(config(), "queue", "cpu", {"state": "DISABLED"})
    again = changes.of_file(off, config())  # the controller starts once more with the same file
    assert again.queues["cpu"].state == "DISABLED"
    assert changes.of_file(again, again).queues["cpu"].state == "DISABLED"
    disabled = config({**FILE, "queues": {"cpu": {"environments": ["here"], "state": "DISABLED"}}})
    assert changes.of_file(again, disabled).made.file_states == {}  # it says so by itself
    on = changes.update(again, "queue", "cpu", {"state": "ENABLED"})
    assert (on.queues["cpu"].state, on.made.file_states) == ("ENABLED", {})


def test_a_file_leaves_what_was_made_at_run_time_and_may_not_take_its_name() -> None:
    made = grown()
    other = config({"queues": {"gpu": {"environments": ["here"]}}, "environments": {"here": NODE}})
    after = changes.of_file(made, other)
    assert sorted(after.queues) == ["gpu", "night"]
    taken = config({**FILE, "queues": {"night": {"environments": ["here"]}}})
    assert "was made at run time" in refused(lambda: changes.of_file(made, taken))
    assert changes.of_file(None, other) is other


def test_a_file_without_queues_leaves_those_of_the_file_before(tmp_path: Path) -> None:
    path = tmp_path / "yard.yaml"
    path.write_text("lease_s: 60\n")
    before = changes.update(grown(), "queue", "cpu", {"state": "DISABLED"})
    read = load(path, lambda: before)
    assert (sorted(read.queues), read.lease_s, read.queues["cpu"].state) == (["cpu"], 60, "ENABLED")
    after = changes.of_file(before, read)
    assert (sorted(after.queues), after.queues["cpu"].state) == (["cpu", "night"], "DISABLED")
    with pytest.raises(InvalidConfig, match="required"):
        load(path)
    path.write_text(json.dumps({**FILE, "made": {"queues": ["cpu"]}}))
    with pytest.raises(InvalidConfig, match="no such field"):
        load(path)


def test_deleting_wants_it_disabled_and_detached() -> None:
    made = grown()
    assert "first `batchyard queue disable night`" in refused(lambda: changes.delete(made, "queue", "night"))
    off = changes.update(made, "queue", "night", {"state": "DISABLED"})
    off = changes.update(off, "environment", "there", {"state": "DISABLED"})
    assert 'one of queue "night"' in refused(lambda: changes.delete(off, "environment", "there"))
    going = changes.delete(off, "queue", "night")
    assert changes.delete(going, "queue", "night") == going
    assert "being deleted" in (going.refusal("night", Job.parse({"image": "x"})) or "")
    assert "being deleted" in refused(lambda: changes.update(going, "queue", "night", {"state": "ENABLED"}))
    assert "being deleted" in refused(lambda: changes.create(going, "queue", "night", {"environments": ["here"]}))
    gone = changes.deleted(going, "night")
    assert changes.deleted(gone, "night") == gone
    assert sorted(changes.delete(gone, "environment", "there").environments) == ["here"]
    assert 'no queue "night"' in refused(lambda: changes.delete(gone, "queue", "night"))


def test_a_disabled_environment_gives_its_nodes_nothing_and_a_queue_that_goes_neither() -> None:
    made = grown()
    assert made.claimed("there") == ["night"]
    off = changes.update(made, "environment", "there", {"state": "DISABLED"})
    assert off.claimed("there") == off.claimed("there", ("night",)) == []
    assert off.served("there") == ["night"]  # it is shown as what it serves
    going = changes.delete(changes.update(made, "queue", "night", {"state": "DISABLED"}), "queue", "night")
    assert (going.claimed("here"), going.claimed("there")) == (["cpu"], [])


def test_later_environments_wait_the_longer_the_later_they_stand() -> None:
    made = grown()
    assert made.overflow() == {"night here": "2000"}
    assert changes.update(made, "queue", "night", {"overflow_s": 0}).overflow() == {}


def test_with_shapes_a_job_must_fit_one_of_them() -> None:
    shapes = [{"name": "wide", "vcpus": 16, "memory_mib": 1000}, {"name": "deep", "vcpus": 2, "memory_mib": 64000}]
    data = {"queues": {"q": {"environments": ["e"]}}, "environments": {"e": {"shapes": shapes, "max_vcpus": 12}}}
    read = config(data)
    assert (read.environments["e"].vcpus, read.environments["e"].memory_mib) == (16, 64000)
    assert parse(json.loads(read.model_dump_json()), "test") == read

    def job(vcpus: float, memory_mib: int) -> str | None:
        return read.refusal("q", Job.parse({"image": "x", "vcpus": vcpus, "memory_mib": memory_mib}))

    assert job(10, 900) is job(2, 60000) is None
    assert "memory_mib 60000 of at most 1000" in (job(3, 60000) or "") or "vcpus 3 of at most 2" in (
        job(3, 60000) or ""
    )
    assert "vcpus 14 of at most 12" in (job(14, 900) or "")
