"""An image whose only program sleeps for ever, made here: 200 bytes of machine code, no package and no registry."""

from __future__ import annotations

import io
import struct
import tarfile

TAG = "batchyard/pause:1"
COMMAND = ("/pause",)
_BASE = 0x400000

# The loop of each machine (`uname -m`): its number in the ELF header, and "pause; again".
_LOOPS = {
    "x86_64": (62, bytes.fromhex("b822000000 0f05 ebf7")),  # mov eax, SYS_pause; syscall; jmp
    "aarch64": (183, struct.pack("<7I", *(0xD2800000 + n for n in range(4)), 0xD2800928, 0xD4000001, 0x17FFFFFA)),
}  # mov x0…x3, 0; mov x8, SYS_ppoll; svc; b


def machines() -> frozenset[str]:
    """The machines that this can be made for."""
    return frozenset(_LOOPS)


def image(machine: str) -> bytes:
    """The image's only layer, a tar. KeyError: a machine not in `machines()`."""
    program, layer = _elf(*_LOOPS[machine]), io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        entry = tarfile.TarInfo("pause")
        entry.mode, entry.size = 0o555, len(program)
        tar.addfile(entry, io.BytesIO(program))
    return layer.getvalue()


def _elf(number: int, code: bytes) -> bytes:
    """A 64-bit little-endian executable of one segment."""
    head, segment = 64, 56
    size, entry = head + segment + len(code), _BASE + head + segment
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 2, number, 1, entry, head, 0, 0, head, segment, 1, 0, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000) + code
