"""Pairs of segments: what next-sentence and sentence-order prediction share. Tokens are hidden beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from etymon.data import IGNORED, Batch, Examples
from etymon.errors import ConfigError, DataError, TokenizerError
from etymon.nn import Model
from etymon.nn.head import PretrainingHead
from etymon.objectives.denoising import sentence_ends
from etymon.objectives.mlm import MASK, MaskedLM, TokenMasking, mask_of, vocabulary, words_of
from etymon.objectives.objective import class_rights
from etymon.spec import LM, Classify, ModelSpec, Pretraining
from etymon.text import CLS, SEP, Tokenizer

Ids = NDArray[np.int64]
_FIRST, _SECOND = -1, -2  # where the segments stand in a frame


class SegmentPairsConfig(TokenMasking):
    """Which tokens are hidden, and the share of pairs that are `short`: of a random length, not as long as can be."""

    short: float = Field(default=0.1, ge=0, le=1)


@dataclass(frozen=True)
class SegmentBatch(Examples):
    """Rows `input_ids` [batch, time] of two segments, with tokens hidden; `attention_mask` [batch, time] is 0 behind
    them, `token_type_ids` [batch, time] say which segment a token is of, `labels` [batch] what is to be said of the two
    (-100: nothing), and `weight` [batch] is what the loss of a pair counts."""

    attention_mask: Tensor
    token_type_ids: Tensor
    labels: Tensor
    weight: Tensor


@dataclass(frozen=True, kw_only=True)
class SegmentPairs(MaskedLM):
    """The mean loss of hidden tokens plus the mean loss of what the head says of two segments.

    Each row of the loader gives its longest piece of one document, which is cut behind a sentence (anywhere, where none
    ends in it): one of `breaks`. `frame` are the ids around the two, each with its segment.
    """

    frame: tuple[tuple[int, int], ...]
    breaks: tuple[int, ...]
    pad: int
    config: SegmentPairsConfig

    learns: ClassVar[str]

    @classmethod
    def control(cls, config: TokenMasking) -> tuple[str, ...]:
        """The mask, and what stands around two segments."""
        return (MASK, CLS, SEP)

    @classmethod
    def trains(cls, spec: ModelSpec, config: Any) -> ModelSpec:
        """Return the model with a head for pairs beside the one for tokens, unless it has one."""
        if not isinstance(spec.head, LM) or isinstance(spec.head, Pretraining):
            return spec
        parts = {field.name: getattr(spec.head, field.name) for field in dataclasses.fields(LM)}
        return dataclasses.replace(spec, head=Pretraining(**parts, pair=Classify(classes=2)))

    @classmethod
    def check(cls, spec: ModelSpec, config: TokenMasking) -> None:
        """Raise ConfigError for a model that is no encoder with segments, or whose head says nothing of pairs."""
        super().check(spec, config)
        if spec.embed.segments < 2:
            raise ConfigError(
                f"objective {cls.name}: {spec.name} has no vectors that tell two segments apart; take a model of "
                "family bert, albert or ernie"
            )
        if not isinstance(spec.head, Pretraining) or spec.head.pair.classes != 2:
            raise ConfigError(
                f"objective {cls.name}: {spec.name} has no head that says {cls.learns}. Give it one: "
                "etymon.nn.with_head(model, objective.trains(model.spec, config).head)"
            )

    @classmethod
    def of(cls, spec: ModelSpec, tokenizer: Tokenizer, config: Any) -> Self:
        """Raises ConfigError for a tokenizer without a mask token, or without tokens around two segments."""
        try:
            framed = tokenizer.frame([_FIRST], [_SECOND])
        except TokenizerError:
            raise ConfigError(
                f"objective {cls.name}: the tokenizer does not say how two texts stand together. Load one that has "
                f"[CLS] and [SEP], or train one with {CLS!r} and {SEP!r} among its special tokens"
            ) from None
        frame = tuple(zip(framed.ids, framed.segments, strict=True))
        vocab, special = vocabulary(tokenizer)
        return cls(
            mask=mask_of(cls.name, tokenizer),
            vocab=vocab,
            special=special,
            config=config,
            words=words_of(tokenizer, config),
            frame=frame,
            breaks=sentence_ends(tokenizer, -1 if tokenizer.eos_id is None else tokenizer.eos_id),
            pad=next(id for id, _ in frame if id >= 0) if tokenizer.pad_id is None else tokenizer.pad_id,
        )

    def pair(self, first: Ids, second: Ids, others: Sequence[Ids], random: np.random.Generator) -> tuple[Ids, Ids, int]:
        """Return the segments that a model sees of two that follow one another, and the label of what became of them;
        `others` are texts of other rows."""
        raise NotImplementedError

    def collate(self, batch: Batch, random: np.random.Generator) -> SegmentBatch:
        """Return pairs of segments with tokens hidden and, as targets, what they were; -100 elsewhere.

        Raises DataError for rows too short for a token of each segment.
        """
        rows, time = batch.input_ids.shape
        room = time - (len(self.frame) - 2)
        if room < 2:
            raise DataError(f"a row of {time} tokens has no room for two segments and what stands around them")
        ids, segments = np.full((rows, time), self.pad, dtype=np.int64), np.zeros((rows, time), dtype=np.int64)
        real, labels = np.zeros((rows, time), dtype=np.int64), np.full(rows, IGNORED, dtype=np.int64)
        texts = [self._text(*row) for row in zip(batch.input_ids.numpy(), batch.documents.numpy(), strict=True)]
        for row, whole in enumerate(texts):
            first, second = self._cut(whole[: self._length(min(len(whole), room), random)], random)
            if len(second):
                others = [text for other, text in enumerate(texts) if other != row and len(text)]
                first, second, labels[row] = self.pair(first, second, others, random)
            at = 0
            for id, segment in self.frame:
                part = first if id == _FIRST else second if id == _SECOND else [id]
                stop = at + len(part)
                ids[row, at:stop], segments[row, at:stop], real[row, at:stop] = part, segment, 1
                at = stop
        seen, targets = self.hide(ids, random)
        weight = (targets != IGNORED).sum() / max(1, (labels != IGNORED).sum())  # the loop divides by hidden tokens
        return SegmentBatch(
            input_ids=torch.from_numpy(seen),
            targets=torch.from_numpy(targets),
            attention_mask=torch.from_numpy(real),
            token_type_ids=torch.from_numpy(segments),
            labels=torch.from_numpy(labels),
            weight=torch.full((rows,), float(weight)),
        )

    def _text(self, ids: Ids, documents: Ids) -> Ids:
        """Return the longest piece of one document in a row, without control tokens."""
        numbers, counts = np.unique(documents, return_counts=True)
        text = ids[documents == numbers[counts.argmax()]]
        return text[~np.isin(text, self.special)]

    def _length(self, longest: int, random: np.random.Generator) -> int:
        """Return how long a pair is to be."""
        short = random.random() < self.config.short and longest > 2
        return int(random.integers(2, longest + 1)) if short else longest

    def _cut(self, text: Ids, random: np.random.Generator) -> tuple[Ids, Ids]:
        """Return two segments that make up a text; the second is empty where there are no two tokens."""
        cut = self.start(text[1:], random) + 1
        return text[:cut], text[cut:]

    def start(self, text: Ids, random: np.random.Generator) -> int:
        """Return a place in `text` behind which a token stands, and before which a sentence ends where one does."""
        places = np.flatnonzero(np.isin(text[:-1], self.breaks)) + 1
        if len(places):
            return int(random.choice(places))
        return int(random.integers(len(text))) if len(text) else 0

    def loss(self, model: Model, batch: Any) -> Tensor:
        """Return the sum of both `losses`."""
        return torch.stack(tuple(self.losses(model, batch).values())).sum()

    def losses(self, model: Model, batch: Any) -> dict[str, Tensor]:
        """Return the summed `loss` of the hidden tokens, and the weighted `pair_loss`."""
        assert isinstance(model.head, PretrainingHead)
        hidden = _states(model, batch)
        weight = batch.weight[0] if len(batch.weight) else 0.0
        return {
            "loss": model.head.loss(hidden, batch.targets),
            "pair_loss": weight * model.head.pair.loss(hidden, batch.labels),
        }

    def rights(self, model: Model, batch: Any) -> dict[str, tuple[Tensor, Tensor]]:
        """Return of which pairs the head says rightly what they are."""
        assert isinstance(model.head, PretrainingHead)
        return class_rights(model.head.pair(_states(model, batch)), batch.labels, "pairs told rightly")


def _states(model: Model, batch: Any) -> Tensor:
    assert isinstance(batch, SegmentBatch)
    given = {"token_type_ids": batch.token_type_ids, "logits": False}
    hidden = model(batch.input_ids, batch.attention_mask, **given).last_hidden_state
    assert isinstance(hidden, Tensor)
    return hidden
