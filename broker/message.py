"""A stock Celery message (protocol 2, JSON) as it lies in a kombu list, and the document that a record keeps of it."""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kombu.utils.json import loads

from .arrays import RESERVED

TASK = "batchyard.run"
# Python's JSON stops at a depth that depends on the stack below it: what intake can read, a settle must be able to.
MOST_DEPTH = 400
_NESTING = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


class Unreadable(ValueError):
    """No job can be made of the message: not even whose it is can be told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """headers, properties: as sent. body: JSON text of [args, kwargs, embed], decoded only where it is needed."""

    headers: dict[str, Any]
    properties: dict[str, Any]
    body: str

    @property
    def id(self) -> str:
        return str(self.headers["id"])

    @property
    def task(self) -> str:
        return str(self.headers.get("task"))

    @property
    def priority(self) -> int:
        """0 (most urgent) to 9, by the property; the list that it lies in says less."""
        value = self.properties.get("priority")
        return min(max(value, 0), 9) if isinstance(value, int) else 0

    def when_ms(self, header: str) -> int:
        """`eta` or `expires` in ms since the epoch, 0 where unset. Raises ValueError."""
        value = self.headers.get(header)
        if not value:
            return 0
        try:
            moment = datetime.fromisoformat(value)
        except (TypeError, ValueError):
            raise ValueError(f"{header} = {value!r}: must be an ISO 8601 time") from None
        return max(1, int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000))

    def arguments(self) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
        """args, kwargs, embed. Raises ValueError."""
        _check_depth(self.body)
        value = loads(self.body)  # kombu's: a datetime in a chain's options is {__type__, __value__}
        if not (isinstance(value, list) and len(value) == 3):
            raise ValueError("the body is not [args, kwargs, embed]")
        args, kwargs, embed = value
        if not (isinstance(args, list) and isinstance(kwargs, dict) and isinstance(embed, dict | None)):
            raise ValueError("the body is not [args, kwargs, embed]")
        return args, kwargs, embed or {}

    def request(self) -> dict[str, Any]:
        """The dict that a Celery worker hands to its tracer."""
        args, kwargs, embed = self.arguments()
        delivery = self.properties.get("delivery_info") or {}
        info = {
            "exchange": delivery.get("exchange"),
            "routing_key": delivery.get("routing_key"),
            "priority": self.properties.get("priority"),
            "redelivered": False,
        }
        return {
            **self.headers,
            **embed,
            "args": args,
            "kwargs": kwargs,
            "delivery_info": info,
            "hostname": "batchyard",
            "reply_to": self.properties.get("reply_to"),
            "correlation_id": self.properties.get("correlation_id"),
        }


def parse(raw: bytes) -> Message:
    """Raises Unreadable with the reason."""
    try:
        _check_depth(raw.decode("utf-8", "replace"))
        outer = json.loads(raw)
        headers, properties, body = outer["headers"], outer["properties"], outer["body"]
        if outer.get("content-type") != "application/json":
            raise Unreadable(f"content type {outer.get('content-type')!r}; only application/json is taken")
        if not (isinstance(headers.get("id"), str) and headers["id"] and isinstance(properties, dict)):
            raise Unreadable("no task id in its headers (Celery's task protocol 2 is needed)")
        if not isinstance(properties.get("delivery_info") or {}, dict):
            raise Unreadable("its delivery_info is no object")
        headers["id"].encode()  # lone surrogates are no text
        if properties.get("body_encoding") == "base64":
            body = base64.b64decode(body, validate=True).decode()
        if not isinstance(body, str):
            raise Unreadable("its body is no text")
    except Unreadable:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error, RecursionError) as error:
        raise Unreadable(f"not a Celery message: {type(error).__name__}: {error}") from None
    if len(headers["id"]) > 255 or any(c.isspace() or c in "\0|" for c in headers["id"]):
        raise Unreadable("its task id has blanks or is longer than 255 characters")
    if RESERVED.fullmatch(headers["id"]):
        raise Unreadable(
            "its task id ends as those of an array's children do (:7) or a gang's members (#7); send another"
        )
    return Message(headers=headers, properties=properties, body=body)


def bare(job_id: str) -> Message:
    """What is left of a message that cannot be read any more: its id, and nothing that follows."""
    return Message(headers={"id": job_id, "task": TASK}, properties={}, body="[[], {}, {}]")


def _check_depth(text: str) -> None:
    """Raises ValueError. Counts only what has enough brackets at all."""
    if text.count("[") + text.count("{") <= MOST_DEPTH:
        return
    depth = 0
    for found in _NESTING.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
        if depth > MOST_DEPTH:
            raise ValueError(f"nested deeper than {MOST_DEPTH} levels")


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What a record keeps, sealed: the message and, where it could be read, the job (`Job.dump()`). tenant: whose blobs
    it reads and writes; '' for the yard's own.
    """

    message: Message
    job: dict[str, Any] | None
    tenant: str = ""

    def dumps(self) -> bytes:
        m = self.message
        told = {"headers": m.headers, "properties": m.properties, "body": m.body, "job": self.job}
        if self.tenant:
            told["tenant"] = self.tenant
        return json.dumps(told, separators=(",", ":")).encode()

    @classmethod
    def loads(cls, data: bytes) -> Document:
        value = json.loads(data)
        job, tenant = value.pop("job"), value.pop("tenant", "")
        return cls(message=Message(**value), job=job, tenant=tenant)
