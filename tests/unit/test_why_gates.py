"""Why a job waits that has a share, needs tokens or a type of GPU, or is one of a limited number."""

from __future__ import annotations

from typing import Any

from batchyard.broker.blocked import Amounts
from batchyard.broker.facts import Facts, GateFacts, NodeFacts
from batchyard.broker.reasons import Reason
from batchyard.broker.record import from_hash
from batchyard.broker.why import explain

NOW_S = 1_000_000.0
ROOM = Amounts(vcpus=4, memory_mib=4096, gpus=2, disk_gib=10)


def told(*, fields: dict[str, str] | None = None, **changes: Any) -> list[Reason]:
    plain = {"state": "RUNNABLE", "queue": "lab", "mc": "1000", "mem": "64", "gpu": "0", "disk": "1024"}
    record = from_hash("j1", {k.encode(): v.encode() for k, v in {**plain, **(fields or {})}.items()})
    return explain(Facts(job_id="j1", now_s=NOW_S, record=record, controller=True, **changes))


def node(**changes: Any) -> NodeFacts:
    plain: dict[str, Any] = {"name": "n1", "up": True, "draining": False, "quiet_s": 1, "jobs": 1, "most_jobs": 64}
    return NodeFacts(**{**plain, "total": ROOM, "free": ROOM, **changes})


def gate(kind: Any = "consumable", **changes: Any) -> GateFacts:
    return GateFacts(**{"kind": kind, "name": "lic", "need": 2, "free": 1, "total": 3, "jobs": 1,
                        "since_s": NOW_S - 90, **changes})  # fmt: skip


def test_a_closed_gate_says_which_how_many_are_free_who_has_them_and_since_when() -> None:
    first = told(gates=(gate(),), place=(0, 1))[0]
    assert first.code == "consumable"
    assert 'waits for 2 of consumable resource "lic": 1 of 3 are free, 1 job holds the others, since' in first.text
    assert "(1 min 30 s)" in first.text
    assert first.details == {"name": "lic", "need": 2, "free": 1, "total": 3, "jobs": 1, "since": NOW_S - 90}


def test_an_open_gate_says_nothing() -> None:
    assert "consumable" not in [one.code for one in told(gates=(gate(free=2),), place=(0, 1))]


def test_what_can_not_open_by_itself_says_what_to_do() -> None:
    short = told(gates=(gate(total=1, free=1),))[0]
    assert (short.code, "there are 1 in all; add some" in short.text) == ("consumable_short", True)
    gone = told(gates=(gate(total=None, free=0, jobs=0, since_s=None),))[0]
    assert (gone.code, "create it again" in gone.text) == ("consumable_gone", True)


def test_a_limit_of_jobs_at_once_says_whose_it_is() -> None:
    limits = (gate("definition", name="report", need=1, free=0, total=2, jobs=2),
              gate("queue", name="lab", need=1, free=0, total=1, jobs=1, since_s=None))  # fmt: skip
    found = told(gates=limits)[:2]
    assert [one.code for one in found] == ["max_concurrent", "max_concurrent"]
    assert found[0].text.startswith('job definition "report" runs 2 jobs at once at most, and 2 run, since ')
    assert found[1].text == 'queue "lab" runs 1 job at once at most, and 1 run'


def test_a_share_says_when_its_turn_is_and_the_place_is_within_it() -> None:
    fields = {"share": "alice"}
    found = told(fields=fields, place=(2, 5), turn=(3, 0))
    assert found[0].text == '2 jobs of 5 stand before it of share "alice" in queue "lab"'
    assert found[1].code == "share"
    assert found[1].text == (
        'share "alice" is served next in queue "lab": of 3 with jobs it has used least for its weight'
    )
    later = told(fields=fields, place=(0, 1), turn=(3, 2))[1]
    assert "is served after 2 of the 3 shares" in later.text
    assert later.details == {"share": "alice", "shares": 3, "before": 2}


def test_what_is_kept_for_other_shares_is_said() -> None:
    fields = {"share": "alice"}
    assert "reservation" not in [one.code for one in told(fields=fields, turn=(1, 0), unreserved_vcpus=1)]
    kept = told(fields=fields, turn=(1, 0), unreserved_vcpus=0.5)[1]
    assert "may take 0.5 vCPU more now, and the job asks for 1" in kept.text


def test_a_node_without_the_type_of_gpu_says_so() -> None:
    fields = {"gpu": "2", "gpu_type": "a100"}
    assert told(fields=fields, nodes=(node(gpu_types={"t4": 2}),))[-1].text == (
        "node n1 has 0 GPU of type a100; the job asks for 2"
    )
    busy = told(fields=fields, nodes=(node(gpu_types={"a100": 2}, free_gpu_types={"a100": 1}),))[-1]
    assert busy.text == "it fits n1 when empty; n1 now lacks 1 GPU of type a100 of 2 (1 job there)"
    free = told(fields=fields, nodes=(node(gpu_types={"a100": 2}, free_gpu_types={"a100": 2}),))[-1]
    assert free.code == "has_room"
