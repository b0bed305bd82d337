"""Inputs as binds. No bytes are copied into a job: it reads the node's verified copy, which it never changes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

from batchyard.broker.errors import BatchyardError, InputError, InvalidConfig, Permanent
from batchyard.broker.job import Input, Job
from batchyard.cache.copies.flight import OnMoved
from batchyard.cache.copies.gathered import stage_gathered
from batchyard.cache.copies.local import LocalCopies
from batchyard.cache.digest import Blob, Digest, copy_hashed
from batchyard.cache.newfile import new_file
from batchyard.cache.remote.inputs import RemoteInputs, Say, Wanted
from batchyard.cache.shelf import charge
from batchyard.cache.stores.access import S3Access

from .engine.protocol import Bind
from .sources import Source

MOST_BINDS = 64  # for one input

Hear: TypeAlias = Callable[[str, int, int], None]
"""Hears, of the input with this path, how many bytes have come and of how many (0: nobody knows). Must not block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Where this node takes inputs from. remote: s3:// and https://. secrets: the folder of credentials files."""

    copies: LocalCopies
    allowed_roots: Sequence[Path]
    remote: RemoteInputs | None = None
    secrets: Path | None = None

    def of(self, tenant: str, secrets: Path | None) -> Stage:
        """One tenant's inputs, with its own secrets."""
        remote = self.remote.of(tenant) if self.remote is not None else None
        return replace(self, copies=self.copies.of(tenant), remote=remote, secrets=secrets)

    def binds(
        self,
        job: Job,
        owner: str,
        *,
        sources: Mapping[str, Source] | None = None,
        stopped: Callable[[], bool] = lambda: False,
        say: Say = lambda text: None,
        hear: Hear = lambda path, done, total: None,
    ) -> list[Bind]:
        """What is bound is pinned for the owner. sources: what inputs that are outputs of other jobs are, see
        `sources.look_up`. stopped: nobody wants the inputs any more. say: hears which are fetched from elsewhere. hear:
        how far they are.

        A bind that is not read-only is one that the job may change, and is yet to be made so: `writable.writable`.
        Raises InputError, IntegrityError, NotFound, StoreUnavailable, DiskFull; the message names the input.
        """
        binds: list[Bind] = []
        for path, spec in job.inputs.items():
            one = _One(self, spec, str(PurePosixPath(path)), owner, stopped, say, partial(hear, path))
            try:
                binds += one.binds((sources or {}).get(path))
            except BatchyardError as error:
                raise type(error)(f'input "{path}": {error}') from error
        return binds


@dataclass(frozen=True, slots=True)
class _One:
    """One input of a job, at `path` in the container."""

    stage: Stage
    spec: Input
    path: str
    owner: str
    stopped: Callable[[], bool]
    say: Say
    on_moved: OnMoved

    def binds(self, source: Source | None) -> list[Bind]:
        spec = self.spec
        if spec.uri is not None:
            return [self._bind(self._of_uri(spec.uri), self.path)]
        if spec.job is not None:
            assert source is not None
            return self._source(spec.from_ or "", source)
        if spec.members is not None:
            return [
                self._member(f"{self.path}/{i}", m.name, Blob(digest=m.digest, size=m.size, kind=m.kind))
                for i, m in enumerate(spec.members)
            ]
        assert spec.digest is not None
        sized = spec.digest if spec.size is None else Blob(digest=spec.digest, size=spec.size, kind=spec.kind)
        return [self._bind(self._copy(sized), self.path)]

    def _bind(self, source: Path, target: str) -> Bind:
        return Bind(source=str(source), target=target, read_only=not self.spec.writable)

    def _copy(self, blob: Blob | Digest) -> Path:
        copies = self.stage.copies
        if not self.spec.unpack:
            return copies.stage(blob, self.owner, self.on_moved, self.stopped).path
        if isinstance(blob, Blob) and blob.kind == "tree":
            raise InputError(f"blob {blob.digest} is a directory already; leave out unpack")
        digest = blob.digest if isinstance(blob, Blob) else blob
        return copies.unpack(digest, self.owner, self.on_moved, self.stopped).path

    def _source(self, name: str, source: Source) -> list[Bind]:
        """Few are bound one by one, which takes no bytes; a container cannot have very many mounts."""
        if isinstance(source, Blob):
            return [self._bind(self._copy(source), self.path)]
        if 0 < len(source) <= MOST_BINDS:
            return [self._member(f"{self.path}/{n}", name, blob) for n, blob in source.items()]
        if self.spec.unpack:
            raise InputError(f"these are {len(source)} archives, and at most {MOST_BINDS} are unpacked for one input")
        members = {str(n): blob for n, blob in source.items()}
        made = stage_gathered(
            self.stage.copies, members, name, self.owner, stopped=self.stopped, on_moved=self.on_moved
        )
        return [self._bind(made, self.path)]

    def _member(self, folder: str, name: str, blob: Blob) -> Bind:
        is_folder = blob.kind == "tree" or self.spec.unpack
        return self._bind(self._copy(blob), folder if is_folder else f"{folder}/{name}")

    def _of_uri(self, uri: str) -> Path:
        if uri.startswith("file:"):
            return self._unpacked(self._file(uri)) if self.spec.unpack else self._file(uri)
        stage, spec = self.stage, self.spec
        if stage.remote is None:
            raise InputError(f"this node takes no inputs from {uri.partition(':')[0]}://")
        wanted = Wanted(
            uri=uri,
            secret=spec.credentials,
            access=access_of(spec.credentials, stage.secrets, InputError) if spec.credentials else None,
            digest=spec.digest,
            size=spec.size,
            unpack=spec.unpack,
        )
        return stage.remote.stage(wanted, self.owner, stopped=self.stopped, say=self.say, on_moved=self.on_moved)

    def _unpacked(self, archive: Path) -> Path:
        """By the digest that a file of the node has now; what is unpacked is a copy of it that nobody changes."""
        copies = self.stage.copies
        if not archive.is_file():
            raise InputError(f"{archive} is no file, so it is no archive; leave out unpack")
        with archive.open("rb") as opened:
            digest = f"sha256:{hashlib.file_digest(opened, 'sha256').hexdigest()}"
        if (found := copies.find("unpacked", digest, self.owner)) is not None:
            return found
        charged = charge(archive.stat().st_size)
        with copies.landing("file", charged) as landed, archive.open("rb", buffering=0) as opened:
            with new_file(landed.parent) as new:
                digest, size = copy_hashed(opened, new.write, limit=archive.stat().st_size)
                new.replace(landed, 0o444)
            copies.adopt("file", digest, landed, charge(size), self.owner)
        return copies.unpack(digest, self.owner, stopped=self.stopped).path

    def _file(self, uri: str) -> Path:
        """A file or directory of the node, resolved under a root that the operator allows."""
        spec, allowed_roots = self.spec, self.stage.allowed_roots
        try:
            real = Path(unquote(urlsplit(uri).path)).resolve(strict=True)
        except (OSError, RuntimeError):
            raise InputError(f"{uri} is not there on this node") from None
        if not any(real.is_relative_to(root.resolve()) for root in allowed_roots):
            roots = ", ".join(map(str, allowed_roots)) or "none"
            raise InputError(f"{uri} is not under a folder that this node allows ({roots}); start it with --allow-root")
        if spec.digest is not None:
            _check(real, spec.digest)
        if spec.size is not None and (not real.is_file() or real.stat().st_size != spec.size):
            raise InputError(f"{uri} is no file of {spec.size} bytes; correct the size")
        return real


def _check(path: Path, digest: str) -> None:
    if not path.is_file():
        raise InputError(f"{path} is no file, so it cannot have digest {digest}")
    with path.open("rb") as opened:
        found = f"sha256:{hashlib.file_digest(opened, 'sha256').hexdigest()}"
    if found != digest:
        raise InputError(f"{path} has digest {found}, not {digest}")


def work_directory(folder: Path, user: str | None) -> Path:
    """The attempt's own writable folder, owned by the job's user ("uid[:gid]"; None: anybody may write)."""
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    if user is None:
        work.chmod(0o777)
    else:
        uid, _, gid = user.partition(":")
        os.chown(work, int(uid), int(gid or uid))
    return work


def secrets_of(job: Job, folder: Path | None) -> dict[str, str]:
    """Environment name → value, read from the node's secrets folder. Raises InputError that never shows a value."""
    values = {}
    for variable, name in job.secrets.items():
        if folder is None:
            raise InputError(f'secret "{name}": this node has no secrets folder; start it with --secrets DIR')
        try:
            values[variable] = (folder / name).read_text().removesuffix("\n")
        except (OSError, UnicodeDecodeError):
            raise InputError(f'secret "{name}" cannot be read in this node\'s secrets folder') from None
    return values


def access_of(secret: str, folder: Path | None, refused: type[Permanent]) -> S3Access:
    """What a credentials file says, by the name of a secret. Raises what `refused` is; no value is shown."""
    if folder is None:
        raise refused(f'secret "{secret}": this node has no secrets folder; start it with --secrets DIR')
    try:
        return S3Access.of_file(folder / secret)
    except InvalidConfig as error:
        raise refused(f'secret "{secret}" is no credentials file: {error}') from None
