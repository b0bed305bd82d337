"""`batchyard cache stats | ls | verify | gc | pin | unpin`."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import click

from batchyard.broker.cli import progress, show
from batchyard.broker.cli.doors import Doors, examples, json_option, print_json, tenant_option, yard_options
from batchyard.broker.client import Client
from batchyard.broker.errors import BlobMissing, InvalidConfig, NotFound, StoreUnavailable
from batchyard.broker.expiry import ORPHAN_S, Expiry, Fate, Unpinned
from batchyard.broker.seal import KeyRing
from batchyard.broker.store import Yard

from .collect import Collector
from .identity import refuse_other
from .parts import parts_of
from .sealed import BlobStore
from .stores.place import store_at
from .stores.protocol import Store
from .survey import Seen, Survey

_WAIT_S = 65.0  # for another one that deletes; a killed one's lock has run out by then
_LEAST_AGE_S = 3600
_SOME = 256


@click.group(
    epilog=examples(
        "batchyard cache stats",
        "batchyard cache ls",
        "batchyard cache verify --sample 5",
        "batchyard cache gc",
        "batchyard cache pin ID:table",
    )
)
def cache() -> None:
    """Look after the yard's blobs: what there is, whether it is whole, what expires and what stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Yard:
    """A yard and its durable store."""

    client: Client
    yard: Yard
    store: Store
    blobs: BlobStore
    expiry: Expiry
    survey: Survey

    def tenants(self) -> dict[str, str]:
        """Of each queue."""
        return {name: queue.tenant for name, queue in self.yard.config().queues.items()}


@contextmanager
def _opened(doors: Doors) -> Iterator[_Yard]:
    with doors.client() as client:
        spec = doors.endpoints().store
        if spec is None:
            raise InvalidConfig("no blob store was named; give --store, or the --state of a yard")
        yard = client.with_keys()
        store = store_at(spec)
        refuse_other(store, yard.ring, yard.store_id())
        blobs = BlobStore(store, yard.ring)
        made = _Yard(client=client, yard=yard, store=store, blobs=blobs, expiry=Expiry(yard),
                     survey=Survey(store, blobs))  # fmt: skip
        try:
            yield made
        finally:
            yard.redis.close()


@cache.command(
    short_help="What the store holds, what caches did.",
    epilog=examples("batchyard cache stats", "batchyard cache stats --json | jq .store.bytes"),
)
@json_option
@yard_options
def stats(doors: Doors, as_json: bool) -> None:
    """Show what the durable store holds, and what each node's cache did since the node's start."""
    with _opened(doors) as on:
        objects = total = 0
        with progress.transfer("store", None, shown=progress.wanted(as_json=as_json)) as on_bytes:
            for size in on.survey.sizes():
                objects, total = objects + 1, total + size
                if on_bytes is not None:
                    on_bytes(size)
        pinned, expiring, going = on.expiry.counts()
        nodes = on.client.nodes()
    if as_json:
        store = {"objects": objects, "bytes": total, "pinned": pinned, "expiring": expiring, "deleting": going}
        print_json({"store": store, "nodes": [{"name": n.name, "up": n.up, **n.cache} for n in nodes]})
        return
    click.echo(f"durable store: {objects} objects, {show.size(total)}; {pinned} pinned, {expiring} may expire"
               + (f", {going} being deleted" if going else ""))  # fmt: skip
    rows = [(n.name, *_levels(n.cache)) for n in nodes]
    columns = ("NODE", "COPIES", "HITS", "MISSES", "EVICTED", "FETCHED", "BY PEERS", "NEAR", "NEAR EVICTED", "CHECKED",
               "DAMAGED")  # fmt: skip
    show.print_table(columns, rows, empty="no nodes")


def _levels(of: Mapping[str, int]) -> list[str]:
    def bytes_(name: str) -> str:
        return show.size(of.get(name, 0))

    def count(name: str) -> str:
        return str(of.get(name, 0))

    return [f"{bytes_('held_bytes')} of {bytes_('limit_bytes')}", count("hits"), count("misses"), count("evictions"),
            bytes_("fetched_bytes"), bytes_("peer_bytes"), bytes_("near_held_bytes"), count("near_evictions"),
            bytes_("scrubbed_bytes"), count("scrub_bad")]  # fmt: skip


@cache.command(
    short_help="List blobs, and how long they stay.",
    epilog=examples(
        "batchyard cache ls",
        "batchyard cache ls --pinned",
        "batchyard cache ls --all --json | jq -r '.[] | select(.expires) | .digest'",
    ),
)
@click.option("--pinned", is_flag=True, help="Only what is pinned.")
@click.option("--expiring", is_flag=True, help="Only what may expire.")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--all", "all_", is_flag=True, help="All, however many.")
@json_option
@yard_options
def ls(doors: Doors, pinned: bool, expiring: bool, limit: int, all_: bool, as_json: bool) -> None:
    """List what the durable store holds, by the objects' first bytes: digest, bytes as stored, and how long it stays.

    It stays for ever unless it is what a job of a queue with `outputs_expire_s` made, or nobody's. A job that has not
    ended keeps what it needs, also when its time is over.
    """
    with _opened(doors) as on:
        rings = {tenant: on.yard.ring.of(tenant) for tenant in {"", *on.tenants().values()}}
        found: list[dict[str, Any]] = []
        for seen, fate in _with_fates(on, on.survey.headers()):
            if seen.state == "not a blob" or (pinned and not fate.pinned) or (expiring and fate.expires is None):
                continue
            if len(found) == limit and not all_:
                click.echo(f"these are {limit}, and there are more; give --limit or --all", err=True)
                break
            found.append({"digest": seen.digest, "name": seen.name, "bytes": seen.bytes, "state": seen.state,
                          "tenant": _tenant(rings, seen), "pinned": fate.pinned, "expires": fate.expires})  # fmt: skip
        now = on.yard.now_s()
    if as_json:
        print_json(found)
        return
    rows = [
        (one["digest"] or one["state"], show.size(one["bytes"]), _owner(one["tenant"]) if one["digest"] else "",
         "pinned" if one["pinned"] else "" if one["expires"] is None else _left(one["expires"] - now))
        for one in found
    ]  # fmt: skip
    show.print_table(("DIGEST", "STORED", "TENANT", "STAYS"), rows, empty="no blobs")


def _owner(tenant: str | None) -> str:
    return "?" if tenant is None else tenant


def _left(seconds: float) -> str:
    return f"{show.span(seconds)} more" if seconds > 0 else "may go now"


def _tenant(rings: Mapping[str, KeyRing], seen: Seen) -> str | None:
    """None: of a tenant that has no queue any more."""
    return next((t for t, ring in rings.items() if seen.digest and ring.name(seen.digest) == seen.name), None)


def _with_fates(on: _Yard, all_: Iterator[Seen]) -> Iterator[tuple[Seen, Fate]]:
    some: list[Seen] = []
    for seen in all_:
        some.append(seen)
        if len(some) == _SOME:
            yield from zip(some, on.expiry.fates([one.name for one in some]), strict=True)
            some = []
    yield from zip(some, on.expiry.fates([one.name for one in some]), strict=True)


@cache.command(
    short_help="Read blobs and say which do not open.",
    epilog=examples(
        "batchyard cache verify                 all, which reads the whole store",
        "batchyard cache verify --sample 5      five of a hundred",
        "batchyard cache verify sha256:… ID:table",
        "batchyard cache verify --delete        and delete what does not open",
    ),
)
@click.argument("what", nargs=-1)
@click.option("--sample", type=click.FloatRange(0, 100, min_open=True), help="So many percent of all, by chance.")
@click.option("--delete", is_flag=True, help="Delete what is damaged, so that it can be put again.")
@tenant_option
@json_option
@yard_options
def verify(doors: Doors, what: Sequence[str], sample: float | None, delete: bool, tenant: str, as_json: bool) -> None:
    """Read blobs of the durable store and say which do not open: all of them, a sample, or those named.

    Of a tree, all that is in it too. What is sealed under a key that is not in the key file is counted, and never
    deleted. Exits with 1 if something is damaged or missing.
    """
    if what and sample is not None:
        raise click.UsageError("name blobs, or give --sample; not both")
    shown = progress.wanted(as_json=as_json)
    with _opened(doors) as on:
        names: Sequence[str] = (
            [name for one in what for name in _whole_names(on, one, tenant)]
            if what
            else [name for name in on.store.names() if sample is None or random.random() * 100 < sample]
        )
        counts: Counter[str] = Counter()
        bad: list[dict[str, Any]] = []
        with progress.transfer(f"verify {len(names)}", None, shown=shown) as on_bytes:
            for seen in on.survey.contents(names, on_bytes):
                counts[seen.state] += 1
                if seen.state in {"whole", "not a blob"} or (seen.state == "missing" and not what):
                    continue  # that is deleted meanwhile
                deleted = delete and seen.state == "damaged" and on.blobs.condemn(seen.name)
                bad.append({"digest": seen.digest, "name": seen.name, "state": seen.state, "why": seen.why,
                            "deleted": deleted})  # fmt: skip
    failed = any(one["state"] != "unknown key" for one in bad)
    if as_json:
        print_json({"whole": counts["whole"], "damaged": counts["damaged"], "unknown_key": counts["unknown key"],
                    "missing": counts["missing"], "bad": bad})  # fmt: skip
    else:
        for one in bad:
            gone = ", deleted" if one["deleted"] else ""
            click.echo(f"{one['digest'] or one['name']}: {one['state']}{gone}{': ' + one['why'] if one['why'] else ''}")
        click.echo(f"{counts['whole']} whole" + "".join(
            f", {counts[state]} {word}"
            for state, word in (("damaged", "damaged"), ("unknown key", "under a key that is not here"),
                                ("missing", "missing")) if counts[state]))  # fmt: skip
    if failed:
        raise click.exceptions.Exit(1)


def _names(on: _Yard, what: str, tenant: str) -> tuple[str, list[str]]:
    """Of a blob: its name, and those of all that it is made of. NotFound, InvalidConfig."""
    digest, owner = on.client.named(what, tenant)
    blobs = on.blobs.of(owner)
    try:
        return blobs.name(digest), [blobs.name(part) for part in parts_of(blobs, digest)]
    except BlobMissing:
        raise NotFound(f"blob {digest} is not in this store; correct the digest, --tenant, or --store") from None


def _whole_names(on: _Yard, what: str, tenant: str) -> list[str]:
    """As `_names`; of a blob that does not open, only its own."""
    digest, owner = on.client.named(what, tenant)
    name = on.blobs.of(owner).name(digest)
    return _names(on, what, tenant)[1] if all(seen.state == "whole" for seen in on.survey.contents([name])) else [name]


@cache.command(
    epilog=examples(
        "batchyard cache gc",
        "batchyard cache gc --unreferenced --older-s 7200    and what killed nodes and puts left two hours ago",
    )
)
@click.option("--unreferenced", is_flag=True, help="Do not wait a day with what was put and belongs to no job's end.")
@click.option("--older-s", type=click.IntRange(_LEAST_AGE_S, int(ORPHAN_S)), default=_LEAST_AGE_S, show_default=True,
              help="With --unreferenced: what was put so long ago.")  # fmt: skip
@json_option
@yard_options
def gc(doors: Doors, unreferenced: bool, older_s: int, as_json: bool) -> None:
    """Delete from the durable store what has expired, now. Nodes do it by themselves within a minute or so.

    What a job needs that has not ended is spared.
    """
    with _opened(doors) as on:
        collector = Collector(on.yard, on.blobs, on.tenants)
        freed = collector.round(early_s=ORPHAN_S - older_s if unreferenced else 0.0, wait_s=_WAIT_S)
    if as_json:
        print_json(asdict(freed))
        return
    spared = f"; {freed.spared} spared, which jobs need that have not ended" if freed.spared else ""
    click.echo(f"{freed.objects} objects deleted, {show.size(freed.bytes)}{spared}")


@cache.command(
    short_help="Keep blobs until they are unpinned.",
    epilog=examples("batchyard cache pin sha256:…", "batchyard cache pin ID:table"),
)
@click.argument("what", nargs=-1, required=True)
@tenant_option
@json_option
@yard_options
def pin(doors: Doors, what: Sequence[str], tenant: str, as_json: bool) -> None:
    """Keep blobs (sha256:… or ID:OUTPUT) until they are unpinned, whatever the queue of their job says.

    Of a tree, all that is in it. `batchyard put` pins what it puts. Pins are kept in Redis; if that is lost, nothing
    expires that was there before.
    """
    with _opened(doors) as on:
        done = []
        for one in what:
            root, names = _names(on, one, tenant)
            if on.expiry.pin(root, names):
                raise StoreUnavailable(f"{one} has expired and is just being deleted; put it again")
            done.append({"what": one, "pinned": len(names)})
    if as_json:
        print_json(done)
        return
    for one in what:
        click.echo(f"{one} is pinned")


@cache.command(
    short_help="Let blobs go that were pinned.", epilog=examples("batchyard cache unpin sha256:…; batchyard cache gc")
)
@click.argument("what", nargs=-1, required=True)
@tenant_option
@json_option
@yard_options
def unpin(doors: Doors, what: Sequence[str], tenant: str, as_json: bool) -> None:
    """Let blobs go that were pinned: at once what was put by a person only, else when the queues of their jobs say so.

    What was there before it was pinned, or what a job made in a queue where outputs do not expire, stays all the same.
    """
    with _opened(doors) as on:
        done: list[dict[str, Any]] = []
        for one in what:
            root, names = _names(on, one, tenant)
            fates = on.expiry.unpin(root, names)
            if not fates:
                raise NotFound(f"{one} is not pinned; `batchyard cache ls --pinned` lists what is")
            goes = Counter(fates.values())
            done.append({"what": one, **{fate.name.lower(): goes[fate] for fate in Unpinned}})
    if as_json:
        print_json(done)
        return
    for told in done:
        stays = "" if told["may_expire"] else "; it stays: it was there before, or is a job's or in another pinned one"
        click.echo(f"{told['what']} is not pinned any more{stays}")
