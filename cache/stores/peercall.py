"""What nodes say to each other at their peer doors: `GET /blob/NAME` over plain HTTP, of sealed bytes only.

    Authorization: Batchyard SECONDS TOKEN      who asks has the yard's keys, and asks this node for this object now
    200   the object as it is sealed
    202   it is on its way to this node; Batchyard-Arrived: so many bytes of it have come. Ask again
    503   too many ask at once. Ask again
    404   anything else: it is not here, or whoever asks may not know

A question is held for up to HOLD_S when the answer would be "ask again".
"""

from __future__ import annotations

import hmac
import re
from urllib.parse import urlsplit

from batchyard.broker.seal import KeyRing

PATH = "/blob/"
ARRIVED = "Batchyard-Arrived"
HOLD_S = 5.0
_SKEW_S = 300  # as far apart as clocks may be
_SCHEME = "Batchyard"
_STAMP = re.compile(rf"{_SCHEME} ([0-9]{{1,12}}) ([0-9a-f]{{64}})")


def stamp(ring: KeyRing, node: str, name: str, now_s: float) -> str:
    """The header of a question to a node for an object, at this wall-clock time."""
    return f"{_SCHEME} {int(now_s)} {_token(ring, node, name, int(now_s))}"


def is_stamped(ring: KeyRing, node: str, name: str, header: str, now_s: float) -> bool:
    """Whether the header is one that `stamp` made, not long ago."""
    found = _STAMP.fullmatch(header)
    if found is None or abs(int(found[1]) - now_s) > _SKEW_S:
        return False
    return hmac.compare_digest(found[2], _token(ring, node, name, int(found[1])))


def _token(ring: KeyRing, node: str, name: str, seconds: int) -> str:
    return ring.token(f"peer door\0{node}\0{name}\0{seconds}")


def split_address(text: str) -> tuple[str, int]:
    """Host and port of `HOST`, `HOST:PORT` or `[V6]:PORT`; port 0 where none is named. ValueError."""
    parts = urlsplit(f"//{text}")
    if not parts.hostname or parts.netloc != text or parts.username is not None or parts.password is not None:
        raise ValueError(f'"{text}" is no address: write HOST or HOST:PORT')
    return parts.hostname, parts.port or 0


def join_address(host: str, port: int) -> str:
    """As it stands in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
