"""The pure parts of `batchyard up`: ports, back-off, Redis's configuration, which configuration holds."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from batchyard.broker.config import single_machine
from batchyard.broker.errors import InvalidConfig
from batchyard.worker.redis_server import pick_port, redis_binary, write_conf
from batchyard.worker.supervise import FIRST_DELAY_S, LAST_DELAY_S, delay_after
from batchyard.worker.up import _is_machine


def test_a_part_that_keeps_dying_is_started_ever_later() -> None:
    delays, delay = [], 0.0
    for _ in range(9):
        delay = delay_after(delay, lived_s=0.1)
        delays.append(delay)
    assert delays[:3] == [FIRST_DELAY_S, 2 * FIRST_DELAY_S, 4 * FIRST_DELAY_S]
    assert delays[-1] == LAST_DELAY_S


def test_a_part_that_had_lived_well_is_started_again_at_once() -> None:
    assert delay_after(LAST_DELAY_S, lived_s=3600) == FIRST_DELAY_S


def test_the_earlier_port_is_taken_again_unless_somebody_has_it() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        assert pick_port("Redis", None, taken) != taken
        with pytest.raises(InvalidConfig, match=f"port {taken} for Redis is in use"):
            pick_port("Redis", taken, None)
    assert pick_port("Redis", None, taken) == taken


def test_redis_is_configured_to_lose_nothing_and_its_password_is_nobodys(tmp_path: Path) -> None:
    conf, password = write_conf(tmp_path / "redis", 6400)
    text = conf.read_text()
    for line in ("bind 127.0.0.1", "port 6400", "appendonly yes", "appendfsync always", "maxmemory-policy noeviction",
                 'save ""', f"requirepass {password}"):  # fmt: skip
        assert line in text.splitlines()
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "redis").iterdir()} == {0o600}
    assert len(password) >= 32


def test_the_password_stays_the_same(tmp_path: Path) -> None:
    assert write_conf(tmp_path / "redis", 1)[1] == write_conf(tmp_path / "redis", 2)[1]


def _fake_redis(folder: Path, version: str) -> None:
    (folder / "redis-server").write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0'\n")
    (folder / "redis-server").chmod(0o755)


def test_a_redis_that_is_missing_or_too_old_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InvalidConfig, match='install the package "redis-server"'):
        redis_binary()
    _fake_redis(tmp_path, "6.2.14")
    with pytest.raises(InvalidConfig, match="needs 7 or later"):
        redis_binary()
    _fake_redis(tmp_path, "7.0.15")
    assert redis_binary() == str(tmp_path / "redis-server")


def test_a_configuration_that_up_made_follows_the_machine_and_one_of_a_person_stays() -> None:
    made = single_machine(2, 1000, 0, 10)
    assert _is_machine(made)
    assert not _is_machine(made.model_copy(update={"lease_s": 60}))
    other = {"queues": {"q": {"environments": ["e"]}}, "environments": {"e": {"vcpus": 1, "memory_mib": 9}}}
    assert not _is_machine(type(made).model_validate(other))
