"""Jobs from a file: JSON or YAML, one job, a list of jobs, or several YAML documents.

A job's object has the fields of a job and, beside them, how it is sent: `queue`, `countdown_s`, `expires_s`. Where a
job has text, what is written is kept as text: `007`, `1.10`, `no` and `12:30` are no numbers and no truth values.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import InvalidConfig, InvalidJob
from ..plainyaml import Loader, keep_texts

SENDING = ("queue", "countdown_s", "expires_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileJob:
    """One job of a file. sending: those of SENDING that it says. folder: what paths in it are relative to."""

    job: dict[str, Any]
    sending: dict[str, Any]
    file: str
    folder: Path
    node: yaml.Node | None = None

    def explained(self, error: InvalidJob) -> InvalidConfig:
        """The same error, with file and line."""
        return InvalidConfig(f"{self.at(error.field)}: {error}")

    def at(self, field: str) -> str:
        """`jobs.yaml, line 7`: where a field stands, `inputs./in/a.uri`; else the job's own line."""
        line = _line(self.node, field)
        return self.file if line is None else f"{self.file}, line {line}"


def read(file: Path) -> list[FileJob]:
    """At least one job. `-` is stdin. Raises InvalidConfig with file and line."""
    name, folder = ("stdin", Path()) if str(file) == "-" else (str(file), file.parent)
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text()
    except UnicodeDecodeError:
        raise InvalidConfig(f"{name} is not text; write the job as JSON or YAML") from None
    except OSError as error:
        raise InvalidConfig(f'the job file "{name}" cannot be read: {error.strerror}; correct the path of -f') from None
    found = [_job(value, node, name, folder) for value, node in _values(text, name)]
    if not found:
        raise InvalidConfig(f"{name} holds no job; write one such as {{image: busybox, command: [echo, hello]}}")
    return found


def _values(text: str, name: str) -> Iterator[tuple[Any, yaml.Node | None]]:
    """Each job's value and where it stands."""
    try:
        loader = Loader(text)
        while loader.check_node():
            node: Any = loader.get_node()
            _check_keys(node, name, set())
            for job in node.value if isinstance(node, yaml.SequenceNode) else [node]:
                keep_texts(job)
            value = loader.construct_document(node)
            if isinstance(value, list) and isinstance(node, yaml.SequenceNode):
                yield from zip(value, node.value, strict=True)
            elif value is not None:  # `---` before the first, or behind the last
                yield value, node
    except (yaml.YAMLError, RecursionError) as error:
        try:
            value = json.loads(text)  # with tabs, it is no YAML
        except (ValueError, RecursionError):
            raise InvalidConfig(_not_yaml(error, name)) from None
        yield from ((one, None) for one, _ in _values(json.dumps(value), name))


def _not_yaml(error: Exception, name: str) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"{name}, line {mark.line + 1}" if mark else name
    said = getattr(error, "problem", None) or " ".join(str(error).split())[:200] or "it is nested too deep"
    return f"{where}: neither JSON nor YAML: {said}"


def _job(value: Any, node: yaml.Node | None, name: str, folder: Path) -> FileJob:
    if not isinstance(value, Mapping):
        line = f", line {node.start_mark.line + 1}" if node else ""
        shown = repr(value)[:60]
        raise InvalidConfig(
            f"{name}{line}: {shown} is no job; a job is an object such as {{image: busybox, command: [echo, hello]}}"
        )
    job = {key: part for key, part in value.items() if key not in SENDING}
    sending = {key: value[key] for key in SENDING if value.get(key) is not None}
    made = FileJob(job=job, sending=sending, file=name, folder=folder, node=node)
    if not isinstance(sending.get("queue", ""), str):
        raise InvalidConfig(f"{made.at('queue')}: queue = {sending['queue']!r:.40}: must be a queue's name")
    for key in SENDING[1:]:
        given = sending.get(key, 0)
        if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < 1e9:
            raise InvalidConfig(f"{made.at(key)}: {key} = {given!r:.40}: must be a number of seconds")
    return made


def _check_keys(node: yaml.Node, name: str, done: set[int], above: frozenset[int] = frozenset()) -> None:
    """A key that is there twice would silently lose its first value; an anchor in itself has no end."""
    if id(node) in above:
        raise InvalidConfig(f"{name}, line {node.start_mark.line + 1}: this anchor holds itself; write it out")
    if id(node) in done or not isinstance(node, yaml.CollectionNode):
        return
    done.add(id(node))
    above |= {id(node)}
    if isinstance(node, yaml.SequenceNode):
        for part in node.value:
            _check_keys(part, name, done, above)
        return
    keys: set[str] = set()
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value in keys and key.value != "<<":
            raise InvalidConfig(f"{name}, line {key.start_mark.line + 1}: {key.value:.60} is there twice; keep one")
        keys.add(key.value if isinstance(key, yaml.ScalarNode) else "")
        _check_keys(value, name, done, above)


def _line(node: yaml.Node | None, field: str) -> int | None:
    """The line of a field, from 1; that of what it is in where it is missing."""
    if node is None:
        return None
    line, rest = node.start_mark.line, field
    while rest:
        step = _step(node, rest)
        if step is None:
            break
        mark, node, rest = step
        line = mark.line
    return int(line) + 1


def _step(node: yaml.Node, field: str) -> tuple[Any, yaml.Node, str] | None:
    """The mark of the key, what stands there, and what is left of the field. Keys may contain dots."""
    best: tuple[Any, yaml.Node, str] | None = None
    if isinstance(node, yaml.MappingNode):
        found = [(key.value, key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)]
    elif isinstance(node, yaml.SequenceNode):
        found = [(str(n), value, value) for n, value in enumerate(node.value)]
    else:
        return None
    for name, key, value in sorted(found, key=lambda one: len(one[0])):
        if field == name or field.startswith(f"{name}."):
            best = (key.start_mark, value, field[len(name) + 1 :])
    return best
