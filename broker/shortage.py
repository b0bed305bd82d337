"""Which compute environment of its queue is nearest to taking a job, and what it lacks. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .blocked import Scaling
from .reasons import Reason, span, told


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentFacts:
    """An environment of a job's queue. lacks: what the nearest machine that it may ever have has too little of for the
    job: measure → (asked for, had).
    """

    name: str
    state: str
    lacks: Mapping[str, tuple[float, float]]
    scaling: Scaling | None = None


def shortage(queue: str, environments: Sequence[EnvironmentFacts], now_s: float) -> list[Reason]:
    """What environments have to say, the nearest to taking the job first; nothing where all is as it should be."""
    found: list[Reason] = []
    if environments and all(one.lacks for one in environments):
        near = min(environments, key=_distance)
        text = f'no machine that queue "{queue}" may have is large enough for it; the nearest is in environment'
        found.append(_told("fits_no_environment", f'{text} "{near.name}": {_words(near)}', near))
    for one in sorted(environments, key=_distance):
        if one.state != "ENABLED":
            text = f'environment "{one.name}" is disabled: its nodes take no more jobs'
            found.append(_told("environment_disabled", f"{text}; `batchyard environment enable {one.name}`", one))
        elif one.scaling is not None and not one.lacks:
            found.append(_scaling(one, one.scaling, now_s))
    partly = [one for one in environments if one.lacks]
    if len(partly) < len(environments):
        found += [_told("too_large_for", f'environment "{o.name}" is too small for it: {_words(o)}', o) for o in partly]
    return found


def _scaling(one: EnvironmentFacts, scaling: Scaling, now_s: float) -> Reason:
    more = f": {scaling.text}" if scaling.text else ""
    since = {"since": scaling.since_s} if scaling.since_s else {}
    if scaling.state == "UNDER_WAY":
        long = f" for {span(now_s - scaling.since_s)}" if scaling.since_s else ""
        text = f'machines are being added to environment "{one.name}"{long}{more}'
        return told("scaling", text, environment=one.name, **since)
    shape = f" ({scaling.shape})" if scaling.shape else ""
    text = f'environment "{one.name}" cannot get a machine{shape} now{more}'
    return told("no_capacity", text, environment=one.name, shape=scaling.shape, **since)


def _told(code: str, text: str, one: EnvironmentFacts) -> Reason:
    lacks = {name: round(asked - had, 3) for name, (asked, had) in one.lacks.items()}
    return told(code, text, environment=one.name, lacks=lacks) if lacks else told(code, text, environment=one.name)


def _words(one: EnvironmentFacts) -> str:
    return ", ".join(f"{name} {asked:g} of at most {had:g}" for name, (asked, had) in one.lacks.items())


def _distance(one: EnvironmentFacts) -> tuple[int, float]:
    return len(one.lacks), sum(asked / max(had, 1) for asked, had in one.lacks.values())
