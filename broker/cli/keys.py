"""`batchyard keys list | rotate | retire | print`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from . import show
from .doors import Doors, examples, json_option, print_json, yard_options

if TYPE_CHECKING:
    from ..blobs import Rewrapping
    from ..rotation import Rotated, Rotation

_wait_option = click.option(
    "--wait-s", type=click.FloatRange(min=0), default=60.0, show_default=True,
    help="How long to wait for processes that do not have the keys as they are now.",
)  # fmt: skip


@click.group(
    epilog=examples(
        "batchyard keys list --count",
        "batchyard keys rotate                 while the yard works",
        "batchyard keys retire 52af05b7d0edff21",
    )
)
def keys() -> None:
    """The keys that blobs and jobs are sealed under.

    A rotation writes no blob again: it wraps each blob's own key under the new key.
    """


@keys.command(
    "list",
    short_help="List the keys, and who lags behind.",
    epilog=examples("batchyard keys list", "batchyard keys list --count --json"),
)
@click.option("--count", is_flag=True, help="Also how many blobs each is needed for; looks at every object.")
@json_option
@yard_options
def list_(doors: Doors, count: bool, as_json: bool) -> None:
    """List the keys, and processes that do not seal under the current one alone."""
    from ..keywatch import holders, wanted

    with closing(_Yard(doors)) as opened:
        ring, late = opened.yard.ring, opened.rotation(0).lagging()
        blobs = opened.store().census() if count else {}
        known, unfinished = len(holders(opened.yard)), wanted(opened.yard)
    ids = [ring.current, *(one for one in ring.ids if one != ring.current), *(set(blobs) - set(ring.ids))]
    rows = [{"id": one, "current": one == ring.current, "here": one in ring.ids,
             **({"blobs": blobs.get(one, 0)} if count else {})} for one in ids]  # fmt: skip
    if as_json:
        behind = [{"name": one.name, "current": one.current, "ids": one.ids, "in_use": one.in_use} for one in late]
        print_json({"keys": rows, "processes": known, "lagging": behind, "rotating": unfinished})
        return
    table = [(str(row["id"]), _state(row), str(row.get("blobs", ""))) for row in rows]
    show.print_table(("KEY", "STATE", "BLOBS")[: 2 + count], [row[: 2 + count] for row in table], empty="")
    for one in late:
        click.echo(f"{show.printable(one.name)} seals under {', '.join(one.in_use)}")
    if unfinished:
        click.echo(f"a rotation to {unfinished} is unfinished; `batchyard keys rotate` goes on with it")


@keys.command(epilog=examples("batchyard keys rotate", "batchyard keys rotate --to 52af05b7d0edff21"))
@click.option(
    "--to", metavar="ID", help="To this key, which is there already.  [default: a new one, into the key file]"
)
@_wait_option
@json_option
@yard_options
def rotate(doors: Doors, to: str | None, wait_s: float, as_json: bool) -> None:
    """Seal under a new key from now on, and wrap all there is for it. Call it again when it was cut off.

    The old key stays, and opens what it did, until `batchyard keys retire`.
    """
    _act(doors, wait_s, as_json, lambda rotation: rotation.rotate(to))


@keys.command(epilog=examples("batchyard keys retire 52af05b7d0edff21"))
@click.argument("key_id", metavar="ID")
@_wait_option
@json_option
@yard_options
def retire(doors: Doors, key_id: str, wait_s: float, as_json: bool) -> None:
    """Take an old key away, once nothing needs it. Call it again when it was cut off."""
    _act(doors, wait_s, as_json, lambda rotation: rotation.retire(key_id))


@keys.command(
    "print",
    short_help="Print the keys, which are the secret itself.",
    epilog=examples("batchyard keys print --add | my-kms store", "batchyard keys print --current ID"),
)
@click.option("--add", is_flag=True, help="With one more key, which is not the current one yet.")
@click.option("--current", metavar="ID", help="With this one as the current one.")
@click.option("--without", metavar="ID", help="Without this one.")
@yard_options
def print_(doors: Doors, add: bool, current: str | None, without: str | None) -> None:
    """Print the yard's keys as JSON, for a KMS or a variable: this is the secret itself. Changes nothing."""
    from ..errors import InvalidConfig, NotFound

    source = doors.key_source()
    found = source.load()
    for named in (current, without):
        if named is not None and named not in found.keys:
            raise NotFound(f"no key {named} in {source}; see `batchyard keys list`")
    found = found.added() if add else found
    found = found.with_current(current) if current is not None else found
    if without == found.current:
        raise InvalidConfig(f"key {without} is the current one; name another one with --current")
    click.echo((found.without(without) if without is not None else found).dumps(), nl=False)


class _Yard:
    """The yard opened with its keys."""

    def __init__(self, doors: Doors) -> None:
        from ..errors import InvalidConfig
        from ..keysource import load_ring
        from ..store import Yard

        ends = doors.endpoints()
        if ends.store is None:
            raise InvalidConfig("no blob store was named; give --store, or a yard's --state")
        self._spec, self.source = ends.store, doors.key_source()
        self.yard = Yard(ends.broker_url, load_ring(self.source))
        self.yard.check_keys()

    def store(self) -> Rewrapping:
        """The yard's. What another one does not need says nothing of what this yard's does: InvalidConfig."""
        from ..blobs import open_rewrapping

        opened = open_rewrapping(self._spec, self.yard.ring)
        opened.refuse_other(self.yard.store_id())
        return opened

    def rotation(self, wait_s: float) -> Rotation:
        from ..rotation import Rotation

        return Rotation(self.yard, self.source, self.store, wait_s=wait_s,
                        on_step=lambda text: click.echo(f"batchyard: {text}", err=True))  # fmt: skip

    def close(self) -> None:
        self.yard.redis.close()


def _act(doors: Doors, wait_s: float, as_json: bool, act: Callable[[Rotation], Rotated]) -> None:
    with closing(_Yard(doors)) as opened:
        opened.store()  # nothing is changed when it cannot be had
        done = act(opened.rotation(wait_s))
    told: dict[str, Any] = {
        "current": done.current,
        "others": done.others,
        "blobs": done.blobs.objects,
        "wrapped": done.blobs.wrapped,
        "damaged": done.blobs.damaged,
        "unknown": done.blobs.unknown,
        "records": done.records.changed,
        "records_unreadable": done.records.unreadable,
    }
    if as_json:
        print_json(told)
        return
    click.echo(f"key {done.current} is the current one")
    for what, names in (("is damaged", done.blobs.damaged), ("is under a key that is not here", done.blobs.unknown)):
        for name in names[:5]:
            click.echo(f"object {name} {what}")
        if len(names) > 5:
            click.echo(f"so are {len(names) - 5} more")
    for other in done.others:
        click.echo(f"key {other} is still here; `batchyard keys retire {other}` takes it away")


def _state(row: dict[str, Any]) -> str:
    return "current" if row["current"] else "old" if row["here"] else "not here"
