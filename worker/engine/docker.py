"""Docker's Engine API as an `Engine`. The only module that imports docker.

A job costs create, start, wait and remove, and an inspect when its exit code is not 0. One client serves all
threads; its pool keeps as many connections as there are jobs waiting.
"""

from __future__ import annotations

import calendar
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import urllib3.exceptions
from docker.errors import APIError, DockerException
from docker.utils import kwargs_from_env

from batchyard.broker.errors import (
    DiskFull,
    EngineUnavailable,
    ImageError,
    ImageUnavailable,
    NotFound,
    Permanent,
    StartError,
)

from . import overlay
from .docker_images import DockerImages
from .docker_networks import DockerNetworks
from .logs import FileLog, FollowLog, LogSource
from .protocol import Bind, ContainerSpec, Exit, InitMissing, Listed

ANSWER_WITHIN_S = 60
ASK_AGAIN_S = 30
"""How long one question "has it ended?" stays open: a reply that was lost, or `close`, is noticed after that."""
CONNECTIONS = 512
FIRST_RETRY_S, LAST_RETRY_S = 0.05, 2.0
MIN_MEMORY_MIB = 6
# The engine merges its own defaults into a container's log options, so each that could lose lines is named here.
# `max-size` has no word for "unlimited": 10^18 bytes.
LOG_CONFIG: dict[str, Any] = {"Type": "json-file", "Config": {"max-size": "1000000t", "mode": "blocking"}}

# What a registry or the way to it says that may be well the next time. Not "no such host": that is a wrong name.
_PASSING = re.compile(
    r"timeout|deadline exceeded|connection re(set|fused)|\bEOF\b|too ?many ?requests|unexpected HTTP status: (429|5)"
    r"|temporary failure in name resolution|server misbehaving|no route to host|network is unreachable",
    re.IGNORECASE,
)
_LIKE_AN_ID = re.compile(r"[0-9a-f]{1,64}|sha256:[0-9a-f]{1,63}")
_NOT_RUNNING = re.compile("is not running|already finished")
_GONE = (OSError, urllib3.exceptions.HTTPError, ValueError)
"""What docker-py lets through when the engine goes away before, during or in the middle of an answer."""


class DockerEngine(DockerNetworks, DockerImages):
    """`base_url` None takes DOCKER_HOST and its TLS variables, then the local socket. Connects at the first call."""

    def __init__(self, base_url: str | None = None) -> None:
        self._base_url = base_url
        self._lock = threading.Lock()
        self._client: Any = None  # docker.APIClient, half of whose methods have no types
        self._facts: Mapping[str, Any] = {}
        self._started: dict[str, float] = {}
        self._closed = threading.Event()
        self._init = True

    def ping(self) -> None:
        with self._answers("ping"):
            self._api().ping()

    def about(self) -> Mapping[str, Any]:
        """What `docker info` tells now, as the Engine API names it."""
        with self._answers("info"):
            return dict(self._api().info())

    def image_present(self, image: str) -> str | None:
        with self._answers(f'image "{image}"'):
            try:
                return str(self._api().inspect_image(_as_name(image))["Id"])
            except APIError as error:
                if error.status_code in (400, 404):
                    return None
                raise

    def pull(self, image: str) -> None:
        with self._answers(f'pull of image "{image}"'):
            try:
                for event in self._api().pull(_as_name(image), stream=True, decode=True):
                    if "error" in event:
                        raise _image_error(image, str(event["error"]))
            except APIError as error:
                raise _image_error(image, _reason(error)) from None

    def import_image(self, image: str, layer: bytes) -> None:
        if self.image_present(image) is not None:
            return
        repository, _, tag = image.rpartition(":")
        with self._answers(f'import of image "{image}"'):
            self._api().import_image_from_data(layer, repository=repository, tag=tag)

    def create(self, spec: ContainerSpec) -> str:
        with self._answers("create"):
            api = self._api()
            config = body(spec, cpus=int(self._facts["NCPU"]), init=spec.init and self._init)
            try:
                return str(api.create_container_from_config(config, name=spec.name)["Id"])
            except APIError as error:
                reason = _reason(error)
                if error.status_code == 404 and not reason.startswith("network "):
                    raise ImageError(f'image "{spec.image}" is not on this node: {reason}') from None
                raise _refusal(f'a container of image "{spec.image}" cannot be created', reason) from None

    def start(self, container_id: str) -> None:
        with self._answers("start"):
            try:
                self._api().start(container_id)
            except APIError as error:
                reason = _reason(error)
                if error.status_code == 404 and "no such container" in reason.lower():
                    raise _not_found(container_id) from None
                if self._init and "docker-init" in reason:
                    self._init = False
                    raise InitMissing(f"the engine has no init binary ({reason})") from None
                raise _refusal("the container cannot be started", reason) from None
        self._started[container_id] = time.time()

    def wait(self, container_id: str) -> Exit:
        delay_s, away = FIRST_RETRY_S, False
        while True:
            asked_at = time.monotonic()
            try:
                ended = self._wait_once(container_id)
                if ended is not None:
                    return replace(ended, interrupted=True) if away and ended.code > 128 and not ended.oom else ended
            except EngineUnavailable:
                # Restarting: the container runs on (live-restore), or the engine will say how it ended.
                away = away or time.monotonic() - asked_at < ASK_AGAIN_S
            if time.monotonic() - asked_at >= ASK_AGAIN_S:
                delay_s = FIRST_RETRY_S  # nothing was wrong, it just goes on
            if self._closed.wait(delay_s):
                raise EngineUnavailable(f"no longer waiting for container {container_id[:12]}: this node closes")
            delay_s = min(2 * delay_s, LAST_RETRY_S)

    def _wait_once(self, container_id: str) -> Exit | None:
        """The exit; None when the engine's answer turned out to be about something else than an exit."""
        with self._answers("wait"):
            try:
                reply = self._api().wait(container_id, timeout=ASK_AGAIN_S, condition="not-running")
            except APIError as error:
                if error.status_code == 404:
                    raise _not_found(container_id) from None
                raise
        started_at = self._started.get(container_id)
        # A container that was never started also "ends" with 0: believe a 0 only of one that we started.
        if reply["StatusCode"] == 0 and not reply.get("Error") and started_at is not None:
            return Exit(code=0, oom=False, started_at=started_at, finished_at=max(time.time(), started_at))
        return self.inspect_exit(container_id)

    def inspect_exit(self, container_id: str) -> Exit | None:
        with self._answers("inspect"):
            try:
                state = self._api().inspect_container(container_id)["State"]
            except APIError as error:
                if error.status_code == 404:
                    raise _not_found(container_id) from None
                raise
            if state["Running"] or state.get("Restarting") or state.get("Paused"):
                return None
            if _epoch(state["StartedAt"]) <= 0:
                raise StartError(f"container {container_id[:12]} was never started")
            code, told = int(state["ExitCode"]), str(state.get("Error") or "")
            if code in (126, 127) and not told:
                told = self._init_complaint(container_id)
            started_at = _epoch(state["StartedAt"])
            return Exit(
                code=code,
                oom=bool(state["OOMKilled"]) and code != 0,
                started_at=started_at,
                finished_at=max(_epoch(state["FinishedAt"]), started_at),  # the engine swaps them for a no-op
                error=told,
            )

    def _init_complaint(self, container_id: str) -> str:
        """With an init process a missing command is no start error: init says so as its last words and exits 127."""
        last = self._api().logs(container_id, stdout=False, stderr=True, tail=1).decode(errors="replace").strip()
        return last.split("] ", 1)[-1] if last.startswith("[FATAL tini") else ""

    def signal(self, container_id: str, name: str) -> bool:
        with self._answers("signal"):
            try:
                self._api().kill(container_id, name)
            except APIError as error:
                if error.status_code in (404, 409) or _NOT_RUNNING.search(_reason(error)):
                    return False
                raise
        return True

    def kill(self, container_id: str) -> bool:
        return self.signal(container_id, "SIGKILL")

    def remove(self, container_id: str, *, force: bool = True) -> None:
        with self._answers("remove"):
            try:
                self._api().remove_container(container_id, v=True, force=force)
            except APIError as error:
                reason = _reason(error)
                if error.status_code == 409 and "in progress" not in reason:
                    raise Permanent(f"container {container_id[:12]} cannot be removed: {reason}") from None
                if error.status_code not in (404, 409):
                    raise
        self._started.pop(container_id, None)

    def list(self, labels: Mapping[str, str]) -> Sequence[Listed]:
        with self._answers("list"):
            found = self._api().containers(all=True, filters={"label": [f"{k}={v}" for k, v in labels.items()]})
        return tuple(
            Listed(
                id=str(one["Id"]),
                labels=dict(one["Labels"]),
                running=one["State"] in ("running", "paused", "restarting"),
                started=one["State"] != "created",
            )
            for one in found
        )

    def log_source(self, container_id: str) -> LogSource:
        with self._answers("log source"):
            self._api()
        folder = Path(self._facts["DockerRootDir"]) / "containers" / container_id
        if os.access(folder, os.R_OK | os.X_OK):
            return FileLog(folder / f"{container_id}-json.log")
        return self.follow_log(container_id)

    def follow_log(self, container_id: str) -> FollowLog:
        """The lines through the API, for an engine whose files are out of reach."""

        def over() -> bool:
            return self.inspect_exit(container_id) is not None

        return FollowLog(lambda since, follow: self._stream(container_id, since, follow), over=over)

    def close(self) -> None:
        self._closed.set()

    def _stream(self, container_id: str, since: str, follow: bool) -> Callable[[int], bytes]:
        with self._answers("logs"):
            api = self._api()
            reply = api.get(
                f"{api.base_url}/v{api.api_version}/containers/{container_id}/logs",
                params={"stdout": 1, "stderr": 1, "timestamps": 1, "follow": int(follow)}
                | ({"since": since} if since else {}),
                stream=True,
                timeout=None,
            )
        if reply.status_code in (404, 409):
            raise _not_found(container_id)
        if reply.status_code != 200:
            raise EngineUnavailable(f"the engine gives no logs: {reply.status_code} {reply.reason}")

        def read(count: int) -> bytes:
            with self._answers("logs"):
                return bytes(reply.raw.read(count))

        return read

    def _api(self) -> Any:
        client = self._client
        if client is not None:
            return client
        with self._lock:
            if self._client is None:
                where: dict[str, Any] = {"base_url": self._base_url} if self._base_url else {**kwargs_from_env()}
                client = docker.APIClient(version="auto", timeout=ANSWER_WITHIN_S, max_pool_size=CONNECTIONS, **where)
                client.trust_env = False  # no look for proxies and netrc at every call
                self._facts = client.info()
                self._client = client
            return self._client

    @contextmanager
    def _answers(self, what: str) -> Iterator[None]:
        """Turn every way in which Docker or its client says "not now" into EngineUnavailable."""
        try:
            yield
        except APIError as error:
            reason = _reason(error)
            if "no space left on device" in reason:
                raise DiskFull(f"{what}: the container engine is out of disk: {reason}") from None
            raise EngineUnavailable(f"{what}: the container engine answered {error.status_code}: {reason}") from None
        except (*_GONE, DockerException) as error:
            raise EngineUnavailable(f"{what}: the container engine does not answer: {error}") from error


def body(spec: ContainerSpec, *, cpus: int, init: bool) -> dict[str, Any]:
    """The Engine API's create body. `cpus` is how many the engine has: it refuses to be asked for more."""
    memory = max(spec.memory_mib, MIN_MEMORY_MIB) << 20
    host: dict[str, Any] = {
        "AutoRemove": False,
        "Init": init,
        "LogConfig": LOG_CONFIG,
        "NetworkMode": spec.network,
        "NanoCpus": round(max(0.01, min(spec.vcpus, cpus)) * 1e9),
        "Memory": memory,
        "MemorySwap": memory,
        "ReadonlyRootfs": spec.read_only_root,
        "CapDrop": ["ALL"] if spec.cap_drop_all else [],
        "SecurityOpt": ["no-new-privileges"] if spec.no_new_privileges else [],
        "PidsLimit": spec.pids_limit,
        "Tmpfs": dict(spec.tmpfs),
        "Mounts": [_mount(bind, spec.labels) for bind in spec.binds],
        "Devices": [{"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rwm"} for path in spec.devices],
    }
    if spec.gpus:
        host["DeviceRequests"] = [{"DeviceIDs": list(spec.gpus), "Capabilities": [["gpu"]]}]
    config: dict[str, Any] = {
        "Image": _as_name(spec.image),
        "Env": [f"{name}={value}" for name, value in spec.environment.items()],
        "Labels": dict(spec.labels),
        "HostConfig": host,
    }
    optional = {
        "Cmd": spec.command,
        "Entrypoint": spec.entrypoint,
        "User": spec.user,
        "WorkingDir": spec.working_dir,
        "StopSignal": spec.stop_signal,
    }
    return config | {name: list(v) if isinstance(v, tuple) else v for name, v in optional.items() if v is not None}


def _as_name(image: str) -> str:
    """The engine takes hex digits for the beginning of an image's id as well, whoever's that is."""
    if not _LIKE_AN_ID.fullmatch(image):
        return image
    return f"docker.io/library/{image}" if ":" in image else f"{image}:latest"


def _mount(bind: Bind, labels: Mapping[str, str]) -> dict[str, Any]:
    """A layer of changes is a volume without a name, which the engine mounts and takes away with the container."""
    if bind.changes is None:
        return {"Type": "bind", "Source": bind.source, "Target": bind.target, "ReadOnly": bind.read_only}
    options = {"type": "overlay", "device": "overlay", "o": overlay.mount_options(bind.source, bind.changes)}
    volume = {"NoCopy": True, "Labels": dict(labels), "DriverConfig": {"Name": "local", "Options": options}}
    return {"Type": "volume", "Target": bind.target, "VolumeOptions": volume}


def _reason(error: APIError) -> str:
    return str(error.explanation or error).strip()


def _refusal(what: str, reason: str) -> DiskFull | EngineUnavailable | StartError:
    """The engine said no: because of the request, unless its words say that it is itself in trouble."""
    if "no space left on device" in reason:
        return DiskFull(f"{what}: {reason}; free some of the engine's disk")
    if "context deadline exceeded" in reason or "transport: error while dialing" in reason.lower():
        return EngineUnavailable(f"{what} now: {reason}")
    return StartError(f"{what}: {reason}")


def _image_error(image: str, reason: str) -> DiskFull | ImageError | ImageUnavailable:
    if "no space left on device" in reason:
        return DiskFull(f'image "{image}" cannot be pulled: {reason}; free some of the engine\'s disk')
    if _PASSING.search(reason):
        return ImageUnavailable(f'image "{image}" cannot be pulled now: {reason}')
    return ImageError(f'image "{image}" cannot be had: {reason}; check its name and the node\'s registry login')


def _not_found(container_id: str) -> NotFound:
    return NotFound(f"container {container_id[:12]} is gone: somebody else removed it")


def _epoch(stamp: str) -> float:
    """RFC 3339 to epoch seconds; 0 or less for the engine's "never" (year 1)."""
    whole, _, fraction = stamp.removesuffix("Z").partition(".")
    if whole.startswith("0001-"):
        return 0.0
    offset_s = 0
    if len(whole) > 19 or "+" in fraction or "-" in fraction:  # a local time, with its offset
        digits = stamp[-6:]
        offset_s = (1 if digits[0] == "+" else -1) * (int(digits[1:3]) * 3600 + int(digits[4:6]) * 60)
        fraction = fraction[:-6]
    seconds = calendar.timegm(time.strptime(whole[:19], "%Y-%m-%dT%H:%M:%S")) - offset_s
    return seconds + float(f"0.{fraction or 0}")
