"""One tree of errors, and the reason that each leaves on a job.

    BatchyardError
    ├── Permanent            doing it again gives the same answer
    │   ├── InvalidJob       a field of the job breaks a rule
    │   ├── InvalidConfig    the yard's YAML or a command's option breaks a rule
    │   ├── NotFound         no such job, queue, blob, secret
    │   │   └── BlobMissing  a digest that the store does not have
    │   ├── ImageError       the image cannot be had
    │   ├── StartError       the container cannot be started as asked (command not found …)
    │   ├── InputError       an input cannot be given to the job
    │   ├── OutputError      a declared output is missing or not allowed
    │   │   └── OutputMissing    there is nothing of it
    │   └── IntegrityError   bytes are not what their name or seal says
    ├── JobFailed            what a producer's AsyncResult.get() raises
    └── Retryable            the world may have changed by the next try
        ├── BrokerUnavailable   Redis
        ├── EngineUnavailable   dockerd
        ├── ImageUnavailable    the registry
        ├── StoreUnavailable    the blob store
        ├── DiskFull            no space where the work is done
        └── NotEnded            what was waited for did not come in time

Each message says what, which, and what to do next.
"""

from __future__ import annotations

import errno


class BatchyardError(Exception):
    """Anything that Batchyard says to a user. `str()` is the whole message."""


class Permanent(BatchyardError):
    """Doing it again gives the same answer."""


class Retryable(BatchyardError):
    """The same call may succeed later."""


class InvalidJob(Permanent):
    """`job.vcpus = -1: must be greater than 0`."""

    def __init__(self, field: str, value: object, rule: str) -> None:
        shown = repr(value)
        super().__init__(f"job{field and '.' + field} = {shown if len(shown) <= 80 else shown[:77] + '...'}: {rule}")
        self.field, self.value, self.rule = field, value, rule


class InvalidConfig(Permanent):
    """`queue "cpu": environment "big" is not defined; define it or choose another`."""


class NotFound(Permanent):
    """What was asked for by name is not there."""


class BlobMissing(NotFound):
    """`blob sha256:… is not in the store; put it first`."""


class ImageError(Permanent):
    """`image "nosuch:1" cannot be had: …`."""


class StartError(Permanent):
    """The engine refused to start the container as asked."""


class InputError(Permanent):
    """`input "/in/a": …`."""


class OutputError(Permanent):
    """`output "table": …`."""


class OutputMissing(OutputError):
    """`output "table": /work/t was not written by the job`."""


class IntegrityError(Permanent):
    """Bytes that are not what their digest or seal says."""


class BrokerUnavailable(Retryable):
    """Redis did not answer."""


class EngineUnavailable(Retryable):
    """The container engine did not answer."""


class ImageUnavailable(Retryable):
    """`image "x:1" cannot be pulled now: …`: the registry did not answer, or said that it is in trouble."""


class StoreUnavailable(Retryable):
    """The blob store did not answer."""


class DiskFull(Retryable):
    """No space left where the work is done."""


class NotEnded(Retryable):
    """`after 30 s job "…" is RUNNING; wait on, or cancel it`."""


def disk_full(error: OSError) -> bool:
    """Whether an OSError says that space or quota ran out."""
    return error.errno in {errno.ENOSPC, errno.EDQUOT}


class JobFailed(BatchyardError):
    """A job's failure as its producer sees it.

    args == (message, {"exit_code": int | None, "reason": str, "log_tail": str, "job_id": str}), JSON types only, so
    that a producer without this class gets the same args in the exception that Celery makes up for it. Where outputs
    were kept all the same, "outputs" is there too, as in a result.
    """

    def __init__(self, message: str, details: dict[str, object]) -> None:
        super().__init__(message, details)
        self.details = details

    def __str__(self) -> str:
        return str(self.args[0])
