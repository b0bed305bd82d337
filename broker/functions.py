"""The Redis functions, put together from `lua/*.lua`, and the one way to call them."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ClusterDownError, MasterDownError, OutOfMemoryError, ReadOnlyError
from redis.retry import Retry

from . import keys
from .errors import BrokerUnavailable, InvalidConfig

LIBRARY = "batchyard"
_SHARED = (
    "base", "blobs", "arrays", "policies", "shares", "gates", "index", "overflow", "reserving", "holding", "gangs",
    "moves", "members", "dependencies", "ends", "leases", "effects",
)  # fmt: skip
"""Files of `lua/shared/`; each may use those before it."""
# Answers that mean "not now": out of memory, a disk that the AOF cannot be written to, a replica, still loading.
# redis-py has classes for some, and takes the word off their text.
_NOT_NOW = ("MISCONF", "BUSY", "NOREPLICAS")
_NOT_NOW_CLASSES = (OutOfMemoryError, ReadOnlyError, MasterDownError, ClusterDownError)

Arg = str | bytes | int | float


@cache
def library() -> str:
    """The whole library's Lua text: key names, what is shared, then one file an operation."""
    folder = files("batchyard.broker") / "lua"
    shared = [(folder / "shared" / f"{name}.lua").read_text() for name in _SHARED]
    names = sorted(f.name for f in folder.iterdir() if f.name.endswith(".lua"))
    parts = [f"-- {name}\ndo\n{(folder / name).read_text()}\nend\n" for name in names]
    return "\n".join([f"#!lua name={LIBRARY}", keys.lua_table(), *shared, *parts])


def connect(url: str, **options: Any) -> redis.Redis:
    """A client that answers bytes, gives up on a silent server, and leaves repeats to us.

    Every function of ours recognises its own repeat, so callers may simply call again. InvalidConfig: no broker's URL.
    """
    defaults: dict[str, Any] = {
        "socket_timeout": 5,
        "socket_connect_timeout": 2,
        "socket_keepalive": True,
        "health_check_interval": 15,
        "retry": Retry(NoBackoff(), 1),
    }
    try:
        return redis.Redis.from_url(url, **{**defaults, **options})
    except ValueError:  # its text may hold a part of the URL, so a password
        shown = f"{scheme}://…" if (scheme := url.partition("://")[0]).isalnum() and "://" in url else "what was given"
        raise InvalidConfig(
            f"{shown} names no broker; a broker is redis://HOST:PORT/DATABASE, rediss://… or unix://…"
        ) from None


class Functions:
    """Calls `by_<name>` and loads the library where Redis does not have it (yet, or any more)."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client

    def load(self) -> None:
        """Puts this version's functions in place of what Redis has. Raises BrokerUnavailable, InvalidConfig."""
        try:
            self.client.function_load(library(), replace=True)
        except redis.ResponseError as error:
            if "unknown command" in str(error).lower():
                raise InvalidConfig("this Redis has no functions; Redis 7 or newer is needed") from None
            raise told(error) from error
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise told(error) from error

    def call(self, name: str, *args: Arg) -> Any:
        """The function's reply, strings as bytes. Raises BrokerUnavailable."""
        try:
            return self.client.execute_command("FCALL", f"by_{name}", 0, *args)  # type: ignore[no-untyped-call]
        except redis.ResponseError as error:
            if "Function not found" not in str(error):
                raise told(error) from error
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise told(error) from error
        self.load()
        return self.call(name, *args)


def told(error: redis.RedisError) -> Exception:
    """What is to be raised for an error of redis-py: BrokerUnavailable for all that another time may be well."""
    not_now = isinstance(error, _NOT_NOW_CLASSES) or str(error).startswith(_NOT_NOW)
    if isinstance(error, redis.ResponseError) and not not_now:
        return error
    return BrokerUnavailable(
        f"Redis does not answer as it should: {words(error)}; is it up, and has it memory and disk?"
    )


def words(error: Exception) -> str:
    """An error's own text, to be gone on from."""
    return str(error).rstrip(". ")
