"""Giving peers their turn in the middle of etymon's own `fit`, so that both sides share every change of the machine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from etymon.data import Loader
from etymon.nn import Model
from etymon.objectives import CausalLM
from etymon.train import Budget, TrainConfig, fit
from etymon.train.optimizers import OptimizerConfig
from etymon.train.schedules import Schedule, WarmupStableDecay
from measure import Span, Stopwatch

Turn = Callable[[Model, int, Span | None], None]


class Turns:
    """A hook that calls `turn(model, step, span)`; `span` is what `fit` spent since the last call ended, None at first.

    The time is that of the whole loop: loading, the updates, metrics and progress.
    """

    def __init__(self, every: int, turn: Turn) -> None:
        self.every: int | float = every
        self._turn = turn
        self._clock: Stopwatch | None = None

    def __call__(self, model: Model, step: int, final: bool) -> dict[str, float | str]:
        """Stop the clock, give the turn away, start the clock."""
        self._turn(model, step, self._clock.stop() if self._clock else None)
        self._clock = Stopwatch()
        return {}


def fit_in_turns(
    model: Model,
    loader: Loader,
    *,
    steps: int,
    every: int,
    turn: Turn,
    optimizer: OptimizerConfig,
    schedule: Schedule | None = None,
) -> None:
    """Train by `etymon.train.fit` for `steps` in fp32, with a turn before the first step, then `every` so many."""
    config = TrainConfig(
        budget=Budget(steps=steps),
        optimizer=optimizer,
        schedule=schedule or WarmupStableDecay(),
        precision="fp32",
        checkpoint_every=steps,
    )
    with tempfile.TemporaryDirectory() as run:
        fit(model, loader, CausalLM(), config, Path(run) / "etymon", hooks=[Turns(every, turn)])
