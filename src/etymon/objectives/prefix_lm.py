"""Prefix language modelling: the beginning of a text is given, and the rest of it predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from etymon.data import IGNORED, Batch, PairBatch, make_pairs, padded
from etymon.data.batch import make_batch
from etymon.errors import ConfigError
from etymon.nn import Model
from etymon.objectives.clm import row_loss
from etymon.objectives.objective import Objective, ObjectiveConfig
from etymon.objectives.pairs import decoder_start, end_of, pair_loss
from etymon.spec import LM, Causal, Infill, ModelSpec, Prefix
from etymon.text import Tokenizer

Sight = Literal["full", "causal"]
"""Who sees whom in the prefix that a decoder alone is given: all see all, or each what is before it."""


class PrefixLMConfig(ObjectiveConfig):
    """What is predicted is `rate` of a text on average: any length from one token to twice that, equally likely.
    `sight` makes a decoder alone one whose prefixes see themselves, or do not; by default it stays what it is."""

    kind: Literal["prefix_lm"] = "prefix_lm"
    rate: float = Field(default=0.5, gt=0, le=0.5)
    sight: Sight | None = None


@dataclass(frozen=True)
class PrefixLM(Objective):
    """T5's prefix language modelling (Raffel et al. 2019, arXiv:1910.10683, section 3.2; Liu et al. 2018,
    arXiv:1801.10198). An encoder reads the prefix, and the decoder, which begins with `start`, writes the rest; `end`
    closes both. A decoder alone (`start` is None) reads both in its row; only the rest is trained, in each of the row's
    documents, and with `sight: full` the model that is trained is one in which the tokens of a prefix see one another.
    """

    name: ClassVar[str] = "prefix_lm"
    start: int | None
    end: int | None
    config: PrefixLMConfig = PrefixLMConfig()

    @classmethod
    def check(cls, spec: ModelSpec, config: PrefixLMConfig) -> None:
        """Raise ConfigError for an encoder alone, or a model whose prefix is not seen as `sight` says."""
        check_prefix(cls.name, spec, config.sight)

    @classmethod
    def trains(cls, spec: ModelSpec, config: PrefixLMConfig) -> ModelSpec:
        """Return the model with the visibility that `sight` asks for."""
        return with_sight(spec, config.sight)

    @classmethod
    def of(cls, spec: ModelSpec, tokenizer: Tokenizer, config: PrefixLMConfig) -> Self:
        """Raises ConfigError for an encoder with a decoder where the tokenizer has no token that ends a text."""
        if spec.encoder is None:
            return cls(None, None, config)
        return cls(decoder_start(cls.name, spec, tokenizer), end_of(cls.name, tokenizer), config)

    def collate(self, batch: Batch, random: np.random.Generator) -> Batch | PairBatch:
        """Return prefixes and what follows them; for an encoder, documents of a row are one text."""
        if self.start is None or self.end is None:
            return self._rows(batch, random)
        rows = batch.input_ids.numpy()
        cuts = [len(row) - suffix_length(len(row), self.config.rate, random) for row in rows]
        sources = [[*row[:cut].tolist(), self.end] for row, cut in zip(rows, cuts, strict=True)]
        targets = [[*row[cut:].tolist(), self.end] for row, cut in zip(rows, cuts, strict=True)]
        return make_pairs(sources, [[self.start, *target[:-1]] for target in targets], targets)

    def _rows(self, batch: Batch, random: np.random.Generator) -> Batch:
        documents = batch.documents.numpy()
        cuts = np.zeros_like(documents)  # where the prefix of a token's document ends
        for row, numbers in zip(cuts, documents, strict=True):
            begins = np.flatnonzero(np.diff(numbers, prepend=-1))
            for begin, stop in zip(begins, [*begins[1:], len(numbers)], strict=True):
                row[begin:stop] = stop - suffix_length(int(stop - begin), self.config.rate, random)
        time = np.arange(documents.shape[1])
        targets = np.where(time + 1 >= cuts, batch.targets.numpy(), IGNORED)
        return replace(batch, targets=torch.from_numpy(targets))

    def loss(self, model: Model, batch: Batch | PairBatch) -> Tensor:
        """Return the summed negative log-likelihood of what follows the prefixes."""
        return prefix_loss(model, batch)


def prefix_loss(model: Model, batch: Batch | PairBatch) -> Tensor:
    """Return the summed negative log-likelihood of what follows sources or prefixes."""
    return pair_loss(model, batch) if isinstance(batch, PairBatch) else row_loss(model, batch)


def with_sight(spec: ModelSpec, sight: Sight | None) -> ModelSpec:
    """Return a decoder whose prefixes see themselves or not, as `sight` says; another model as it is."""
    wanted = {"full": Prefix(), "causal": Causal(), None: spec.trunk.visibility}[sight]
    if spec.decoder is None or not _may_see(spec) or not spec.decoder.attends:
        return spec
    return replace(spec, decoder=replace(spec.decoder, visibility=wanted))


def _may_see(spec: ModelSpec) -> bool:
    return spec.encoder is None and type(spec.trunk.visibility) in (Causal, Prefix)


def check_prefix(objective: str, spec: ModelSpec, sight: Sight | None) -> None:
    """Raise ConfigError for a model that predicts nothing behind a prefix, or whose prefix is not seen as `sight`
    says."""
    if len(spec.stacks) == 2:
        return
    if isinstance(spec.trunk.visibility, Infill):
        raise ConfigError(
            f"objective {objective}: {spec.name} fills blanks in a text that sees itself; take "
            "{kind: infilling, documents: 1}, whose blank is the rest of the text"
        )
    if spec.encoder is not None or not isinstance(spec.head, LM):
        raise ConfigError(f"objective {objective}: {spec.name} writes no text behind a prefix; take a decoder")
    if sight == "full" and not (_may_see(spec) and spec.trunk.attends):
        raise ConfigError(
            f"objective {objective}: {spec.name} reads token after token, so no prefix sees itself. Set `sight: causal`"
        )
    if (wanted := with_sight(spec, sight)) != spec:
        raise ConfigError(
            f"objective {objective}: {spec.name} does not see prefixes as `sight: {sight}` says, but is "
            f"{spec.trunk.visibility}. Make it so: etymon.nn.with_visibility(model, {wanted.trunk.visibility})"
        )


def suffix_length(length: int, rate: float, random: np.random.Generator) -> int:
    """Return how many of `length` tokens follow the prefix: `rate` of them on average. One token has no prefix."""
    return int(random.integers(1, max(1, min(length - 1, round(2 * rate * length))) + 1))


def prefix_rows(sides: Sequence[tuple[list[int], list[int]]], time: int) -> Batch:
    """Return rows of `time` tokens of what is given and what is wanted behind it, one token fewer than both have: each
    token of what is wanted is the target of the place before it."""
    rows = [[*given, *wanted] for given, wanted in sides]
    ids, targets = np.zeros((len(rows), time), np.int64), np.full((len(rows), time), IGNORED)
    ids[:, : max(map(len, rows)) - 1] = padded([row[:-1] for row in rows], 0)
    for target, row, (given, wanted) in zip(targets, rows, sides, strict=True):
        target[len(given) - 1 : len(row) - 1] = wanted
    return make_batch(ids, targets, np.zeros(ids.shape, dtype=np.bool_))
