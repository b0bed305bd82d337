"""Inputs as read-only binds. No bytes are copied into a job: it reads the node's verified copy."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from batchyard.broker.errors import BatchyardError, InputError, InvalidConfig, Permanent
from batchyard.broker.job import Input, Job
from batchyard.cache.access import S3Access
from batchyard.cache.copies import LocalCopies
from batchyard.cache.digest import Blob
from batchyard.cache.gathered import stage_gathered
from batchyard.cache.remote import RemoteInputs, Say, Wanted

from .engine.protocol import Bind
from .sources import Source

MOST_BINDS = 64  # for one input


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
    ) -> list[Bind]:
        """What is bound is pinned for the owner. sources: what inputs that are outputs of other jobs are, see
        `sources.look_up`. stopped: nobody wants the inputs any more. say: hears which are fetched from elsewhere.
        Raises InputError, IntegrityError, NotFound, StoreUnavailable, DiskFull; the message names the input.
        """
        binds: list[Bind] = []
        for path, spec in job.inputs.items():
            try:
                if spec.uri is not None and not spec.uri.startswith("file:"):
                    source = self._remote(spec, owner, stopped, say)
                    binds.append(Bind(source=str(source), target=str(PurePosixPath(path)), read_only=True))
                elif spec.job is not None:
                    found, name = (sources or {})[path], spec.from_ or ""
                    binds += self._source(str(PurePosixPath(path)), name, found, owner, stopped)
                else:
                    binds += self._one(str(PurePosixPath(path)), spec, owner)
            except BatchyardError as error:
                raise type(error)(f'input "{path}": {error}') from error
        return binds

    def _one(self, path: str, spec: Input, owner: str) -> list[Bind]:
        if spec.members is not None:
            return [
                self._member(f"{path}/{i}", m.name, Blob(digest=m.digest, size=m.size, kind=m.kind), owner)
                for i, m in enumerate(spec.members)
            ]
        if spec.uri is not None:
            return [Bind(source=str(self._file(spec.uri, spec)), target=path, read_only=True)]
        assert spec.digest is not None
        wanted = spec.digest if spec.size is None else Blob(digest=spec.digest, size=spec.size, kind=spec.kind)
        return [Bind(source=str(self.copies.stage(wanted, owner).path), target=path, read_only=True)]

    def _source(self, path: str, name: str, source: Source, owner: str, stopped: Callable[[], bool]) -> list[Bind]:
        """Few are bound one by one, which takes no bytes; a container cannot have very many mounts."""
        if isinstance(source, Blob):
            return [Bind(source=str(self.copies.stage(source, owner).path), target=path, read_only=True)]
        if 0 < len(source) <= MOST_BINDS:
            return [self._member(f"{path}/{n}", name, blob, owner) for n, blob in source.items()]
        members = {str(n): blob for n, blob in source.items()}
        made = stage_gathered(self.copies, members, name, owner, stopped=stopped)
        return [Bind(source=str(made), target=path, read_only=True)]

    def _member(self, folder: str, name: str, blob: Blob, owner: str) -> Bind:
        target = folder if blob.kind == "tree" else f"{folder}/{name}"
        return Bind(source=str(self.copies.stage(blob, owner).path), target=target, read_only=True)

    def _remote(self, spec: Input, owner: str, stopped: Callable[[], bool], say: Say) -> Path:
        assert spec.uri is not None
        if self.remote is None:
            raise InputError(f"this node takes no inputs from {spec.uri.partition(':')[0]}://")
        wanted = Wanted(
            uri=spec.uri,
            secret=spec.credentials,
            access=access_of(spec.credentials, self.secrets, InputError) if spec.credentials else None,
            digest=spec.digest,
            size=spec.size,
        )
        return self.remote.stage(wanted, owner, stopped=stopped, say=say)

    def _file(self, uri: str, spec: Input) -> Path:
        """A file or directory of the node, resolved under a root that the operator allows."""
        try:
            real = Path(unquote(urlsplit(uri).path)).resolve(strict=True)
        except (OSError, RuntimeError):
            raise InputError(f"{uri} is not there on this node") from None
        if not any(real.is_relative_to(root.resolve()) for root in self.allowed_roots):
            roots = ", ".join(map(str, self.allowed_roots)) or "none"
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
