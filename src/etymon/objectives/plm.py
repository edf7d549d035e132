"""Permutation language modelling: tokens are predicted in a random order, each from all that come before it there."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from etymon.data import IGNORED, Batch, Examples, padded
from etymon.errors import ConfigError
from etymon.nn import Model
from etymon.objectives.mlm import vocabulary
from etymon.objectives.objective import Objective
from etymon.spec import ModelSpec, Permuted
from etymon.text import Tokenizer


@dataclass(frozen=True)
class PermutedBatch(Examples):
    """Rows `input_ids` [batch, time] with `perm_mask` [batch, time, time], which is 1 where a token does not see
    another, and `target_mapping` [batch, targets, time], which has a 1 at the place of each of `targets` [batch,
    targets]."""

    perm_mask: Tensor
    target_mapping: Tensor


@dataclass(frozen=True)
class PermutationLM(Objective):
    """XLNet's objective (Yang et al. 2019, arXiv:1906.08237): about one token in `one_in`, in spans of 1 to `longest`,
    stands at the end of the order and is predicted; all others are seen by all. `special` tokens are never predicted.
    """

    name: ClassVar[str] = "plm"
    special: tuple[int, ...]
    one_in: int = 6
    longest: int = 5

    @classmethod
    def check(cls, spec: ModelSpec) -> None:
        """Raise ConfigError for a model that has no second stream."""
        if not isinstance(spec.trunk.visibility, Permuted):
            raise ConfigError(f"objective {cls.name}: {spec.name} predicts in one order; take a model of family xlnet")

    @classmethod
    def of(cls, spec: ModelSpec, tokenizer: Tokenizer) -> Self:
        """Take the control tokens from the tokenizer."""
        return cls(vocabulary(tokenizer)[1])

    @property
    def settings(self) -> dict[str, Any]:
        """The spans, and the tokens that are never predicted."""
        return dataclasses.asdict(self)

    def collate(self, batch: Batch, random: np.random.Generator) -> PermutedBatch:
        """Return rows with an order each, and its last tokens as targets; documents of a row are one text."""
        ids = batch.input_ids.numpy()
        rows, time = ids.shape
        chosen = np.stack([self._spans(row, random) for row in ids])
        order = np.where(chosen, random.random(ids.shape), -1.0)  # what is not predicted comes before everything
        # a token that is predicted is seen by those that follow it in the order, and by nobody else
        hidden = chosen[:, None, :] & (order[:, :, None] <= order[:, None, :])
        places = [np.flatnonzero(row) for row in chosen]
        mapping = np.zeros((rows, max(map(len, places)), time), dtype=np.float32)
        for row, found in enumerate(places):
            mapping[row, np.arange(len(found)), found] = 1
        targets = padded([row[found].tolist() for row, found in zip(ids, places, strict=True)], IGNORED)
        return PermutedBatch(
            input_ids=batch.input_ids,
            targets=torch.from_numpy(targets),
            perm_mask=torch.from_numpy(hidden.astype(np.float32)),
            target_mapping=torch.from_numpy(mapping),
        )

    def _spans(self, ids: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.bool_]:
        """Return which of `ids` are predicted: in every stretch of `one_in` times a span's length, one such span."""
        chosen = np.zeros(len(ids), dtype=np.bool_)
        at = 0
        while at < len(ids):
            length = int(random.integers(1, self.longest + 1))
            start = at + int(random.integers(length * (self.one_in - 1) + 1))
            chosen[start : start + length] = True
            at += length * self.one_in
        chosen &= ~np.isin(ids, self.special)
        if not chosen.any():
            chosen[int(random.integers(len(ids)))] = True
        return chosen

    def loss(self, model: Model, batch: PermutedBatch) -> Tensor:
        """Return the summed negative log-likelihood of the targets."""
        given = {"perm_mask": batch.perm_mask, "target_mapping": batch.target_mapping}
        output = model(batch.input_ids, logits=False, **given)
        return model.head.loss(output.last_hidden_state, batch.targets)
