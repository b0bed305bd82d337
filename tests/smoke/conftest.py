"""pytest-celery's setup of Redis and workers in containers, made of this repository's own images.

| container | what it is |
|---|---|
| `default_redis_broker` | broker and result backend in one, as a yard wants it |
| `node_a`, `node_b` | our nodes; each is root in its container, with the engine's socket |
| `stock_worker` | a plain Celery worker with tasks of its own, on the queue `theirs` |

What the plugin would pull or build by itself is replaced: each fixture here that it has too is there for that.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_docker_tools
import pytest_docker_tools.wrappers.container as docker_tools
from celery import Celery
from celery import _state as celery_state
from celery.result import AsyncResult
from pytest_celery import (
    CeleryBackendCluster,
    CeleryBrokerCluster,
    CeleryTestBackend,
    CeleryTestBroker,
    CeleryTestSetup,
    CeleryTestWorker,
    CeleryWorkerCluster,
    CeleryWorkerContainer,
    RedisContainer,
    RedisTestBroker,
)
from pytest_docker_tools import fxtr

import yardtest.stock
from batchyard.broker.config import parse
from batchyard.broker.seal import KeyRing
from batchyard.broker.store import Yard
from yardtest.redis import free_port
from yardtest.stack import IMAGES_S, REDIS_IMAGE, YARD_IMAGE, make_images, remove_jobs

_APPS: Any = celery_state  # which app is Celery's current one has no public form to put back
_in_docker: Any = pytest_docker_tools
LEASE_S = 4
CONFIG = {
    "queues": {"cpu": {"environments": ["here"]}},
    "environments": {"here": {"vcpus": 2, "memory_mib": 1024, "disk_gib": 5}},
    "lease_s": LEASE_S,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test that needs the images may have to wait until they are made."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(IMAGES_S + 120))


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Other tests have apps of their own. And the plugin takes a machine with /.dockerenv for a container."""
    monkeypatch.setattr(docker_tools, "tests_inside_container", lambda: False)
    current, default = getattr(_APPS._tls, "current_app", None), _APPS.default_app
    yield
    _APPS._tls.current_app, _APPS.default_app = current, default


@pytest.fixture(scope="session")
def stack_images() -> None:
    make_images()


# -- Redis
class YardRedis(RedisContainer):  # type: ignore[misc]
    """Every write on disk before it is answered; the data outlives a restart of the container, not its removal."""

    @classmethod
    def command(cls, *args: str, **_: Any) -> list[str]:
        settings = {"--bind": "0.0.0.0", "--protected-mode": "no", "--dir": "/tmp", "--appendonly": "yes",
                    "--appendfsync": "always", "--save": "", "--maxmemory-policy": "noeviction",
                    "--notify-keyspace-events": "Kl"}  # fmt: skip
        return ["redis-server", *(word for pair in settings.items() for word in pair), *args]


@pytest.fixture
def default_redis_broker_cls() -> type[YardRedis]:
    return YardRedis


@pytest.fixture
def default_redis_broker_image(stack_images: None) -> str:
    return REDIS_IMAGE


@pytest.fixture
def default_redis_broker_ports() -> dict[str, tuple[str, int]]:
    """One that stays the same over restarts."""
    return {"6379/tcp": ("127.0.0.1", free_port())}


@pytest.fixture
def celery_broker_cluster(celery_redis_broker: RedisTestBroker) -> CeleryBrokerCluster:
    return CeleryBrokerCluster(celery_redis_broker)


@pytest.fixture
def celery_backend_cluster(default_redis_broker: RedisContainer) -> CeleryBackendCluster:
    return CeleryBackendCluster(CeleryTestBackend(default_redis_broker))


# -- a yard in it
@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a yard's nodes have their files, at the same path in their containers as here; and its record."""

    path: str
    url: str
    yard: Yard


@pytest.fixture
def place(default_redis_broker: RedisContainer, tmp_path: Path) -> Iterator[Place]:
    ring = KeyRing.load_or_create(tmp_path / "keys.json")
    yard = Yard(default_redis_broker.celeryconfig["host_url"], ring)
    yard.prepare()
    yard.configure(parse(CONFIG, "the smoke tests' configuration"))
    yield Place(path=str(tmp_path), url=default_redis_broker.celeryconfig["url"], yard=yard)
    yard.redis.close()
    remove_jobs(hashlib.sha256(ring.mark.encode()).hexdigest()[:16])


# -- workers
class StockContainer(CeleryWorkerContainer):  # type: ignore[misc]
    """`celery worker`."""

    def ready(self) -> bool:
        """Asked again and again; raises when the container has ended. The plugin's would wait for that one's words."""
        return docker_tools.Container.ready(self) and self.ready_prompt in self.logs()


class NodeContainer(StockContainer):
    """`batchyard worker`."""

    @property
    def ready_prompt(self) -> str:
        return "ready: node"


@pytest.fixture
def worker_image(stack_images: None) -> str:
    return YARD_IMAGE


@pytest.fixture
def worker_environment(place: Place) -> dict[str, str]:
    return {
        "BATCHYARD_BROKER_URL": place.url,
        "BATCHYARD_KEY_FILE": f"{place.path}/keys.json",
        "BATCHYARD_STORE": f"{place.path}/store",
        "STOCK_URL": place.url,
        "PYTHONPATH": "/theirs",
    }


def _node(name: str) -> Any:
    words = {"--name": name, "--state": f"{{place.path}}/{name}", "--queues": "cpu", "--vcpus": "2", "--gpus": "0",
             "--memory-mib": "1024", "--disk-gib": "5", "--grace-s": "1", "--stop-grace-s": "1"}  # fmt: skip
    return _in_docker.container(
        image="{worker_image}",
        command=["batchyard", "worker", *(word for pair in words.items() for word in pair)],
        environment=fxtr("worker_environment"),
        network="{default_pytest_celery_network.name}",
        volumes={
            "{place.path}": {"bind": "{place.path}", "mode": "rw"},
            "/var/run/docker.sock": {"bind": "/var/run/docker.sock", "mode": "rw"},
        },
        hostname=f"node-{name}",
        user="0:0",
        wrapper_class=NodeContainer,
        timeout=60,
    )


node_a, node_b = _node("a"), _node("b")

stock_code = _in_docker.volume(initial_content={"stock.py": Path(yardtest.stock.__file__).read_bytes()})
stock_worker = _in_docker.container(
    image="{worker_image}",
    command=["celery", "-A", "stock", "worker", "-Q", "theirs", "-c", "1", "-n", "stock@%h", "--loglevel=INFO"],
    environment=fxtr("worker_environment"),
    network="{default_pytest_celery_network.name}",
    volumes={"{stock_code.name}": {"bind": "/theirs", "mode": "ro"}},
    wrapper_class=StockContainer,
    timeout=60,
)


@pytest.fixture
def celery_worker_cluster(node_a: NodeContainer, celery_setup_app: Celery) -> CeleryWorkerCluster:
    return CeleryWorkerCluster(CeleryTestWorker(node_a, celery_setup_app))


class Setup(CeleryTestSetup):  # type: ignore[misc]
    """Its app is the producer: plain Celery, for nobody but the test."""

    @property
    def node(self) -> CeleryTestWorker:
        """Our node a."""
        assert self.worker is not None
        return self.worker

    @property
    def redis(self) -> CeleryTestBroker:
        assert self.broker is not None
        return self.broker

    @classmethod
    def create_setup_app(cls, celery_setup_config: dict[str, Any], celery_setup_app_name: str) -> Celery:
        app = Celery(celery_setup_app_name, set_as_current=False)
        app.config_from_object(celery_setup_config)
        return app

    def teardown(self) -> None:
        """The results of this test would look for its Redis when they are collected; those of other tests stay."""
        results: list[Any] = [one for one in gc.get_objects() if isinstance(one, AsyncResult)]
        for one in results:
            if one.app is self.app:
                one.backend = None


@pytest.fixture
def celery_setup_cls() -> type[Setup]:
    return Setup
