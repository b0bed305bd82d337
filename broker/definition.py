"""Job definitions: templates of jobs with a name and a revision, and how a job's own fields are put over one. Pure.

A template has the fields of a job, `parameters` being defaults for `Ref::name`. A job that says
`{"definition": "name"}` or `"name:3"` takes all that it does not say itself from there (`merge`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from .errors import InvalidJob
from .job import Job

NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")
MAPS = frozenset({"environment", "parameters", "inputs", "outputs", "secrets", "tags"})
_REFERENCE = re.compile(rf"({NAME.pattern})(?::([1-9][0-9]{{0,8}}))?")

_NAMES = "a name has up to 128 letters, digits, '-' and '_'"
_OF_ONE_JOB = frozenset({"definition", "depends_on"})


class Activity(StrEnum):
    """Whether a revision serves new jobs. Running ones go on either way."""

    ACTIVE = "ACTIVE"
    INACTIVE = "INACTIVE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """One revision. created: epoch seconds. template: None where it was not opened."""

    name: str
    revision: int
    state: Activity
    created: float
    image: str
    template: dict[str, Any] | None = None

    @property
    def reference(self) -> str:
        """`name:revision`."""
        return f"{self.name}:{self.revision}"

    def as_json(self) -> dict[str, Any]:
        """JSON types only; `job` is the template, where it was opened."""
        value = {"definition": self.reference, **asdict(self)}
        template = value.pop("template")
        return value if template is None else {**value, "job": template}


def split(reference: object) -> tuple[str, int | None]:
    """Name and revision; None for the latest. Raises InvalidJob."""
    found = _REFERENCE.fullmatch(reference) if isinstance(reference, str) else None
    if found is None:
        raise InvalidJob("definition", reference, f"must be NAME or NAME:REVISION; {_NAMES}")
    return found[1], int(found[2]) if found[2] else None


def check_name(name: object) -> str:
    """The name of a definition. Raises InvalidJob."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InvalidJob("definition", name, f"is no name of a job definition; {_NAMES}")
    return name


def check_template(template: Mapping[str, Any]) -> dict[str, Any]:
    """A template as it is kept: whole as a job, what it says and nothing of what it leaves open. Raises InvalidJob."""
    for field in _OF_ONE_JOB & template.keys():
        if template[field]:
            raise InvalidJob(field, template[field], "is a job's own, and is not for a job definition; leave it out")
    Job.parse(template)
    # Not what parse gives: there the command has its Ref::name replaced.
    return Job.model_validate(template).model_dump(mode="json", by_alias=True, exclude_unset=True)


def merge(template: Mapping[str, Any], job: Mapping[str, Any]) -> dict[str, Any]:
    """The job's fields over the template's: single values and lists replace, maps merge with the job's keys winning.

    Neither is changed. A value of the job that is no map where the template has one stays for the check of the whole.
    """
    whole = {**template, **job}
    for field in MAPS & template.keys() & job.keys():
        if isinstance(template[field], Mapping) and isinstance(job[field], Mapping):
            whole[field] = {**template[field], **job[field]}
    return whole
