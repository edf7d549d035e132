"""Masked sequence to sequence: a fragment of the text is hidden from the encoder, and the decoder restores it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from etymon.data import Batch, Examples
from etymon.nn import Model
from etymon.objectives.mlm import MASK, mask_of, vocabulary
from etymon.objectives.objective import Objective
from etymon.objectives.pairs import require_pair
from etymon.spec import ModelSpec
from etymon.text import Tokenizer


@dataclass(frozen=True)
class FragmentBatch(Examples):
    """Rows `input_ids` [batch, time] without a fragment, the fragment one place later as `decoder_input_ids`, and its
    places `decoder_position_ids`, both [batch, fragment]."""

    decoder_input_ids: Tensor
    decoder_position_ids: Tensor


@dataclass(frozen=True)
class MaskedFragment(Objective):
    """MASS's objective (Song et al. 2019, arXiv:1905.02450): `share` of each row in one piece, of whose tokens `masked`
    become the id `mask` for the encoder, `replaced` a random one, and the rest stays. The decoder sees nothing else,
    begins with `mask` and counts from the fragment's place. `language` is that of the text, where a model has several.
    """

    name: ClassVar[str] = "mass"
    control: ClassVar[tuple[str, ...]] = (MASK,)
    mask: int
    vocab: int
    special: tuple[int, ...]
    language: int | None = None
    share: float = 0.5
    masked: float = 0.8
    replaced: float = 0.1

    @classmethod
    def check(cls, spec: ModelSpec) -> None:
        """Raise ConfigError for a model without both stacks."""
        require_pair(cls.name, spec)

    @classmethod
    def of(cls, spec: ModelSpec, tokenizer: Tokenizer) -> Self:
        """Raises ConfigError for a tokenizer without a mask token."""
        return cls(mask_of(cls.name, tokenizer), *vocabulary(tokenizer), 0 if spec.embed.languages else None)

    @property
    def settings(self) -> dict[str, Any]:
        """The share, the ids that are written, and the language."""
        return dataclasses.asdict(self)

    def collate(self, batch: Batch, random: np.random.Generator) -> FragmentBatch:
        """Return rows with a fragment hidden, and the fragment; documents of a row are one text."""
        ids = batch.input_ids.numpy()
        rows, time = ids.shape
        length = min(max(1, round(self.share * time)), time)
        starts = random.integers(time - length + 1, size=(rows, 1))
        places = starts + np.arange(length)
        fragment = np.take_along_axis(ids, places, 1)
        fate = random.random(fragment.shape)
        ordinary = np.setdiff1d(np.arange(self.vocab), self.special)
        drawn = np.where(fate < self.masked + self.replaced, random.choice(ordinary, fragment.shape), fragment)
        source = ids.copy()
        np.put_along_axis(source, places, np.where(fate < self.masked, self.mask, drawn), 1)
        read = np.concatenate((np.full((rows, 1), self.mask), fragment[:, :-1]), 1)
        return FragmentBatch(*map(torch.from_numpy, (source, fragment, read, places)))

    def loss(self, model: Model, batch: FragmentBatch) -> Tensor:
        """Return the summed negative log-likelihood of the fragments."""
        read = batch.decoder_input_ids
        given = {"decoder_input_ids": read, "decoder_position_ids": batch.decoder_position_ids}
        if self.language is not None:
            given |= {
                "langs": torch.full_like(batch.input_ids, self.language),
                "decoder_langs": torch.full_like(read, self.language),
            }
        output = model(batch.input_ids, logits=False, **given)
        return model.head.loss(output.last_hidden_state, batch.targets)
