"""Which GPUs this node has: asked of the driver (NVML), or declared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from batchyard.broker.errors import InvalidConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One device. `id` is the driver's UUID; a `declared` one is only counted: the engine is not asked for it."""

    id: str
    name: str = ""
    memory_mib: int = 0
    declared: bool = False


def discover(declared: str | None = None, *, nvml: Callable[[], Sequence[Gpu]] | None = None) -> tuple[Gpu, ...]:
    """The node's devices, in the driver's order.

    `declared` is the option `--gpus`: None asks the driver; a number declares that many made-up devices
    (`declared-0` …), 0 for none; `a,b` names devices, by the driver's UUID or index where it knows them, else made up.
    InvalidConfig: a name is there twice.
    """
    if declared is not None and declared.strip().isdigit():
        return tuple(Gpu(id=f"declared-{n}", declared=True) for n in range(int(declared)))
    found = tuple((nvml or ask_driver)())
    if declared is None:
        return found
    known = {str(index): gpu for index, gpu in enumerate(found)} | {gpu.id: gpu for gpu in found}
    names = [name.strip() for name in declared.split(",") if name.strip()]
    chosen = tuple(known.get(name, Gpu(id=name, declared=True)) for name in names)
    if len({gpu.id for gpu in chosen}) < len(chosen):
        raise InvalidConfig(f'--gpus "{declared}": a device is named twice; name each once')
    return chosen


def ask_driver() -> tuple[Gpu, ...]:
    """All devices that NVML lists; none when there is no driver. The library is loaded only here."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()  # no library, or a library without a driver
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
        return tuple(
            Gpu(
                id=_text(pynvml.nvmlDeviceGetUUID(handle)),
                name=_text(pynvml.nvmlDeviceGetName(handle)),
                memory_mib=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) >> 20,
            )
            for handle in handles
        )
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
