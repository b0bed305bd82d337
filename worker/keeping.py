"""What is kept of an attempt: its outputs and its log, in its turn, told to Redis before it is put."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from batchyard.broker.errors import BatchyardError, BrokerUnavailable, DiskFull, OutputError, StoreUnavailable
from batchyard.broker.expiry import owner_of
from batchyard.broker.puts import Puts
from batchyard.cache.digest import Blob
from batchyard.cache.remote.deliver import AttemptMark

from .capture import LogCapture
from .context import Context, Patience
from .outcome import STOPS, Fate, Outcome, Stop
from .progress import Progress, uploaded
from .publish import Kept, Limit, Publisher
from .reuse import Reuse

log = logging.getLogger(__name__)
T = TypeVar("T")
UPLOAD_PATIENCE_S = 3600.0  # for the yard's store: outputs that wait for it hold their disk, and nothing else
GOING_PATIENCE_S = 60.0  # for what is being deleted, before all of the object is read again
LOG_TAIL_BYTES = 4096


class Keeping:
    """One attempt's. on_stop: hears what Redis says when it is asked whether the job is still this attempt's."""

    def __init__(self, context: Context, on_stop: Callable[[Stop, str], None]) -> None:
        self._context, self._tools, self._job = context, context.tools, context.job
        self._on_stop = on_stop
        self._exited_s = 0.0  # by the monotonic clock
        self._kept = 0
        self._sent = self._sent_before = 0  # the most in one go, and at the last refusal
        self._going_since: float | None = None
        expiry = self._tools.expiry
        self._puts = Puts(expiry, owner_of(context.claimed), self._wait_to_put) if expiry else None
        self._blobs = self._tools.blobs.telling(self._puts.before) if self._puts else self._tools.blobs

    def exited(self) -> None:
        """From now on it waits for the store only."""
        self._exited_s = time.monotonic()

    @property
    def put(self) -> Sequence[str]:
        """The objects of what was kept."""
        return self._puts.names if self._puts else ()

    def forget(self, *, but: Mapping[str, Kept] | None = None) -> None:
        """What was put until now, or was to be used, is no output, unless there are some."""
        if self._puts is not None and not but:
            self._puts.forget()

    def reuse(self) -> Reuse:
        """Which tells of what it uses as if it were put."""
        tools = self._tools
        ring, use = tools.yard.ring.of(tools.tenant), self._puts.use if self._puts else lambda names: ()
        return Reuse(tools.yard, ring, tools.blobs, self._context.folder, use=use)

    # -- outputs
    def publish(self) -> dict[str, Kept]:
        """All outputs of a job that has succeeded. Raises what `Publisher.publish` raises."""
        if not self._job.outputs:
            return {}
        publisher = self._publisher()
        try:
            return self._uploaded(publisher, publisher.publish)
        except BaseException:
            publisher.clean()
            raise

    def salvage(self, in_words: Callable[[Exception], BatchyardError]) -> tuple[dict[str, Kept], list[str]]:
        """What is kept of a job that has failed for good, and why not more."""
        if not any(output.on_failure for output in self._job.outputs.values()):
            return {}, []
        self.forget()
        publisher = self._publisher()
        try:
            return self._uploaded(publisher, publisher.salvage)
        except Exception as caught:
            publisher.clean()
            return publisher.salvaged, [f"not all outputs could be kept: {in_words(caught)}"]

    def _uploaded(self, publisher: Publisher, act: Callable[[], T]) -> T:
        """In its turn. The yard's store is waited for for UPLOAD_PATIENCE_S, a destination as anything else is."""
        context, patience, uploads, size = self._context, Patience(), self._tools.uploads, publisher.weigh()

        def until(error: BatchyardError) -> float:
            if publisher.elsewhere or not isinstance(error, StoreUnavailable):
                return patience.until(error)
            context.doing(f"waits to upload its outputs: {error}")
            if self._sent > self._sent_before:
                uploads.taken()
            self._sent_before = self._sent
            return uploads.refused(self._exited_s) + UPLOAD_PATIENCE_S

        def hear(kept: int, sent: int) -> None:
            self._sent = max(self._sent, sent)
            if kept > self._kept:
                self._kept = kept
                uploads.taken()
            progress.hear(f"{kept} of {len(self._job.outputs)}", sent, size)

        try:
            with self._turn(size), Progress(context.doing, words=uploaded) as progress:
                publisher.on_progress = hear
                return context.patiently(act, until)
        finally:
            context.doing("")

    def _turn(self, size: int) -> AbstractContextManager[None]:
        context = self._context
        return self._tools.uploads.turn(
            context.folder.name,
            size,
            stopped=lambda: context.is_given_up,
            waits=lambda ahead: context.doing(f"waits to upload: {ahead} before it"),
        )

    def _publisher(self) -> Publisher:
        tools, claimed = self._tools, self._context.claimed
        queue = tools.config.queues.get(claimed.queue)
        most_gib = queue.max_output_gib if queue else None
        return Publisher(
            self._blobs,
            self._job,
            self._context.work,
            mark=AttemptMark.of(tools.yard_id, claimed.id, claimed.token),
            secrets=tools.options.secrets,
            limit=Limit(queue=claimed.queue, bytes=int(most_gib * 2**30)) if most_gib else None,
            confirm=self._confirm,
            fresh_s=tools.config.lease_s / 3,
            stopped=lambda: self._context.is_given_up,
        )

    def _confirm(self) -> None:
        """Returns when Redis has said that the job is still ours, with a whole lease ahead. Raises OutputError."""
        tools, job = self._tools, self._context.claimed
        while not self._context.is_given_up:
            try:
                told = tools.yard.renew(tools.options.name, {}, {job.id: job.token}, lease_s=tools.config.lease_s)
            except BrokerUnavailable as error:
                log.warning("job %s waits to write its outputs: %s", job.id, error)
                time.sleep(0.5)
                continue
            stops = [(STOPS[what], reason) for _, what, reason in told if what in STOPS]  # not that it may start
            for stop, reason in stops:
                self._on_stop(stop, reason)
            if not stops:
                return
            break
        raise OutputError("it was not written: the job was told to stop")

    def _wait_to_put(self, why: BatchyardError) -> None:
        """Redis is away, so nobody would know of it; or the object is just being deleted, which counts as a store that
        is away when it takes long.
        """
        if self._context.stop is Stop.LOST:
            raise OutputError("it was not kept: the job is not this node's any more")
        if isinstance(why, StoreUnavailable):
            since = self._going_since = self._going_since or time.monotonic()
            if self._context.is_given_up or time.monotonic() > since + GOING_PATIENCE_S:
                self._going_since = None
                raise why
        log.warning("job %s waits to keep its outputs and log: %s", self._context.claimed.id, why)
        time.sleep(0.5)

    # -- the log
    def keep_log(self, capture: LogCapture | None, outcome: Outcome) -> tuple[Blob | None, str, str]:
        """The sealed log, its last lines, and why it could not be kept, which does not change the fate."""
        if capture is None or outcome.fate is Fate.FORGET:
            return None, "", ""
        try:
            path = self._whole_log(capture, outcome.reason)
            tail = "" if outcome.fate is Fate.SUCCEEDED else command_lines(capture.tail(LOG_TAIL_BYTES))
            with self._turn(path.stat().st_size):
                return self._context.patiently(lambda: self._blobs.put_file(path)), tail, ""
        except (BatchyardError, OSError) as error:
            log.warning("job %s: its log could not be kept: %s", self._context.claimed.id, error)
            return None, "", str(error)
        finally:
            capture.close()

    def _whole_log(self, capture: LogCapture, last_words: str) -> Path:
        try:
            return capture.finish(last_words)
        except (DiskFull, OSError):  # by what the job has written, most likely: its outputs are kept by now
            shutil.rmtree(self._context.work, ignore_errors=True)
            return capture.finish()


def command_lines(text: str) -> str:
    """Log lines as the command wrote them: without time and stream, without the platform's own."""
    return "\n".join(
        words[2] if len(words) > 2 else ""
        for line in text.splitlines()
        if len(words := line.split(" ", 2)) > 1 and words[1] != "platform"
    )
