"""The one question that the training loop asks of an objective."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from etymon.data import Batch
from etymon.nn import Model


class Objective(Protocol):
    """What a training step minimises; the loop divides by the number of trained tokens of the whole batch."""

    @property
    def name(self) -> str:
        """The name by which runs record it."""
        ...

    def loss(self, model: Model, batch: Batch) -> Tensor:
        """Return the loss SUMMED over the trained tokens of `batch` (some rows of a global batch), a fp32 scalar."""
        ...
