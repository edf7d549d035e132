"""Translation language modelling: a sentence and its translation in one row, tokens of both hidden."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from etymon.data import Encoded, Examples, Record, padded
from etymon.errors import ConfigError, DataError
from etymon.nn import Model
from etymon.objectives.mlm import MaskedLM, TokenMasking, mask_of, vocabulary, words_of
from etymon.objectives.objective import Reads
from etymon.objectives.pairs import end_of
from etymon.objectives.texts import columns, require_two
from etymon.spec import ModelSpec
from etymon.text import Framed, Tokenizer

Language = Annotated[int, Field(ge=0)]


class TranslationLMConfig(TokenMasking):
    """What is hidden, and what becomes of it; `languages` are those of the first and of the second text, where a model
    has vectors for them."""

    kind: Literal["tlm"] = "tlm"
    languages: tuple[Language, Language] = (0, 1)


@dataclass(frozen=True)
class TranslationBatch(Examples):
    """Rows of two texts, all [batch, time]: which of their tokens are `real`, in which place of its own text each
    stands, and of which language it is."""

    real: Tensor
    position_ids: Tensor
    langs: Tensor


@dataclass(frozen=True)
class TranslationLM(MaskedLM):
    """XLM's objective on parallel texts (Lample & Conneau 2019, arXiv:1901.07291): both stand between two `end`, one
    behind the other, positions begin again at the second, and hidden tokens of each can be read off the other.
    `several` says whether the model has vectors for languages.
    """

    name: ClassVar[str] = "tlm"
    reads: ClassVar[Reads] = "pairs"
    config: TranslationLMConfig = TranslationLMConfig()
    end: int = 0
    several: bool = False

    @classmethod
    def check(cls, spec: ModelSpec, config: Any) -> None:
        """Raise ConfigError for a model that is no encoder with a language-model head, or has not these languages."""
        super().check(spec, config)
        if spec.embed.languages and max(config.languages) >= spec.embed.languages:
            raise ConfigError(
                f"objective {cls.name}: {spec.name} has {spec.embed.languages} languages, numbered from 0, so that "
                f"languages={list(config.languages)} cannot be"
            )

    @classmethod
    def of(cls, spec: ModelSpec, tokenizer: Tokenizer, config: Any) -> Self:
        """Raises ConfigError for a tokenizer without a mask token, or without one that ends texts."""
        words, several = words_of(tokenizer, config), spec.embed.languages > 0
        mask, end = mask_of(cls.name, tokenizer), end_of(cls.name, tokenizer)
        return cls(mask, *vocabulary(tokenizer), config=config, words=words, end=end, several=several)

    @classmethod
    def check_record(cls, record: Record, config: Any) -> None:
        """Raise DataError for other than two texts."""
        require_two(cls.name, record)

    def encode(self, tokenizer: Tokenizer, record: Record, context: int) -> Encoded:
        """Return both texts, which fit one row with four `end`; the longer one is cut first."""
        self.check_record(record, self.config)
        texts = [tokenizer.encode(text) for text in record.texts]
        room = context - 4
        if room < 2:
            raise DataError(f"a context of {context} tokens has no room for two texts and the 4 around them")
        whole = sum(map(len, texts)) <= room
        while sum(map(len, texts)) > room:
            max(texts, key=len).pop()
        return Encoded(tuple(Framed(ids, [0] * len(ids)) for ids in texts), 0, not whole)

    def collate(self, batch: Any, random: np.random.Generator) -> TranslationBatch:
        """Return rows of both texts with tokens hidden and, as targets, what they were; -100 elsewhere."""
        pairs = list(zip(*columns(self.name, batch, 2), strict=True))
        sides = [[[self.end, *ids, self.end] for ids in pair] for pair in pairs]
        ids = padded([[*first, *second] for first, second in sides], self.end)  # never hidden, and seen by nobody
        seen, targets = self.hide(ids, random)
        one, other = self.config.languages
        fields = (
            [[1] * (len(first) + len(second)) for first, second in sides],
            [[*range(len(first)), *range(len(second))] for first, second in sides],
            [[one] * len(first) + [other] * len(second) for first, second in sides],
        )
        return TranslationBatch(*map(torch.from_numpy, (seen, targets, *(padded(rows, 0) for rows in fields))))

    def read(self, model: Model, batch: Any) -> Tensor:
        """Return the states [batch, time, dim] of both texts."""
        langs = batch.langs if self.several else None
        given = {"langs": langs, "logits": False}
        hidden: Tensor = model(batch.input_ids, batch.real, batch.position_ids, **given).last_hidden_state
        return hidden
