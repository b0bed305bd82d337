"""What each profile allows, and what every container gets."""

from __future__ import annotations

from typing import Any

import pytest

from batchyard.broker.errors import InvalidJob
from batchyard.broker.job import Job
from batchyard.worker.container import Identity, container_spec
from batchyard.worker.engine.protocol import Bind, ContainerSpec
from batchyard.worker.gpu import Gpu

WHO = Identity(yard="y", node="n", job_id="j-1", token="t", attempt=2, queue="cpu", environment="here")


def spec(*, binds: tuple[Bind, ...] = (), gpus: tuple[Gpu, ...] = (), force: Any = None, **job: Any) -> ContainerSpec:
    return container_spec(Job(image="busybox:1", **job), WHO, work="/scratch/w", profile=force, binds=binds, gpus=gpus)


def test_strict_takes_everything_away() -> None:
    got = spec(command=("true",))
    assert (got.user, got.read_only_root, got.cap_drop_all, got.no_new_privileges) == ("65534:65534", True, True, True)
    assert (got.network, got.working_dir, got.pids_limit, got.init) == ("none", "/work", 4096, True)
    assert set(got.tmpfs) == {"/tmp"}
    assert got.binds == (Bind(source="/scratch/w", target="/work"),)
    assert got.environment["HOME"] == "/work"


def test_aws_leaves_what_the_image_says() -> None:
    got = spec(profile="aws")
    assert (got.user, got.read_only_root, got.cap_drop_all, got.no_new_privileges) == (None, False, False, True)
    assert (got.network, got.working_dir, got.command, got.init) == ("bridge", None, None, True)
    assert "HOME" not in got.environment
    assert got.binds == (Bind(source="/scratch/w", target="/work"),)


def test_an_operator_can_force_strict_and_then_root_is_refused() -> None:
    assert spec(profile="aws", force="strict").cap_drop_all
    with pytest.raises(InvalidJob, match="strict"):
        spec(profile="aws", force="strict", user="0:0")


@pytest.mark.parametrize(("asked", "given"), [("1000", "1000:1000"), ("1000:7", "1000:7"), (None, "65534:65534")])
def test_a_strict_user_never_falls_into_group_0(asked: str | None, given: str) -> None:
    assert spec(user=asked).user == given


def test_a_network_is_there_when_asked_for() -> None:
    assert spec(network="bridge").network == "bridge"
    assert spec(profile="aws", network="none").network == "none"


def test_the_platforms_variables_win() -> None:
    got = container_spec(
        Job(image="b:1", environment={"A": "1", "HOME": "/h"}),
        WHO,
        work="/w",
        secrets={"KEY": "s"},
        variables={"AWS_BATCH_JOB_ARRAY_INDEX": "3"},
    ).environment
    assert got == {
        "A": "1",
        "HOME": "/h",
        "KEY": "s",
        "AWS_BATCH_JOB_ARRAY_INDEX": "3",
        "AWS_BATCH_JOB_ID": "j-1",
        "AWS_BATCH_JOB_ATTEMPT": "2",
        "AWS_BATCH_JQ_NAME": "cpu",
        "AWS_BATCH_CE_NAME": "here",
        "BATCHYARD_JOB_ID": "j-1",
    }


def test_labels_say_whose_it_is() -> None:
    assert spec().labels == {
        "batchyard.yard": "y",
        "batchyard.node": "n",
        "batchyard.job": "j-1",
        "batchyard.token": "t",
        "batchyard.attempt": "2",
    }


def test_a_gpu_job_sees_its_own_devices_and_declared_ones_are_only_named() -> None:
    got = spec(gpus=(Gpu(id="GPU-1"), Gpu(id="declared-0", declared=True)))
    assert got.gpus == ("GPU-1",)
    assert got.environment["NVIDIA_VISIBLE_DEVICES"] == "GPU-1,declared-0"
    none = container_spec(Job(image="cuda:1"), WHO, work="/w", node_has_gpus=True)
    assert none.environment["NVIDIA_VISIBLE_DEVICES"] == "void"


@pytest.mark.parametrize("target", ["/", "x", "/a/../b", "/proc/1", "/sys", "/dev/sda", "/a//b", "/work"])
def test_a_bind_at_a_wrong_place_is_refused(target: str) -> None:
    with pytest.raises(InvalidJob):
        spec(binds=(Bind(source="/s", target=target),))
