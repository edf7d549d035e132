"""Masked language modelling: some tokens are hidden, and the model tells from both sides which they were."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from etymon.config import Config
from etymon.data import IGNORED, Batch, Examples
from etymon.errors import ConfigError
from etymon.nn import Model
from etymon.nn.boundary import SpanBoundary
from etymon.nn.head import LMHead
from etymon.nn.linear import Linear
from etymon.objectives import masking
from etymon.objectives.masking import Draw, Dynamic, Spans, Tokens, Units
from etymon.objectives.objective import Objective, ObjectiveConfig
from etymon.spec import LM, ModelSpec
from etymon.text import Tokenizer, Words, segmenter

MASK = "<|mask|>"


class Masking(ObjectiveConfig):
    """What becomes of tokens that were chosen: `masked` of them are hidden, `replaced` are random, the rest stays."""

    masked: float = Field(default=0.8, ge=0, le=1)
    replaced: float = Field(default=0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.masked + self.replaced > 1 + 1e-9:
            raise ValueError(f"masked ({self.masked:g}) and replaced ({self.replaced:g}) sum to more than 1")
        return self


class TokenMasking(Masking):
    """`rate` is the share of each row's tokens that are chosen, `units` what is chosen together, `draw` how often."""

    rate: float = Field(default=0.15, gt=0, lt=1)
    units: Units = Tokens()
    draw: Draw = Dynamic()


class SpanBoundaryConfig(Config):
    """SpanBERT's second objective (Joshi et al. 2019, arXiv:1907.10529, section 3.2): each token of a hidden span is
    told also from the states beside the span and its place in it, by two layers that the model goes on without. There
    are vectors of `width` for so many `places`, as in the authors' code; tokens behind those are left out."""

    places: int = Field(default=20, ge=1, le=1000)
    width: int = Field(default=200, ge=1, le=10_000)


class MaskedLMConfig(TokenMasking):
    """What is hidden, and what becomes of it; with `boundary`, which `units` of spans can have, the loss of both
    objectives is summed."""

    kind: Literal["mlm"] = "mlm"
    boundary: SpanBoundaryConfig | None = None

    @model_validator(mode="after")
    def _spans_have_boundaries(self) -> Self:
        if self.boundary is not None and not isinstance(self.units, Spans):
            raise ValueError(f"boundary is what spans have, and the units are {self.units.kind}. Set units: spans")
        return self


@dataclass(frozen=True)
class MaskedLM(Objective):
    """BERT's objective (Devlin et al. 2018, arXiv:1810.04805), whose masks are drawn as `config` says.

    Tokens that are not `special` are chosen, and most of them become the id `mask`; the model predicts all of them.
    `words` are those of the tokenizer, where they are hidden whole. `span_boundary` is trained beside the model.
    """

    name: ClassVar[str] = "mlm"
    mask: int
    vocab: int
    special: tuple[int, ...]
    config: TokenMasking = MaskedLMConfig()
    words: Words | None = None
    span_boundary: SpanBoundary | None = None

    @classmethod
    def control(cls, config: TokenMasking) -> tuple[str, ...]:
        """The mask."""
        return (MASK,)

    @classmethod
    def check(cls, spec: ModelSpec, config: TokenMasking) -> None:
        """Raise ConfigError for a model that is no encoder with a language-model head, or without a segmenter for
        Chinese words."""
        if spec.decoder is not None or not isinstance(spec.head, LM):
            raise ConfigError(
                f"objective {cls.name}: {spec.name} is no encoder that predicts hidden tokens; its family has another "
                "objective"
            )
        if getattr(config.units, "boundaries", None) == "chinese":
            segmenter()

    @classmethod
    def of(cls, spec: ModelSpec, tokenizer: Tokenizer, config: TokenMasking) -> Self:
        """Raises ConfigError for a tokenizer without a mask token."""
        layers = boundary_of(spec, config) if isinstance(config, MaskedLMConfig) else None
        ids = (mask_of(cls.name, tokenizer), *vocabulary(tokenizer))
        return cls(*ids, config=config, words=words_of(tokenizer, config), span_boundary=layers)

    @property
    def settings(self) -> dict[str, Any]:
        """All but the words, which are the tokenizer's, and layers, which follow from the rest."""
        found = {name: value for name, value in super().settings.items() if name not in ("words", "span_boundary")}
        if found.get("boundary", ...) is None:  # as runs were recorded before there was such a setting
            del found["boundary"]
        return found

    def companions(self, model: Model) -> Mapping[str, SpanBoundary]:
        """Return the layers that tell tokens from what stands beside their span, where `config` asks for them."""
        if self.span_boundary is None:
            return {}
        self.span_boundary.begin()
        return {"span_boundary": self.span_boundary.to(model.device)}

    @cached_property
    def ordinary(self) -> NDArray[np.int64]:
        """The ids that are not `special`."""
        return np.setdiff1d(np.arange(self.vocab), self.special)

    def hide(self, ids: NDArray[np.int64], random: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return `ids` [batch, time] with tokens hidden and, as targets, what they were; -100 elsewhere."""
        allowed = np.zeros(max(self.vocab, int(ids.max(initial=0)) + 1), dtype=np.bool_)
        allowed[self.ordinary] = True
        drawn = masking.numbers(self.config.draw, ids, random)
        chosen, decides = masking.choose(self.config.units, self.words, ids, allowed[ids], self.config.rate, drawn[:2])
        fate = np.take_along_axis(drawn[2], decides, 1)
        others = self.ordinary[(drawn[3] * len(self.ordinary)).astype(np.int64)]
        seen = np.where(fate < self.config.masked + self.config.replaced, others, ids)
        seen = np.where(chosen, np.where(fate < self.config.masked, self.mask, seen), ids)
        return seen, np.where(chosen, ids, IGNORED)

    def collate(self, batch: Batch, random: np.random.Generator) -> Examples:
        """Return the batch with tokens hidden and, as targets, what they were; -100 elsewhere."""
        seen, targets = self.hide(batch.input_ids.numpy(), random)
        return dataclasses.replace(batch, input_ids=torch.from_numpy(seen), targets=torch.from_numpy(targets))

    def read(self, model: Model, batch: Any) -> Tensor:
        """Return the states [batch, time, dim] that tokens are told from."""
        given = {"position_ids": batch.position_ids, "documents": batch.documents, "logits": False}
        hidden: Tensor = model(batch.input_ids, **given).last_hidden_state
        return hidden

    def loss(self, model: Model, batch: Any) -> Tensor:
        """Return the summed negative log-likelihood of the tokens that were chosen, by one or both objectives."""
        return torch.stack(tuple(self.losses(model, batch).values())).sum()

    def losses(self, model: Model, batch: Any) -> dict[str, Tensor]:
        """Return the `loss` of masked language modelling, and the `boundary_loss` where there is one."""
        hidden = self.read(model, batch)
        losses = {"loss": model.head.loss(hidden, batch.targets)}
        if self.span_boundary is not None and isinstance(model.head.linear, Linear):  # a quantised model trains nothing
            assert isinstance(model.head, LMHead)
            losses["boundary_loss"] = self.span_boundary.loss(model.head, hidden, batch.targets, batch.documents)
        return losses


def boundary_of(spec: ModelSpec, config: MaskedLMConfig) -> SpanBoundary | None:
    """Return new layers for a model of `spec`, where `config` asks for them."""
    if config.boundary is None:
        return None
    assert isinstance(spec.head, LM)
    narrow = spec.head.projection
    width = spec.width if narrow is None else narrow.width
    return SpanBoundary(spec.width, width, config.boundary.places, config.boundary.width)


def choose(
    ids: NDArray[np.int64], special: tuple[int, ...], rate: float, random: np.random.Generator
) -> NDArray[np.bool_]:
    """Return which of `ids` [batch, time] are chosen: in each row `rate` of those that are not `special`, at least one
    where there is any."""
    allowed = ~np.isin(ids, special)
    return masking.choose(Tokens(), None, ids, allowed, rate, random.random((1, *ids.shape)))[0]


def mask_of(objective: str, tokenizer: Tokenizer) -> int:
    """Return the id of the tokenizer's mask. Raises ConfigError where it has none."""
    if tokenizer.mask_id is None:
        raise ConfigError(
            f"objective {objective}: the tokenizer has no mask token. Load one that has, or train one with {MASK!r} "
            "among its special tokens"
        )
    return tokenizer.mask_id


def vocabulary(tokenizer: Tokenizer) -> tuple[int, tuple[int, ...]]:
    """Return the number of ids and which of them are control tokens."""
    return tokenizer.vocab_size, tuple(sorted(tokenizer.special.values()))


def words_of(tokenizer: Tokenizer, config: TokenMasking) -> Words | None:
    """Return the words of the tokenizer's texts, where they are hidden whole."""
    return None if isinstance(config.units, Tokens) else Words(tokenizer, config.units.boundaries)
