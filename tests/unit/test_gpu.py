"""GPUs come from the driver or from the option."""

from __future__ import annotations

import pynvml
import pytest

from batchyard.broker.errors import InvalidConfig
from batchyard.worker.gpu import Gpu, ask_driver, discover

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
