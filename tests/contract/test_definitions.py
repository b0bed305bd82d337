"""Job definitions on a real Redis: revisions, who serves new jobs, and what intake asks for."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from batchyard.broker import keys
from batchyard.broker.cli import run
from batchyard.broker.client import Client
from batchyard.broker.config import single_machine
from batchyard.broker.definitions import Definitions
from batchyard.broker.errors import InvalidConfig, InvalidJob, NotFound
from batchyard.broker.intake import Intake
from batchyard.broker.job import Job
from batchyard.broker.seal import KeyRing
from batchyard.broker.store import Yard

pytestmark = pytest.mark.system
CONFIG = single_machine(vcpus=4, memory_mib=4096, gpus=0, disk_gib=10)
ONE: dict[str, Any] = {"image": "one", "command": ["echo", "Ref::x"], "parameters": {"x": "1"}}


@pytest.fixture
def yard(yard: Yard) -> Yard:
    yard.configure(CONFIG)
    return yard


@pytest.fixture
def client(yard: Yard, key_file: Path) -> Client:
    return Client(yard.url, key_file=key_file)


@pytest.fixture
def definitions(client: Client) -> Definitions:
    return client.definitions


def taken(yard: Yard, job_id: str) -> Job:
    return Job.parse(yard.document(job_id).job)


def test_revisions_count_from_one_and_are_never_used_again(definitions: Definitions) -> None:
    assert [definitions.register("a", ONE).reference for _ in range(3)] == ["a:1", "a:2", "a:3"]
    assert definitions.register("b", ONE).revision == 1
    for n in (1, 2, 3):
        definitions.deregister(f"a:{n}")
    assert definitions.register("a", ONE).revision == 4


def test_a_repeated_call_registers_once(definitions: Definitions) -> None:
    first = definitions.register("a", ONE, token="t")
    other = definitions.register("a", ONE)
    assert definitions.register("a", ONE, token="t") == first
    assert (first.revision, other.revision, len(definitions.list(every=True))) == (1, 2, 2)


def test_those_who_register_at_once_get_a_revision_each(yard: Yard) -> None:
    def register() -> None:
        mine = Yard(yard.url, yard.ring)
        numbers.extend(Definitions(mine, lambda: yard.ring).register("a", ONE).revision for _ in range(10))

    numbers: list[int] = []
    threads = [threading.Thread(target=register) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 41))


def test_what_is_kept_is_sealed(yard: Yard, definitions: Definitions) -> None:
    definitions.register("a", {**ONE, "environment": {"A": "pl41n"}})
    for key in yard.redis.scan_iter():
        kind = yard.redis.type(key)
        held = yard.redis.hgetall(key) if kind == b"hash" else yard.redis.dump(key)
        assert b"pl41n" not in repr(held).encode()
    assert definitions.show("a").template == {**ONE, "environment": {"A": "pl41n"}}


def test_the_latest_active_revision_is_the_one_that_serves(definitions: Definitions) -> None:
    for _ in range(3):
        definitions.register("a", ONE)
    definitions.deregister("a:2")
    definitions.deregister("a:3")
    definitions.deregister("a:3")  # once more is no error
    assert definitions.show("a").revision == 1
    assert [d.reference for d in definitions.list()] == ["a:1"]
    assert [(d.revision, d.state) for d in definitions.list(every=True)] == [
        (3, "INACTIVE"), (2, "INACTIVE"), (1, "ACTIVE"),
    ]  # fmt: skip
    definitions.deregister("a:1")
    assert definitions.list() == []
    assert definitions.show("a").state == "INACTIVE"


def test_a_revision_far_behind_serves_no_more_and_the_look_back_has_an_end(
    yard: Yard, definitions: Definitions
) -> None:
    definitions.register("a", ONE)
    yard.redis.hset(keys.DEFINITIONS, "a", 9 * 10**8)
    assert definitions.register("a", ONE).revision == 9 * 10**8 + 1
    definitions.deregister(f"a:{9 * 10**8 + 1}")
    assert yard.redis.hget(keys.DEFINITIONS_ACTIVE, "a") is None
    assert definitions.register("a", ONE).revision == 9 * 10**8 + 2


def test_what_is_not_there_is_told(definitions: Definitions) -> None:
    with pytest.raises(NotFound, match="a:1"):
        definitions.deregister("a:1")
    with pytest.raises(NotFound, match='"a"'):
        definitions.show("a")
    with pytest.raises(InvalidJob, match="name the revision too"):
        definitions.deregister("a")
    with pytest.raises(InvalidJob, match="is no name"):
        definitions.register("a b", ONE)
    assert definitions.list(every=True) == []


def test_a_job_is_taken_in_with_the_revision_that_is_then_the_latest(yard: Yard, client: Client) -> None:
    intake = Intake(yard)
    client.definitions.register("a", ONE)
    early = client.submit({"definition": "a", "parameters": {"x": "2"}})
    intake.run(CONFIG)
    queued = client.submit({"definition": "a"})
    client.definitions.register("a", {**ONE, "image": "two"})
    pinned = client.submit({"definition": "a:1"})
    intake.run(CONFIG)
    assert [yard.record(i).definition for i in (early, queued, pinned)] == ["a:1", "a:2", "a:1"]
    assert taken(yard, early).command == ("echo", "2")
    assert taken(yard, queued).image == yard.record(queued).image == "two"


def test_a_deregistered_revision_serves_no_new_job_and_those_taken_in_go_on(yard: Yard, client: Client) -> None:
    intake = Intake(yard)
    client.definitions.register("a", ONE)
    before = client.submit({"definition": "a"})
    intake.run(CONFIG)
    late = client.submit({"definition": "a:1"})
    client.definitions.deregister("a:1")
    intake.run(CONFIG)
    assert yard.record(before).state == "RUNNABLE"
    assert "INACTIVE" in yard.record(late).reason
    with pytest.raises(InvalidJob, match="INACTIVE"):
        client.submit({"definition": "a:1"})
    with pytest.raises(InvalidJob, match="no active revision"):
        client.submit({"definition": "a"})


def test_intake_asks_redis_for_a_definition_once_and_again_only_after_a_change(
    yard: Yard, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.definitions.register("a", ONE)
    intake, asked = Intake(yard), list[str]()
    original: Any = yard.redis.execute_command

    def count(*words: Any, **more: Any) -> Any:
        asked.append(words[0])
        return original(*words, **more)

    monkeypatch.setattr(yard.redis, "execute_command", count)

    def batch() -> list[str]:
        for _ in range(5):
            client.submit({"definition": "a"})
        asked.clear()
        assert intake.run(CONFIG) == 5
        return list(asked)

    assert batch() == ["HGET", "HMGET", "FCALL"]
    assert batch() == ["FCALL"]
    client.definitions.register("b", ONE)
    assert batch() == ["HGET", "HMGET", "FCALL"]


def test_a_client_without_the_keys_sends_and_neither_registers_nor_shows(yard: Yard, client: Client) -> None:
    client.definitions.register("a", ONE)
    other = Client(yard.url)
    job_id = other.submit({"definition": "a", "vcpus": 2})
    Intake(yard).run(CONFIG)
    assert yard.record(job_id).vcpus == 2
    with pytest.raises(InvalidJob, match="is not known"):
        other.submit({"definition": "nosuch"})
    with pytest.raises(InvalidJob, match="vcpus"):
        other.submit({"definition": "a", "vcpus": -1})
    with pytest.raises(InvalidConfig, match="key"):
        other.definitions.register("a", ONE)


def test_the_keys_of_another_yard_seal_nothing_here(yard: Yard, tmp_path: Path) -> None:
    KeyRing.create(tmp_path / "other")
    with pytest.raises(InvalidConfig, match="another yard"):
        Client(yard.url, key_file=tmp_path / "other").definitions.register("a", ONE)
    assert not yard.redis.exists(keys.DEFINITIONS)


def test_the_command_line_registers_shows_and_sends(
    yard: Yard, key_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*words: str) -> tuple[int, str, str]:
        code = run([*words, "--broker", yard.url, "--key-file", str(key_file)])
        said = capsys.readouterr()
        return code, said.out, said.err

    file = tmp_path / "d.yaml"
    file.write_text("definition: nightly\nimage: busybox\ncommand: [echo, Ref::day]\nparameters: {day: 007}\n")
    assert call("definition", "register", "-f", str(file))[:2] == (0, "nightly:1\n")
    assert "nightly:1" in call("definition", "list")[1]
    assert "day: '007'" in call("definition", "show", "nightly")[1]
    code, job_id, _ = call("submit", "--definition", "nightly", "--param", "day=monday")
    assert code == 0
    Intake(yard).run(CONFIG)
    assert taken(yard, job_id.strip()).command == ("echo", "monday")
    assert "nightly:1" in call("status", job_id.strip())[1]
    assert call("definition", "deregister", "nightly:1")[0] == 0
    code, _, said = call("submit", "--definition", "nightly")
    assert (code, "no active revision" in said) == (2, True)
    file.write_text("definition: bad name\nimage: x\n")
    code, _, said = call("definition", "register", "-f", str(file))
    assert (code, "line 1" in said) == (2, True)
    file.write_text("definition: good\nimage: x\nvcpus: -1\n")
    code, _, said = call("definition", "register", "-f", str(file))
    assert (code, "line 3" in said) == (2, True)
