"""What `batchyard queue` and `batchyard environment` have in common."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import InvalidConfig
from . import show
from .doors import Doors, print_json

if TYPE_CHECKING:
    from ..changes import What

F = TypeVar("F", bound=Callable[..., Any])

_SAID = {"create": "made", "update": "changed"}
_OPTIONS: tuple[Any, ...] = (
    click.option("-f", "--file", "file", type=click.Path(path_type=Path, allow_dash=True),
                 help="Its fields as JSON or YAML, as the yard's file has them (- for stdin)."),
    click.option("--set", "told", metavar="FIELD=VALUE", multiple=True,
                 help="Any field, its value as YAML; repeatable."),
)  # fmt: skip


def field_options(command: F) -> F:
    """-f and --set, as `file` and `told`."""
    wrapped: Any = command
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]


def fields_of(options: Mapping[str, Any], file: Path | None, told: tuple[str, ...]) -> dict[str, Any]:
    """What was said: the file's fields, then --set, then options of their own. Raises InvalidConfig."""
    found = _file(file) if file is not None else {}
    for one in told:
        name, equals, value = one.partition("=")
        if not equals or not name:
            raise InvalidConfig(f'--set "{one}": give FIELD=VALUE, such as priority=5')
        found[name] = _yaml(value, f"--set {name}")
    return found | {name: value for name, value in options.items() if value not in (None, ())}


def _file(path: Path) -> dict[str, Any]:
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text()
    except OSError as error:
        raise InvalidConfig(f"{path} cannot be read: {error.strerror}; check the path") from None
    except UnicodeDecodeError:
        raise InvalidConfig(f"{path} is not text") from None
    value = _yaml(text, str(path))
    if not isinstance(value, dict):
        raise InvalidConfig(f"{path}: must be a mapping of fields, such as {{priority: 5}}")
    return value


def _yaml(text: str, where: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidConfig(f"{where} is not YAML: {' '.join(str(error).split())}") from None


def change(doors: Doors, act: str, what: What, name: str, fields: Mapping[str, Any], *, as_json: bool) -> None:
    """Creates or updates, and says so."""
    if act == "update" and not fields:
        raise InvalidConfig(f"nothing was said that is to be changed; see `batchyard {what} update --help`")
    with doors.client() as client:
        getattr(client.at_run_time, act)(what, name, fields)
        now = client.at_run_time.view(what)[name]
    print_json({"name": name, **now}) if as_json else click.echo(f"{what} {name} is {_SAID[act]}, and {now['state']}")


def show_one(doors: Doors, what: What, name: str, *, as_json: bool) -> None:
    """All fields of one."""
    from ..errors import NotFound

    with doors.client() as client:
        found = client.at_run_time.view(what)
    if name not in found:
        raise NotFound(f'no {what} "{name}"; there are {", ".join(found)}')
    if as_json:
        print_json({"name": name, **found[name]})
        return
    show.print_facts([("name", name), *((field.replace("_", " "), _shown(v)) for field, v in found[name].items())])


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_shown(one) for one in value)
    if isinstance(value, dict):
        return " ".join(f"{name}={_shown(one)}" for name, one in value.items())
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
