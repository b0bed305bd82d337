"""What may be changed of queues and compute environments while the yard runs. Pure: a configuration in, the next out.

What comes from the yard's file is changed there; only its state (ENABLED, DISABLED) may be changed here too, and
stays so until the file says another one. As in AWS Batch: to be deleted it must be DISABLED, an environment also in no
queue any more; a queue's jobs are ended first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from .config import Config, parse
from .errors import InvalidConfig, NotFound

What = Literal["queue", "environment"]
_SECTION = {"queue": "queues", "environment": "environments"}
_FILE = "comes from the yard's configuration file; change it there"


def origin(config: Config, what: What, name: str) -> str:
    """ "file" or "runtime"."""
    return "runtime" if name in getattr(config.made, _SECTION[what]) else "file"


def create(config: Config, what: What, name: str, fields: Mapping[str, Any]) -> Config:
    """With one more. Raises InvalidConfig."""
    if name in config.made.deleting and what == "queue":
        raise InvalidConfig(f'queue "{name}" is being deleted; wait until its jobs have ended')
    if name in getattr(config, _SECTION[what]):
        raise InvalidConfig(f'{what} "{name}" is there already; update it, or choose another name')
    plain, section = config.model_dump(mode="json"), _SECTION[what]
    plain[section][name] = dict(fields)
    plain["made"][section] = sorted({*plain["made"][section], name})
    return _checked(plain)


def update(config: Config, what: What, name: str, fields: Mapping[str, Any]) -> Config:
    """With other values of these fields. Raises InvalidConfig, NotFound."""
    _there(config, what, name)
    plain, section, key = config.model_dump(mode="json"), _SECTION[what], f"{what} {name}"
    before = plain[section][name]
    changed = {field for field, value in fields.items() if field not in before or before[field] != value}
    if what == "queue" and name in config.made.deleting:
        raise InvalidConfig(f'queue "{name}" is being deleted; wait until its jobs have ended')
    if origin(config, what, name) == "file" and changed - {"state"}:
        raise InvalidConfig(f'{what} "{name}" {_FILE}')
    if origin(config, what, name) == "file" and "state" in changed:
        said = plain["made"]["file_states"].setdefault(key, before["state"])
        if said == fields["state"]:
            del plain["made"]["file_states"][key]
    kept = before if "shapes" not in changed else {k: v for k, v in before.items() if k not in _OF_SHAPES}
    plain[section][name] = {**kept, **fields}
    return _checked(plain)


_OF_SHAPES = frozenset({"vcpus", "memory_mib", "gpus", "disk_gib"})


def delete(config: Config, what: What, name: str) -> Config:
    """Without that environment; or with that queue being deleted, see `deleted`. Raises InvalidConfig, NotFound."""
    one = _there(config, what, name)
    if origin(config, what, name) == "file":
        raise InvalidConfig(f'{what} "{name}" {_FILE}')
    if one.state != "DISABLED":
        raise InvalidConfig(f'{what} "{name}" is {one.state}; first `batchyard {what} disable {name}`')
    plain = config.model_dump(mode="json")
    if what == "queue":
        if set(config.queues) - {name, *config.made.deleting} == set():
            raise InvalidConfig(f'queue "{name}" is the last one; create another one first')
        plain["made"]["deleting"] = sorted({*plain["made"]["deleting"], name})
        return _checked(plain)
    if attached := sorted(queue for queue, told in config.queues.items() if name in told.environments):
        raise InvalidConfig(f'environment "{name}" is one of queue "{attached[0]}"; take it out there first')
    del plain["environments"][name]
    plain["made"]["environments"].remove(name)
    return _checked(plain)


def deleted(config: Config, name: str) -> Config:
    """Without a queue that was being deleted, when no job of its is left."""
    plain = config.model_dump(mode="json")
    plain["queues"].pop(name, None)
    for part in ("queues", "deleting"):
        plain["made"][part] = [one for one in plain["made"][part] if one != name]
    return _checked(plain)


def of_file(before: Config | None, given: Config) -> Config:
    """What holds from now on, when a file says `given`. Raises InvalidConfig: it takes a name made at run time."""
    if before is None:
        return given
    plain, old = given.model_dump(mode="json"), before.model_dump(mode="json")
    for what, section in _SECTION.items():
        for name in old["made"][section]:
            if name in plain[section]:
                raise InvalidConfig(
                    f'{what} "{name}" was made at run time; delete it with `batchyard {what} delete`, '
                    f"or choose another name in the file"
                )
            plain[section][name] = old[section][name]
        for name, one in plain[section].items():
            key = f"{what} {name}"
            if name in old[section] and old["made"]["file_states"].get(key) == one["state"]:
                plain["made"]["file_states"][key], one["state"] = one["state"], old[section][name]["state"]
        plain["made"][section] = old["made"][section]
    plain["made"]["deleting"] = old["made"]["deleting"]
    made = _checked(plain)
    return made.model_copy(update={"schedules": given.schedules})


def _there(config: Config, what: What, name: str) -> Any:
    found = getattr(config, _SECTION[what])
    if name not in found:
        raise NotFound(f'no {what} "{name}"; there are {", ".join(sorted(found))}')
    return found[name]


def _checked(plain: dict[str, Any]) -> Config:
    return parse(plain, "not changed")
