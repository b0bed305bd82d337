"""A queue's fair-share policy, as the YAML says it. What each share has used is counted in `lua/shared/shares.lua`.

queues:
  lab:
    environments: [here]
    fair_share: {share_decay_s: 3600, shares: [{share: alice}, {share: "team*", weight: 0.5}]}

The share with the lowest `used vCPU-seconds * weight` is served next, so a lower weight gets more. Use decays: of what
was used `share_decay_s` ago a twentieth counts. Each of k active shares that match a prefix has k times its weight, so
that all of them together have about what one would have. A share that the policy does not name has weight 1. Within a
share the higher `scheduling_priority` goes first, then who came first; a message's priority has no effect.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_ACTIVE = 500  # shares of a queue; also in shares.lua
ShareName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]{1,255}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Share(_Frozen):
    """A share, or with a `*` at its end all that begin so. weight: lower gets more."""

    share: Annotated[str, Field(pattern=r"^[A-Za-z0-9]{0,254}[A-Za-z0-9*]$")]
    weight: Annotated[float, Field(ge=0.0001, le=999.9999, allow_inf_nan=False)] = 1.0

    def overlaps(self, other: Share) -> bool:
        """Whether a share could be meant by both."""
        mine, theirs = self.share, other.share
        if mine.endswith("*") and theirs.endswith("*"):
            return mine[:-1].startswith(theirs[:-1]) or theirs[:-1].startswith(mine[:-1])
        if mine.endswith("*") or theirs.endswith("*"):
            prefix, name = (mine, theirs) if mine.endswith("*") else (theirs, mine)
            return name.startswith(prefix[:-1])
        return mine == theirs


class FairShare(_Frozen):
    """share_decay_s: 0 means 600. compute_reservation: percent; (it / 100) ^ active shares of the environments'
    `max_vcpus` stay free for shares that are not active yet.
    """

    share_decay_s: Annotated[int, Field(ge=0, le=604800)] = 0
    compute_reservation: Annotated[int, Field(ge=0, le=99)] = 0
    shares: Annotated[tuple[Share, ...], Field(max_length=MOST_ACTIVE)] = ()

    @model_validator(mode="after")
    def _apart(self) -> Self:
        prefixes = [one for one in self.shares if one.share.endswith("*")]
        seen: set[str] = set()
        for one in self.shares:
            if one.share in seen:
                raise ValueError(f'share "{one.share}" is there twice; keep one')
            seen.add(one.share)
            for prefix in prefixes:
                if prefix is not one and prefix.overlaps(one):
                    raise ValueError(
                        f'shares "{prefix.share}" and "{one.share}" overlap: a share could be meant by both; '
                        "make them differ, or keep one"
                    )
        return self

    def told(self, max_vcpus: float | None) -> dict[str, Any]:
        """As the claim reads it."""
        value: dict[str, Any] = {
            "decay_s": self.share_decay_s,
            "reservation": self.compute_reservation,
            "shares": [[one.share, one.weight] for one in self.shares],
        }
        return value if max_vcpus is None else {**value, "max_vcpus": max_vcpus}
