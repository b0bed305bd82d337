"""Where a yard of this machine is to be found: `endpoints.json` in its state folder, written by `batchyard up`.

The file holds the broker's password, so it is its owner's alone (0600).
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .errors import InvalidConfig
from .keysource import KeyCommand, KeyFile, KeySource, source_of

FILE = "endpoints.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """What a producer, the CLI and tools need to reach a yard.

    broker_url and result_backend are one Redis database; transport_options are Celery's `broker_transport_options`.
    key_file is a path of this machine, key_command what prints the keys instead, store a store's spec, scratch the
    folder where this machine's node works. pid is that of the `batchyard up` that wrote the file.
    """

    broker_url: str
    result_backend: str
    transport_options: dict[str, Any] = field(default_factory=dict)
    flower_url: str | None = None
    key_file: str | None = None
    key_command: str | None = None
    store: str | None = None
    scratch: str | None = None
    pid: int | None = None

    def save(self, state: Path) -> Path:
        """Writes the file whole or not at all. Raises InvalidConfig."""
        path = state / FILE
        try:
            fd, name = tempfile.mkstemp(dir=state, prefix=".endpoints-")  # mode 0600
            with os.fdopen(fd, "w") as file:
                json.dump(asdict(self), file, indent=2)
                file.write("\n")
            os.replace(name, path)
        except OSError as error:
            raise InvalidConfig(f'"{path}" cannot be written: {error.strerror}; give another --state') from None
        return path

    def key_source(self) -> KeySource | None:
        """Where the yard's keys are; None: this does not say it, nor does the environment."""
        if self.key_file:
            return KeyFile(Path(self.key_file))
        return KeyCommand(self.key_command) if self.key_command else source_of()

    @property
    def stopped(self) -> bool:
        """Whether the `batchyard up` that wrote the file has ended, as far as this machine can say."""
        if not self.pid:
            return True
        try:
            os.kill(self.pid, 0)
        except PermissionError:
            return False
        except (OSError, OverflowError, TypeError):
            return True
        return False

    @classmethod
    def load(cls, state: Path) -> Endpoints:
        """Raises InvalidConfig: there is none, or it cannot be read."""
        path = state / FILE
        try:
            value = json.loads(path.read_text())
        except FileNotFoundError:
            raise InvalidConfig(
                f'no yard is known here: "{path}" is missing; start one with `batchyard up`, '
                "or say where one is with --state or --broker"
            ) from None
        except OSError as error:
            raise InvalidConfig(f'"{path}" cannot be read: {error.strerror}; choose another --state') from None
        except ValueError:
            raise InvalidConfig(f'"{path}" is not JSON; delete it and start `batchyard up` again') from None
        return cls.parse(value, str(path))

    @classmethod
    def parse(cls, value: object, source: str) -> Endpoints:
        """From plain data; fields of later versions are left out. Raises InvalidConfig."""
        if not isinstance(value, Mapping) or not isinstance(value.get("broker_url"), str):
            raise InvalidConfig(f'"{source}" does not say broker_url; delete it and start `batchyard up` again')
        known = {f.name: value[f.name] for f in fields(cls) if f.name in value}
        return cls(**{"result_backend": known["broker_url"], **known})


def absolute_store(spec: str) -> str:
    """A store's spec that means the same in every working directory; URLs stay as they are. Raises InvalidConfig."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", spec) and not spec.startswith("s3://"):
        raise InvalidConfig(f'"{spec}" is no store; give a folder, or s3://BUCKET[/PREFIX]?credentials=FILE')
    return spec if "://" in spec else str(Path(spec).expanduser().absolute())


def default_state(environ: Mapping[str, str] = os.environ) -> Path:
    """`$BATCHYARD_STATE`, else `~/.batchyard`."""
    return Path(environ.get("BATCHYARD_STATE") or "~/.batchyard").expanduser()
