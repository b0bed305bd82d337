"""Which GPUs this node has: asked of the driver (NVML), or declared."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from batchyard.broker.errors import InvalidConfig

_TYPE = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_BRANDS = {"nvidia", "tesla", "geforce", "quadro", "graphics", "device"}
_LINES = {"rtx", "gtx"}  # of which the number alone says too little


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One device. `id` is the driver's UUID; a `declared` one is only counted: the engine is not asked for it.

    type: what a job's `gpu_type` names, such as a100; empty where it is not known.
    """

    id: str
    name: str = ""
    memory_mib: int = 0
    declared: bool = False
    type: str = ""


def discover(declared: str | None = None, *, nvml: Callable[[], Sequence[Gpu]] | None = None) -> tuple[Gpu, ...]:
    """The node's devices, in the driver's order.

    `declared` is the option `--gpus`: None asks the driver; a number declares that many made-up devices
    (`declared-0` …), 0 for none; `a100=2,t4=1` so many of these types; `a,b` names devices, by the driver's UUID or
    index where it knows them, else made up. InvalidConfig: a name is there twice, a type is none.
    """
    if declared is not None and "=" in declared:
        return _declared(declared)
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


def _declared(told: str) -> tuple[Gpu, ...]:
    types: list[str] = []
    for word in told.split(","):
        kind, _, count = (part.strip() for part in word.partition("="))
        if not _TYPE.fullmatch(kind.lower()) or not count.isdigit():
            raise InvalidConfig(f'--gpus "{told}": "{word.strip()}" is not TYPE=NUMBER, such as a100=2')
        types += [kind.lower()] * int(count)
    return tuple(Gpu(id=f"declared-{n}", declared=True, type=kind) for n, kind in enumerate(types))


def type_of(name: str) -> str:
    """The type in a product's name: `NVIDIA A100-SXM4-80GB` is an a100, `NVIDIA GeForce RTX 4090` an rtx-4090."""
    words = [word for word in re.split(r"[\s/_-]+", name.lower()) if word and word not in _BRANDS]
    for at, word in enumerate(words):
        if any(letter.isdigit() for letter in word):
            line = f"{words[at - 1]}-" if at and words[at - 1] in _LINES else ""
            return _plain(f"{line}{word}")
    return _plain("-".join(words))


def types_of(gpus: Sequence[Gpu]) -> Mapping[str, int]:
    """How many there are of each type that is known."""
    return Counter(gpu.type for gpu in gpus if gpu.type)


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9.-]", "", text)[:64]


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
                name=(name := _text(pynvml.nvmlDeviceGetName(handle))),
                type=type_of(name),
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
