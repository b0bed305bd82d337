"""What `batchyard doctor` looks at beside this machine: Redis, its clock, the blob store, the key file."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import Any

import redis

from batchyard.broker import functions, keys
from batchyard.broker.endpoints import Endpoints
from batchyard.broker.errors import BatchyardError, NotFound
from batchyard.broker.keysource import AnySource, KeySource, as_source, load_ring
from batchyard.cache.identity import store_id
from batchyard.cache.stores.place import store_at
from batchyard.cache.stores.protocol import Store

from .checks import Check, Checks, fail, ok, warn
from .redis_server import OLDEST

_BLOB_BYTES = 64 << 10
_CLOCK_WARN_S, _CLOCK_FAIL_S = 1.0, 300.0  # S3 refuses requests that are 15 min off; events and etas are off before


@contextmanager
def _connected(url: str) -> Iterator[redis.Redis]:
    with closing(functions.connect(url)) as client:
        yield client


def redis_server(url: str) -> Checks:
    """The yard's Redis: whether it answers, keeps what it took, and has what the yard needs."""
    with _connected(url) as client:
        began = time.monotonic()
        try:
            client.ping()
            took_ms = (time.monotonic() - began) * 1000
            server: dict[str, Any] = client.info()
        except redis.RedisError as error:
            yield fail("redis", f"it does not answer: {error}", "start it, or correct --broker")
            return
        version = str(server.get("redis_version", "0"))
        if int(version.partition(".")[0] or 0) < OLDEST:
            yield fail("redis", f"version {version}", f"use version {OLDEST} or later")
        else:
            yield ok("redis", f"version {version} answers in {took_ms:.1f} ms")
        try:
            settings: Any = client.config_get("*")
        except redis.ResponseError:
            yield warn(
                "redis settings", "CONFIG is refused, so they are not known", "see that AOF and noeviction are set"
            )
        else:
            yield from redis_settings(settings)
        yield from _loaded(client)
        yield from _memory(server)


def redis_settings(settings: Mapping[str, str]) -> Checks:
    """What CONFIG GET tells."""
    fsync = settings.get("appendfsync", "?")
    if settings.get("appendonly") != "yes":
        yield fail("redis on disk", "appendonly no: jobs that were taken are lost with Redis", "set appendonly yes")
    elif fsync != "always":
        yield warn("redis on disk", f"appendfsync {fsync}: the last second may be lost", "set appendfsync always")
    else:
        yield ok("redis on disk", "every write, before it is answered")
    policy = settings.get("maxmemory-policy", "?")
    if policy == "noeviction":
        yield ok("redis eviction", policy)
    else:
        yield fail("redis eviction", f"{policy}: jobs may vanish", "set maxmemory-policy noeviction")
    events = set(settings.get("notify-keyspace-events", ""))
    if "K" in events and events & {"l", "A"}:
        yield ok("redis events", "pushes are told")
    else:
        yield warn(
            "redis events", "pushes are not told: intake looks by the clock", "a controller sets it at its start"
        )


def _loaded(client: redis.Redis) -> Checks:
    try:
        found: Any = client.function_list(library=functions.LIBRARY, withcode=True)
    except redis.ResponseError as error:
        yield fail("redis functions", f"they cannot be listed: {error}", "allow FUNCTION to this user")
        return
    texts = [part for one in found for part in _flat(one)]
    if not found:
        yield warn("redis functions", "none is loaded yet", "a controller or node loads them at its start")
    elif functions.library() in texts:
        yield ok("redis functions", "loaded, of this version")
    else:
        yield warn("redis functions", "those of another version are loaded", "run one version of batchyard everywhere")
    if client.exists(keys.CONTROLLER):
        yield ok("controller", "works")
    elif client.exists(keys.STAND_IN):
        yield warn("controller", "none works; a node stands in", "start `batchyard controller`")
    else:
        yield warn(
            "controller", "none works, and no node stands in: jobs are not taken in", "start `batchyard controller`"
        )


def _flat(value: object) -> Iterator[str]:
    """All texts in a reply, whatever form this version of redis-py gives it."""
    if isinstance(value, bytes):
        yield value.decode("utf-8", "replace")
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _flat(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _flat(part)
    elif isinstance(value, str):
        yield value


def _memory(server: Mapping[str, Any]) -> Checks:
    used, most = int(server.get("used_memory") or 0), int(server.get("maxmemory") or 0)
    if most and used > 0.9 * most:
        yield warn(
            "redis memory", f"{used >> 20} of {most >> 20} MiB are used; at the end the door closes", "give it more"
        )


# -- clock
def clock(url: str) -> Checks:
    """This machine's clock against Redis's, by which leases and etas go."""
    with _connected(url) as client:
        try:
            client.ping()
            before = time.time()
            seconds, micros = client.time()
            after = time.time()
        except redis.RedisError:
            yield warn("clock", "Redis does not answer, so there is nothing to compare with", "see redis")
            return
    yield clock_offset((before + after) / 2 - (float(seconds) + float(micros) / 1e6), after - before)


def clock_offset(offset_s: float, round_trip_s: float) -> Check:
    """offset_s: above 0 when this machine is ahead."""
    way = "ahead of" if offset_s > 0 else "behind"
    said = f"{abs(offset_s) * 1000:.1f} ms {way} Redis's (±{round_trip_s * 500:.1f} ms)"
    off = max(0.0, abs(offset_s) - round_trip_s / 2)
    if off > _CLOCK_FAIL_S:
        return fail("clock", said, "run an NTP client, such as chrony, on all machines")
    if off > _CLOCK_WARN_S:
        return warn("clock", said, "run an NTP client, such as chrony, on all machines")
    return ok("clock", said)


# -- store
def blob_store(spec: str, ends: Endpoints | None = None, source: KeySource | None = None) -> Checks:
    """A random object goes in and out; of two puts of one name, one counts. ends: whose store it should be; source:
    where that yard's keys are, if they do not say it.
    """
    try:
        began = time.monotonic()
        store = store_at(spec)
        if ends is not None and (source := source or ends.key_source()) is not None:
            yield from _is_ours(store, source, ends.broker_url)
        name, data = secrets.token_hex(32), secrets.token_bytes(_BLOB_BYTES)
        yield _round_trip(store, name, data, began)
        yield _one_counts(store)
    except BatchyardError as error:
        yield fail("store", str(error), "correct --store or its credentials, or start it")


def _is_ours(store: Store, keys_at: KeySource, url: str) -> Checks:
    """Nothing where it cannot be told."""
    known: Any = None
    with suppress(redis.RedisError), _connected(url) as client:
        known = client.get(keys.STORE)
    if known is None or (keys_at.path is not None and not keys_at.path.exists()):
        return
    found = store_id(store, load_ring(keys_at))
    if found == known.decode():
        yield ok("store id", "it is the yard's")
    else:
        said = "this is not the yard's store: it has " + ("no id" if found is None else "another id")
        yield fail("store id", said, "correct --store, or start one node with --new-store")


def _round_trip(store: Store, name: str, data: bytes, began: float) -> Check:
    try:
        if not store.put_if_absent(name, _Source(data), len(data)):
            return fail("store", "a put of a new name says that it is there already", "look at what stands before it")
        put_at = time.monotonic()
        with store.get(name) as reader:
            back = bytearray(len(data) + 1)
            size = 0
            while count := reader.readinto(memoryview(back)[size:]):
                size += count
        got_at = time.monotonic()
    except NotFound:
        return fail(
            "store", "it took an object that is not there", "see that this is a blob store, and no proxy's page"
        )
    finally:
        with suppress(BatchyardError):
            store.delete(name)
    if bytes(back[:size]) != data:
        return fail("store", "it gave back other bytes than it was given", "do not use this store; look at its disk")
    if store.stat(name) is not None:
        return warn("store", "what is deleted stays", "see whether it keeps versions, or refuses deletes")
    return ok("store", f"put {(put_at - began) * 1000:.0f} ms, get {(got_at - put_at) * 1000:.0f} ms, deleted")


def _one_counts(store: Store) -> Check:
    """Both puts begin before one of them ends, so that none of them finds the name taken at first sight."""
    name, data, meet = secrets.token_hex(32), secrets.token_bytes(1024), threading.Barrier(2)
    made: list[bool] = []

    def put() -> None:
        with suppress(BatchyardError):
            made.append(store.put_if_absent(name, _Source(data, meet), len(data)))

    other = threading.Thread(target=put, daemon=True)
    try:
        other.start()
        put()
        other.join()
    finally:
        with suppress(BatchyardError):
            store.delete(name)
    if made.count(True) == 1:
        return ok("store conditions", "of two puts of one name, one counts")
    if not any(made):
        return warn("store conditions", "two puts of one name at once both failed", "try again, or use another store")
    return fail("store conditions", "a put replaces what is there: If-None-Match is not honoured", "use another store")


class _Source:
    """Bytes to read. meet: each reader waits there for the other one, for a while, before its first byte."""

    def __init__(self, data: bytes, meet: threading.Barrier | None = None) -> None:
        self._left, self._meet = memoryview(data), meet

    def readinto(self, buffer: memoryview, /) -> int:
        if self._meet is not None:
            with suppress(threading.BrokenBarrierError):
                self._meet.wait(2.0)
            self._meet = None
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


# -- keys
def key_file(given: AnySource, url: str | None) -> Checks:
    """Whether the keys are their owner's alone, whole, and the yard's."""
    source = as_source(given)
    try:
        if source.path is not None and not source.path.exists():
            yield fail("keys", f"there is no {source}", "copy the yard's, or correct --key-file")
            return
        ring = load_ring(source)
    except BatchyardError as error:
        yield fail("keys", str(error), "copy the yard's keys again")
        return
    shown = source.path or source
    mark: Any = None
    state: Any = {}
    with suppress(redis.RedisError):
        if url is not None:
            with _connected(url) as client:
                mark, state = client.get(keys.KEY_MARK), client.hgetall(keys.KEY_STATE)
    if mark is None:
        yield warn("keys", f"{shown} is whole; there is no yard to compare it with", "start a controller on this Redis")
    elif mark.decode() != ring.mark:
        yield fail("keys", f"{shown} is not this yard's", "use the keys that its controller uses")
    elif f"retired:{ring.current}".encode() in state:
        yield fail(
            "keys", f"{shown}: its current key, {ring.current}, was retired", "take the controller's as it is now"
        )
    else:
        yield ok("keys", f"{shown} is this yard's, and its owner's alone")
    if (wanted := state.get(b"rotating")) is not None:
        yield warn("keys", f"a rotation to {wanted.decode()} is unfinished", "`batchyard keys rotate` goes on with it")
