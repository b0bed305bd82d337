"""Planted values are looked for wherever they should not be: Redis and its files, logs, events, folders, the store."""

from __future__ import annotations

import base64
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.disk import DirectoryStore
from yardtest.counter import LineCounter
from yardtest.wait import until
from yardtest.yard import TestYard, running_yard

SECRET = "pl4nted-s3cret-Zq7Xw0"
INPUT = "pl4nted-1nput-Kv9Lm2"
OUTPUT = "pl4nted-0utput-Tb5Rs8"
PLAIN = "pl4nted-environment-Hy3Dn6"
DECOY = "d3coy-value-Wn8Gk2"
PRINTED = "pl4nted-line-Jc1Pf4"


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory, image: str) -> Iterator[TestYard]:
    with running_yard(tmp_path_factory.mktemp("yard") / "y", image) as running:
        (running.secrets / "token").write_text(SECRET + "\n")
        yield running
        running.nothing_left()
        running.healthy()


def forms(text: str) -> list[bytes]:
    """The text, and what of its base64 does not depend on what stands around it, at each of three places."""
    found = [text.encode()]
    for before in range(3):
        coded = base64.b64encode(b"\0" * before + text.encode())
        found.append(coded[4 if before else 0 : len(coded) // 4 * 4 - 4])
    return found


def holding(folder: Path, text: str) -> list[str]:
    """Files below a folder that hold a text, also in base64."""
    found = []
    for inside, _, names in os.walk(folder):
        for path in (Path(inside) / name for name in names):
            with suppress(FileNotFoundError):  # it went away meanwhile
                data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
                if any(form in data for form in forms(text)):
                    found.append(str(path.relative_to(folder)))
    return found


def in_redis(yard: TestYard, text: str) -> list[bytes]:
    """Keys that hold a text, in their name or anywhere in their value, also in base64."""
    found = []
    for key in yard.redis.scan_iter(count=1000):
        if (kind := yard.redis.type(key)) == b"none":  # it went away meanwhile
            continue
        reads: dict[Any, Callable[[], object]] = {
            b"string": lambda: yard.redis.get(key),  # noqa: B023
            b"hash": lambda: yard.redis.hgetall(key),  # noqa: B023
            b"list": lambda: yard.redis.lrange(key, 0, -1),  # noqa: B023
            b"set": lambda: yard.redis.smembers(key),  # noqa: B023
            b"zset": lambda: yard.redis.zrange(key, 0, -1),  # noqa: B023
            b"stream": lambda: yard.redis.xrange(key),  # noqa: B023
        }
        shown = repr(key).encode() + repr(reads[kind]()).encode()
        if any(form in shown for form in forms(text)):
            found.append(key)
    return found


@pytest.fixture(scope="module")
def events(yard: TestYard) -> Iterator[list[dict[str, Any]]]:
    """Every Celery event of the yard from now on."""
    heard: list[dict[str, Any]] = []
    over = threading.Event()

    def listen() -> None:
        with yard.producer.connection_for_read() as connection:
            receiver = yard.producer.events.Receiver(connection, handlers={"*": heard.append})
            for _ in receiver.itercapture(limit=None, timeout=None, wakeup=True):
                if over.is_set():
                    return

    threading.Thread(target=listen, daemon=True).start()
    until(lambda: heard, "a heartbeat was heard", timeout_s=20)
    yield heard
    over.set()


@pytest.fixture(scope="module")
def ran(yard: TestYard, events: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Jobs with a planted value in every place, run to their end: their results, and where values were meanwhile."""
    counter = LineCounter(yard.shared / "c", tmp_path_factory.mktemp("counter") / "lines")
    (yard.shared / "data").write_text(INPUT)
    made = yard.shell(f"printf %s {INPUT[:9]}; cat /in/d >/work/o", inputs={"/in/d": f"file://{yard.shared}/data"},
                      outputs={"o": "/work/o"}).get(timeout=30)  # fmt: skip
    script = (
        f'test "$TOKEN" = {SECRET[:4]}"{SECRET[4:]}" && test "$(cat /in/a)" = {INPUT[:5]}"{INPUT[5:]}" || exit 9; '
        f'printf "{PRINTED[:8]}"; echo {PRINTED[8:]}; echo "the token is $TOKEN"; echo "$TOKEN" >&2; '
        f"printf %s {OUTPUT[:7]} >/work/o; printf %s {OUTPUT[7:]} >>/work/o; echo runs >/count/line; sleep 2; exit "
    )
    fields: dict[str, Any] = {
        "secrets": {"TOKEN": "token"},
        "environment": {"PLAIN": PLAIN},
        "inputs": {"/in/a": made["outputs"]["o"]["digest"], **counter.inputs},
        "outputs": {"o": "/work/o"},
    }
    good, bad = yard.shell(script + "0", **fields), yard.shell(script + "3", **fields)
    until(lambda: len(counter.lines()) == 2, "both run", timeout_s=30)
    while_running = {
        "secret in redis": in_redis(yard, SECRET),
        "secret in state": holding(yard.state_of("a"), SECRET),
        "plain in redis": in_redis(yard, PLAIN),
    }
    result = good.get(timeout=30)
    yard.ended(bad.id)
    counter.close()
    yard.nothing_left()
    until(lambda: sum(e["type"] in ("task-succeeded", "task-failed") for e in events) >= 3, "the ends were announced")
    return {"good": result, "bad": bad, "while running": while_running, "ids": (good.id, bad.id)}


def test_the_search_finds_what_is_there(yard: TestYard, tmp_path: Path) -> None:
    """Else every other test here would pass on nothing."""
    for around in ("", "a", "ab", "abc"):
        text = f"{around}{DECOY}{around}"
        (tmp_path / "clear").write_text(text)
        (tmp_path / "coded").write_bytes(base64.b64encode(text.encode()))
        assert sorted(holding(tmp_path, DECOY)) == ["clear", "coded"]
        for value in (text, base64.b64encode(text.encode())):
            yard.redis.hset("planted", "field", value)
            assert in_redis(yard, DECOY) == [b"planted"]
            yard.redis.delete("planted")


def test_a_secret_is_in_no_key_of_redis(yard: TestYard, ran: dict[str, Any]) -> None:
    assert ran["while running"]["secret in redis"] == []
    assert in_redis(yard, SECRET) == []


def test_what_a_producer_sent_in_clear_is_sealed_from_intake_on(yard: TestYard, ran: dict[str, Any]) -> None:
    assert ran["while running"]["plain in redis"] == []
    assert in_redis(yard, PLAIN) == []


def test_a_secret_is_not_in_redis_files_and_a_rewrite_forgets_what_producers_sent(
    yard: TestYard, ran: dict[str, Any]
) -> None:
    """The append-only file holds a producer's message until it is rewritten; a secret is only a name there."""
    files = yard.directory / "redis"
    assert holding(files, SECRET) == []
    assert holding(files, PLAIN) != []
    yard.redis.config_set("aof-use-rdb-preamble", "no")  # plain commands, so that nothing hides in compression
    yard.redis.bgrewriteaof()
    until(lambda: not holding(files, PLAIN), "the file is rewritten and the old one is gone", timeout_s=30)
    assert holding(files, SECRET) == []


def test_a_secret_is_in_no_log_of_a_process(yard: TestYard, ran: dict[str, Any]) -> None:
    for log in yard.directory.glob("*.log"):
        for text in (SECRET, PLAIN, INPUT, OUTPUT, PRINTED):
            assert text not in log.read_text(errors="replace"), log
    assert ran["ids"]


def test_events_carry_image_and_command_and_no_value(events: list[dict[str, Any]], ran: dict[str, Any]) -> None:
    for text in (SECRET, PLAIN, INPUT, OUTPUT):
        assert [e for e in events if text in repr(e)] == []
    received = [e for e in events if e["type"] == "task-received" and e["uuid"] in ran["ids"]]
    assert len(received) == 2
    assert all("image=" in e["kwargs"] and "environment" not in e["kwargs"] for e in received)


def test_inspect_shows_no_value(yard: TestYard, ran: dict[str, Any]) -> None:
    job = yard.shell("exec sleep 60", environment={"PLAIN": PLAIN}, secrets={"TOKEN": "token"})
    yard.running(job.id)
    inspect = yard.producer.control.inspect(["a@batchyard"], timeout=5)
    shown = repr([inspect.active(), inspect.reserved(), inspect.query_task(job.id), inspect.stats(), inspect.conf()])
    assert job.id in shown
    for text in (SECRET, PLAIN):
        assert text not in shown
    yard.store.cancel(job.id, "seen", terminate=True)
    yard.ended(job.id)


def test_a_secret_is_in_no_file_of_the_node(yard: TestYard, ran: dict[str, Any]) -> None:
    assert ran["while running"]["secret in state"] == []
    for text in (SECRET, PLAIN, OUTPUT, PRINTED):
        assert holding(yard.state_of("a"), text) == []


def test_no_planted_byte_is_in_the_store(yard: TestYard, ran: dict[str, Any]) -> None:
    assert (yard.blobs / "objects").is_dir()
    assert len([p for p in yard.blobs.rglob("*") if p.is_file()]) >= 5
    for text in (SECRET, INPUT, OUTPUT, PLAIN, PRINTED):
        assert holding(yard.blobs, text) == []
        assert all(text not in path.name for path in yard.blobs.rglob("*"))
    for digest in (ran["good"]["outputs"]["o"]["digest"], ran["good"]["log"]):
        assert not [p for p in yard.blobs.rglob("*") if digest.split(":")[1][:16] in p.name]  # names tell no digest


def log_of(yard: TestYard, digest: str) -> str:
    return BlobStore(DirectoryStore(yard.blobs), yard.ring).read_bytes(digest, 1 << 20).decode()


def test_a_job_that_prints_its_secret_shows_stars(yard: TestYard, ran: dict[str, Any]) -> None:
    log = log_of(yard, ran["good"]["log"])
    assert "the token is ***" in log
    assert PRINTED in log
    assert SECRET not in log
    details = ran["bad"].result.args[1]
    assert "the token is ***" in details["log_tail"]
    assert SECRET not in repr(ran["bad"].result)


def test_the_live_tail_shows_stars_too(yard: TestYard, ran: dict[str, Any]) -> None:
    assert [k for k in yard.redis.keys("by:log:*") if SECRET.encode() in repr(yard.redis.xrange(k)).encode()] == []
    job = yard.shell('while true; do echo "it is $TOKEN"; sleep 0.1; done', secrets={"TOKEN": "token"}, timeout_s=4)
    tail = until(
        lambda: told if "it is" in (told := repr(yard.redis.xrange(f"by:log:{job.id}"))) else "",
        "the live tail speaks",
        timeout_s=20,
    )
    assert "it is ***" in tail
    assert SECRET not in tail
    yard.ended(job.id)


def test_a_secret_is_on_no_command_line_and_gone_from_the_engine(yard: TestYard, ran: dict[str, Any]) -> None:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            assert SECRET.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
    listed = subprocess.run(["docker", "ps", "-a", "--no-trunc"], capture_output=True, text=True, check=True).stdout
    assert SECRET not in listed
    assert yard.containers(jobs_only=True) == []


def test_an_error_about_a_secret_names_it_and_shows_nothing(yard: TestYard, ran: dict[str, Any]) -> None:
    (yard.secrets / "binary").write_bytes(b"\xff\xfe" + SECRET.encode())
    reason = yard.reason(yard.send("true", secrets={"A": "binary"}))
    assert '"binary"' in reason
    assert SECRET not in reason
    assert SECRET not in "".join(p.read_text(errors="replace") for p in yard.directory.glob("*.log"))
