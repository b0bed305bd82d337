"""Why a job waits, decided from facts made up here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from batchyard.broker.blocked import Amounts, Scaling
from batchyard.broker.facts import Facts, Kept, NodeFacts
from batchyard.broker.heads import Head
from batchyard.broker.reasons import Reason
from batchyard.broker.record import Attempt, Record, from_hash
from batchyard.broker.shortage import EnvironmentFacts
from batchyard.broker.why import explain

NOW_S = 1_000_000.0
EMPTY = Amounts(vcpus=4, memory_mib=4096, gpus=0, disk_gib=10)


def record(state: str, **fields: str) -> Record:
    told = {"state": state, "queue": "cpu", "mc": "3000", "mem": "64", "gpu": "0", "disk": "1024", **fields}
    return from_hash("j1", {k.encode(): v.encode() for k, v in told.items()})


def node(name: str = "n1", **changes: Any) -> NodeFacts:
    plain = NodeFacts(
        name=name, up=True, draining=False, quiet_s=1, jobs=0, most_jobs=64, total=EMPTY, free=EMPTY
    )  # fmt: skip
    return replace(plain, **changes)


def facts(state: str = "RUNNABLE", *, fields: dict[str, str] | None = None, **changes: Any) -> Facts:
    plain = Facts(job_id="j1", now_s=NOW_S, record=record(state, **(fields or {})), controller=True)
    return replace(plain, **changes)


def codes(found: list[Reason]) -> list[str]:
    return [one.code for one in found]


def text(found: list[Reason]) -> str:
    return "\n".join(one.text for one in found)


def test_a_job_that_fits_now_waits_for_its_turn() -> None:
    found = explain(facts(place=(2, 7), nodes=(node(),)))
    assert codes(found) == ["place", "has_room"]
    assert found[0].text == '2 jobs of 7 stand before it in queue "cpu"'
    assert found[0].as_json() == {"code": "place", "text": found[0].text, "ahead": 2, "waiting": 7, "queue": "cpu"}
    assert explain(facts(place=(0, 1), nodes=(node(),)))[0].text == 'it is the only job in queue "cpu"'


def test_a_full_node_says_what_it_lacks_now_and_of_how_much() -> None:
    free = Amounts(vcpus=1, memory_mib=10, gpus=0, disk_gib=10)
    found = explain(facts(place=(0, 1), nodes=(node(free=free, jobs=3),)))
    assert found[1].text == ("it fits n1 when empty; n1 now lacks 2 vCPU of 4, 54 MiB of memory of 4096 (3 jobs there)")
    assert found[1].details == {"node": "n1", "lacks": {"vcpus": 2, "memory_mib": 54}}


def test_where_no_node_is_large_enough_that_is_said_first() -> None:
    small = Amounts(vcpus=2, memory_mib=4096, gpus=0, disk_gib=10)
    found = explain(facts(nodes=(node(total=small, free=small),)))
    assert codes(found) == ["no_node_fits", "too_small"]
    assert "it has 2 vCPU; the job asks for 3 vCPU" in found[1].text


def test_the_node_that_is_nearest_to_taking_the_job_comes_first() -> None:
    busy = Amounts(vcpus=0, memory_mib=4096, gpus=0, disk_gib=10)
    nodes = (
        node("small", total=busy), node("leaving", draining=True), node("full", jobs=64),
        node("uploading", uploads=70, uploads_full=True),
        node("busy", free=busy, jobs=1), node("idle"), node("new", total=None, free=None),
    )  # fmt: skip
    told = [one.details.get("node") for one in explain(facts(nodes=nodes))]
    assert told == ["idle", "busy", "full", "uploading", "leaving", "new", "small"]


def test_a_thousand_nodes_are_counted_and_not_listed() -> None:
    found = explain(facts(nodes=tuple(node(f"n{n}") for n in range(1000))))
    assert len(found) == 9
    assert found[-1].text == "and 992 more nodes alike"


def test_a_queue_without_a_node_says_so_and_names_the_silent_ones() -> None:
    assert "no node is up that serves queue" in text(explain(facts()))
    found = explain(facts(nodes=(node("n7", up=False),)))
    assert codes(found) == ["no_node"]
    assert "(n7 silent)" in found[0].text


@pytest.mark.parametrize(("state", "code"), [("DISABLED", "queue_disabled"), (None, "no_queue")])
def test_a_queue_that_is_disabled_or_gone_is_named(state: str | None, code: str) -> None:
    assert code in codes(explain(facts(queue_state=state, nodes=(node(),))))


def test_an_eta_is_said_with_the_time_that_is_left() -> None:
    found = explain(facts("PENDING", eta_s=NOW_S + 90, expires_s=NOW_S + 7300))
    assert codes(found) == ["delayed", "expires"]
    assert "(in 1 min 30 s)" in found[0].text
    assert "in 2 h 1 min" in found[1].text


def test_an_eta_that_has_passed_asks_for_the_controller() -> None:
    found = explain(facts("PENDING", eta_s=NOW_S - 5, controller=False))
    assert "due for 5.0 s; no controller works" in found[0].text


def test_a_job_in_its_backoff_says_when_it_is_tried_again() -> None:
    tried = Attempt(node="n1", started=1.0, ended=2.0, exit_code=3, reason="the command ended with exit code 3")
    found = explain(
        facts("PENDING", fields={"attempts": tried.dumps()}, eta_s=NOW_S - 900, retry_at_s=NOW_S + 90, nodes=(node(),))
    )
    assert codes(found) == ["backoff", "attempt"]
    assert "it is tried again, not before" in found[0].text
    assert "(in 1 min 30 s)" in found[0].text


def test_a_job_that_waits_for_others_names_those_that_are_left_with_their_states() -> None:
    fields = {"depends": '[["a", 0], ["b", 1], ["c", 0]]', "left": "2", "on:b": "1", "on:c": "0"}
    found = explain(facts("PENDING", fields=fields, depends_on={"b": "RUNNING"}, eta_s=NOW_S + 90, nodes=(node(),)))
    assert codes(found) == ["depends_on", "depends_on", "delayed"]
    assert found[0].text == "it waits for job b to end, well or not; that is RUNNING"
    assert found[1].details == {"depends_on": "c", "on_failure": "FAIL", "state": "gone"}


def test_queues_that_the_nodes_serve_first_are_named() -> None:
    assert "jobs wait there: urgent 12" in text(explain(facts(before={"urgent": 12}, nodes=(node(),))))


def test_a_job_that_came_back_says_why_its_attempts_ended() -> None:
    tried = Attempt(node="n1", started=1.0, ended=2.0, exit_code=3, reason="the command ended with exit code 3")
    found = explain(facts(fields={"attempts": tried.dumps()}, nodes=(node(),)))
    assert found[-1].text == "attempt 1 on n1: the command ended with exit code 3"


def test_a_job_that_runs_says_where_and_for_how_long() -> None:
    ran = {"node": "n1", "started": str(int((NOW_S - 65) * 1000))}
    assert explain(facts("RUNNING", fields=ran))[0].text == "it runs on n1 for 1 min 5 s"
    ends = explain(facts("RUNNING", fields={**ran, "progress": "uploads outputs (1 of 2)"}))
    assert ends[0].text == "it runs on n1 for 1 min 5 s: uploads outputs (1 of 2)"
    assert codes(explain(facts("RUNNING", fields={**ran, "cancel": "no more"}))) == ["stopping"]
    assert explain(facts("STARTING", fields={"node": "n1", "progress": "pulling"}))[0].text.endswith(": pulling")
    silent = explain(facts("RUNNING", fields=ran, nodes=(node(up=False, quiet_s=40),)))
    assert codes(silent) == ["running", "node_silent"]


def test_an_ended_job_says_how_it_ended() -> None:
    ended = {
        "node": "n1",
        "started": "1000",
        "ended": "13000",
        "exit_code": "3",
        "reason": "it broke",
        "log": "sha256:l",
    }
    assert explain(facts("FAILED", fields=ended))[0].text == (
        "it failed on n1 after 12 s: it broke (exit code 3); `batchyard logs` shows what it said"
    )
    done = explain(facts("SUCCEEDED", fields={**ended, "exit_code": "0"}))
    assert done[0].text == "it succeeded on n1 after 12 s (exit code 0)"
    reused = explain(facts("SUCCEEDED", fields={"exit_code": "0", "reused": "j0"}))
    assert reused[0].text == "it succeeded (exit code 0), not run: its outputs are those of job j0"
    never = explain(facts("FAILED", fields={"reason": "expired"}, cancelled=True))
    assert (codes(never), never[0].text) == (["cancelled"], "it was ended before it ran: expired")


def test_a_job_that_is_not_known_says_what_there_is_of_it() -> None:
    assert codes(explain(facts(record=None))) == ["unknown"]
    found = explain(facts(record=None, listed=("cpu", 4), stored_cancel="no more", controller=False))
    assert codes(found) == ["waits_for_intake", "cancel_stored"]
    assert 'queue "cpu" behind 4 others; no controller works' in found[0].text
    assert "no Celery message" in text(explain(facts(record=None, dead="no Celery message")))
    assert "3 messages wait" in text(explain(facts(record=None, waiting_lists=3)))


def environment(name: str = "here", **changes: Any) -> EnvironmentFacts:
    return replace(EnvironmentFacts(name=name, state="ENABLED", lacks={}), **changes)


def test_how_long_a_job_is_ready_is_told_with_its_place() -> None:
    found = explain(facts(place=(0, 1), ready_s=NOW_S - 125, nodes=(node(),)))
    assert found[0].text == 'it is the only job in queue "cpu"; it has been ready for 2 min 5 s'
    assert found[0].details["since"] == NOW_S - 125


def test_an_environment_that_is_as_it_should_be_says_nothing() -> None:
    assert codes(explain(facts(environments=(environment(),), nodes=(node(),)))) == ["has_room"]


def test_what_no_environment_can_hold_any_more_names_the_nearest_and_what_it_lacks() -> None:
    far = environment("far", lacks={"vcpus": (3, 2), "gpus": (1, 0)})
    near = environment("near", lacks={"memory_mib": (64, 60)})
    found = explain(facts(environments=(far, near), nodes=(node(),)))
    assert codes(found)[0] == "fits_no_environment"
    assert found[0].text.endswith('environment "near": memory_mib 64 of at most 60')
    assert found[0].details == {"environment": "near", "lacks": {"memory_mib": 4}}


def test_one_of_several_environments_may_be_too_small_or_disabled() -> None:
    small, off = environment("small", lacks={"vcpus": (3, 2)}), environment("off", state="DISABLED")
    found = explain(facts(environments=(small, off), nodes=(node(closed="disabled"),)))
    assert codes(found) == ["environment_disabled", "too_large_for", "node_disabled"]
    assert "`batchyard environment enable off`" in found[0].text


def test_machines_that_are_being_added_or_cannot_be_had_are_told_of() -> None:
    coming = environment(scaling=Scaling(state="UNDER_WAY", since_s=NOW_S - 70, text="2 of m5.large"))
    found = explain(facts(environments=(coming,)))
    assert codes(found) == ["scaling", "no_node"]
    assert found[0].text == 'machines are being added to environment "here" for 1 min 10 s: 2 of m5.large'
    none = environment(scaling=Scaling(state="NO_CAPACITY", shape="p4d"))
    assert explain(facts(environments=(none,)))[0].as_json() == {
        "code": "no_capacity", "text": 'environment "here" cannot get a machine (p4d) now', "environment": "here",
        "shape": "p4d",
    }  # fmt: skip


def test_the_first_of_a_queue_says_in_awss_words_what_blocks_it_and_when_it_is_cancelled() -> None:
    head = Head(id="j1", first=NOW_S - 400, code="CAPACITY:X", since=NOW_S - 300, text="CAPACITY:X - Service cannot")
    found = explain(facts(head=head, limit_s=NOW_S + 300))
    assert codes(found) == ["blocked", "time_limit", "no_node"]
    assert found[0].details == {
        "status_reason": "CAPACITY:X - Service cannot", "aws_code": "CAPACITY:X", "since": NOW_S - 300
    }  # fmt: skip
    assert "5 min 0 s" in found[0].text
    assert "cancelled in 5 min 0 s" in found[1].text
    assert codes(explain(facts(head=replace(head, code="", text="")))) == ["no_node"]


def test_a_node_that_is_kept_says_for_whom() -> None:
    kept = Kept(nodes=("n1",), since_s=NOW_S - 90)
    found = explain(facts(place=(0, 1), kept=kept, nodes=(node(free=replace(EMPTY, vcpus=1)),)))
    assert found[1].text == "node n1 is kept for it since 1 min 30 s ago, and takes no other job until it has room"
    assert found[1].details == {"nodes": ["n1"], "since": NOW_S - 90}
    found = explain(facts(place=(1, 2), nodes=(node(kept_for="j2"),)))
    assert found[1].text == "node n1 is kept for job j2"
