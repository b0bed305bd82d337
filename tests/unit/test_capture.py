"""A job's log: nothing lost, nothing doubled, bounded, masked; also after a crash at any point."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from batchyard.broker.errors import DiskFull
from batchyard.worker.bounded import BoundedLog
from batchyard.worker.capture import LINE_BYTES, LogCapture, LogPoller
from batchyard.worker.engine.logs import Entry, FileLog, FollowLog, entries_of, epoch, frames
from yardtest.wait import until

AT = "2026-11-21T12:00:00.123456789Z"


def wrote(text: str, stream: str = "stdout", at: str = AT) -> str:
    """One line of a json-file, as Docker writes it."""
    escaped = json.dumps(text, ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")
    return f'{{"log":{escaped},"stream":"{stream}","time":"{at}"}}\n'


def append(path: Path, *lines: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(lines))


@pytest.fixture
def engine_log(tmp_path: Path) -> Path:
    return tmp_path / "engine.log"


def capture(tmp_path: Path, engine_log: Path, **options: object) -> LogCapture:
    return LogCapture(tmp_path / "job", FileLog(engine_log), clock=lambda: 0.0, **options)  # type: ignore[arg-type]


def texts(path: Path) -> list[str]:
    return [line.split(" ", 2)[2] for line in path.read_text().splitlines()]


def test_lines_keep_time_stream_and_order(tmp_path: Path, engine_log: Path) -> None:
    append(engine_log, wrote("a\n"), wrote('b <é>\t"q"\\ \u2028\n', "stderr", "2026-11-21T12:00:01.5Z"), wrote("\n"))
    log = capture(tmp_path, engine_log)
    assert log.poll()
    assert not log.poll()
    log.platform("stopped:\nout of time")
    assert log.finish().read_text().split("\n") == [
        f"{AT} stdout a",
        '2026-11-21T12:00:01.500000000Z stderr b <é>\t"q"\\ \u2028',
        f"{AT} stdout ",
        "1970-01-01T00:00:00.000000000Z platform stopped:",
        "1970-01-01T00:00:00.000000000Z platform out of time",
        "",
    ]


def test_the_last_words_are_behind_what_the_container_wrote_last(tmp_path: Path, engine_log: Path) -> None:
    log = capture(tmp_path, engine_log)
    append(engine_log, wrote("the result\n"))
    said = [line.split(" ", 2)[1:] for line in log.finish("it ended").read_text().splitlines()]
    assert said == [["stdout", "the result"], ["platform", "it ended"]]
    assert log.finish("it ended").read_text().count("it ended") == 1


def test_a_silent_job_has_an_empty_log(tmp_path: Path, engine_log: Path) -> None:
    log = capture(tmp_path, engine_log)
    assert not log.poll()
    assert log.finish().read_bytes() == b""
    assert log.finish().exists()


def test_halves_of_a_long_line_are_joined_per_stream(tmp_path: Path, engine_log: Path) -> None:
    append(engine_log, wrote("x" * 16384), wrote("other\n", "stderr"), wrote("y" * 16384), wrote("z\n"), wrote("half"))
    path = capture(tmp_path, engine_log).finish()
    assert texts(path) == ["other", "x" * 16384 + "y" * 16384 + "z", "half"]


def test_a_line_without_end_is_cut(tmp_path: Path, engine_log: Path) -> None:
    append(engine_log, *[wrote("x" * 16384)] * 40)
    got = texts(capture(tmp_path, engine_log).finish())
    assert sum(map(len, got)) == 40 * 16384
    assert max(map(len, got)) == LINE_BYTES


def test_half_a_record_waits_for_its_other_half(tmp_path: Path, engine_log: Path) -> None:
    whole = wrote("first\n") + wrote("second\n")
    append(engine_log, whole[:-20])
    log = capture(tmp_path, engine_log)
    log.poll()
    assert "second" not in log.tail(1000)
    append(engine_log, whole[-20:])
    assert texts(log.finish()) == ["first", "second"]


def test_what_is_no_record_is_kept_as_text(tmp_path: Path, engine_log: Path) -> None:
    append(engine_log, wrote("a\n"), "not json\n", "\0\0\0", wrote("b\n"), "\0\0", '{"log":"c')
    assert texts(capture(tmp_path, engine_log).finish()) == ["a", "not json", "b", '{"log":"c']


def test_secrets_are_masked_also_across_halves_and_in_platform_lines(tmp_path: Path, engine_log: Path) -> None:
    append(engine_log, wrote("key hun"), wrote("ter22 and hunter2\n"), wrote("-----line of pem-----\n"))
    append(engine_log, wrote("x" * (LINE_BYTES - 3)), wrote("hunter2\n"))
    log = capture(tmp_path, engine_log, mask=[b"hunter2", b"hunter22", b"first\n-----line of pem-----\n", b""])
    log.platform("was hunter2")
    data = log.finish().read_text()
    assert "hunter2" not in data
    assert "line of pem" not in data
    assert "key *** and ***" in data
    assert "platform was ***" in data


@pytest.mark.parametrize("head", [0, 500, 5000])
def test_head_and_tail_are_kept_and_the_middle_is_counted(tmp_path: Path, engine_log: Path, head: int) -> None:
    log = capture(tmp_path, engine_log, head_bytes=head, tail_bytes=1000)
    for n in range(0, 1000, 10):
        append(engine_log, *[wrote(f"{m}\n") for m in range(n, n + 10)])
        log.poll()
        assert sum(path.stat().st_size for path in (tmp_path / "job").iterdir()) < head + 2 * 1400 + 1000
    tail = log.tail(200)
    path = log.finish()
    lines = path.read_text().splitlines(keepends=True)
    (marker,) = [line for line in lines if " platform " in line]
    at = lines.index(marker)
    found = re.search(r"platform (\d+) lines \((\d+) bytes\)", marker)
    assert found is not None
    before, after = lines[:at], lines[at + 1 :]
    kept = [int(line.split(" ")[2]) for line in before + after]
    assert kept == [*range(len(before)), *range(1000 - len(after), 1000)]
    assert int(found[1]) == 1000 - len(kept)
    total = sum(len(f"{AT} stdout {n}\n") for n in range(1000))
    assert int(found[2]) == total - sum(map(len, before + after))
    assert sum(map(len, before)) <= head
    assert 900 < sum(map(len, after)) <= 1000
    assert path.read_text().endswith(tail)
    assert sorted(p.name for p in (tmp_path / "job").iterdir()) == ["cursor", "log"]
    assert log.tail(200) == tail


def test_a_log_that_just_fits_has_no_marker(tmp_path: Path, engine_log: Path) -> None:
    lines = [wrote(f"{n:03}\n") for n in range(20)]  # 42 bytes each
    append(engine_log, *lines)
    path = capture(tmp_path, engine_log, head_bytes=420, tail_bytes=420).finish()
    assert texts(path) == [f"{n:03}" for n in range(20)]


class Crash(BaseException):
    """The node dies here."""


def test_a_crash_anywhere_loses_and_doubles_nothing(
    tmp_path: Path, engine_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Die before and after each rename of the cursor and each removal and append of a log file, and go on."""
    countdown = [0]
    real_replace, real_write = os.replace, BoundedLog._write

    def maybe() -> None:
        countdown[0] -= 1
        if countdown[0] == 0:
            raise Crash

    def replace(*args: object) -> None:
        maybe()
        real_replace(*args)  # type: ignore[arg-type]
        maybe()

    def write(self: BoundedLog, data: bytes) -> None:
        real_write(self, data[: len(data) // 2])
        maybe()
        real_write(self, data[len(data) // 2 :])

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(BoundedLog, "_write", write)
    for crash_at in range(1, 40):
        engine_log.unlink(missing_ok=True)
        folder = tmp_path / f"job{crash_at}"
        countdown[0] = 0
        want: list[str] = []
        log = LogCapture(folder, FileLog(engine_log), head_bytes=200, tail_bytes=10_000)
        countdown[0] = crash_at
        for n in range(8):
            append(engine_log, wrote("half "), wrote(f"e{n}\n", "stderr"), wrote(f"{n}\n"))
            want += [f"e{n}", f"half {n}"]
            try:
                log.poll()
            except Crash:
                log = LogCapture(folder, FileLog(engine_log), head_bytes=200, tail_bytes=10_000)
        try:
            path = log.finish()
        except Crash:
            path = LogCapture(folder, FileLog(engine_log), head_bytes=200, tail_bytes=10_000).finish()
        assert texts(path) == want, f"crash at {crash_at}"


def test_a_full_disk_loses_nothing_either(tmp_path: Path, engine_log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = [True]
    real = BoundedLog._write

    def write(self: BoundedLog, data: bytes) -> None:
        if full[0]:
            real(self, data[:7])
            raise OSError(28, "No space left on device")
        real(self, data)

    monkeypatch.setattr(BoundedLog, "_write", write)
    log = capture(tmp_path, engine_log)
    append(engine_log, wrote("a\n"))
    with pytest.raises(OSError, match="space"):
        log.poll()
    append(engine_log, wrote("b\n"))
    with pytest.raises(DiskFull):
        log.finish()
    full[0] = False
    assert texts(log.finish()) == ["a", "b"]


def test_what_was_read_is_freed_in_the_engines_file(tmp_path: Path, engine_log: Path) -> None:
    lines = [wrote("x" * 1000 + f"{n}\n") for n in range(6000)]
    append(engine_log, *lines)
    size = engine_log.stat().st_size
    log = capture(tmp_path, engine_log)
    while log.poll():
        pass
    after = engine_log.stat()
    assert after.st_size == size
    if after.st_blocks * 512 >= size:
        pytest.skip("this filesystem cannot punch holes")
    assert after.st_blocks * 512 < 2 << 20
    append(engine_log, wrote("end\n"))
    log.close()
    again = texts(capture(tmp_path, engine_log).finish())
    assert len(again) == 6001
    assert again[-1] == "end"


def test_the_live_tail_hears_each_line_once_and_in_order(tmp_path: Path, engine_log: Path) -> None:
    heard: list[bytes] = []
    log = capture(tmp_path, engine_log, on_lines=heard.extend)
    append(engine_log, wrote("a\n"), wrote("b"))
    log.poll()
    log.platform("p")
    log.finish()
    assert [line.split(b" ", 2)[2] for line in heard] == [b"a\n", b"p\n", b"b\n"]


def test_one_poller_serves_all_captures_and_survives_a_broken_one(tmp_path: Path, engine_log: Path) -> None:
    def broken(lines: Sequence[bytes]) -> None:
        raise ValueError("a listener's bug")

    other = tmp_path / "other.log"
    bad = LogCapture(tmp_path / "bad", FileLog(engine_log), on_lines=broken)
    good = LogCapture(tmp_path / "good", FileLog(other))
    poller = LogPoller()
    for one in (bad, good):
        poller.add(one)
    append(engine_log, wrote("x\n"))
    append(other, wrote("y\n"))
    until(lambda: "y" in good.tail(100) and "x" in bad.tail(100), "both logs are taken over")
    append(other, wrote("z\n"))
    until(lambda: "z" in good.tail(100), "the good one goes on")
    poller.discard(good)
    poller.discard(good)
    poller.stop()


class Stream:
    """An engine's log stream over a list of lines; breaks off when told to."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str, str]] = []
        self.break_after: int | None = None
        self.followed_lines: int | None = None
        self.asked: list[str] = []

    def connect(self, since: str, follow: bool) -> object:
        self.asked.append(since)
        chosen = [one for one in self.lines if not since or epoch(one[1]) >= since]
        if follow:
            chosen = chosen[: self.followed_lines]
        data = b""
        for stream, at, text in chosen[: self.break_after]:
            payload = f"{at} {text}".encode()
            data += bytes([stream, 0, 0, 0]) + len(payload).to_bytes(4, "big") + payload
        if self.break_after is not None:
            self.break_after = None
            data += b"\1\0"
        left = memoryview(data)

        def read(count: int) -> bytes:
            nonlocal left
            piece, left = bytes(left[:count]), left[count:]
            return piece

        return read


def test_the_api_stream_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    stream = Stream()
    for n in range(50):  # several lines share a time
        stream.lines.append((1 + n % 2, f"2026-11-21T12:00:{n // 5:02}.5Z", f"{n}\n"))
    for broken in range(0, 50, 7):
        stream.break_after = broken
        log = LogCapture(tmp_path / f"{broken}", FollowLog(stream.connect, retry_s=0.001))  # type: ignore[arg-type]
        assert texts(log.finish()) == [str(n) for n in range(50)]
    assert "" in stream.asked
    assert any(stream.asked)


def test_last_lines_that_a_followed_stream_leaves_out_are_read_afterwards(tmp_path: Path) -> None:
    stream = Stream()
    stream.lines = [(1 + n % 2, AT, f"{n}\n") for n in range(50)]
    stream.followed_lines = 31
    log = LogCapture(tmp_path / "job", FollowLog(stream.connect))  # type: ignore[arg-type]
    assert texts(log.finish()) == [str(n) for n in range(50)]


def test_a_stream_that_ends_before_its_container_is_opened_again(tmp_path: Path) -> None:
    stream = Stream()
    stream.lines = [(1, AT, "a\n")]
    asked = []

    def over() -> bool:
        asked.append(1)
        if len(asked) == 1:
            stream.lines.append((1, AT, "b\n"))
        return len(asked) > 1

    log = LogCapture(tmp_path / "job", FollowLog(stream.connect, over=over, retry_s=0.001))  # type: ignore[arg-type]
    assert texts(log.finish()) == ["a", "b"]


def test_a_restarted_node_goes_on_in_the_api_stream(tmp_path: Path) -> None:
    stream = Stream()
    stream.lines = [(1 + n % 2, f"2026-11-21T12:00:{n // 5:02}.5Z", f"{n}\n") for n in range(50)]
    source = FollowLog(stream.connect)  # type: ignore[arg-type]
    got: list[Entry] = []
    while len(got) < 23:
        got += source.read(1, ended=True)
    successor = FollowLog(stream.connect)  # type: ignore[arg-type]
    successor.restore(json.loads(json.dumps(source.position)))
    while entries := successor.read(1 << 20, ended=True):
        got += entries
    assert [text for _, _, text, _ in got] == [str(n).encode() for n in range(50)]


def test_a_reader_that_is_slow_holds_back_only_its_own_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FollowLog, "QUEUE_ENTRIES", 4)
    stream = Stream()
    stream.lines = [(1, AT, f"{n}\n") for n in range(100)]
    source = FollowLog(stream.connect)  # type: ignore[arg-type]
    before = threading.active_count()
    source.read(1)
    source.close()
    until(lambda: threading.active_count() <= before, "its thread is gone", timeout_s=5)


def test_frames_tell_a_clean_end_from_a_broken_one() -> None:
    data = memoryview(b"\2\0\0\0\0\0\0\2ab\1\0")

    def read(count: int) -> bytes:
        nonlocal data
        piece, data = bytes(data[:count]), data[count:]
        return piece

    got = frames(read)
    assert next(got) == ("stderr", b"ab")
    with pytest.raises(ValueError, match="broke off"):
        next(got)


def test_other_fields_of_a_record_do_not_disturb() -> None:
    line = b'{"log":"a\\n","stream":"stdout","attrs":{"k":"v"},"time":"2026-11-21T12:00:00Z"}\n'
    assert entries_of(line + line) == [(b"stdout", b"2026-11-21T12:00:00Z", b"a", True)] * 2
