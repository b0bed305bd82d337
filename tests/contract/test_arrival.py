"""Jobs that were sent a moment ago and have no record yet, against a real Redis and the real intake."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest

from batchyard.broker import arrival
from batchyard.broker.client import Client
from batchyard.broker.config import parse
from batchyard.broker.errors import InvalidJob, NotFound
from batchyard.broker.intake import Intake
from batchyard.broker.state import State
from batchyard.broker.store import Depth, Yard

pytestmark = pytest.mark.system
CONFIG = parse(
    {"queues": {"cpu": {"environments": ["here"]}}, "environments": {"here": {"vcpus": 8, "memory_mib": 4096}}}, "test"
)
JOB = {"image": "busybox", "vcpus": 0.5, "memory_mib": 64}
UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def client(yard: Yard) -> Iterator[Client]:
    yard.configure(CONFIG)
    with Client(yard.url) as made:
        yield made


def take_in_later(yard: Yard) -> threading.Timer:
    timer = threading.Timer(0.3, lambda: Intake(yard).run(CONFIG))
    timer.start()
    return timer


@pytest.mark.parametrize("fields", [{}, {"array_size": 3}])
def test_the_status_of_a_job_that_was_just_sent_is_there_as_soon_as_it_is_taken_in(
    yard: Yard, client: Client, fields: dict[str, int]
) -> None:
    job = client.submit({**JOB, **fields})
    timer = take_in_later(yard)
    asked = f"{job}:1" if fields else job
    with Client(yard.url) as other:  # one that has not sent it
        found = other.status(asked, patience_s=30)
    timer.join()
    assert found.id == asked
    assert found.state in (State.RUNNABLE, State.PENDING)


def test_a_job_that_nobody_takes_in_says_that_it_waits(yard: Yard, client: Client) -> None:
    job = client.submit(JOB)
    with pytest.raises(NotFound, match=f'no job "{job}" yet: messages still wait to be taken in; or it was never sent'):
        client.status(job, patience_s=0.1)
    with pytest.raises(NotFound, match=f'no job "{job}" yet'):
        list(client.logs(job))
    Intake(yard).run(CONFIG)
    assert client.status(job, patience_s=0).id == job


def test_an_unknown_job_is_not_waited_for_where_no_message_waits(
    yard: Yard, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Sequence[str]] = []
    depth = Yard.depth

    def look(self: Yard, queues: Sequence[str]) -> dict[str, Depth]:
        looks.append(queues)
        return depth(self, queues)

    monkeypatch.setattr(Yard, "depth", look)
    with pytest.raises(NotFound, match=f'no job "{UNKNOWN}"; it was never taken in'):
        client.status(UNKNOWN)
    with pytest.raises(InvalidJob, match="depends on an unknown job"):
        client.check({**JOB, "depends_on": [UNKNOWN]})
    assert looks == [["cpu"]] * 2


def test_a_job_of_a_redis_without_a_yard_is_unknown(yard: Yard) -> None:
    with Client(yard.url) as client, pytest.raises(NotFound, match="was never taken in"):
        client.status(UNKNOWN)


def test_what_a_job_depends_on_may_still_lie_in_a_list(
    yard: Yard, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = client.submit(JOB)
    there: list[bool] = []
    exists = Yard.exists

    def look(self: Yard, job_id: str) -> bool:
        if len(there) == 2:
            Intake(yard).run(CONFIG)
        there.append(exists(self, job_id))
        return there[-1]

    monkeypatch.setattr(Yard, "exists", look)
    monkeypatch.setattr(arrival, "PATIENCE_S", 60.0)
    with Client(yard.url) as other:
        assert [on.job_id for on in other.check({**JOB, "depends_on": [first]}).depends_on] == [first]
    assert there == [False, False, True]
