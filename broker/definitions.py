"""Job definitions in Redis: their revisions, sealed as jobs are, and what intake keeps of them in memory."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from . import definition, keys
from .definition import Activity, Definition
from .errors import InvalidJob, NotFound
from .functions import Functions
from .seal import KeyRing
from .store import Yard

KEEP_INACTIVE_S = 180 * 86400
_MOST_KEPT = 1024

Find = Callable[[object], tuple[str, Mapping[str, Any]]]
"""From a job's `definition` to `name:revision` and template. Raises InvalidJob, BrokerUnavailable."""


def expand(job: object, find: Find) -> object:
    """What `Job.parse` is to read: the job over its definition, if it names one; `definition` is then `name:revision`.

    Raises InvalidJob, and what `find` raises.
    """
    if not isinstance(job, Mapping):
        return job
    limit = job.get("max_concurrent")
    if job.get("definition") is None:
        if limit is not None:
            raise InvalidJob("max_concurrent", limit, "is said by a job definition, for all of its jobs")
        return job
    reference, template = find(job["definition"])
    if limit is not None and limit != template.get("max_concurrent", limit):
        raise InvalidJob("max_concurrent", limit, f"is for {reference} to say, for all of its jobs; leave it out")
    return {**definition.merge(template, job), "definition": reference}


def refuse(reference: object) -> tuple[str, Mapping[str, Any]]:
    """A `Find` that knows none."""
    raise InvalidJob("definition", reference, "there are no job definitions here")


class Definitions:
    """All of a yard's. ring: asked for where something is sealed or opened; may raise InvalidConfig."""

    def __init__(self, yard: Yard, ring: Callable[[], KeyRing]) -> None:
        self._yard, self._ring, self._functions = yard, ring, Functions(yard.redis)

    def register(self, name: str, template: Mapping[str, Any], *, token: str | None = None) -> Definition:
        """The next revision of a name. token: the same one gets the same revision. Raises InvalidJob."""
        template = definition.check_template(template)
        sealed = self._ring().seal(json.dumps(template).encode(), about(definition.check_name(name)))
        revision = int(
            self._functions.call(
                "define",
                name,
                token or uuid.uuid4().hex,
                sealed,
                template["image"],
                template.get("max_concurrent") or "",
            )
        )
        return self.show(f"{name}:{revision}")

    def deregister(self, reference: str) -> None:
        """This revision serves no job that comes from now on. Once more is no error. Raises InvalidJob, NotFound."""
        name, revision = definition.split(reference)
        if revision is None:
            raise InvalidJob("definition", reference, "name the revision too, as NAME:REVISION")
        if not self._functions.call("undefine", name, revision, KEEP_INACTIVE_S):
            raise NotFound(f'no job definition "{reference}"; see `batchyard definition list --all`')

    def show(self, reference: str) -> Definition:
        """One revision, opened: the latest active one of a name, else its last. Raises InvalidJob, NotFound."""
        name, revision = definition.split(reference)
        redis = self._yard.redis
        number: Any = revision or self._yard.guard(
            lambda: redis.hget(keys.DEFINITIONS_ACTIVE, name) or redis.hget(keys.DEFINITIONS, name)
        )
        fields: dict[bytes, bytes] = (
            self._yard.guard(lambda: redis.hgetall(keys.definition(f"{name}:{int(number)}"))) if number else {}
        )
        if not fields:
            raise NotFound(f'no job definition "{reference}"; see `batchyard definition list --all`')
        return _definition(name, int(number), fields, template=opened(self._ring(), name, fields[b"doc"]))

    def list(self, *, every: bool = False) -> list[Definition]:
        """By name: the latest active revision of each, or every revision that is kept, the newest first. Not opened."""
        redis = self._yard.redis
        wanted = keys.DEFINITIONS if every else keys.DEFINITIONS_ACTIVE
        numbers: dict[bytes, bytes] = self._yard.guard(lambda: redis.hgetall(wanted))
        names = {name.decode(): int(number) for name, number in numbers.items()}
        asked = [(n, r) for n in sorted(names) for r in (range(names[n], 0, -1) if every else [names[n]])]
        found: list[Definition] = []
        for at in range(0, len(asked), 1000):
            pipe = redis.pipeline(transaction=False)
            for name, revision in asked[at : at + 1000]:
                pipe.hmget(keys.definition(f"{name}:{revision}"), "state", "created", "image")
            for (name, revision), told in zip(asked[at : at + 1000], self._yard.guard(pipe.execute), strict=True):
                if told[0] is not None:
                    state, created, image = told
                    fields = {b"state": state, b"created": created, b"image": image}
                    found.append(_definition(name, revision, fields))
        return found


class Known:
    """What intake has read of definitions: Redis is asked again only when one was registered or deregistered."""

    def __init__(self, yard: Yard, ring: Callable[[], KeyRing] | None) -> None:
        self._yard, self._ring = yard, ring
        self._version: bytes | None = None
        self._latest: dict[str, int | None] = {}
        self._active: dict[str, bool | None] = {}
        self._templates: dict[str, dict[str, Any]] = {}  # a revision never changes

    def at(self, version: bytes | None) -> None:
        """Forgets what may have changed. version: what `keys.DEFINITIONS_VERSION` holds, read before the messages."""
        if version != self._version:
            self._latest.clear()
            self._active.clear()
            self._version = version

    def find(self, reference: object) -> tuple[str, Mapping[str, Any]]:
        """`name:revision` and the template of an active revision. Raises InvalidJob, BrokerUnavailable."""
        name, revision = definition.split(reference)
        for _ in range(3):
            number = revision or self._latest_of(name)
            if number is None:
                self._raise_unknown(name)
            one = f"{name}:{number}"
            active = self._look(name, one)
            if active:
                return one, self._templates.get(one, {})
            if active is None:
                self._raise_unknown(one)
            if revision is not None:
                break
            self._latest.pop(name, None)  # it was deregistered between the two looks
        raise InvalidJob("definition", reference, "is INACTIVE: it was deregistered; name another revision")

    def find_closed(self, reference: object) -> tuple[str, Mapping[str, Any]]:
        """As `find`, without a ring: whether there is one, and a template that stands for any."""
        return self.find(reference)[0], {"image": "of-its-definition"}

    @staticmethod
    def _raise_unknown(reference: str) -> NoReturn:
        raise InvalidJob("definition", reference, "is not known, or has no active revision; register it, "
                         "or see `batchyard definition list`")  # fmt: skip

    def _latest_of(self, name: str) -> int | None:
        if name not in self._latest:
            number: Any = self._yard.guard(lambda: self._yard.redis.hget(keys.DEFINITIONS_ACTIVE, name))
            self._keep(self._latest, name, None if number is None else int(number))
        return self._latest[name]

    def _look(self, name: str, one: str) -> bool | None:
        """Whether a revision is active; None when there is none. Its template is then at hand."""
        if one not in self._active or (self._active[one] and self._ring and one not in self._templates):
            state, sealed = self._yard.guard(
                lambda: self._yard.redis.hmget(keys.definition(one), "state", "doc")
            )  # fmt: skip
            if state == b"ACTIVE" and self._ring is not None and one not in self._templates:
                self._keep(self._templates, one, opened(self._ring(), name, sealed))
            self._keep(self._active, one, None if state is None else state == b"ACTIVE")
        return self._active[one]

    @staticmethod
    def _keep(where: dict[str, Any], key: str, value: object) -> None:
        if len(where) >= _MOST_KEPT:
            where.clear()
        where[key] = value


def opened(ring: KeyRing, name: str, sealed: bytes) -> dict[str, Any]:
    """A template. Raises IntegrityError."""
    template: dict[str, Any] = json.loads(ring.open(sealed, about(name)))
    return template


def about(name: str) -> bytes:
    return f"definition {name}".encode()


def _definition(
    name: str, revision: int, fields: Mapping[bytes, bytes], *, template: dict[str, Any] | None = None
) -> Definition:
    return Definition(
        name=name,
        revision=revision,
        state=Activity(fields[b"state"].decode()),
        created=int(fields[b"created"]) / 1000,
        image=fields[b"image"].decode("utf-8", "replace"),
        template=template,
    )
