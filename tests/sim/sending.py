"""Jobs as stock producers send them, who want to be told once of either end."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

from yardtest import poison

from .model import Sent

AFTER = "after"  # the list of what follows jobs


def message(sent: Sent) -> bytes:
    """The line of a producer's list."""
    embed = {
        "callbacks": [_signature(sent.id, "well")],
        "errbacks": [_signature(sent.id, "ill")],
        "chain": None,
        "chord": None,
    }
    made = poison.envelope(sent.id, _job(sent), embed=embed, eta=_iso(sent.eta_ms))
    made["headers"]["expires"] = _iso(sent.expires_ms)
    made["properties"]["priority"] = sent.priority
    return json.dumps(made).encode()


def followed(line: bytes) -> tuple[str, str]:
    """(id, well or ill) of a line of AFTER."""
    (job_id, how), *_ = json.loads(base64.b64decode(json.loads(line)["body"]))
    return job_id, how


def _job(sent: Sent) -> dict[str, Any]:
    mc, mem, gpus, disk = sent.demand
    return {
        "image": "busybox",
        "vcpus": 1000 if sent.refused else mc / 1000,
        "memory_mib": mem,
        "gpus": gpus,
        "disk_gib": disk / 1024,
        "infrastructure_retries": sent.interruptions,
        "depends_on": [
            *({"job_id": i, "on_failure": _then(any_end)} for i, any_end in sent.depends.items()),
            *({"job_id": i, "on_failure": _then(any_end), "type": "N_TO_N"} for i, any_end in sent.n_to_n.items()),
            *([] if sent.sequential is None else [{"type": "SEQUENTIAL", "on_failure": _then(sent.sequential)}]),
        ],
        **({"array_size": sent.array} if sent.array else {}),
    }


def _then(any_end: bool) -> str:
    return "CONTINUE" if any_end else "FAIL"


def _signature(job_id: str, how: str) -> dict[str, Any]:
    return {
        "task": "after",
        "args": [job_id, how],
        "kwargs": {},
        "options": {"queue": AFTER},
        "subtask_type": None,
        "immutable": True,
    }


def _iso(ms: int) -> str | None:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat() if ms else None
