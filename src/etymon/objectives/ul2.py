"""A mixture of denoisers: short spans, long or many spans, or the rest of a text, and a token that says which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field
from torch import Tensor

from etymon.config import Config
from etymon.data import Batch, PairBatch, make_pairs
from etymon.errors import ConfigError, DataError, suggest
from etymon.nn import Model
from etymon.objectives.objective import Objective, ObjectiveConfig
from etymon.objectives.pairs import decoder_start, end_of
from etymon.objectives.prefix_lm import Sight, check_prefix, prefix_loss, prefix_rows, suffix_length, with_sight
from etymon.objectives.spans import SENTINELS, corrupt, counts, gaps, pieces, sentinels_of
from etymon.spec import ModelSpec
from etymon.text import Tokenizer

# What the paper calls R, S and X, as the released checkpoints write it.
MODES = {"R": "[NLU]", "S": "[S2S]", "X": "[NLG]"}


class SpanDenoiser(Config):
    """`rate` of the tokens fall into spans of `span` tokens on average, each a sentinel. `weight` is how often this
    denoiser is drawn beside the others."""

    kind: Literal["spans"] = "spans"
    mode: Literal["R", "X"]
    rate: float = Field(gt=0, lt=1)
    span: float = Field(ge=1, le=1000)
    weight: float = Field(default=1.0, gt=0)


class PrefixDenoiser(Config):
    """The rest of a text, `rate` of it on average, behind its beginning and one sentinel."""

    kind: Literal["prefix"] = "prefix"
    mode: Literal["S"] = "S"
    rate: float = Field(gt=0, le=0.5)
    weight: float = Field(default=1.0, gt=0)


Denoiser = Annotated[SpanDenoiser | PrefixDenoiser, Field(discriminator="kind")]

# The table of UL2's section 3.1 (all as often), and what U-PaLM continued with.
MIXTURES: dict[str, tuple[SpanDenoiser | PrefixDenoiser, ...]] = {
    "ul2": (
        SpanDenoiser(mode="R", span=3, rate=0.15),
        SpanDenoiser(mode="R", span=8, rate=0.15),
        PrefixDenoiser(rate=0.25),
        SpanDenoiser(mode="X", span=3, rate=0.5),
        SpanDenoiser(mode="X", span=8, rate=0.5),
        SpanDenoiser(mode="X", span=64, rate=0.15),
        SpanDenoiser(mode="X", span=64, rate=0.5),
    ),
    "ul2r": (
        SpanDenoiser(mode="R", span=3, rate=0.15, weight=0.25),
        SpanDenoiser(mode="X", span=3, rate=0.5, weight=0.125),
        SpanDenoiser(mode="X", span=32, rate=0.15, weight=0.125),
        PrefixDenoiser(rate=0.5, weight=0.5),
    ),
}


def _named(value: Any) -> Any:
    """Let a name stand for its mixture; an unknown one is refused with the nearest."""
    if isinstance(value, str) and value not in MIXTURES:
        raise ConfigError(f"unknown mixture {value!r}; known: {', '.join(MIXTURES)}.{suggest(value, MIXTURES)}")
    return MIXTURES[value] if isinstance(value, str) else value


class UL2Config(ObjectiveConfig):
    """`mixture` are the denoisers that are drawn from, or the name of a paper's: ul2, ul2r. `modes`: each text begins
    with a control token of the tokenizer, with its name as text (as UL2's released tokenizer has it), or with none.
    `sight` is for decoders alone, as for `prefix_lm`."""

    kind: Literal["ul2"] = "ul2"
    mixture: Annotated[tuple[Denoiser, ...], Field(min_length=1), BeforeValidator(_named)] = MIXTURES["ul2"]
    modes: Literal["tokens", "text", "none"] = "tokens"
    sight: Sight | None = None


@dataclass(frozen=True)
class UL2(Objective):
    """UL2's objective (Tay et al. 2022, arXiv:2205.05131); with `mixture: ul2r` that of UL2R (Tay et al. 2022,
    arXiv:2210.11399), by which a causal decoder's training goes on. For each row one denoiser is drawn; spans stand
    anywhere. `prompts` are the ids with which a text begins, by mode.

    An encoder reads what is left, and the decoder, which begins with `start`, writes what is hidden. A decoder alone
    (`start` is None) reads both in its row, of which only what is hidden is trained.
    """

    name: ClassVar[str] = "ul2"
    prompts: dict[str, tuple[int, ...]]
    sentinels: tuple[int, ...]
    start: int | None
    end: int
    config: UL2Config = UL2Config()

    @classmethod
    def control(cls, config: UL2Config) -> tuple[str, ...]:
        """A hundred sentinels, and the modes where they are tokens."""
        return (*MODES.values(), *SENTINELS) if config.modes == "tokens" else SENTINELS

    @classmethod
    def check(cls, spec: ModelSpec, config: UL2Config) -> None:
        """Raise ConfigError for an encoder alone, or a model whose prefix is not seen as `sight` says."""
        check_prefix(cls.name, spec, config.sight)

    @classmethod
    def trains(cls, spec: ModelSpec, config: UL2Config) -> ModelSpec:
        """Return the model with the visibility that `sight` asks for."""
        return with_sight(spec, config.sight)

    @classmethod
    def of(cls, spec: ModelSpec, tokenizer: Tokenizer, config: UL2Config) -> Self:
        """Raises ConfigError for a tokenizer without sentinels, or without the modes that `modes` asks for."""
        start = None if spec.encoder is None else decoder_start(cls.name, spec, tokenizer)
        sentinels, end = sentinels_of(cls.name, tokenizer), end_of(cls.name, tokenizer)
        return cls(_prompts(cls.name, tokenizer, config), sentinels, start, end, config)

    def collate(self, batch: Batch, random: np.random.Generator) -> Batch | PairBatch:
        """Return rows by a denoiser each, cut so that both sides fit; documents of a row are one text."""
        denoisers = self.config.mixture
        weights = np.array([denoiser.weight for denoiser in denoisers])
        rows = batch.input_ids.numpy()
        drawn = random.choice(len(denoisers), len(rows), p=weights / weights.sum())
        sides = [self._sides(row, denoisers[i], random) for row, i in zip(rows, drawn, strict=True)]
        if self.start is None:
            return prefix_rows(sides, rows.shape[1])
        sources = [[*source, self.end] for source, _ in sides]
        return make_pairs(sources, [[self.start, *target[:-1]] for _, target in sides], [target for _, target in sides])

    def _sides(
        self, ids: NDArray[np.int64], denoiser: SpanDenoiser | PrefixDenoiser, random: np.random.Generator
    ) -> tuple[list[int], list[int]]:
        """Return what is given, behind its mode, and what is hidden, with its end."""
        prompt = self.prompts[denoiser.mode]
        ids = ids[: self._room(len(ids), len(prompt), denoiser)]
        if isinstance(denoiser, PrefixDenoiser):
            cut = len(ids) - suffix_length(len(ids), denoiser.rate, random)
            return [*prompt, *ids[:cut].tolist(), self.sentinels[0]], [*ids[cut:].tolist(), self.end]
        hidden, count = counts(len(ids), denoiser.rate, denoiser.span)
        kept = gaps(len(ids) - hidden, count, random)
        source, target = corrupt(ids, kept, pieces(hidden, count, random), self.sentinels)
        return [*prompt, *source], [*target, self.end]

    def _room(self, time: int, prompt: int, denoiser: SpanDenoiser | PrefixDenoiser) -> int:
        """Return how many tokens of a text fit. A decoder's row reads all but the last of both sides."""
        if self.start is not None:
            length = time - prompt - 2  # a sentinel stands for a token at least, but for the one behind a prefix
        else:
            length = time - prompt
            while length > 1 and length + _added(length, denoiser) > time + 1 - prompt:
                length -= 1
        if length < 2:
            raise DataError(f"a row of {time} tokens is too short to hide a part of it behind {prompt} for its mode")
        return length

    def loss(self, model: Model, batch: Batch | PairBatch) -> Tensor:
        """Return the summed negative log-likelihood of what is hidden."""
        return prefix_loss(model, batch)


def _added(length: int, denoiser: SpanDenoiser | PrefixDenoiser) -> int:
    """Return how many tokens besides its own a text of this length has on both sides together, without its mode."""
    sentinels = 1 if isinstance(denoiser, PrefixDenoiser) else 2 * counts(length, denoiser.rate, denoiser.span)[1]
    return sentinels + 1


def _prompts(objective: str, tokenizer: Tokenizer, config: UL2Config) -> dict[str, tuple[int, ...]]:
    """Return the ids that say a text's mode. Raises ConfigError where they should be tokens and are none."""
    if config.modes == "none":
        return dict.fromkeys(MODES, ())
    if config.modes == "text":
        return {mode: tuple(tokenizer.encode(name)) for mode, name in MODES.items()}
    known = {mode: (name, f"[{mode}]") for mode, name in MODES.items()}
    found = {mode: [tokenizer.special[n] for n in names if n in tokenizer.special] for mode, names in known.items()}
    if lacking := [MODES[mode] for mode, ids in found.items() if not ids]:
        raise ConfigError(
            f"objective {objective}: the tokenizer has no control token {', '.join(lacking)}. Set `modes: none`, or "
            "`modes: text` to write them as text, or train a tokenizer with them among its special tokens"
        )
    return {mode: (ids[0],) for mode, ids in found.items()}
