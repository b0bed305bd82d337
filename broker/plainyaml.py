"""YAML as people mean it: plain values as YAML 1.2 reads them, and text where a job has text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

_TEXTS = {
    "definition",
    "image",
    "name",
    "user",
    "command",
    "environment",
    "secrets",
    "parameters",
    "tags",
    "depends_on",
}
_TAG = "tag:yaml.org,2002:"
_NOT_TEXT = {_TAG + kind for kind in ("int", "float", "bool")}


class Loader(yaml.SafeLoader):
    """YAML 1.2's plain values: `no` is text, `0755` is no octal number, `12:30` is no number of seconds."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012, SafeLoader's own form


for _kind, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("merge", r"<<", "<"),
):
    Loader.add_implicit_resolver(_TAG + _kind, re.compile(f"^(?:{_pattern})$"), [*_first.replace("\0", ""), ""])


def keep_texts(job: yaml.Node) -> None:
    """Numbers and truth values become the text that was written, in the fields of a job that are text."""
    for key, value in job.value if isinstance(job, yaml.MappingNode) else []:
        if isinstance(key, yaml.ScalarNode) and key.value in _TEXTS:
            for scalar in _scalars(value):
                scalar.tag = _TAG + "str" if scalar.tag in _NOT_TEXT else scalar.tag


def part(node: yaml.Node | None, name: str) -> Any:
    """What stands under a key of a mapping, as a node; None where there is none."""
    for key, value in node.value if isinstance(node, yaml.MappingNode) else []:
        if isinstance(key, yaml.ScalarNode) and key.value == name:
            return value
    return None


def _scalars(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    """The node itself, and the values right below it: no field of text is deeper."""
    if isinstance(node, yaml.ScalarNode):
        yield node
    elif isinstance(node, yaml.CollectionNode):
        below = node.value if isinstance(node, yaml.SequenceNode) else [value for _, value in node.value]
        yield from (one for one in below if isinstance(one, yaml.ScalarNode))
