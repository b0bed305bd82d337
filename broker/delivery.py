"""Events to a webhook: in order, each at least once, by whichever controller holds the lock.

How far it has come is kept in Redis. A receiver that is away is asked again and again, more and more rarely, and what
waits for it is the stream, which is bounded: where events were dropped from it meanwhile, the next message says so.
Redirects are not followed, no proxy is used, and an answer's body is not read.
"""

from __future__ import annotations

import json
import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import certifi
import redis
import urllib3
from celery.utils.time import get_exponential_backoff_interval
from redis.lock import Lock

from . import keys
from .config import Config
from .errors import BatchyardError, BrokerUnavailable, InvalidConfig, NotFound
from .events import FIRST, Event, Events
from .functions import Functions
from .store import Yard
from .webhook import Webhook, key_of, signature

log = logging.getLogger(__name__)
AT_ONCE = 100  # events in one message
TYPE = "batchyard.job_state_changes"
_LOOK_MS = 1000
_AWAY_S = 2.0
_FIRST_S, _MOST_S = 1, 300
_SLICE_S = 5.0
_MOST_SECRET = 4096


class Undelivered(BatchyardError):
    """`https://hooks.example.org/x answered 503`: it is tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What is sent at once. after: the cursor before its events, cursor: that of its last one."""

    id: str
    body: bytes
    after: str
    cursor: str


def find_secret(name: str, folder: Path | None, environ: Mapping[str, str]) -> bytes:
    """The key of a webhook, from a file of the folder, else a variable. Raises InvalidConfig, which never quotes it."""
    if folder is not None and (folder / name).is_file():
        try:
            with (folder / name).open(encoding="utf-8") as file:
                return key_of(file.read(_MOST_SECRET), name)
        except (OSError, UnicodeDecodeError):
            raise InvalidConfig(f'secret "{name}" of events.webhook cannot be read in "{folder}"') from None
    if value := environ.get(name):
        return key_of(value, name)
    where = f'no file of "{folder}" and no variable' if folder is not None else "no variable, and no --secrets is given"
    raise InvalidConfig(f'secret "{name}" of events.webhook is not there: {where} of the controller')


def message_of(shaped: Sequence[Mapping[str, Any]], events: Sequence[Event], after: str, *, dropped: bool) -> Message:
    """Of events in AWS's shape, none of them missing in between; dropped: some before them are lost."""
    data = {"events": list(shaped), "dropped": dropped}
    body = {"type": TYPE, "timestamp": shaped[-1]["time"], "data": data}
    last = events[-1].cursor
    return Message(
        id=f"{events[0].cursor}_{last}",
        body=json.dumps(body, separators=(",", ":")).encode(),
        after=after,
        cursor=last,
    )


class Receiver:
    """What takes messages."""

    def __init__(self, hook: Webhook, key: Callable[[], bytes]) -> None:
        self._hook, self._key = hook, key
        context = ssl.create_default_context()  # an authority of one's own: SSL_CERT_FILE
        context.load_verify_locations(certifi.where())
        self._pool = urllib3.PoolManager(num_pools=1, ssl_context=context)

    def post(self, message: Message, at_s: int) -> None:
        """Raises Undelivered, InvalidConfig (its secret)."""
        hook = self._hook
        headers = {
            "content-type": "application/json",
            "user-agent": "batchyard",
            "webhook-id": message.id,
            "webhook-timestamp": str(at_s),
            "webhook-signature": signature(self._key(), message.id, at_s, message.body),
        }
        try:
            answer = self._pool.request(
                "POST", hook.url, body=message.body, headers=headers, redirect=False, retries=False,
                preload_content=False, timeout=urllib3.Timeout(connect=min(5.0, hook.timeout_s), read=hook.timeout_s),
            )  # fmt: skip
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            # its text may hold the URL's query
            raise Undelivered(f"{hook.shown} cannot be reached: {type(error).__name__}") from None
        status = answer.status
        answer.close()
        if not 200 <= status < 300:
            redirects = ", and redirects are not followed" if 300 <= status < 400 else ""
            raise Undelivered(f"{hook.shown} answered {status}{redirects}")

    def close(self) -> None:
        self._pool.clear()


class Delivery:
    """A thread of the controller. run() returns after stop(). backoff_s: between two tries, from the number of those
    that failed.
    """

    def __init__(
        self,
        yard: Yard,
        config: Callable[[], Config],
        key: Callable[[str], bytes],
        *,
        backoff_s: Callable[[int], float] = lambda n: get_exponential_backoff_interval(_FIRST_S, min(n, 20), _MOST_S),
    ) -> None:
        self._yard, self._config, self._key, self._backoff_s = yard, config, key, backoff_s
        self._events, self._functions = Events(yard), Functions(yard.redis)
        self._stop = threading.Event()

    def stop(self) -> None:
        """May be called twice."""
        self._stop.set()

    def run(self) -> None:
        """Whatever goes wrong here holds up nothing else."""
        while not self._stop.is_set():
            try:
                self._session()
            except (BrokerUnavailable, NotFound, redis.RedisError) as error:
                log.warning("events wait for Redis: %s", error)
            except Exception:
                log.exception("the webhook goes on after an error")
            self._stop.wait(_AWAY_S)

    def _session(self) -> None:
        hook = self._config().events.webhook
        lock = Lock(
            self._yard.redis, keys.WEBHOOK_LOCK, timeout=15.0 + (hook.timeout_s if hook else 0), thread_local=False
        )
        if not lock.acquire(blocking=False):
            return
        try:
            if hook is None:
                self._yard.guard(lambda: self._yard.redis.delete(keys.WEBHOOK))
                return
            receiver = Receiver(hook, lambda: self._key(hook.secret))
            try:
                while self._wanted(hook):
                    lock.reacquire()
                    if (message := self._next()) is not None:
                        self._deliver(message, receiver, hook, lock)
            finally:
                receiver.close()
        finally:
            with suppress(redis.RedisError):
                lock.release()

    def _wanted(self, hook: Webhook) -> bool:
        return not self._stop.is_set() and self._config().events.webhook == hook

    def _next(self) -> Message | None:
        """The first one that is not delivered; None within a second."""
        after = self._cursor()
        events = self._events.after(after, count=AT_ONCE, block_ms=_LOOK_MS)
        if not events:
            return None
        shaped = self._events.shaped(events)
        return message_of(shaped, events, after, dropped=self._dropped(after))

    def _cursor(self) -> str:
        """A webhook is told of what happens from its first moment on."""
        client = self._yard.redis
        found: bytes | None = self._yard.guard(lambda: client.hget(keys.WEBHOOK, "cursor"))
        if found is not None:
            return found.decode()
        last = self._events.newest(1)[0]
        self._yard.guard(lambda: client.hsetnx(keys.WEBHOOK, "cursor", last))
        return last

    def _dropped(self, after: str) -> bool:
        """Whether the stream has lost the event that was delivered last, and so perhaps some after it."""
        client = self._yard.redis
        lost = after != FIRST and not self._yard.guard(lambda: client.xrange(keys.EVENTS, after, after))
        if lost:
            log.warning("events were dropped before the webhook had them: those after %s", after)
        return lost

    def _deliver(self, message: Message, receiver: Receiver, hook: Webhook, lock: Lock) -> None:
        failures = 0
        while self._wanted(hook):
            lock.reacquire()
            try:
                receiver.post(message, int(time.time()))
            except (Undelivered, InvalidConfig) as error:
                failures += 1
                self._note(str(error), failures)
                self._pause(self._backoff_s(failures - 1), hook, lock)
            else:
                self._functions.call("delivered", message.after, message.cursor)
                if failures:
                    log.info("the webhook takes events again")
                return

    def _note(self, text: str, failures: int) -> None:
        if failures == 1:
            log.warning("events wait: %s", text)
        facts: dict[Any, Any] = {"note": text, "failures": str(failures)}
        self._yard.guard(lambda: self._yard.redis.hset(keys.WEBHOOK, mapping=facts))

    def _pause(self, seconds: float, hook: Webhook, lock: Lock) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and self._wanted(hook):
            lock.reacquire()
            self._stop.wait(min(left, _SLICE_S))


def key_finder(folder: Path | None) -> Callable[[str], bytes]:
    """Looks for a secret anew each time: it may be changed while the controller runs."""
    return lambda name: find_secret(name, folder, os.environ)
