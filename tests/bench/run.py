"""`make bench`: what the yard costs, against what it replaces. Writes `build/bench.json` and prints it as a table.

    python tests/bench/run.py [--quick] [ROW …]

Rows: noop, claim, intake, arrays, children, start, staging, put, trees, reuse, shared, locality.

Each row is {row, ours, peer, peer_name, unit, ratio, goal, holds}; ratio = ours / peer, null where there is no peer.
Ratios of interleaved runs count; absolute figures are this machine's, at this hour. Exit status 1 when a goal is
missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def main() -> int:
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "demo")]
    from bench import (
        arrays,
        children,
        claim,
        intake,
        locality,
        noop,
        put,
        reuse,
        shared,
        staging,
        start,
        trees,
    )  # fmt: skip
    from bench.row import Row, show

    parts = {
        "intake": intake.rows,
        "claim": claim.rows,
        "arrays": arrays.rows,
        "children": children.rows,
        "noop": noop.rows,
        "start": start.rows,
        "staging": staging.rows,
        "put": put.rows,
        "trees": trees.rows,
        "reuse": reuse.rows,
        "shared": shared.rows,
        "locality": locality.rows,
    }
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--quick", action="store_true", help="fewer rounds, 100,000 queued instead of 1,000,000")
    asked.add_argument("rows", nargs="*", choices=[*parts, []], help="only these")
    options = asked.parse_args()
    found: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="batchyard-bench-") as folder:
        for name in options.rows or parts:
            place = Path(folder) / name
            place.mkdir()
            found += parts[name](place, quick=options.quick)
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    (build / "bench.json").write_text(json.dumps([row.as_json() for row in found], indent=2) + "\n")
    show(found)
    return 0 if all(row.holds for row in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
