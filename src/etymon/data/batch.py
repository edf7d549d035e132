"""What a loader hands to a training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IGNORED = -100


@dataclass(frozen=True)
class Examples:
    """Tensors whose first dimension is the rows of a batch; objectives add to these two what their models read.

    `targets` are the ids to be predicted, -100 where nothing is trained; where they stand is the objective's matter.
    """

    input_ids: Tensor
    targets: Tensor

    @cached_property
    def trained(self) -> int:
        """How many tokens are trained: targets that are not -100."""
        return int((self.targets != IGNORED).sum())

    def rows(self, start: int, stop: int) -> Self:
        """Return the rows `start` to `stop` (views), such as one micro-batch."""
        return self._each(lambda tensor: tensor[start:stop])

    def to(self, device: torch.device | str) -> Self:
        """Return the batch on `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, **{field.name: change(getattr(self, field.name)) for field in fields(self)})


@dataclass(frozen=True)
class Batch(Examples):
    """Four int64 tensors of shape `[batch, time]`: text that is read from left to right.

    `targets[b, t]` is the id that position `t` must predict, -100 where nothing is trained. `documents[b, t]`
    numbers the document of the token within its row from 0; attention stays inside a document.
    `position_ids` counts from 0 in each document of a row.
    """

    position_ids: Tensor
    documents: Tensor


@dataclass(frozen=True)
class PairBatch(Examples):
    """Sources `input_ids` [batch, source time] with their `attention_mask`, and what a decoder reads behind them,
    `decoder_input_ids` [batch, time], each to predict `targets` [batch, time]."""

    attention_mask: Tensor
    decoder_input_ids: Tensor


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

    def batch(self, step: int) -> Examples:
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


def make_pairs(sources: Sequence[Sequence[int]], read: Sequence[Sequence[int]], targets: Sequence[Any]) -> PairBatch:
    """Make a batch of sources, what the decoder reads, and its targets, each padded at its end by 0 or -100."""
    lengths = np.array([len(ids) for ids in sources])
    mask = np.arange(lengths.max()) < lengths[:, None]
    return PairBatch(
        input_ids=torch.from_numpy(padded(sources, 0)),
        targets=torch.from_numpy(padded(targets, IGNORED)),
        attention_mask=torch.from_numpy(mask.astype(np.int64)),
        decoder_input_ids=torch.from_numpy(padded(read, 0)),
    )


def padded(rows: Sequence[Sequence[int]], filler: int) -> NDArray[np.int64]:
    """Return [rows, longest] with `filler` behind the shorter ones."""
    result = np.full((len(rows), max(map(len, rows))), filler, dtype=np.int64)
    for row, ids in zip(result, rows, strict=True):
        row[: len(ids)] = ids
    return result
