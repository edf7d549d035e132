"""Learning-rate schedules: the factor on every learning rate as a pure function of (step, total)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Discriminator, Field, Tag, model_validator

from etymon.config import Config


class Tokens(Config):
    """A length in tokens, `{tokens: 375000000}`: positions of the batches, trained or not."""

    tokens: int = Field(ge=1)


def unit_of(value: Any) -> str | None:
    """Return in which of its units a length is given, by its type; None for none of them."""
    if isinstance(value, Tokens) or (isinstance(value, dict) and value.keys() == {"tokens"}):
        return "in tokens"
    return {int: "in steps", float: "in parts"}.get(type(value))


Length = Annotated[
    Annotated[int, Field(ge=0), Tag("in steps")]
    | Annotated[float, Field(ge=0.0, lt=1.0), Tag("in parts")]
    | Annotated[Tokens, Tag("in tokens")],
    Discriminator(
        unit_of,
        custom_error_type="length",
        custom_error_message="expected steps (2000), a part of the run (0.02) or {tokens: 375000000}",
    ),
]
"""A number of steps (int), a part of the run (a float below 1: 0.02 is 2% of the steps), or a number of tokens."""


Part = Annotated[float, Field(ge=0.0, lt=1.0)]


def steps_of(length: int | float | Tokens, total: int) -> int:
    """Return `length` in steps of a run of `total`; a positive part of a run is at least one step.

    Tokens must have become steps before (`in_steps`): only the batches say how many that are.
    """
    assert not isinstance(length, Tokens), "a length in tokens, where steps are needed"
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


class _Horizon(Config):
    """Warm-up, and a curve down to `final` at the end of the run, or of `length` (counted with the warm-up), after
    which the rate stays `final`: a published run's own length, whatever part of it is repeated."""

    warmup: Length = 0.02
    final: float = Field(default=0.0, ge=0.0, le=1.0)
    length: Length | None = None

    @model_validator(mode="after")
    def _longer_than_its_warmup(self) -> Self:
        length, warmup = self.length, self.warmup
        if isinstance(length, Tokens) and isinstance(warmup, Tokens):
            short = length.tokens <= warmup.tokens
        elif isinstance(length, Tokens) or isinstance(warmup, Tokens) or length is None:
            short = False
        else:
            short = type(length) is type(warmup) and length <= warmup
        if short or length in (0, 0.0):
            raise ValueError(f"length {length} must be more than warmup {warmup}, which it includes")
        return self

    def _progress(self, step: int, total: int) -> float:
        """Return how much of the curve lies behind, from 0 to 1."""
        warmup = steps_of(self.warmup, total)
        end = total if self.length is None else steps_of(self.length, total)
        # the end of the curve lies one step behind the last update, so that no update is wasted on a rate of 0
        return min(1.0, (step - warmup) / max(1, end - warmup))


class Cosine(_Horizon):
    """Linear warm-up, then half a cosine down to `final` (Loshchilov & Hutter 2017, arXiv:1608.03983).

    GPT-3 (arXiv:2005.14165) has warmup {tokens: 375000000}, length {tokens: 260000000000} and final 0.1.
    """

    kind: Literal["cosine"] = "cosine"

    def factor(self, step: int, total: int) -> float:
        """Return the factor in [0, 1] for the update number `step` (from 0) of `total`; 0 only behind `length`."""
        warmup = steps_of(self.warmup, total)
        if step < warmup:
            return _warmup(step, warmup)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * self._progress(step, total)))


class Linear(_Horizon):
    """Linear warm-up, then a line down to `final` (BERT, arXiv:1810.04805; OPT, arXiv:2205.01068, to 0.1)."""

    kind: Literal["linear"] = "linear"

    def factor(self, step: int, total: int) -> float:
        """Return the factor in [0, 1] for the update number `step` (from 0) of `total`; 0 only behind `length`."""
        warmup = steps_of(self.warmup, total)
        if step < warmup:
            return _warmup(step, warmup)
        return self.final + (1 - self.final) * (1 - self._progress(step, total))


class InverseSquareRoot(Config):
    """Linear warm-up, then a rate that falls as 1 / sqrt(n) with the number n of the update from 1, whatever the length
    of the run (Vaswani et al. 2017, arXiv:1706.03762). It falls from update `hold` on (None: where warm-up ends).

    T5 (arXiv:1910.10683) has no warm-up, hold 10000 and a rate of 0.01: 1 / sqrt(max(n, 10000)). The original
    Transformer's formula at its best rate, dim**-0.5 * warmup**-0.5, is this one.
    """

    kind: Literal["inverse_sqrt"] = "inverse_sqrt"
    warmup: Length = 0.02
    hold: Length | None = None

    def factor(self, step: int, total: int) -> float:
        """Return the factor in (0, 1] for the update number `step` (from 0) of `total`."""
        warmup = steps_of(self.warmup, total)
        hold = max(1, warmup, 0 if self.hold is None else steps_of(self.hold, total))
        return _warmup(step, warmup) * math.sqrt(hold / max(step + 1, hold))


class OneCycle(Config):
    """Half a cosine up over `rise`, from `start` times the rate, and half a cosine down to `final` times the rate at
    the last update (Smith & Topin 2017, arXiv:1708.07120, as fast.ai draws it).

    With `momentum`, the optimizer's (Adam's first beta) goes the other way: from the second number down to the first,
    where the rate is highest, and back. Theirs is (0.85, 0.95).
    """

    kind: Literal["one_cycle"] = "one_cycle"
    rise: Length = 0.3
    start: float = Field(default=1 / 25, gt=0.0, le=1.0)
    final: float = Field(default=1 / 250_000, ge=0.0, le=1.0)
    momentum: tuple[Part, Part] | None = None

    def factor(self, step: int, total: int) -> float:
        """Return the factor in [0, 1] for the update number `step` (from 0) of `total`."""
        return self._between(self.start, 1.0, self.final, step, total)

    def momentum_at(self, step: int, total: int) -> float | None:
        """Return the momentum for the update number `step` (from 0) of `total`; None where it stays as it is."""
        if self.momentum is None:
            return None
        low, high = self.momentum
        return self._between(high, low, high, step, total)

    def _between(self, begin: float, top: float, end: float, step: int, total: int) -> float:
        highest = max(0, steps_of(self.rise, total) - 1)
        if step <= highest:
            return _half_cosine(begin, top, step / highest if highest else 1.0)
        return _half_cosine(top, end, min(1.0, (step - highest) / max(1, total - 1 - highest)))


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


AnySchedule = WarmupStableDecay | Cosine | Linear | InverseSquareRoot | OneCycle | Constant
Schedule = Annotated[AnySchedule, Field(discriminator="kind")]


def momentum_at(schedule: AnySchedule, step: int, total: int) -> float | None:
    """Return the momentum that a schedule asks for at the update number `step` (from 0) of `total`, if it does."""
    return schedule.momentum_at(step, total) if isinstance(schedule, OneCycle) else None


Settings = TypeVar("Settings", bound=Config)


def in_steps(settings: Settings, steps: Callable[[int], int]) -> Settings:
    """Return settings whose lengths in tokens are steps; `steps(tokens)` says after how many that many were seen."""
    found = {name: getattr(settings, name) for name in type(settings).model_fields}
    return settings.model_copy(update={k: steps(v.tokens) for k, v in found.items() if isinstance(v, Tokens)})


def _warmup(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def _half_cosine(begin: float, end: float, progress: float) -> float:
    return end + (begin - end) * 0.5 * (1 + math.cos(math.pi * progress))
