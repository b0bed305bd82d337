"""How a command finds its yard: the options that all commands have, and what they open."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from ..endpoints import Endpoints, absolute_store, default_state
from ..errors import BrokerUnavailable, InvalidConfig
from ..keysource import NO_KEYS, KeyCommand, KeySource, source_of

if TYPE_CHECKING:
    from ..client import Client

F = TypeVar("F", bound=Callable[..., Any])

key_options = (
    click.option("--key-file", type=click.Path(path_type=Path), envvar="BATCHYARD_KEY_FILE",
                 help="The yard's keys. Also: BATCHYARD_KEYS, the keys themselves."),
    click.option("--key-command", metavar="COMMAND", envvar="BATCHYARD_KEY_COMMAND",
                 help="What prints the yard's keys, for instance by a KMS; not --key-file."),
)  # fmt: skip
_OPTIONS = (
    click.option("--state", type=click.Path(path_type=Path), envvar="BATCHYARD_STATE",
                 help="The state folder of a `batchyard up`.  [default: ~/.batchyard]"),
    click.option("--broker", metavar="URL", envvar="BATCHYARD_BROKER_URL", help="The yard's Redis; not --state."),
    *key_options,
    click.option("--store", metavar="SPEC", envvar="BATCHYARD_STORE",
                 help="The yard's blob store: a folder, or s3://BUCKET[/PREFIX]?credentials=FILE."),
)  # fmt: skip
_NAMES = {"state", "broker", "key_file", "key_command", "store"}


def examples(*lines: str) -> str:
    """The epilog of a command's help: command lines, each as it would be typed; "" for a gap."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" if line else "\n\b" for line in lines)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
tenant_option = click.option(
    "--tenant", default="", metavar="NAME", help="Whose blobs: the tenant of a queue.  [default: the yard's own]"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Doors:
    """Where the yard is, as the options say."""

    state: Path
    broker: str | None
    keys: KeySource | None
    store: str | None

    @classmethod
    def of(cls, ctx: click.Context) -> Doors:
        """From a command's context. What was typed counts more than what lies in the environment."""
        told, where = ctx.params, ctx.get_parameter_source
        broker = told.get("broker")
        if where("state") is ParameterSource.COMMANDLINE and where("broker") is ParameterSource.ENVIRONMENT:
            broker = None
        return cls(state=told.get("state") or default_state(), broker=broker, keys=named_keys(ctx),
                   store=told.get("store"))  # fmt: skip

    def endpoints(self) -> Endpoints:
        """Raises InvalidConfig: no yard was named, and none is known here."""
        found = Endpoints(broker_url=self.broker, result_backend=self.broker) if self.broker else None
        found = found or Endpoints.load(self.state)
        if self.keys is not None:
            named = self.keys.path
            command = self.keys.command if isinstance(self.keys, KeyCommand) else None
            found = replace(found, key_file=str(named.absolute()) if named else None, key_command=command)
        return replace(found, store=absolute_store(self.store) if self.store else found.store)

    def client(self) -> Client:
        """Use it as a context manager. Raises InvalidConfig."""
        from ..client import Client

        return Client.of(self.endpoints(), self.keys)

    def explained(self, error: BrokerUnavailable) -> BrokerUnavailable:
        """The same, or that the yard which `--state` names is not running."""
        from redis.exceptions import ResponseError

        asked = self.broker is None and not isinstance(error.__cause__, ResponseError)  # that is an answer too
        try:
            if not (asked and Endpoints.load(self.state).stopped):
                return error
        except InvalidConfig:
            return error
        where = "" if self.state == default_state() else f" --state {self.state}"
        return BrokerUnavailable(f'the yard of "{self.state}" is not running; start it with `batchyard up{where}`')

    def key_source(self) -> KeySource:
        """Raises InvalidConfig."""
        named = self.keys or self.endpoints().key_source()
        if named is None:
            raise InvalidConfig(NO_KEYS)
        return named


def yard_options(command: F) -> F:
    """Adds the options that say which yard; the command gets `doors`."""

    @click.pass_context
    @functools.wraps(command)
    def call(ctx: click.Context, /, **told: Any) -> Any:
        others = {name: value for name, value in told.items() if name not in _NAMES}
        doors = Doors.of(ctx)
        try:
            return ctx.invoke(command, doors=doors, **others)
        except BrokerUnavailable as error:
            raise doors.explained(error) from error

    wrapped: Any = call
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]


def print_json(value: object) -> None:
    """One JSON document, indented."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def named_keys(ctx: click.Context) -> KeySource | None:
    """The keys that a command with `key_options` was given, typed or by the environment. Raises InvalidConfig."""
    typed = {
        name: ctx.params.get(name) if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE else None
        for name in ("key_file", "key_command")
    }
    return source_of(file=typed["key_file"], command=typed["key_command"])
