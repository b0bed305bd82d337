"""Images of Docker's Engine API in and out of archives."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from batchyard.broker.errors import DiskFull, ImageError
from batchyard.cache.newfile import local_disk

from .image_archive import find_image, write_image

_PIECE_BYTES = 1 << 18


class DockerImages:
    """The part of `DockerEngine` that loads and saves images."""

    def _api(self) -> Any:
        raise NotImplementedError

    def _answers(self, what: str) -> AbstractContextManager[None]:
        raise NotImplementedError

    def load(self, archive: Path, image: str) -> None:
        found = find_image(archive)
        with self._answers(f'load of image "{image}"'):
            api = self._api()
            reply = api.post(
                f"{api.base_url}/v{api.api_version}/images/load",
                data=write_image(found, image),
                headers={"Content-Type": "application/x-tar"},
                stream=True,
                timeout=None,  # it is silent while it unpacks a layer
            )
            with reply:
                said = reply.content.decode(errors="replace") if reply.status_code != 200 else ""
                for event in _events(reply.iter_lines()) if not said else ():
                    said = said or str(event.get("error") or "")
        if "no space left on device" in said:
            raise DiskFull(f"the image cannot be loaded: {said}; free some of the engine's disk")
        if said:
            raise ImageError(f"the engine does not take it: {said.strip()[:500]}")

    def save(self, image: str, path: Path) -> None:
        with local_disk(path), tempfile.NamedTemporaryFile(dir=path.parent, prefix=".image-") as raw:
            with self._answers(f'save of image "{image}"'):
                api = self._api()
                where = f"{api.base_url}/v{api.api_version}/images/get"
                with api.get(where, params={"names": image}, stream=True, timeout=None) as reply:
                    if reply.status_code == 404:
                        raise ImageError(f'image "{image}" is not on this machine; pull it first, or correct its name')
                    api._raise_for_status(reply)
                    while piece := reply.raw.read(_PIECE_BYTES):
                        with local_disk(path):
                            raw.write(piece)
            raw.flush()
            with path.open("wb") as out:
                for piece in write_image(find_image(Path(raw.name)), None):
                    out.write(piece)


def _events(lines: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            yield event
