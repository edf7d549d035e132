"""The settings of a training run."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from etymon.config import Config
from etymon.nn import Dropout
from etymon.train.average import Average
from etymon.train.optimizers import MuonConfig, OptimizerConfig
from etymon.train.schedules import OneCycle, Schedule, WarmupStableDecay, unit_of
from etymon.train.warmup import BatchWarmup, ContextWarmup

Interval = Annotated[
    Annotated[int, Field(ge=1), Tag("in steps")] | Annotated[float, Field(gt=0.0, lt=1.0), Tag("in parts")],
    Discriminator(
        unit_of, custom_error_type="interval", custom_error_message="expected steps (100) or a part of the run (0.1)"
    ),
]
"""Every so many steps (int), or a part of the run (a float below 1: 0.1 is ten times in a run)."""


class Budget(Config):
    """How long to train: at least one of these; the one that is reached first ends the run.

    `tokens` and `epochs` count positions, trained or not. `minutes` of wall-clock time become a number of steps once,
    at the start, by the measured time of a step and of the hooks; that number is recorded and resumed.
    """

    steps: int | None = Field(default=None, ge=1)
    tokens: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    minutes: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _some(self) -> Budget:
        if not self.model_fields_set or all(value is None for value in self.model_dump().values()):
            raise ValueError("give at least one of steps, tokens, epochs, minutes")
        return self


class Penalties(Config):
    """What is added to the loss of a model that has such penalties (`Model.penalties`), by these weights: of a mixture
    of experts how unevenly its experts are used, and how large its routers' logits are. `correction` is no weight, but
    how far each update moves the corrections by which some routers balance their experts without a loss."""

    balance: float = Field(default=0.01, ge=0)
    router_z: float = Field(default=0.0, ge=0)
    correction: float = Field(default=0.001, ge=0)


class TrainConfig(Config):
    """Everything about a training run but its model, data and objective.

    The rows of a batch come from the loader; `micro_batch` of them pass through the model at a time (None: all), which
    changes memory and speed but not the gradient. `evaluate_every` and `sample_every` are for the hooks that the
    caller builds. `penalties` matter to models that have some. What is dropped depends on (seed, step) and, since each
    draws its own, on `micro_batch`. An `average` of the weights is what hooks see and what the run ends with. With
    `batch_warmup` and `context_warmup` batches grow to those of the loader.
    """

    budget: Budget
    micro_batch: int | None = Field(default=None, ge=1)
    optimizer: OptimizerConfig = MuonConfig()
    schedule: Schedule = WarmupStableDecay()
    clip: float | None = Field(default=1.0, gt=0)
    penalties: Penalties = Penalties()
    dropout: Dropout = Dropout()
    average: Average | None = None
    batch_warmup: BatchWarmup | None = None
    context_warmup: ContextWarmup | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    seed: int = Field(default=0, ge=0)
    log_every: Interval = 10
    evaluate_every: Interval = 0.1
    sample_every: Interval = 0.25
    checkpoint_every: Interval = 0.1
    keep: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _has_the_momentum_that_cycles(self) -> Self:
        cycles = isinstance(self.schedule, OneCycle) and self.schedule.momentum is not None
        if cycles and all(getattr(self.optimizer, name, None) is None for name in ("betas", "momentum")):
            raise ValueError(f"schedule.momentum: {self.optimizer.kind} has no momentum. Leave it out")
        return self


# What may change between a run and its resumption, because no weight depends on it.
FREE = frozenset({"log_every", "evaluate_every", "sample_every", "checkpoint_every", "keep"})
