"""Which blobs jobs need that have not ended, to keep them however late those run.

All records are gone through, so it is done only when there is something to delete. What is sent later than that is seen
by a second look. A look never misses what was there before it, wherever that moves meanwhile: it goes the way that a
job goes, from the outbox over the producers' lists into the records.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count

from . import keys, message
from .errors import BatchyardError
from .message import Document
from .state import State
from .store import Yard

CHUNK = 256  # records in one round trip
_OVERLAP = 128  # messages that are taken out of the middle of a list meanwhile, and more
_DIGEST = re.compile(rb"sha256:[0-9a-f]{64}")


class Needs:
    """One look at a yard. tenants: of each queue. found: hears of each job's tenant and the digests that the job names,
    whatever for. on_step: called again and again meanwhile.
    """

    def __init__(
        self,
        yard: Yard,
        tenants: Mapping[str, str],
        found: Callable[[str, set[str]], None],
        *,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self._yard, self._tenants, self._found, self._on_step = yard, tenants, found, on_step
        self._groups: set[str] = set()
        self._sources: set[tuple[str, str, str]] = set()

    def look(self, *, since_ms: int = 0) -> None:
        """since_ms: of records, only those made since then. Raises BrokerUnavailable."""
        for field in self._yard.guard(lambda: self._yard.redis.hkeys(keys.OUTBOX)):
            kind, _, key = field.decode().partition(":")
            if kind == "body":  # of a chord whose members have all ended
                self._group(key.removeprefix("celery-taskset-meta-"))
        for queue, tenant in self._tenants.items():
            for list_key in keys.priority_lists(queue):
                self._list(tenant, list_key)
        for ids in self._ids(since_ms):
            self._on_step()
            self._records(ids)

    def _list(self, tenant: str, list_key: str) -> None:
        """From its left end, where messages come in: they leave at the other one, but for some that stay."""
        for at in count(0, CHUNK - _OVERLAP):
            self._on_step()
            raws = self._range(list_key, at)
            for raw in raws:
                try:
                    body = message.parse(raw).body.encode("utf-8", "replace")
                except message.Unreadable:
                    continue
                self._tell(tenant, body)
            if len(raws) < CHUNK:
                return

    def _range(self, list_key: str, at: int) -> list[bytes]:
        found: list[bytes] = self._yard.guard(lambda: self._yard.redis.lrange(list_key, at, at + CHUNK - 1))
        return found

    def _ids(self, since_ms: int) -> Iterator[Sequence[str]]:
        redis = self._yard.redis
        if since_ms:
            new = [i.decode() for i in self._yard.guard(lambda: redis.zrangebyscore(keys.JOBS, since_ms, "+inf"))]
            yield from (new[n : n + CHUNK] for n in range(0, len(new), CHUNK))
            return
        cursor = 0
        while True:
            at = cursor
            cursor, some = self._yard.guard(lambda at=at: redis.zscan(keys.JOBS, at, count=CHUNK))
            yield [job_id.decode() for job_id, _ in some]
            if not cursor:
                return

    def _records(self, ids: Sequence[str]) -> None:
        pipe = self._yard.redis.pipeline(transaction=False)
        for job_id in ids:
            pipe.hmget(keys.job(job_id), "state", "doc")
        for job_id, (state, doc) in zip(ids, self._yard.guard(pipe.execute) if ids else [], strict=True):
            if state is None or doc is None or State(state.decode()).ended:
                continue
            try:
                plain = self._yard.ring.open(doc, job_id.encode())
                document = Document.loads(plain)
            except BatchyardError:
                continue  # nobody can run it
            self._tell(document.tenant, plain)
            self._group(document.message.headers.get("group"))
            for spec in ((document.job or {}).get("inputs") or {}).values():
                if isinstance(spec, dict) and spec.get("job"):
                    self._source(document.tenant, str(spec["job"]), str(spec.get("from")))

    def _group(self, group: object) -> None:
        """What has ended of a group may be input of the body of its chord."""
        if not isinstance(group, str) or group in self._groups:
            return
        self._groups.add(group)
        key = f"celery-taskset-meta-{group}.j"
        kind = self._yard.guard(lambda: self._yard.redis.type(key))  # as `result_chord_ordered` has it
        read = self._yard.redis.zrange if kind == b"zset" else self._yard.redis.lrange
        for part in self._yard.guard(lambda: read(key, 0, -1)):
            for tenant in set(self._tenants.values()):  # whose it is, it does not say
                self._tell(tenant, part)

    def _source(self, tenant: str, job_id: str, output: str) -> None:
        """An output of a job, or those of an array's children."""
        if (tenant, job_id, output) in self._sources:
            return
        self._sources.add((tenant, job_id, output))
        size, *kept = self._yard.guard(lambda: self._yard.redis.hmget(keys.job(job_id), "array", "result", "outputs"))
        if size is None:
            self._tell(tenant, _output(kept, output))
            return
        for at in range(0, int(size), CHUNK):
            self._on_step()
            pipe = self._yard.redis.pipeline(transaction=False)
            for n in range(at, min(int(size), at + CHUNK)):
                pipe.hmget(keys.job(f"{job_id}:{n}"), "result", "outputs")
            for kept in self._yard.guard(pipe.execute):
                self._tell(tenant, _output(kept, output))

    def _tell(self, tenant: str, text: bytes) -> None:
        if found := {digest.decode() for digest in _DIGEST.findall(text)}:
            self._found(tenant, found)


def _output(record: Sequence[bytes | None], name: str) -> bytes:
    """What a job's result says of an output, or, of one that has failed, what was kept of it."""
    result, kept = record
    outputs = json.loads(result)["outputs"] if result else json.loads(kept or b"{}")
    return json.dumps(outputs.get(name)).encode()
