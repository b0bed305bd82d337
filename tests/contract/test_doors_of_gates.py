"""From a producer's message to the claim: shares, tokens and limits as jobs say them; the command line for tokens."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from batchyard.broker import config as configuration
from batchyard.broker.cli import run
from batchyard.broker.client import Client
from batchyard.broker.errors import InvalidJob
from batchyard.broker.intake import Intake
from batchyard.broker.store import Free, Yard

ALL = Free(vcpus=64, memory_mib=1 << 20, gpus=0, disk_gib=1000)
CONFIG = configuration.parse(
    {
        "queues": {"cpu": {"environments": ["here"]}, "lab": {"environments": ["here"], "fair_share": {}}},
        "environments": {"here": {"vcpus": 64, "memory_mib": 64000}},
    },
    "test",
)

pytestmark = pytest.mark.system
_numbers = itertools.count(1)


@pytest.fixture
def yard(yard: Yard) -> Yard:
    yard.configure(CONFIG)
    return yard


@pytest.fixture
def client(yard: Yard, key_file: Path) -> Client:
    return Client(yard.url, key_file=key_file)


def claim(yard: Yard, *queues: str) -> list[str]:
    Intake(yard).run(CONFIG)
    _, jobs = yard.claim("n1", f"c{next(_numbers)}", ALL, queues or ["cpu"], lease_s=30, count=32)
    return [job.id for job in jobs]


def test_a_definitions_limit_holds_for_its_jobs_and_a_new_revision_changes_it(yard: Yard, client: Client) -> None:
    client.definitions.register("report", {"image": "busybox", "max_concurrent": 1})
    ids = [client.submit({"definition": "report"}) for _ in range(4)]
    other = client.submit({"image": "busybox"})
    assert claim(yard) == [ids[0], other]
    assert claim(yard) == []
    client.definitions.register("report", {"image": "busybox", "max_concurrent": 3})
    assert claim(yard) == ids[1:3]
    client.definitions.register("report", {"image": "busybox"})
    assert claim(yard) == ids[3:]


def test_tokens_come_with_the_job_or_its_definition(yard: Yard, client: Client) -> None:
    client.consumables.create("lic", 2)
    client.definitions.register("licensed", {"image": "busybox", "consumables": {"lic": 1}})
    one, two = client.submit({"definition": "licensed"}), client.submit({"image": "busybox", "consumables": {"lic": 2}})
    assert claim(yard) == [one]
    assert client.consumables.show("lic").available == 1
    assert claim(yard) == []
    assert two != one
    with pytest.raises(InvalidJob, match="there are 2 in all"):
        client.submit({"image": "busybox", "consumables": {"lic": 3}})
    with pytest.raises(InvalidJob, match="no such consumable"):
        client.submit({"image": "busybox", "consumables": {"nosuch": 1}})


def test_shares_come_with_the_job_and_a_queue_wants_them_or_not(yard: Yard, client: Client) -> None:
    low = client.submit({"image": "busybox", "share": "alice"}, queue="lab")
    high = client.submit({"image": "busybox", "share": "alice", "scheduling_priority": 7}, queue="lab")
    assert claim(yard, "lab") == [high, low]
    with pytest.raises(InvalidJob, match="whose work it is"):
        client.submit({"image": "busybox"}, queue="lab")
    with pytest.raises(InvalidJob, match="no fair share"):
        client.submit({"image": "busybox", "share": "alice"})


def test_the_command_line_makes_changes_shows_and_removes(
    yard: Yard, key_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(*words: str) -> Any:
        code = run(["consumable", *words, "--broker", yard.url])
        out = capsys.readouterr()
        return json.loads(out.out) if "--json" in words and code == 0 else (code, out.out, out.err)

    made = say("create", "lic", "--total", "3", "--json")
    assert (made["name"], made["kind"], made["total"], made["available"]) == ("lic", "REPLENISHABLE", 3, 3)
    assert say("update", "lic", "--add", "2", "--client-token", "t")[1] == "lic: 5 of 5 available\n"
    assert say("update", "lic", "--add", "2", "--client-token", "t", "--json")["total"] == 5
    assert [one["name"] for one in say("list", "--json")] == ["lic"]
    assert "5 of 5" in say("list")[1]
    assert "0 by 0 jobs" in say("show", "lic")[1]
    assert say("update", "lic")[0] == 2
    code, _, err = say("update", "lic", "--remove", "9")
    assert (code, "has 5 in all" in err) == (2, True)
    assert say("delete", "lic")[1] == "lic is deleted\n"
    code, _, err = say("show", "lic")
    assert (code, 'no consumable resource "lic"' in err) == (1, True)
    assert say("create", "a b", "--total", "1")[0] == 2


def test_why_says_what_a_job_waits_for_beside_nodes(yard: Yard, client: Client) -> None:
    client.consumables.create("lic", 1)
    client.definitions.register("report", {"image": "busybox", "max_concurrent": 1, "consumables": {"lic": 1}})
    first, second = (client.submit({"definition": "report"}) for _ in range(2))
    ahead, behind = (client.submit({"image": "busybox", "share": "alice"}, queue="lab") for _ in range(2))
    assert claim(yard) == [first]
    Intake(yard).run(CONFIG)
    found = {one.code: one for one in client.why(second)}
    assert 'job definition "report" runs 1 job at once at most' in found["max_concurrent"].text
    assert "0 of 1 are free, 1 job holds" in found["consumable"].text
    assert client.status(second).consumables == {"lic": 1}
    found = {one.code: one for one in client.why(behind)}
    assert found["share"].details == {"share": "alice", "shares": 1, "before": 0}
    assert found["place"].details["ahead"] == 1
    assert client.status(ahead).share == "alice"


def test_the_command_line_shows_what_shares_have_used_and_who_is_next(
    yard: Yard, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    for share in ("alice", "bob"):
        client.submit({"image": "busybox", "share": share, "vcpus": 2}, queue="lab")
    Intake(yard).run(CONFIG)
    yard.redis.hset("by:q:lab:use", "alice", f"100 {int(yard.now_s() * 1000)} 1000")
    assert run(["shares", "lab", "--json", "--broker", yard.url]) == 0
    bob, alice = json.loads(capsys.readouterr().out)
    assert (bob["share"], bob["used"], bob["ready"], bob["jobs"]) == ("bob", 0, 1, 1)
    assert (alice["share"], alice["running"], alice["weight"]) == ("alice", 1, 1)
    assert 95 < alice["used"] < 105
    assert run(["shares", "lab", "--broker", yard.url]) == 0
    assert "alice" in capsys.readouterr().out
    for queue, words in (("cpu", "no fair share"), ("nosuch", "is not known")):
        assert run(["shares", queue, "--broker", yard.url]) == 2
        assert words in capsys.readouterr().err
