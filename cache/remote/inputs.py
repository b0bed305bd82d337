"""Inputs from `s3://` and `https://`, as copies on this node like any other.

Bytes that come from elsewhere are hashed on the way and become a copy of that digest, on this node only: the yard's
store keeps what jobs put there, not what others keep already. What an object was is noted with its ETag, so that the
next use asks whether it still is that, and moves no byte. An input that names its digest is not asked for at all while
a copy is here.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from batchyard.broker.errors import InputError, StoreUnavailable
from batchyard.broker.uri import S3Uri, parse_s3, shown

from ..copies.flight import OnMoved
from ..copies.folder import CopyKind
from ..copies.local import LocalCopies
from ..digest import Digest, Kind
from ..manifest import MOST_ENTRIES
from ..newfile import new_file
from ..shelf import charge
from ..stores.access import S3Access
from .body import Body, Stopped, check_room
from .buckets import Buckets
from .known import Known, KnownRemotes, name_of
from .object import Changed
from .tree import fetch, plan
from .web import Web, resource_of

if TYPE_CHECKING:
    from .bucket import Bucket

DEFAULT_MOST_BYTES = 100 << 30
_TRIES = 3
_LOOK_S = 0.2

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """An input. access: for s3:// what its credentials file says, None for unsigned requests to Amazon; secret: that
    file's name. digest, size: what it must have. unpack: it is an archive, and what is in it is wanted.
    """

    uri: str
    secret: str | None = None
    access: S3Access | None = None
    digest: Digest | None = None
    size: int | None = None
    unpack: bool = False

    @property
    def place(self) -> S3Uri | None:
        return parse_s3(self.uri) if self.uri.startswith("s3://") else None


@dataclass(slots=True)
class Counts:
    """Since start. bytes_moved: content that came from elsewhere. unchanged: inputs that were asked for, and were here
    already.
    """

    bytes_moved: int = 0
    unchanged: int = 0


class RemoteInputs:
    """One node's. Share it between threads. most_bytes: of one file, or of all in a directory."""

    def __init__(
        self, copies: LocalCopies, known: KnownRemotes, web: Web, *, most_bytes: int = DEFAULT_MOST_BYTES
    ) -> None:
        self._copies, self._known, self._web, self._most = copies, known, web, most_bytes
        self._tenant = ""
        self._buckets = Buckets(InputError)
        self._guard = threading.Lock()
        self._flights: dict[str, tuple[threading.Lock, int]] = {}
        self.counts = Counts()

    def of(self, tenant: str) -> RemoteInputs:
        """One tenant's: what another one has fetched, by whatever keys, is not known to it."""
        scoped = copy(self)
        scoped._copies, scoped._tenant = self._copies.of(tenant), tenant
        return scoped

    def stage(
        self,
        wanted: Wanted,
        owner: str,
        *,
        stopped: Stopped = lambda: False,
        say: Say = lambda text: None,
        on_moved: OnMoved | None = None,
    ) -> Path:
        """The path of a copy, fetched if need be, and pinned for the owner. stopped: nobody wants it any more. say:
        hears what is done before it is waited for; on_moved: how far it is.

        InputError, StoreUnavailable, DiskFull.
        """
        place = wanted.place
        kind: Kind = "tree" if place is not None and place.is_directory else "file"
        kinds: tuple[CopyKind, ...] = ("unpacked", kind) if wanted.unpack else (kind,)
        if wanted.digest is not None:
            for one in kinds:
                if (path := self._copies.find(one, wanted.digest, owner)) is not None:
                    return self._given(path, wanted, wanted.digest, one, owner, stopped)
        name = name_of(resource_of(wanted.uri), wanted.secret, wanted.access, self._tenant)
        with self._alone(name, shown(wanted.uri), stopped):
            known = self._known.get(name)
            say(f"fetches {shown(wanted.uri)}")
            look = f"{owner}?{secrets.token_hex(8)}"  # not the owner's: what has changed must be free to go
            try:
                here: list[CopyKind] = [
                    one for one in kinds if known is not None and self._copies.look(one, known.digest, look)
                ]
                kept = here[0] if here else kind
                visit = _Visit(wanted, name, known if here else None, kept, owner, look, stopped, on_moved)
                path, digest = self._file(visit, place) if kind == "file" else self._tree(visit, place)
            finally:
                self._copies.unpin(look)
        unpacked = path.is_dir() and kind == "file"
        return self._given(path, wanted, digest, "unpacked" if unpacked else kind, owner, stopped)

    def _given(self, path: Path, wanted: Wanted, digest: Digest, kind: CopyKind, owner: str, stopped: Stopped) -> Path:
        """What a copy of this kind is for who wants it."""
        if kind == "unpacked":
            return path
        _check_size(path.stat().st_size, wanted=wanted)
        return self._copies.unpack(digest, owner, stopped=stopped).path if wanted.unpack else path

    @contextmanager
    def _alone(self, name: str, what: str, stopped: Stopped) -> Iterator[None]:
        """One at a time asks for the same object; who waited finds what the other one has fetched."""
        with self._guard:
            lock, users = self._flights.get(name, (threading.Lock(), 0))
            self._flights[name] = (lock, users + 1)
        try:
            while not lock.acquire(timeout=_LOOK_S):
                if stopped():
                    raise StoreUnavailable(f"{what} was given up: its job was told to stop")
            try:
                yield
            finally:
                lock.release()
        finally:
            with self._guard:
                lock, users = self._flights.pop(name)
                if users > 1:
                    self._flights[name] = (lock, users - 1)

    def _file(self, visit: _Visit, place: S3Uri | None) -> tuple[Path, Digest]:
        with self._got(visit, place) as body:
            if body is None:
                return self._still(visit)
            if not body.ends and visit.wanted.digest is None and visit.wanted.size is None:
                raise InputError(f"{body.shown}: its server does not say where it ends; give its digest or size")
            size = body.size if body.size is not None else visit.wanted.size
            if size is not None and size > self._most:
                raise body.too_large(size, self._most)
            self._copies.unpin(visit.look)
            with self._copies.landing("file", None if size is None else charge(size)) as path:
                check_room(path.parent, size or 0, body.shown)
                with new_file(path.parent) as new:
                    digest, moved = body.save(
                        new, most_bytes=self._most, stopped=visit.stopped, on_moved=visit.on_moved
                    )
                    visit.check(digest)
                    _check_size(moved, wanted=visit.wanted)
                    new.replace(path, 0o444)
                placed = self._copies.adopt("file", digest, path, charge(moved), visit.owner)
        self._note(visit, digest, moved, body.validator)
        return placed, digest

    @contextmanager
    def _got(self, visit: _Visit, place: S3Uri | None) -> Iterator[Body | None]:
        if place is None:
            with self._web.get(visit.wanted.uri, visit.validator) as body:
                yield body
        else:
            with self._bucket(visit.wanted, place).get(place.key, unless=visit.validator) as body:
                yield body

    def _tree(self, visit: _Visit, place: S3Uri | None) -> tuple[Path, Digest]:
        assert place is not None
        bucket = self._bucket(visit.wanted, place)
        for _ in range(_TRIES):
            planned = plan(place, bucket.list(place.key, MOST_ENTRIES))
            if visit.validator == planned.mark:
                return self._still(visit)
            if planned.size > self._most:
                raise InputError(
                    f"{place} has {planned.size} bytes, and this node fetches {self._most} at most (--fetch-gib)"
                )
            self._copies.unpin(visit.look)
            with self._copies.landing("tree", planned.charge) as path:
                check_room(path.parent, planned.size, str(place))
                try:
                    digest = fetch(bucket, planned, path, stopped=visit.stopped, on_moved=visit.on_moved)
                except Changed:
                    continue
                visit.check(digest)
                placed = self._copies.adopt("tree", digest, path, planned.charge, visit.owner)
            self._note(visit, digest, planned.size, planned.mark)
            return placed, digest
        raise StoreUnavailable(f"{place} changed while it was read, {_TRIES} times; wait for what writes there")

    def _bucket(self, wanted: Wanted, place: S3Uri) -> Bucket:
        if wanted.access is None:
            access = S3Access(source="nowhere: it is not signed")
            return self._buckets.get(access, place.bucket, 'an unsigned request (name "credentials")')
        return self._buckets.get(wanted.access, place.bucket, f'secret "{wanted.secret}"')

    def _still(self, visit: _Visit) -> tuple[Path, Digest]:
        assert visit.known is not None
        visit.check(visit.known.digest)
        path = self._copies.find(visit.kind, visit.known.digest, visit.owner)
        if path is None:  # pinned, and yet removed by somebody else
            raise StoreUnavailable(f"the copy of {shown(visit.wanted.uri)} has gone meanwhile; it is fetched anew")
        with self._guard:
            self.counts.unchanged += 1
        return path, visit.known.digest

    def _note(self, visit: _Visit, digest: Digest, size: int, validator: str | None) -> None:
        if validator is not None:
            self._known.put(visit.name, Known(validator=validator, digest=digest))
        else:
            self._known.forget(visit.name)
        with self._guard:
            self.counts.bytes_moved += size


@dataclass(frozen=True, slots=True)
class _Visit:
    """One look at one object. known: what it was, if the copy of that is here; look: who pins that copy until the
    server has answered.
    """

    wanted: Wanted
    name: str
    known: Known | None
    kind: CopyKind
    owner: str
    look: str
    stopped: Stopped
    on_moved: OnMoved | None

    @property
    def validator(self) -> str | None:
        return self.known.validator if self.known is not None else None

    def check(self, digest: Digest) -> None:
        """InputError: it is not what the job says that it is."""
        if self.wanted.digest not in {None, digest}:
            raise InputError(f"{shown(self.wanted.uri)} has digest {digest}, not {self.wanted.digest}")


def _check_size(size: int, *, wanted: Wanted) -> None:
    if wanted.size not in {None, size}:
        raise InputError(f"{shown(wanted.uri)} has {size} bytes, not {wanted.size}; correct the size")
