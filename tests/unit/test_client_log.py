"""A job's log for readers, over a live tail and a blob store made up here."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from batchyard.broker.blobs import BeforePut, Lines, OnBytes
from batchyard.broker.config import Config
from batchyard.broker.errors import BlobMissing, BrokerUnavailable, InvalidConfig, NotFound
from batchyard.broker.joblog import JobLog, text_of
from batchyard.broker.record import Record, from_hash
from batchyard.broker.store import Depth, Yard

ONE, TWO, THREE, FOUR = (f"2026-01-01T00:00:0{n}Z stdout line {n}" for n in (1, 2, 3, 4))


class Blobs:
    """One blob."""

    def __init__(self, *lines: str) -> None:
        self._data = "".join(f"{line}\n" for line in lines).encode()

    def of(self, tenant: str) -> Blobs:
        assert tenant == ""
        return self

    @contextmanager
    def open(self, digest: str) -> Iterator[Lines]:
        assert digest == "sha256:log"
        yield io.BytesIO(self._data)

    def put(
        self, path: Path, *, on_bytes: OnBytes | None = None, before_put: BeforePut | None = None
    ) -> dict[str, Any]:
        raise NotImplementedError

    def get(self, digest: str, path: Path, *, part: str = "", on_bytes: OnBytes | None = None) -> str:
        raise NotImplementedError

    def look(self, digest: str) -> dict[str, Any]:
        raise NotImplementedError


class Tail:
    """A yard of one job. Each look at the live tail takes one step: lines that came, or a new state of the job."""

    def __init__(self, state: str, *steps: Sequence[str] | str | Exception, log: str = "sha256:log") -> None:
        self._state, self._log, self._steps, self._n = state, log, list(steps), 0
        self.redis = self

    def record(self, job_id: str) -> Record:
        fields = {"state": self._state, "reason": "why"} | ({"log": self._log} if self._log else {})
        return from_hash(job_id, {k.encode(): v.encode() for k, v in fields.items()})

    def config(self) -> Config:
        raise NotFound("no yard")  # so there are no queues in which a message may wait

    def depth(self, queues: Sequence[str]) -> dict[str, Depth]:
        assert not queues
        return {}

    def exists(self, job_id: str) -> bool:
        return False

    def guard(self, act: Callable[[], Any]) -> Any:
        return act()

    def xread(self, streams: dict[str, str], *, block: int | None) -> Any:
        if not self._steps:
            return []
        step = self._steps.pop(0)
        if isinstance(step, Exception):
            raise step
        if isinstance(step, str):
            self._state = step
            return []
        self._n += 1
        return [[b"stream", [(f"{self._n}-0".encode(), {b"lines": "".join(f"{s}\n" for s in step).encode()})]]]


def read(tail: Tail, blobs: Blobs | None = None, *, follow: bool = False) -> list[str]:
    return list(JobLog(cast(Yard, tail), blobs, "j1").lines(follow=follow))


def test_the_log_of_an_ended_job_is_read_from_the_store() -> None:
    assert read(Tail("SUCCEEDED"), Blobs(ONE, TWO)) == [ONE, TWO]


def test_of_a_running_job_what_is_there_is_read_and_no_more() -> None:
    assert read(Tail("RUNNING", [ONE], [TWO])) == [ONE, TWO]
    assert read(Tail("RUNNABLE")) == []


def test_following_goes_on_until_the_job_has_ended() -> None:
    assert read(Tail("RUNNING", [ONE], [], [TWO], "SUCCEEDED"), follow=True) == [ONE, TWO]


def test_what_the_live_tail_missed_at_the_end_comes_from_the_store() -> None:
    tail = Tail("RUNNING", [ONE], "SUCCEEDED")
    assert read(tail, Blobs(ONE, TWO, THREE), follow=True) == [ONE, TWO, THREE]


def test_nothing_is_shown_twice_also_when_the_last_line_was_cut_out_of_the_kept_log() -> None:
    assert read(Tail("RUNNING", [ONE, TWO], "FAILED"), Blobs(ONE, FOUR), follow=True) == [ONE, TWO, FOUR]


def test_a_job_that_was_never_seen_running_is_shown_whole_when_it_has_ended() -> None:
    assert read(Tail("RUNNABLE", [], "FAILED"), Blobs(ONE), follow=True) == [ONE]


def test_following_outlives_a_redis_that_is_away_for_a_moment() -> None:
    assert read(Tail("RUNNING", [ONE], BrokerUnavailable("away"), [TWO], "FAILED"), follow=True) == [ONE, TWO]
    with pytest.raises(BrokerUnavailable):
        read(Tail("RUNNING", BrokerUnavailable("away")))


def test_without_a_store_the_live_tail_of_an_ended_job_is_read_or_the_store_is_asked_for() -> None:
    assert read(Tail("FAILED", [ONE])) == [ONE]
    with pytest.raises(InvalidConfig, match=r"sha256:log in the yard's blob store; give --store"):
        read(Tail("FAILED"))


def test_a_job_without_a_log_says_why_it_has_none() -> None:
    with pytest.raises(NotFound, match='job "j1" has no log: why'):
        read(Tail("FAILED", log=""), Blobs())


def test_a_log_that_the_store_does_not_have_is_said_to_be_missing_there() -> None:
    class Empty(Blobs):
        @contextmanager
        def open(self, digest: str) -> Iterator[Lines]:
            raise BlobMissing(f"blob {digest} is not in the store; put it first")
            yield io.BytesIO()

    with pytest.raises(NotFound, match=r'the log of job "j1" \(sha256:log\) is not in this store; it has expired, if'):
        read(Tail("FAILED"), Empty())


def test_a_job_that_was_just_sent_is_waited_for_and_an_unknown_one_is_not() -> None:
    class Late(Tail):
        looks = 0

        def record(self, job_id: str) -> Record:
            self.looks += 1
            if self.looks < 3:
                raise NotFound("no job")
            return super().record(job_id)

    with pytest.raises(NotFound, match="no job"):
        read(Late("RUNNING", [ONE]))
    late = Late("RUNNING", [ONE], "SUCCEEDED")
    assert list(JobLog(cast(Yard, late), None, "j1").lines(follow=True, awaited=True)) == [ONE]


def test_a_line_is_time_stream_and_text() -> None:
    assert text_of(ONE) == ("2026-01-01T00:00:01Z", "stdout", "line 1")
    assert text_of("t stderr ") == ("t", "stderr", "")
    assert text_of("t stdout  two  blanks") == ("t", "stdout", " two  blanks")
