"""A plain Celery producer: all that the demo sends. It imports Celery, and nothing of Batchyard.

A job is a dict; `signature("batchyard.run", …)` makes a step of it, and Celery's chain, group and chord do the rest.
An input is named by the digest of its bytes, or as `{"from": NAME}`: the output NAME of the step before.

There are two nodes, `left` and `right`, and a queue for each. A job goes to the queue of the node that has its inputs
since the last time, so that they need not move.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery import chain, chord, signature

NODES = ("left", "right")
SHELL, PYTHON, FFMPEG = "batchyard-demo/busybox:1", "batchyard-demo/photographs:1", "batchyard-demo/ffmpeg:1"


def step(name: str, n: int, image: str, command: Sequence[str], **job: Any) -> Any:
    """One job. Its number says which node's queue it goes to."""
    job = {"name": name, "image": image, "command": list(command), "vcpus": 0.5, "memory_mib": 512, **job}
    return signature("batchyard.run", kwargs={"job": job}, queue=NODES[n % len(NODES)])


# -- photographs: copies of each, the fingerprints of all, and which show the same -------------------------------------


def similar(program: str, photographs: Sequence[str]) -> Any:
    """program and photographs: digests. The last job's output `groups` lists the images that show the same."""

    def run(*words: str) -> list[str]:
        return ["python3", "/in/fingerprint.py", *words]

    def fingerprints(n: int, photograph: str) -> Any:
        inputs = {"/in/fingerprint.py": program, "/in/photograph": photograph}
        return chain(
            step(
                f"copies-{n}", n, PYTHON, run("copies", "/in/photograph", "/work/copies"),
                inputs=inputs, outputs={"copies": "/work/copies"},
            ),
            step(
                f"prints-{n}", n, PYTHON, run("prints", "/work/prints", "/in/photograph", "/in/copies"),
                inputs={**inputs, "/in/copies": {"from": "copies"}}, outputs={"prints": "/work/prints"},
            ),
        )  # fmt: skip

    return chord(
        [fingerprints(n, photograph) for n, photograph in enumerate(photographs)],
        step(
            "groups", 0, PYTHON, run("groups", "/in/prints", "/work/groups.json"),
            inputs={"/in/fingerprint.py": program, "/in/prints": {"from": "prints"}},
            outputs={"groups": "/work/groups.json"},
        ),
    )  # fmt: skip


# -- flights: a table over parts of a large CSV file -------------------------------------------------------------------

_COUNT = """
awk -F, '{n[$10]++; if ($9 != "" && $9 != "NA") {m[$10]++; s[$10] += $9}}
         END {for (c in n) printf "%s %d %d %d\\n", c, n[c], m[c], s[c]}' /in/part.csv >/work/carriers
echo $(wc -l </in/part.csv) rows, $(wc -l </work/carriers) carriers
"""
_JOIN = """
cat /in/parts/*/carriers | awk '{n[$1] += $2; m[$1] += $3; s[$1] += $4}
         END {for (c in n) printf "%s %d %d %d\\n", c, n[c], m[c], s[c]}' | sort >/work/table
echo joined $(ls /in/parts | wc -l) outputs
"""


def table(parts: Sequence[str]) -> Any:
    """parts: digests. `table` lists carrier, flights, those that arrived (column 9), their minutes of delay in all."""
    return chord(
        [
            step(
                f"part-{n}", n, SHELL, ["sh", "-ec", _COUNT],
                inputs={"/in/part.csv": part}, outputs={"carriers": "/work/carriers"},
            )
            for n, part in enumerate(parts)
        ],
        step(
            "join", 1, SHELL, ["sh", "-ec", _JOIN],
            inputs={"/in/parts": {"from": "carriers"}}, outputs={"table": "/work/table"},
        ),
    )  # fmt: skip


# -- a film: made of photographs, transcoded in segments side by side, joined ------------------------------------------

FPS, SLIDE_S = 25, 2
_EXACT = ["-fflags", "+bitexact", "-flags", "+bitexact"]  # the same bytes every time: no dates, no random ids
_SHOW = (
    "scale=1200:675:force_original_aspect_ratio=increase,crop=1200:675,"
    f"zoompan=z='1+0.002*mod(on,{FPS * SLIDE_S})':d={FPS * SLIDE_S}:s=960x540:fps={FPS},format=yuv420p"
)
_FILM = """
for part in /in/parts/*/part; do echo "file $part"; done >/work/list
ffmpeg -v error -f concat -safe 0 -i /work/list -c copy -fflags +bitexact /work/film.webm
ffprobe -v error -count_frames -of json -show_entries format=duration:stream=codec_name,width,height,nb_read_frames \
    /work/film.webm >/work/facts.json
"""


def film(photographs: Sequence[str], segments: int) -> Any:
    """photographs: digests of JPEG files, each shown for 2 s in H.264, 960x540. The film is the same in VP9, 640x360.

    Outputs of the last job: `film`, and `facts`, what ffprobe says of it.
    """
    frames = FPS * SLIDE_S * len(photographs) // segments
    show = ["ffmpeg", "-v", "error", "-reinit_filter", "0", "-framerate", f"1/{SLIDE_S}", "-i", "/in/%02d.jpg"]
    show += ["-vf", _SHOW, "-c:v", "libx264", "-preset", "ultrafast", "-threads", "2", *_EXACT, "/work/show.mp4"]

    def segment(n: int) -> list[str]:
        cut = ["ffmpeg", "-v", "error", "-ss", str(n * frames / FPS), "-i", "/in/show.mp4", "-frames:v", str(frames)]
        vp9 = ["-vf", "scale=640:360", "-c:v", "libvpx-vp9", "-b:v", "0", "-crf", "36", "-deadline", "realtime"]
        return [*cut, *vp9, "-cpu-used", "8", "-threads", "1", *_EXACT, "/work/part.webm"]

    return chain(
        step(
            "show", 1, FFMPEG, show,
            inputs={f"/in/{n:02d}.jpg": photograph for n, photograph in enumerate(photographs)},
            outputs={"show": "/work/show.mp4"}, vcpus=1,
        ),
        chord(
            [
                step(
                    f"segment-{n}", n, FFMPEG, segment(n),
                    inputs={"/in/show.mp4": {"from": "show"}}, outputs={"part": "/work/part.webm"},
                )
                for n in range(segments)
            ],
            step(
                "film", 1, FFMPEG, ["sh", "-ec", _FILM],
                inputs={"/in/parts": {"from": "part"}},
                outputs={"film": "/work/film.webm", "facts": "/work/facts.json"},
            ),
        ),
    )  # fmt: skip


def failing() -> Any:
    """A job that fails."""
    return step("failing", 0, SHELL, ["sh", "-c", "echo 'there is no 337th thousand' >&2; exit 3"])
