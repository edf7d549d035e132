"""What a training step asks of an objective: how a batch is prepared, and the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor

from etymon.data import Examples, Loader
from etymon.nn import Model
from etymon.spec import ModelSpec
from etymon.text import Tokenizer


class Objective:
    """What a training step minimises; the loop divides by the number of trained tokens of the whole batch.

    `name` is what recipes and runs call it. `settings` (JSON values) are what batches and losses depend on besides the
    loader: a run that is resumed must have the same. `control` are the tokens it needs of a tokenizer that is trained
    for it.
    """

    name: ClassVar[str]
    control: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def check(cls, spec: ModelSpec) -> None:
        """Raise ConfigError for a model of another kind."""

    @classmethod
    def of(cls, spec: ModelSpec, tokenizer: Tokenizer) -> Self:
        """Return the objective for a model of its kind. Raises ConfigError where the tokenizer lacks a token for it."""
        return cls()

    @property
    def settings(self) -> dict[str, Any]:
        """What the batches and the loss depend on."""
        return {}

    def companions(self, model: Model) -> Mapping[str, Model]:
        """Return models that are trained beside `model` by the same steps, by names for their directories."""
        return {}

    def collate(self, batch: Any, random: np.random.Generator) -> Examples:
        """Return what the model is to see of a loader's batch; `random` depends on the run's seed and the step."""
        assert isinstance(batch, Examples)
        return batch

    def loss(self, model: Model, batch: Any) -> Tensor:
        """Return the loss SUMMED over the trained tokens of `batch` (some rows of a global batch), a fp32 scalar."""
        raise NotImplementedError


class Collated:
    """A loader whose batches an objective has prepared; still a pure function of the step."""

    def __init__(self, loader: Loader, objective: Objective, seed: int) -> None:
        self._loader, self._objective, self._seed = loader, objective, seed
        self.batch_size, self.context = loader.batch_size, loader.context
        self.n_tokens, self.steps_per_epoch = loader.n_tokens, loader.steps_per_epoch
        self.fingerprint = loader.fingerprint

    def batch(self, step: int) -> Examples:
        """Return the batch of `step`, collated."""
        return self._objective.collate(self._loader.batch(step), np.random.default_rng((self._seed, step)))
