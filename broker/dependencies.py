"""What a job waits for: other jobs' ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from .errors import InvalidJob
from .fields import OrText

MOST = 20
JobId = Annotated[str, Field(pattern=r"^[^\s\x00|]+$", max_length=255)]


class Dependency(OrText):
    """A job that must have ended before this one starts. A string stands for `{"job_id": …}`.

    Without a type, the whole of an array must have ended. type, of an array: SEQUENTIAL, without a job_id: child i
    waits for child i - 1; N_TO_N: child i waits for child i of that array, which has the same size.
    on_failure: what its failure does. FAIL: this job fails at once; CONTINUE: any end counts.
    """

    job_id: JobId = ""
    type: Literal["SEQUENTIAL", "N_TO_N"] | None = None
    on_failure: Literal["FAIL", "CONTINUE"] = "FAIL"

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"job_id": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _whose(self) -> Self:
        if "#" in self.job_id:
            raise ValueError(f"one node of a job is not waited for; name the job, {self.job_id.partition('#')[0]}")
        if self.type == "SEQUENTIAL" and self.job_id:
            raise ValueError("SEQUENTIAL is among the children of the job itself; leave out job_id, or say N_TO_N")
        if self.type != "SEQUENTIAL" and not self.job_id:
            raise ValueError('job_id is missing; only {"type": "SEQUENTIAL"} goes without')
        return self

    @model_serializer(mode="wrap")
    def _short_again(self, dump: SerializerFunctionWrapHandler) -> Any:
        if self.type is None and self.on_failure == "FAIL":
            return self.job_id
        return {name: value for name, value in dump(self).items() if value}

    def told(self) -> list[str | int]:
        """As the Redis functions read it."""
        return [self.job_id, int(self.on_failure == "CONTINUE"), *([self.type] if self.type else [])]


def check(depends_on: Sequence[Dependency], array_size: int | None) -> None:
    """Raises InvalidJob: one is there twice, or is of the children of an array, and the job is none."""
    ids = [one.job_id for one in depends_on]
    if twice := next((n for n, job_id in enumerate(ids) if job_id in ids[:n]), None):
        raise InvalidJob("depends_on", ids[twice] or "SEQUENTIAL", "is there twice; keep one")
    if array_size is None and (of_array := next((one.type for one in depends_on if one.type), None)):
        raise InvalidJob("depends_on", of_array, "is for the children of an array; say array_size")
