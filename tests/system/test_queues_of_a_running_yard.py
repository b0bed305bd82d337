"""Queues and environments changed under a controller and a node that go on: nothing is started again."""

from __future__ import annotations

from pathlib import Path

from batchyard.broker import keys
from batchyard.broker.client import Client
from yardtest.wait import until
from yardtest.yard import TestYard, running_yard


def beats(yard: TestYard, count: int) -> None:
    """Until the node was heard of so many times more; it has looked for jobs meanwhile."""
    for _ in range(count):
        seen = yard.store.nodes()["a"]["seen"]
        until(lambda seen=seen: yard.store.nodes()["a"]["seen"] != seen, "the node beats", timeout_s=10)  # type: ignore[misc]


def queues_of_a(yard: TestYard) -> str:
    """As the node tells them."""
    return yard.store.nodes().get("a", {}).get("queues", "")


def test_a_node_follows_queues_that_come_and_go_and_environments_that_are_disabled(tmp_path: Path, image: str) -> None:
    with running_yard(tmp_path / "y", image, nodes=0) as yard:
        yard.start_node("a", queues="")
        change = Client(yard.url, key_file=yard.key_file)
        changes = change.at_run_time

        changes.create("queue", "night", {"environments": ["here"], "priority": 5})
        until(lambda: "night" in queues_of_a(yard), "the node serves it")
        first = yard.send_quietly("true", queue="night")
        assert yard.ended(first).state.value == "SUCCEEDED"

        runs = yard.send_quietly("while [ ! -e /work/never ]; do sleep 0.1; done", queue="night")
        yard.running(runs)
        changes.update("environment", "here", {"state": "DISABLED"})
        changes.create("queue", "marker", {"environments": ["here"]})  # when this is served, the change was heard too
        until(lambda: "marker" in queues_of_a(yard), "the node has heard")
        waits = yard.send_quietly("true")
        until(lambda: yard.peek(waits), "it is taken in", timeout_s=10)
        beats(yard, 3)
        assert yard.store.redis.hget(keys.node("a"), "takes") == b"", "so that no gang's member is placed there either"
        assert yard.store.record(waits).state.value == "RUNNABLE"
        assert yard.store.record(runs).state.value == "RUNNING"  # what runs there goes on
        codes = [reason.code for reason in change.why(waits)]
        assert {"environment_disabled", "node_disabled"} <= set(codes)
        changes.update("environment", "here", {"state": "ENABLED"})
        assert yard.ended(waits).state.value == "SUCCEEDED"

        changes.update("queue", "night", {"state": "DISABLED"})
        changes.delete("queue", "night")
        assert yard.ended(runs).reason == 'queue "night" was deleted'
        until(lambda: "night" not in yard.store.config().queues, "it is gone", timeout_s=15)
        until(lambda: "night" not in queues_of_a(yard), "also for the node")
        counts = yard.store.counts(["cpu"])["cpu"]
        assert {state.value: n for state, n in counts.items() if n} == {"SUCCEEDED": 1}
        change.close()
        yard.nothing_left()
        yard.healthy()
