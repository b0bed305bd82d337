"""Messages that no honest producer sends: what is no message at all, and good envelopes with a bad part."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Iterator
from typing import Any


def envelope(
    task_id: str, job: object, *, args: object = (), embed: object = None, **headers: object
) -> dict[str, Any]:
    """A message as kombu puts it into a list, decoded."""
    body = json.dumps([list(args) if isinstance(args, tuple) else args, {"job": job}, embed])
    return {
        "body": base64.b64encode(body.encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": "batchyard.run",
            "id": task_id,
            "root_id": task_id,
            "parent_id": None,
            "group": None,
            "eta": None,
            "expires": None,
            "retries": 0,
            "timelimit": [None, None],
            "ignore_result": False,
            "stamped_headers": None,
            "stamps": {},
            "argsrepr": "()",
            "kwargsrepr": "{}",
            "origin": "test",
            **headers,
        },
        "properties": {
            "correlation_id": task_id,
            "reply_to": "nobody",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "cpu"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": task_id,
        },
    }


ODD: tuple[object, ...] = (None, True, -1, 2**70, 1.5, "", "x", "\ud800", "a b\nc", [], [1], {}, {"a": {"b": []}})
"""Values where others were expected."""


def unreadable() -> Iterator[tuple[str, bytes]]:
    """(name, raw) of what is no task message."""
    good = envelope("x", {})
    yield "nothing", b""
    yield "binary", bytes(range(256))
    yield "not utf-8", b"\xff\xfe{}"
    yield "a number", b"42"
    yield "null", b"null"
    yield "a list", b"[]"
    yield "an empty object", b"{}"
    yield "a huge number", b"1" * 5000
    yield "a cut message", json.dumps(good).encode()[:-40]
    yield "deep lists", b"[" * 100_000 + b"]" * 100_000
    yield "deep headers", json.dumps(good).replace('"origin": "test"', '"origin": ' + "[" * 3000 + "]" * 3000).encode()
    yield "pickle", json.dumps({**good, "content-type": "application/x-python-serialize"}).encode()
    for name in ("body", "headers", "properties"):
        yield f"without {name}", json.dumps({k: v for k, v in good.items() if k != name}).encode()
        for odd in ODD:
            if not (name == "body" and odd == ""):
                yield f"{name} {odd!r}", json.dumps({**good, name: odd}).encode()
    task_ids: tuple[Any, ...] = (None, 1, "", "a b", "a\nb", "a\0b", "x" * 256, "\ud800", [], {})
    for task_id in task_ids:
        yield f"id {str(task_id)[:9]!r}", json.dumps(envelope(task_id, {})).encode()
    for body in ("!!!", base64.b64encode(b"\xff\xff").decode(), base64.b64encode(b"{}").decode()):
        yield f"body {body}", json.dumps({**good, "body": body}).encode()
    bodies: tuple[object, ...] = ([], [1], [[], {}], [{}, [], {}], [[], {}, []], [[], {}, {}, {}], "abc", {"a": 1})
    for parts in bodies:
        coded = base64.b64encode(json.dumps(parts).encode()).decode()
        yield f"body of {parts!r}", json.dumps({**good, "body": coded}).encode()


def askew(job: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """(task id, raw) of a good job whose envelope, headers, properties, embed or job have one odd value."""
    serial = 0
    for part, fields in (
        ("headers", list(envelope("x", {})["headers"])),
        ("properties", list(envelope("x", {})["properties"])),
        ("embed", ["callbacks", "errbacks", "chain", "chord", "nosuch"]),
        ("job", ["image", "command", "environment", "inputs", "outputs", "vcpus", "memory_mib", "secrets", "nosuch"]),
    ):
        for field in fields:
            if field in ("id", "body_encoding", "task"):
                continue
            for odd in ODD:
                serial += 1
                task_id = f"odd-{serial}-{part}-{field}"
                whole = envelope(task_id, job)
                if part == "embed":
                    whole = envelope(task_id, job, embed={field: odd})
                elif part == "job":
                    whole = envelope(task_id, {**copy.deepcopy(job), field: odd})
                else:
                    whole[part][field] = odd
                yield task_id, json.dumps(whole).encode()
    for odd in ODD:
        serial += 1
        yield f"odd-{serial}-previous", json.dumps(envelope(f"odd-{serial}-previous", job, args=[odd])).encode()
        serial += 1
        yield f"odd-{serial}-whole", json.dumps(envelope(f"odd-{serial}-whole", odd)).encode()
    for depth in (100, 400, *range(880, 1001, 4), 5000):
        deep: Any = "[" * depth + "]" * depth
        whole = envelope(f"odd-deep-{depth}", job)
        yield f"odd-deep-{depth}", json.dumps(whole).replace('"origin": "test"', f'"origin": {deep}').encode()
        body = json.dumps([[], {"job": job}, {"chain": "DEEP"}]).replace('"DEEP"', deep)
        whole = envelope(f"odd-deep-body-{depth}", job)
        whole["body"] = base64.b64encode(body.encode()).decode()
        yield f"odd-deep-body-{depth}", json.dumps(whole).encode()
        body = json.dumps([[], {"job": {**job, "environment": "DEEP"}}, None]).replace('"DEEP"', deep)
        whole = envelope(f"odd-deep-job-{depth}", job)
        whole["body"] = base64.b64encode(body.encode()).decode()
        yield f"odd-deep-job-{depth}", json.dumps(whole).encode()
