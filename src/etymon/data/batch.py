"""What a loader hands to a training step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Four int64 tensors of shape `[batch, time]`.

    `targets[b, t]` is the id that position `t` must predict, -100 where nothing is trained. `documents[b, t]`
    numbers the document of the token within its row from 0; attention stays inside a document.
    `position_ids` counts from 0 in each document of a row.
    """

    input_ids: Tensor
    targets: Tensor
    position_ids: Tensor
    documents: Tensor

    @cached_property
    def trained(self) -> int:
        """How many tokens are trained: targets that are not -100."""
        return int((self.targets != IGNORED).sum())

    def rows(self, start: int, stop: int) -> Batch:
        """Return the rows `start` to `stop` (views), such as one micro-batch."""
        return Batch(
            self.input_ids[start:stop],
            self.targets[start:stop],
            self.position_ids[start:stop],
            self.documents[start:stop],
        )

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on `device`."""
        return Batch(
            self.input_ids.to(device, non_blocking=True),
            self.targets.to(device, non_blocking=True),
            self.position_ids.to(device, non_blocking=True),
            self.documents.to(device, non_blocking=True),
        )


class Loader(Protocol):
    """What `fit` needs of its data: `batch(step)` is a pure function of the loader's settings and the step."""

    @property
    def batch_size(self) -> int:
        """Rows of a batch."""

    @property
    def context(self) -> int:
        """Tokens of a row."""

    @property
    def n_tokens(self) -> int:
        """Tokens of one epoch."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every token was seen at least once."""

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides the batches."""

    def batch(self, step: int) -> Batch:
        """Return the whole global batch of `step`, counted from 0."""


def make_batch(ids: NDArray[Any], targets: NDArray[Any], starts: NDArray[np.bool_]) -> Batch:
    """Make a `Batch` of `[batch, time]` arrays; `starts` is true at the first token of every document.

    Writes into `starts`: a row's first token always begins a document of that row.
    """
    time = np.arange(ids.shape[1], dtype=np.int64)
    starts[:, 0] = True
    documents = np.cumsum(starts, axis=1, dtype=np.int64) - 1
    positions = time - np.maximum.accumulate(np.where(starts, time, 0), axis=1)
    return Batch(
        torch.from_numpy(ids.astype(np.int64, copy=False)),
        torch.from_numpy(targets.astype(np.int64, copy=False)),
        torch.from_numpy(positions),
        torch.from_numpy(documents),
    )
