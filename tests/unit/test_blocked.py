"""Why nothing can start the first job of a queue: AWS's codes, from what there may be and what there is."""

from __future__ import annotations

from typing import Any

import pytest

from batchyard.broker.blocked import Amounts, Ground, Machine, Scaling, blocked
from batchyard.broker.config import Config, parse

NODE = {"vcpus": 8, "memory_mib": 16000, "disk_gib": 100}
CAPACITY = "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY"


def amounts(vcpus: float = 1, memory_mib: int = 100, gpus: int = 0, disk_gib: float = 1) -> Amounts:
    return Amounts(vcpus=vcpus, memory_mib=memory_mib, gpus=gpus, disk_gib=disk_gib)


def config(**environments: Any) -> Config:
    told = environments or {"here": NODE}
    return parse({"queues": {"q": {"environments": list(told)}}, "environments": told}, "test")


def machine(total: Amounts, free: Amounts | None = None, environment: str = "here") -> Machine:
    return Machine(environment=environment, queues=("q",), total=total, free=free or total)


def code(need: Amounts, ground: Ground, *, first_s: float = 0) -> str | None:
    found = blocked("q", need, ground, first_s=first_s)
    assert found is None or found.text.startswith(f"{found.code} - ")
    return found.code if found else None


def test_a_job_that_waits_for_its_turn_on_a_large_enough_node_is_not_blocked() -> None:
    full = machine(amounts(8, 16000), amounts(0, 0))
    assert code(amounts(4), Ground(config=config(), machines=[full]), first_s=1e6) is None


def test_without_a_large_enough_node_it_is_capacity_and_never_a_misconfiguration() -> None:
    small = machine(amounts(2, 16000))
    for machines in ([], [small]):
        found = blocked("q", amounts(4), Ground(config=config(), machines=machines), first_s=0)
        assert found is not None
        assert (found.code, found.text[-6:]) == (CAPACITY, "[here]")


def test_what_no_machine_that_there_may_be_can_hold_is_a_misconfiguration() -> None:
    large = machine(amounts(64, 64000))  # a node that is there all the same
    ground = Ground(config=config(), machines=[large])
    for need in (amounts(9), amounts(1, 16001), amounts(gpus=1), amounts(disk_gib=101)):
        assert code(need, ground) == "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT"
    bounded = config(a={**NODE, "max_vcpus": 4}, b={**NODE, "max_vcpus": 6})
    assert code(amounts(7), Ground(config=bounded)) == "MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE"
    assert code(amounts(5), Ground(config=bounded)) == CAPACITY
    two = config(a=NODE, b={**NODE, "vcpus": 64})
    assert code(amounts(9), Ground(config=two)) == CAPACITY


def test_with_every_environment_disabled_somebody_has_to_act() -> None:
    off = config(here={**NODE, "state": "DISABLED"})
    assert code(amounts(), Ground(config=off, machines=[machine(amounts(8, 16000))])) == "ACTION_REQUIRED"
    half = config(here={**NODE, "state": "DISABLED"}, there=NODE)
    node = amounts(8, 16000)
    assert code(amounts(), Ground(config=half, machines=[machine(node)])) == CAPACITY
    assert code(amounts(), Ground(config=half, machines=[machine(node, environment="there")])) is None


def test_while_machines_are_being_added_nothing_is_blocked() -> None:
    under_way = {"here": Scaling(state="UNDER_WAY")}
    assert code(amounts(), Ground(config=config(), scaling=under_way), first_s=1e6) is None
    assert code(amounts(9), Ground(config=config(), scaling=under_way)) is not None  # they would be too small


def test_a_cloud_that_has_no_such_machine_is_named_by_it() -> None:
    short = {"here": Scaling(state="NO_CAPACITY", shape="p4d.24xlarge")}
    found = blocked("q", amounts(), Ground(config=config(), scaling=short), first_s=0)
    assert found is not None
    assert found.text == (
        f"{CAPACITY} - Service cannot fulfill the capacity requested for instance type [p4d.24xlarge]"
    )


@pytest.mark.parametrize(("first_s", "told"), [(59, None), (61, "UNDETERMINED")])
def test_room_that_is_not_taken_for_a_minute_is_something_that_nobody_knows(first_s: float, told: str | None) -> None:
    assert code(amounts(), Ground(config=config(), machines=[machine(amounts(8, 16000))]), first_s=first_s) == told


def test_nodes_of_other_queues_do_not_count() -> None:
    other = Machine(environment="here", queues=("gpu",), total=amounts(8, 16000), free=amounts(8, 16000))
    assert code(amounts(), Ground(config=config(), machines=[other])) == CAPACITY
