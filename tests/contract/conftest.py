"""A yard on a real Redis, as most contracts of the broker want it."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchyard.broker.seal import KeyRing
from batchyard.broker.store import Yard


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """The yard's keys."""
    KeyRing.create(tmp_path / "key")
    return tmp_path / "key"


@pytest.fixture
def yard(fresh_redis_url: str, key_file: Path) -> Yard:
    """Empty, its functions loaded; a module that wants more in it asks for this one and adds that."""
    made = Yard(fresh_redis_url, KeyRing.load(key_file))
    made.prepare()
    return made
