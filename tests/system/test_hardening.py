"""What a real container of each profile can do, what ends it, and that its lines all arrive."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from batchyard.broker.errors import EngineUnavailable
from batchyard.broker.job import Job
from batchyard.worker.capture import LogCapture, LogPoller
from batchyard.worker.container import Identity, container_spec, owner_labels
from batchyard.worker.engine import Exit, FileLog, launch
from batchyard.worker.engine.docker import DockerEngine

Run = Callable[..., tuple[Exit, str]]


@pytest.fixture(scope="module")
def engine() -> DockerEngine:
    return DockerEngine()


@pytest.fixture
def start(engine: DockerEngine, image: str, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Start a job of a shell script; its containers are gone after the test."""
    yard = uuid4().hex
    who = Identity(yard=yard, node="n", job_id="j", token="t", attempt=1, queue="q", environment="e")
    work = tmp_path / "work"
    work.mkdir()
    work.chmod(0o777)

    def go(script: str, **fields: Any) -> str:
        job = Job(image=image, command=("sh", "-c", script), **{"memory_mib": 64, "vcpus": 0.5} | fields)
        return launch(engine, container_spec(job, who, work=str(work)), say=print)

    yield go
    for one in engine.list(owner_labels(yard, "n")):
        engine.remove(one.id)


@pytest.fixture
def run(engine: DockerEngine, start: Callable[..., str], tmp_path: Path) -> Run:
    """Run a script to its end: how it ended, and what it wrote."""

    def go(script: str, **fields: Any) -> tuple[Exit, str]:
        container = start(script, **fields)
        ended = engine.wait(container)
        log = LogCapture(tmp_path / uuid4().hex, engine.log_source(container)).finish().read_text()
        return ended, "\n".join(line.split(" ", 2)[2] for line in log.splitlines())

    return go


def status(text: str, name: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name}:")]
    return line.split(None, 1)[1]


def test_strict_is_nobody_without_capabilities_or_new_ones(run: Run) -> None:
    ended, text = run("id; cat /proc/self/status")
    assert ended.code == 0
    assert text.startswith("uid=65534")
    assert "gid=65534" in text.splitlines()[0]
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status(text, kind), 16) == 0
    assert status(text, "NoNewPrivs") == "1"
    assert status(text, "Seccomp") == "2"


def test_aws_is_the_images_user_with_the_engines_capabilities_and_no_new_privileges(run: Run) -> None:
    ended, text = run("id; cat /proc/self/status; echo x >/written && echo root is writable", profile="aws")
    assert ended.code == 0
    assert text.startswith("uid=0")
    assert int(status(text, "CapEff"), 16) not in (0, (1 << 38) - 1)
    assert status(text, "NoNewPrivs") == "1"
    assert "root is writable" in text


def test_strict_writes_to_work_and_tmp_and_nowhere_else(run: Run, tmp_path: Path) -> None:
    _, text = run(
        "pwd; for d in /work /tmp; do touch $d/f && echo can $d; done; "
        "for d in / /etc /bin /var /dev/shm/.. /proc /sys/kernel; do touch $d/f 2>/dev/null && echo BAD $d; done; true"
    )
    assert text.splitlines() == ["/work", "can /work", "can /tmp"]
    assert (tmp_path / "work" / "f").exists()


def test_strict_has_no_network_but_loopback_unless_asked(run: Run) -> None:
    interfaces = "cat /proc/net/dev | tail -n +3 | cut -d: -f1 | tr -d ' ' | sort | xargs"
    assert run(interfaces)[1] == "lo"
    assert run(interfaces, network="bridge")[1] == "eth0 lo"


def test_strict_bounds_processes(run: Run) -> None:
    _, text = run("cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max")
    assert text == "4096"


def test_an_init_process_is_there(run: Run) -> None:
    _, text = run("cat /proc/1/comm; true", profile="aws")
    assert "init" in text


def test_the_variables_and_the_command_arrive(run: Run) -> None:
    _, text = run("echo $AWS_BATCH_JOB_ID $AWS_BATCH_JOB_ATTEMPT $X $HOME; exit 5", environment={"X": "a b"})
    assert text == "j 1 a b /work"


EAT = "x=a; while true; do x=$x$x; done"


def test_running_out_of_memory_is_told_apart_from_a_kill(run: Run) -> None:
    for script in (EAT, f"sh -c '{EAT}'; exit $?"):
        ended, _ = run(script, memory_mib=32)
        assert (ended.code, ended.oom) == (137, True)
    for script in ("kill -9 $$", "sh -c 'kill -9 $$'; exit $?"):
        ended, _ = run(script)
        assert (ended.code, ended.oom) == (137, False)


def test_init_takes_a_stop_signal_to_a_command_that_would_be_deaf_as_pid_1(
    engine: DockerEngine, start: Callable[..., str]
) -> None:
    container = start("exec sleep 60")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(engine.wait, container)
        engine.signal(container, "SIGTERM")
        assert waiting.result(20).code == 143


LINES = 300_000


def test_none_of_300000_lines_is_lost_while_the_job_runs(
    engine: DockerEngine, start: Callable[..., str], tmp_path: Path
) -> None:
    container = start(f"seq 1 {LINES}; echo end >&2", vcpus=2)
    source = engine.log_source(container)
    if not isinstance(source, FileLog):
        pytest.skip("the engine's files are out of reach here")
    heard = [0]

    def count(lines: Any) -> None:
        heard[0] += len(lines)

    capture = LogCapture(tmp_path / "log", source, head_bytes=1 << 30, on_lines=count)
    poller = LogPoller()
    poller.add(capture)
    assert engine.wait(container).code == 0
    lines = capture.finish().read_text().splitlines()
    poller.stop()
    assert [line.rsplit(" ", 1)[1] for line in lines if " stdout " in line] == [str(n + 1) for n in range(LINES)]
    assert len(lines) == heard[0] == LINES + 1


def test_no_line_is_lost_through_the_api_either(
    engine: DockerEngine, start: Callable[..., str], tmp_path: Path
) -> None:
    container = start("seq 1 5000; seq 1 5000 >&2")
    source = engine.follow_log(container)
    capture = LogCapture(tmp_path / "log", source)
    capture.poll()
    engine.wait(container)
    lines = capture.finish().read_text().splitlines()
    for stream in ("stdout", "stderr"):
        mine = [line.split(" ", 2)[2] for line in lines if f" {stream} " in line]
        assert mine == [str(n + 1) for n in range(5000)]


class Door:
    """A socket before the engine's that can be shut, as if the engine were being restarted."""

    def __init__(self, path: Path, engine: str = "/var/run/docker.sock") -> None:
        self.path, self.engine = path, engine
        self.open = threading.Event()
        self.open.set()
        self.asked = threading.Event()  # somebody waits for a container
        self.through: list[socket.socket] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(16)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            if not self.open.is_set():
                client.close()
                continue
            server = socket.socket(socket.AF_UNIX)
            server.connect(self.engine)
            self.through += [client, server]
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=self._copy, args=(one, other), daemon=True).start()

    def _copy(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(65536):
                other.sendall(data)
                if b"/wait" in data:
                    self.asked.set()
            other.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def shut(self) -> None:
        self.open.clear()
        for one in self.through:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self.through.clear()


def test_waiting_outlives_an_engine_that_is_away_for_a_while(
    engine: DockerEngine, start: Callable[..., str], tmp_path: Path
) -> None:
    door = Door(tmp_path / "door.sock")
    behind = DockerEngine(f"unix://{door.path}")
    container = start("exec sleep 60")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(behind.wait, container)
        assert door.asked.wait(10), "the wait is under way"
        door.shut()
        with pytest.raises(EngineUnavailable):
            behind.ping()
        engine.kill(container)  # it ends while nobody hears
        door.open.set()
        ended = waiting.result(30)
        assert (ended.code, ended.interrupted) == (137, True)
    door.listener.close()
