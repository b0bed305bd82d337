"""Fixtures for all tests: a private Redis, and a small image. See `yardtest` for what else tests share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import settings

import images
from yardtest.minio import S3Server, running_server
from yardtest.redis import DATABASES, RedisServer, free_port

_MARKED_FOLDERS = ("system", "chaos", "bench")
_ROOT = Path(__file__).parent
_databases = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    """Examples are the same in each run, and may take as long as they take; only `make test-full` searches for new."""
    settings.register_profile("searching", settings.get_profile("ci"), derandomize=False)
    settings.load_profile("ci" if "not full" in config.option.markexpr else "searching")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test of `tests/system`, `chaos` or `bench` has the marker of that name."""
    for item in items:
        folder = item.path.relative_to(_ROOT).parts[0] if item.path.is_relative_to(_ROOT) else ""
        if folder in _MARKED_FOLDERS:
            item.add_marker(folder)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The session's Redis. A test that kills Redis makes a `RedisServer` of its own instead (`own_redis`)."""
    server = RedisServer(free_port(), tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis_url(redis_server: RedisServer) -> str:
    """The URL of database 0 of the session's Redis; what other tests wrote may be there."""
    return redis_server.url()


@pytest.fixture
def fresh_redis_url(redis_server: RedisServer) -> str:
    """The URL of an empty database that no other test of this session uses.

    Functions, configuration and publish/subscribe are the server's, not the database's: they are shared.
    """
    url = redis_server.url(1 + next(_databases) % (DATABASES - 1))
    client = redis.Redis.from_url(url)
    client.flushdb()
    client.close()
    return url


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis for this test alone, started: to kill, to start again on its data, to configure."""
    directory = tmp_path / "redis"
    directory.mkdir()
    server = RedisServer(free_port(), directory)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The session's MinIO, over TLS; each test takes a bucket of its own. A test that harms it makes its own."""
    with running_server("minio", tmp_path_factory.mktemp("minio")) as server:
        yield server


@pytest.fixture(scope="session")
def versitygw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The session's versitygw, over TLS; each test takes a bucket of its own."""
    with running_server("versitygw", tmp_path_factory.mktemp("versitygw")) as server:
        yield server


@pytest.fixture(scope="session")
def image() -> str:
    """The name of an image with a shell and the usual commands; needs a Docker engine, and says so if there is none."""
    tag = "batchyard-test/busybox:1"
    try:
        images.busybox(tag)
    except RuntimeError as error:
        pytest.fail(str(error), pytrace=False)
    return tag
