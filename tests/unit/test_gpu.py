"""GPUs come from the driver or from the option."""

from __future__ import annotations

import pynvml
import pytest

from batchyard.broker.errors import InvalidConfig
from batchyard.worker.gpu import Gpu, ask_driver, discover, type_of, types_of

REAL = (Gpu(id="GPU-1", name="H100", memory_mib=81920), Gpu(id="GPU-2"))


def test_a_machine_without_a_driver_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    assert ask_driver() == ()


def test_the_driver_is_asked_when_nothing_is_declared() -> None:
    assert discover(nvml=lambda: REAL) == REAL


def test_a_number_declares_devices_that_the_engine_never_hears_of() -> None:
    assert discover("2", nvml=lambda: REAL) == (
        Gpu(id="declared-0", declared=True),
        Gpu(id="declared-1", declared=True),
    )
    assert discover("0", nvml=lambda: REAL) == ()


def test_names_choose_real_devices_where_the_driver_knows_them() -> None:
    assert discover("GPU-2, 0,x", nvml=lambda: REAL) == (REAL[1], REAL[0], Gpu(id="x", declared=True))


def test_a_device_named_twice_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="twice"):
        discover("0,GPU-1", nvml=lambda: REAL)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("Tesla T4", "t4"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA RTX A6000", "rtx-a6000"),
        ("NVIDIA GeForce GTX 1080 Ti", "gtx-1080"),
        ("NVIDIA TITAN V", "titan-v"),
        ("", ""),
    ],
)
def test_a_type_is_the_part_of_a_products_name_that_people_say(name: str, kind: str) -> None:
    assert type_of(name) == kind


def test_devices_are_declared_by_type_and_counted_by_it() -> None:
    made = discover("A100=2, t4=1", nvml=lambda: REAL)
    assert [(gpu.id, gpu.type, gpu.declared) for gpu in made] == [
        ("declared-0", "a100", True),
        ("declared-1", "a100", True),
        ("declared-2", "t4", True),
    ]
    assert types_of([*made, Gpu(id="x")]) == {"a100": 2, "t4": 1}


@pytest.mark.parametrize("told", ["a100=", "=2", "a100=x", "a 100=1", "a100=1,2"])
def test_a_type_or_number_that_is_none_is_refused(told: str) -> None:
    with pytest.raises(InvalidConfig, match="is not TYPE=NUMBER"):
        discover(told, nvml=lambda: REAL)
