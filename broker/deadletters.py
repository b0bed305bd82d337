"""Messages that no job could be made of, and effects that failed: each with its reason, the newest 10,000."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any

from . import keys
from .errors import NotFound
from .seal import KeyRing
from .store import Yard

ABOUT = b"dead letter"


def sealed_in(text: bytes) -> bytes:
    """What of a letter, as it is kept, is sealed; empty: nothing."""
    return base64.b64decode(_letter(text).get("sealed", ""))


def with_sealed(text: bytes, sealed: bytes) -> bytes:
    """The same letter with this in place of what was sealed."""
    return json.dumps({**_letter(text), "sealed": base64.b64encode(sealed).decode()}).encode()


def seal(raw: bytes, ring: KeyRing) -> bytes:
    """A message as it is kept: its producer may have written secrets into it."""
    return base64.b64encode(ring.seal(raw, ABOUT))


class DeadLetters:
    """All of a yard's, by number, oldest first. ring: asked for where one is opened; may raise InvalidConfig."""

    def __init__(self, yard: Yard, ring: Callable[[], KeyRing]) -> None:
        self._yard, self._ring = yard, ring

    def list(self) -> dict[str, dict[str, Any]]:
        """number → {at (ms), reason, list}, and `raw` of an effect."""
        found = self._yard.guard(lambda: self._yard.redis.hgetall(keys.DEAD))
        letters = {k.decode(): _letter(v) for k, v in sorted(found.items(), key=lambda kv: int(kv[0]))}
        return {number: {k: v for k, v in one.items() if k != "sealed"} for number, one in letters.items()}

    def show(self, number: str) -> dict[str, Any]:
        """{at (ms), reason, list, raw}: opened. Raises NotFound, InvalidConfig, IntegrityError."""
        text = self._yard.guard(lambda: self._yard.redis.hget(keys.DEAD, number))
        if text is None:
            raise NotFound(f'no dead letter "{number}"; see `batchyard deadletters list`')
        letter = _letter(text)
        if sealed := letter.pop("sealed", ""):
            letter["raw"] = self._ring().open(base64.b64decode(sealed), ABOUT).decode("utf-8", "replace")
        return letter

    def drop(self, numbers: Sequence[str]) -> int:
        """Forgets these; how many there were."""
        return int(self._yard.guard(lambda: self._yard.redis.hdel(keys.DEAD, *numbers))) if numbers else 0

    def drop_all(self) -> int:
        """Forgets all that there are now."""
        return self.drop([n.decode() for n in self._yard.guard(lambda: self._yard.redis.hkeys(keys.DEAD))])


def _letter(text: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text.decode("utf-8", "replace"), strict=False)
    return found
