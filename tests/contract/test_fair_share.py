"""Queues with shares, against a real Redis: who is served next, and in which order within a share."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from batchyard.broker import config as configuration
from batchyard.broker import keys
from batchyard.broker.heads import Heads
from batchyard.broker.record import Attempt, Claimed
from batchyard.broker.state import State
from batchyard.broker.store import Free, Incoming, Yard

ALL = Free(vcpus=1 << 20, memory_mib=1 << 40, gpus=0, disk_gib=1 << 20)
HERE: dict[str, Any] = {"vcpus": 64, "memory_mib": 64000}
USE = "by:q:lab:use"

pytestmark = pytest.mark.system
_numbers = itertools.count(1)


def configure(yard: Yard, *shares: dict[str, Any], here: dict[str, Any] | None = None, **fair: Any) -> None:
    lab = {"environments": ["here"], "fair_share": {"shares": list(shares), **fair}}
    cpu = {"environments": ["here"]}
    told = {"queues": {"lab": lab, "cpu": cpu}, "environments": {"here": here or HERE}}
    yard.configure(configuration.parse(told, "test"))


def put(yard: Yard, share: str, *, sched: int = 0, vcpus: float = 1, job_id: str = "", eta_ms: int = 0) -> str:
    job_id = job_id or f"{share}-{next(_numbers)}"
    clear = {"share": share, "sched": str(sched)}
    one = Incoming(list_key="lab", raw=job_id.encode(), kind="job", id=job_id, queue="lab", vcpus=vcpus, eta_ms=eta_ms,
                   memory_mib=64, disk_gib=1, document=b"sealed", clear=clear)  # fmt: skip
    yard.redis.lpush("lab", one.raw)
    assert yard.intake([one]) == 1
    return job_id


def claim(yard: Yard, count: int = 1, free: Free = ALL, node: str = "n1") -> list[Claimed]:
    for _ in range(100):
        more, jobs = yard.claim(node, f"c{next(_numbers)}", free, ["lab"], lease_s=30, count=count)
        if jobs or not more:
            return jobs
    raise AssertionError("a node asks for ever")


def settle(yard: Yard, job: Claimed) -> None:
    attempt = Attempt(node="n1", started=1.0, ended=2.0, exit_code=0, reason="test")
    assert yard.settle(job, State.SUCCEEDED, attempt, {}, [], retention_s=600)


def used(yard: Yard, share: str, vcpu_s: float) -> None:
    """As if this share had used so much until now."""
    yard.redis.hset(USE, share, f"{vcpu_s} {int(yard.now_s() * 1000)} 0")


def shares_of(jobs: Sequence[Claimed]) -> Counter[str]:
    return Counter(job.id.split("-")[0] for job in jobs)


def test_the_share_that_has_used_least_is_served_next(yard: Yard) -> None:
    configure(yard)
    used(yard, "A", 1000)
    used(yard, "B", 10)
    for share in ("A", "A", "B", "B"):
        put(yard, share)
    assert [job.id[0] for job in claim(yard, 4)] == ["B", "B", "A", "A"]


def test_use_counts_by_weight_and_a_lower_weight_gets_more(yard: Yard) -> None:
    configure(yard, {"share": "A", "weight": 1}, {"share": "B", "weight": 3})
    for _ in range(40):
        put(yard, "A")
        put(yard, "B")
    assert shares_of(claim(yard, 32)) == {"A": 24, "B": 8}


def test_one_call_shares_out_what_it_hands_out(yard: Yard) -> None:
    configure(yard)
    for share in ("A", "B", "C", "D"):
        for _ in range(20):
            put(yard, share)
    assert set(shares_of(claim(yard, 32)).values()) == {8}


def test_a_large_job_counts_as_much_as_it_takes(yard: Yard) -> None:
    configure(yard)
    for _ in range(8):
        put(yard, "A", vcpus=4)
    for _ in range(24):
        put(yard, "B")
    assert shares_of(claim(yard, 15)) == {"A": 3, "B": 12}


def test_shares_of_one_prefix_have_together_about_what_one_has(yard: Yard) -> None:
    configure(yard, {"share": "team*", "weight": 1}, {"share": "solo", "weight": 1})
    for name in ("team1", "team2", "team3", "solo"):
        for _ in range(24):
            put(yard, name)
    found = shares_of(claim(yard, 24))
    assert found["solo"] == 12
    assert {found[f"team{n}"] for n in (1, 2, 3)} == {4}


def test_what_runs_counts_as_it_goes(yard: Yard) -> None:
    """A line that is out of date is brought up to date by the claim: A's was written before its job had run long."""
    configure(yard)
    put(yard, "A")
    claim(yard)
    began = int(yard.now_s() * 1000) - 100_000
    yard.redis.hset(USE, "A", f"0 {began} 1000")
    used(yard, "B", 20)
    put(yard, "B", job_id="B-next")
    put(yard, "A", job_id="A-next")
    assert [job.id for job in claim(yard, 2)] == ["B-next", "A-next"]  # A has used 79 vCPU-seconds of 100 by now


def test_what_was_used_a_window_ago_counts_for_a_twentieth(yard: Yard) -> None:
    configure(yard, share_decay_s=60)
    now_ms = int(yard.now_s() * 1000)
    yard.redis.hset(USE, mapping={"A": f"100 {now_ms - 60_000} 0", "B": f"4 {now_ms} 0", "C": f"6 {now_ms} 0"})
    for share in ("A", "B", "C"):
        put(yard, share)
    assert [job.id[0] for job in claim(yard, 3)] == ["B", "A", "C"]


def test_within_a_share_the_higher_scheduling_priority_goes_first_then_who_came_first(yard: Yard) -> None:
    configure(yard)
    chance = random.Random(3)
    told = [(chance.choice((0, 1, 5, 9998, 9999)), n) for n in range(40)]
    for sched, n in told:
        put(yard, "A", sched=sched, job_id=f"j{n}", vcpus=chance.choice((0.5, 1, 2)))
    wanted = [f"j{n}" for _, n in sorted(told, key=lambda one: (-one[0], one[1]))]
    assert [job.id for job in claim(yard, 20)] + [job.id for job in claim(yard, 20)] == wanted


def test_a_job_that_comes_back_is_the_first_of_its_share_and_the_use_of_its_run_stays(yard: Yard) -> None:
    configure(yard)
    first = put(yard, "A")
    put(yard, "A")
    (job,) = claim(yard)
    assert yard.give_back(job, None)
    line: Any = yard.redis.hget(USE, "A")
    assert line.endswith(b" 0")
    assert [one.id for one in claim(yard)] == [first]


def test_jobs_that_do_not_fit_do_not_hold_up_other_shares(yard: Yard) -> None:
    configure(yard)
    used(yard, "B", 1000)
    put(yard, "A", vcpus=32)
    fits = put(yard, "B")
    assert [job.id for job in claim(yard, 2, Free(vcpus=2, memory_mib=1000, gpus=0, disk_gib=10))] == [fits]


def test_a_claim_looks_at_a_bounded_number_of_classes_and_goes_on_where_it_stopped(yard: Yard) -> None:
    configure(yard)
    small = Free(vcpus=4, memory_mib=1000, gpus=0, disk_gib=100)
    for n in range(6):
        for k in range(100):
            put(yard, f"S{n}", vcpus=5 + k / 100)
    used(yard, "S5", 10000)
    put(yard, "S5", job_id="fits")
    answers = [yard.claim("n", f"c{next(_numbers)}", small, ["lab"], lease_s=30) for _ in range(3)]
    assert [(more, [job.id for job in jobs]) for more, jobs in answers][:2] == [(True, []), (False, ["fits"])]
    assert answers[2] == (False, [])
    put(yard, "S0", job_id="news")
    assert [job.id for job in claim(yard, 1, small)] == ["news"]
    large = Free(vcpus=8, memory_mib=1000, gpus=0, disk_gib=100)
    assert claim(yard, 1, large)  # more is free than when it had looked in vain


def test_a_share_is_forgotten_when_it_had_no_job_for_a_window_and_nothing_stays(yard: Yard) -> None:
    configure(yard, {"share": "team*"})
    put(yard, "team1")
    later = put(yard, "team2", eta_ms=1 << 45)
    (job,) = claim(yard)
    settle(yard, job)
    assert yard.redis.hgetall("by:q:lab:open") == {b"team1": b"0", b"team2": b"1"}
    assert yard.redis.hget("by:q:lab:kin", "team") == b"2"
    yard.redis.zadd("by:q:lab:resting", {"team1": 1})
    yard.tick(["lab"], lease_s=30)
    assert yard.redis.hgetall("by:q:lab:open") == {b"team2": b"1"}
    yard.cancel(later, "test", terminate=True)
    assert yard.finish(later, State.FAILED, {}, [], retention_s=600)
    yard.redis.zadd("by:q:lab:resting", {"team2": 1})
    yard.tick(["lab"], lease_s=30)
    assert yard.redis.keys("by:q:lab:*") == []
    assert not yard.redis.exists(keys.HOLDS)


def test_the_501st_share_is_refused_and_a_known_one_is_not(yard: Yard) -> None:
    configure(yard)
    yard.redis.hset("by:q:lab:open", mapping={f"s{n}": 1 for n in range(500)})
    put(yard, "s1")
    late = put(yard, "toomany")
    reason = yard.outbox()[1][f"end:{late}"]["reason"]
    assert "500 active shares" in reason
    assert late not in [job.id for job in claim(yard, 2)]


def test_some_of_the_vcpus_stay_free_for_shares_that_are_not_active_yet(yard: Yard) -> None:
    configure(yard, here={**HERE, "max_vcpus": 16}, compute_reservation=50)
    for _ in range(31):
        put(yard, "A")
    put(yard, "A", job_id="A-last")
    assert len(claim(yard, 32)) == 8  # of 16, half
    place = yard.place("A-last")
    assert place is not None
    assert place.vcpus == 0
    put(yard, "B")
    assert shares_of(claim(yard, 32)) == {"A": 3, "B": 1}  # now a quarter


def test_jobs_that_came_before_the_policy_go_first_and_after_it_all_are_served(yard: Yard) -> None:
    old = Incoming(list_key="lab", raw=b"m", kind="job", id="old", queue="lab", vcpus=1, memory_mib=64, disk_gib=1,
                   document=b"sealed")  # fmt: skip
    yard.redis.lpush("lab", b"m")
    yard.intake([old])
    configure(yard)
    put(yard, "A", job_id="a1")
    put(yard, "A", job_id="a2")
    assert [job.id for job in claim(yard, 2)] == ["old", "a1"]
    yard.configure(configuration.parse({"queues": {"lab": {"environments": ["here"]}},
                                        "environments": {"here": HERE}}, "test"))  # fmt: skip
    assert [job.id for job in claim(yard, 2)] == ["a2"]
    assert yard.redis.hgetall(keys.POLICIES) == {}


def test_depth_and_place_know_shares(yard: Yard) -> None:
    configure(yard)
    for n in range(3):
        put(yard, "A", job_id=f"a{n}")
    put(yard, "B", job_id="b0")
    assert yard.depth(["lab"])["lab"].index == 4
    assert yard.position("a2") == (2, 4)
    assert yard.position("b0") == (0, 4)
    yard.cancel("a0", "test", terminate=True)
    assert yard.position("a2") == (1, 3)


def test_a_window_that_changes_and_a_clock_that_goes_back_leave_the_order_by_use(yard: Yard) -> None:
    configure(yard)
    now_ms = int(yard.now_s() * 1000)
    yard.redis.hset(USE, mapping={"A": f"100 {now_ms + 10**9} 0", "B": f"50 {now_ms + 10**9} 0", "C": f"70 {now_ms} 0"})
    for share in ("A", "B", "C"):
        for _ in range(2):
            put(yard, share)
    configure(yard, share_decay_s=3600)
    assert [job.id[0] for job in claim(yard, 3)] == ["B", "B", "C"]


def test_a_snapshot_shows_the_order_in_which_shares_are_served_and_what_they_use(yard: Yard) -> None:
    configure(yard, {"share": "A", "weight": 1}, {"share": "B", "weight": 3})
    for n in range(40):
        put(yard, "AB"[n % 2], vcpus=1 + n % 3)
    used(yard, "A", 100)
    used(yard, "B", 30)
    heads = Heads(yard)
    assert heads.snapshot("lab").shares == {"A": 0, "B": 0}
    front = heads.snapshot("lab").front
    assert len(front) == 40
    claimed = claim(yard, 32)
    assert [one.id for one in front[:32]] == [job.id for job in claimed]
    assert [one.share for one in front[:32]] == [job.id.partition("-")[0] for job in claimed]
    running = heads.snapshot("lab").shares
    assert running["A"] > running["B"] > 0
