"""Learning-rate schedules: the factor on every learning rate as a pure function of (step, total)."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from etymon.config import Config

Length = Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0.0, lt=1.0)]
"""A number of steps (int), or a part of the run (a float below 1: 0.02 is 2% of the steps)."""


def steps_of(length: int | float, total: int) -> int:
    """Return `length` in steps of a run of `total`; a positive part of a run is at least one step."""
    if isinstance(length, int):
        return length
    return max(1, round(length * total)) if length > 0 else 0


class Constant(Config):
    """Linear warm-up, then the full rate."""

    kind: Literal["constant"] = "constant"
    warmup: Length = 0.02

    def factor(self, step: int, total: int) -> float:
        """Return the factor in (0, 1] for the update number `step` (from 0) of `total`."""
        return _warmup(step, steps_of(self.warmup, total))


class Cosine(Config):
    """Linear warm-up, then half a cosine down to `final` (Loshchilov & Hutter 2017, arXiv:1608.03983)."""

    kind: Literal["cosine"] = "cosine"
    warmup: Length = 0.02
    final: float = Field(default=0.0, ge=0.0, le=1.0)

    def factor(self, step: int, total: int) -> float:
        """Return the factor in (0, 1] for the update number `step` (from 0) of `total`."""
        warmup = steps_of(self.warmup, total)
        if step < warmup:
            return _warmup(step, warmup)
        # the end of the curve lies one step behind the last update, so that no update is wasted on a rate of 0
        progress = (step - warmup) / max(1, total - warmup)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


class WarmupStableDecay(Config):
    """Linear warm-up, the full rate, then a linear decay to `final` over the last part of the run.

    Hu et al. 2024 (MiniCPM, arXiv:2404.06395); Hägele et al. 2024 (arXiv:2405.18392) find it as good as a cosine
    whose length was known beforehand.
    """

    kind: Literal["wsd"] = "wsd"
    warmup: Length = 0.02
    decay: Length = 0.3
    final: float = Field(default=0.0, ge=0.0, le=1.0)

    def factor(self, step: int, total: int) -> float:
        """Return the factor in (0, 1] for the update number `step` (from 0) of `total`."""
        decay = steps_of(self.decay, total)
        rising = _warmup(step, steps_of(self.warmup, total))
        falling = min(1.0, (total - step) / decay) if decay else 1.0
        return min(rising, self.final + (1 - self.final) * falling)


Schedule = Annotated[WarmupStableDecay | Cosine | Constant, Field(discriminator="kind")]


def _warmup(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / warmup) if warmup else 1.0
