"""GPU types and locality at the claim, against a real Redis."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from batchyard.broker.record import Claimed
from batchyard.broker.store import Free, Incoming, Yard

pytestmark = pytest.mark.system
_numbers = itertools.count(1)
HERE, ELSEWHERE = "aaaaaaaa", "bbbbbbbb"


def put(yard: Yard, job_id: str, *, priority: int = 0, gpus: int = 0, vcpus: float = 1, **clear: str) -> None:
    told = {name.rstrip("_"): value for name, value in clear.items()}
    one = Incoming(list_key="cpu", raw=job_id.encode(), kind="job", id=job_id, queue="cpu", vcpus=vcpus, memory_mib=64,
                   gpus=gpus, disk_gib=1, priority=priority, document=b"sealed", clear=told)  # fmt: skip
    yard.redis.lpush("cpu", one.raw)
    assert yard.intake([one]) == 1


def claim(yard: Yard, count: int = 1, *, holds: Any = (), **free: Any) -> list[Claimed]:
    room = Free(**{"vcpus": 64, "memory_mib": 1 << 20, "gpus": 0, "disk_gib": 1000, **free})
    return yard.claim("n1", f"c{next(_numbers)}", room, ["cpu"], lease_s=30, count=count, holds=holds)[1]


def ids(jobs: list[Claimed]) -> list[str]:
    return [job.id for job in jobs]


def test_a_job_that_asks_for_a_type_of_gpu_gets_no_other(yard: Yard) -> None:
    for n in range(3):
        put(yard, f"a{n}", gpus=1, gpu_type="a100")
    put(yard, "t", gpus=1, gpu_type="t4")
    put(yard, "any", gpus=1)
    assert claim(yard, 9, gpus=0) == []
    assert ids(claim(yard, 9, gpus=2, gpu_types={"t4": 1})) == ["t", "any"]
    assert ids(claim(yard, 9, gpus=4, gpu_types={"a100": 2, "t4": 2})) == ["a0", "a1"]
    assert ids(claim(yard, 9, gpus=4)) == []
    assert ids(claim(yard, 9, gpus=1, gpu_types={"a100": 1})) == ["a2"]


def test_what_one_call_hands_out_it_does_not_hand_out_again_by_type(yard: Yard) -> None:
    put(yard, "any", gpus=1)
    put(yard, "typed", gpus=1, gpu_type="a100")
    assert ids(claim(yard, 9, gpus=2, gpu_types={"a100": 1, "t4": 1})) == ["any"]  # it may be the a100 that it gets


def test_of_the_first_eight_one_whose_inputs_the_node_has_goes_first(yard: Yard) -> None:
    for n in range(12):
        put(yard, f"j{n}", in_=f"{ELSEWHERE} {HERE if n in (5, 10) else ELSEWHERE}")
    assert ids(claim(yard, holds=[HERE + "0" * 56])) == ["j5"]
    assert ids(claim(yard, holds=[HERE + "0" * 56])) == ["j0"]  # j10 is the tenth
    assert ids(claim(yard)) == ["j1"]


def test_a_job_is_passed_over_eight_times_and_no_more(yard: Yard) -> None:
    put(yard, "far", in_=ELSEWHERE)
    for n in range(20):
        put(yard, f"near{n}", in_=HERE)
    found = ids(claim(yard, 12, holds=[HERE]))
    assert found == [*(f"near{n}" for n in range(8)), "far", "near8", "near9", "near10"]


def test_locality_never_outdoes_a_priority(yard: Yard) -> None:
    put(yard, "low", priority=5, in_=HERE)
    put(yard, "high", priority=4, in_=ELSEWHERE)
    assert ids(claim(yard, 2, holds=[HERE])) == ["high", "low"]
    for n, where in enumerate((ELSEWHERE, HERE)):
        clear = {"share": "A", "sched": str(7 - n), "in_": where}
        put(yard, f"s{n}", **clear)  # type: ignore[arg-type]
    assert ids(claim(yard, 2, holds=[HERE])) == ["s0", "s1"]


def test_jobs_with_and_without_inputs_go_in_the_order_of_arrival(yard: Yard) -> None:
    for n in range(6):
        put(yard, f"j{n}", **({"in_": ELSEWHERE} if n % 2 else {}))  # type: ignore[arg-type]
    assert ids(claim(yard, 6, holds=[HERE])) == [f"j{n}" for n in range(6)]
