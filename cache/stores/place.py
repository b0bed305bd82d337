"""A store by its spec: a folder, or `s3://BUCKET[/PREFIX][?credentials=FILE[&profile=NAME]]`."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from batchyard.broker.errors import InvalidConfig, NotFound

from .disk import SWEEP_AFTER_S, DirectoryStore
from .protocol import Store

_OPTIONS = {"credentials", "profile"}


def store_at(spec: str, *, create: bool = False, sweep_after_s: float | None = SWEEP_AFTER_S) -> Store:
    """The store; create: make the folder or the bucket if there is none. InvalidConfig, NotFound, StoreUnavailable.

    sweep_after_s: unfinished objects of that age are what killed writers left; 0 where nobody else writes; None to
    leave all as it is.
    """
    if spec.startswith("s3://"):
        return _bucket(spec, create, sweep_after_s)
    if "://" in spec:
        raise InvalidConfig(f'"{spec}" is no store; give a folder, or s3://BUCKET[/PREFIX]?credentials=FILE')
    path = Path(spec)
    if not create and not (path / "objects").is_dir():
        raise NotFound(f'there is no blob store at "{path}"; correct --store, or start the yard first')
    return DirectoryStore(path, sweep_after_s=sweep_after_s)


def _bucket(spec: str, create: bool, sweep_after_s: float | None) -> Store:
    from .access import S3Access  # the SDK takes a while to import, and a folder needs none
    from .s3 import S3Store

    wrong = InvalidConfig("a store is s3://BUCKET[/PREFIX]?credentials=FILE; keys and endpoint stand in FILE")
    try:
        parts = urlsplit(spec)
        has_more = parts.username or parts.password or parts.port or parts.fragment
    except ValueError:  # a port that is no number, a bracket
        raise wrong from None
    if not parts.hostname or has_more:
        raise wrong
    options = dict(parse_qsl(parts.query))
    if unknown := options.keys() - _OPTIONS:
        raise InvalidConfig(f'store option "{min(unknown)}" is not known; there are {", ".join(sorted(_OPTIONS))}')
    if "credentials" in options:
        file = Path(options["credentials"]).expanduser()
        access = S3Access.of_file(file, options.get("profile", "default"))
    else:
        access = S3Access.of_environment(os.environ)
    prefix = parts.path.strip("/")
    prefix = f"{prefix}/" if prefix else ""
    return S3Store(access, parts.hostname, prefix, create=create, sweep_after_s=sweep_after_s)
