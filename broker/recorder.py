"""A Celery app that records what it would write.

Its transport and its result backend are Celery's own with the last step, the write, turned into an entry of a list of
effects: every LPUSH, SETEX, PUBLISH and chord part. `followups` runs Celery's tracer on it and a Redis function applies
the list, together with the move of the record: both or neither.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from typing import Any

import redis
from celery import Celery, _state, states
from celery.app.task import Context
from celery.backends.redis import RedisBackend
from kombu.transport import redis as kombu_redis

from . import keys

Effect = tuple[str, tuple[Any, ...]]
# Celery's own, where its type stubs end.
celery_state: Any = _state
_RedisBackend: Any = RedisBackend
# One recording at a time: a silent Redis must not hold up all that come after it.
_GIVE_UP = {"socket_timeout": 5, "socket_connect_timeout": 2, "socket_keepalive": True}
_NOT_QUEUES = (keys.PREFIX, "celery-task", "_kombu", "unacked")


class Recording(threading.local):
    """The recording in progress on this thread. Anything that writes outside a recording is a bug.

    own: id of the job whose end is recorded. body: the outbox entry of a chord whose body is made.
    """

    effects: list[Effect] | None = None
    own: str | None = None
    outcome: tuple[str, Any] | None = None
    body: dict[str, Any] | None = None
    member: dict[str, Any] | None = None
    broken: Exception | None = None

    def add(self, op: str, *args: Any) -> None:
        if self.effects is None:
            raise RuntimeError(f"{op} outside a recording")
        self.effects.append((op, args))

    def reset(self) -> None:
        self.effects = self.own = self.outcome = self.body = self.member = self.broken = None


RECORDING = Recording()


def transient(error: BaseException | None) -> bool:
    """Whether a lost Redis stands behind an error: then nothing was decided, and the recording is to be repeated."""
    if error is None:
        return False
    chain = (error, error.__cause__, error.__context__)
    return any(isinstance(e, redis.ConnectionError | redis.TimeoutError | OSError) for e in chain)


def _watched(method: Callable[..., Any]) -> Callable[..., Any]:
    """Celery turns a Redis that is lost for a moment into a lasting ChordError: remember it, and void the recording."""

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            if transient(error):
                RECORDING.broken = error
            raise

    return call


class Channel(kombu_redis.Channel):
    """Stock routing, priorities and encoding; `_publish_batch` (kombu 5.7) is where the write is recorded."""

    def basic_publish(self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any) -> None:
        if message["content-type"] != "application/json":
            raise ValueError(f"{message['content-type']} for {routing_key!r}: JSON only")
        before = len(RECORDING.effects or ())
        super().basic_publish(message, exchange, routing_key, _publish_batch=self, **kwargs)
        if len(RECORDING.effects or ()) == before:  # stock drops it without a word, and the chain hangs
            raise LookupError(f"no queue is bound to {exchange!r} with {routing_key!r}")

    def add(self, name: str, key: str, *args: Any) -> None:
        """What kombu calls on its publish batch."""
        if name == "lpush":
            with self.conn_or_acquire() as client:  # a queue name is the producer's; the hand that writes is ours
                if key.startswith(_NOT_QUEUES) or client.type(key) not in (b"list", b"none", "list", "none"):
                    raise ValueError(f"{key!r} is no queue")
        RECORDING.add(name.upper(), key if name == "publish" else self.global_keyprefix + key, *args)


class Transport(kombu_redis.Transport):
    Channel = Channel


class _Reader:
    """The backend's Redis client, for reading: a write that the recorder did not foresee fails loudly."""

    _READS = frozenset({"get", "mget", "zrange", "lrange", "pipeline", "connection_pool", "pubsub"})

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        if name not in self._READS:
            raise RuntimeError(f"the backend wanted to {name}")
        return getattr(self._client, name)

    def delete(self, *names: str) -> None:
        RECORDING.add("DEL", *names)


class Backend(_RedisBackend):  # type: ignore[misc]
    """Celery's Redis backend with every write recorded."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.client = _Reader(self._create_client(**self.connparams))

    get, mget = _watched(_RedisBackend.get), _watched(_RedisBackend.mget)
    _call_task_errbacks = _watched(_RedisBackend._call_task_errbacks)

    def on_task_call(self, producer: object, task_id: str) -> None:
        """Stock subscribes to each sent task's result: a leak here."""

    def add_pending_result(self, result: Any, weak: bool = False, **kwargs: Any) -> Any:
        return result if weak else super().add_pending_result(result, weak=weak, **kwargs)

    def remove_pending_result(self, result: Any) -> Any:
        """Stock unsubscribes when a result object is collected, on whatever thread: for 20 s while Redis is down."""
        return result

    def store_result(self, task_id: str, result: Any, state: str, traceback: object = None, **kwargs: Any) -> Any:
        return super().store_result(task_id, result, state, traceback=None, **kwargs)  # its traceback shows our files

    def _get_task_meta_for(self, task_id: str) -> Any:
        if task_id == RECORDING.own and not RECORDING.body:  # the fence, not what stands there, decides for our own
            return {"status": states.PENDING, "result": None}
        return super()._get_task_meta_for(task_id)

    def _set(self, key: Any, value: Any, expires: int | None = None) -> None:
        expires = self.expires if expires is None else expires
        if expires:
            RECORDING.add("SETEX", key, int(expires), value)
        else:
            RECORDING.add("SET", key, value)
        RECORDING.add("PUBLISH", key, value)

    def _set_chord_key(self, key: Any, value: Any) -> None:
        RECORDING.add("SET", key, value, *(["EX", int(self.chord_expires)] if self.chord_expires else []))

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        RECORDING.add("DEL", self.get_key_for_group(group_id, ".c"))
        self._set_chord_key(self.get_key_for_group(group_id, ".s"), chord_size)

    def add_to_chord(self, group_id: str, result: object) -> None:
        RECORDING.add("INCRBY", self.get_key_for_group(group_id, ".t"), 1)

    # Stock's on_chord_part_return calls three scripts. While a job's end is recorded, the first becomes a PART effect
    # and answers "not yet"; while a body is made, it answers "complete, and the claim is yours".
    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> Any:
        RECORDING.member = {k: getattr(request, k) for k in ("id", "group", "group_index", "chord")}
        return super().on_chord_part_return(request, state, result, **kwargs)

    def _chord_part_return_script(self, keys: list[Any], args: list[Any], client: object = None) -> list[Any]:
        if RECORDING.body:
            return [RECORDING.body["n"], RECORDING.body["diff"], RECORDING.body["size"], 1]
        task_id, value, ordered, index, expires, group_expires = args[:6]
        last = json.dumps({"job": RECORDING.own, "member": RECORDING.member})
        RECORDING.add("PART", keys[4], task_id, value, ordered, index, expires, group_expires, last)
        return [-1, 0, 0, 0]

    def _chord_claim_extend_script(self, keys: object, args: object, client: object = None) -> int:
        return 1

    def _chord_cleanup_script(self, keys: object, args: object, client: object = None) -> int:
        return 1

    def chord_error_from_stack(self, callback: Any, exc: BaseException | None = None) -> Any:
        """Stock stops here, so that a chord with a failed chord as member hangs: return the part that it would have."""
        caught = sys.exc_info()[1]
        if isinstance(caught, Exception) and transient(caught):
            RECORDING.broken = caught
        info, options = super().chord_error_from_stack(callback, exc), callback.options
        if options.get("chord") and options.get("group_id"):
            RECORDING.body, body = None, RECORDING.body
            request = Context(
                id=callback.id,
                group=options["group_id"],
                group_index=options.get("group_index"),
                chord=options["chord"],
            )
            self.on_chord_part_return(request, states.FAILURE, exc)
            RECORDING.body = body
        return info


def recording_app(url: str, **conf: Any) -> Celery:
    """An app whose every write goes to RECORDING. url: the yard's Redis."""
    app = Celery("batchyard-followups", broker=url, backend=f"{Backend.__module__}:Backend+{url}", set_as_current=False)
    # Stock workers read only these four lists of a queue; what is pushed for others must be where they look.
    app.conf.update(
        broker_transport=f"{Transport.__module__}:Transport",
        task_publish_retry=False,
        broker_transport_options={"priority_steps": [0, 3, 6, 9], **_GIVE_UP},
        **{f"redis_{name}": value for name, value in _GIVE_UP.items()},
        **conf,
    )
    return app


def record(
    app: Celery,
    act: Callable[[], object],
    *,
    own: str,
    outcome: tuple[str, Any] | None = None,
    body: dict[str, Any] | None = None,
) -> list[Effect]:
    """The effects of `act()`. Raises what a lost Redis raised: then nothing is decided, call again."""
    RECORDING.reset()
    RECORDING.effects, RECORDING.own, RECORDING.outcome, RECORDING.body = [], own, outcome, body
    current, celery_state._tls.current_app = (
        getattr(celery_state._tls, "current_app", None),
        app,
    )  # parts of a canvas ask for the current app
    try:
        act()
        if RECORDING.broken:
            raise RECORDING.broken
        return RECORDING.effects
    finally:
        RECORDING.reset()
        celery_state._tls.current_app = current


def flat(effects: list[Effect]) -> list[Any]:
    """op, n, a1 … an, op, n, …: how the Redis functions read effects."""
    return [x for op, args in effects for x in (op, len(args), *args)]
