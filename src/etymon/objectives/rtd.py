"""Replaced-token detection: a small generator fills masks, and the model says of every token whether it was put in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from etymon.data import IGNORED, Batch
from etymon.errors import ConfigError
from etymon.nn import Model, build
from etymon.objectives.mlm import MASK, choose, mask_of, vocabulary
from etymon.objectives.objective import Objective, ObjectiveConfig
from etymon.spec import (
    LM,
    Attention,
    Block,
    Dense,
    Discriminator,
    Factorised,
    Gated,
    LayerNorm,
    ModelSpec,
    Sub,
    Transform,
)
from etymon.text import Tokenizer


class ReplacedTokensConfig(ObjectiveConfig):
    """`rate` of the tokens are hidden from the generator; `weight` is what the judgements count beside its loss.

    The generator has a share of the model's blocks (`generator_layers`) and of its width (`generator_width`: heads, and
    feed-forward layers in proportion). By default it has half of the blocks, as in DeBERTa v3 (arXiv:2111.09543);
    ELECTRA's have all blocks, and a quarter (small) or a third (base) of the width.
    """

    kind: Literal["rtd"] = "rtd"
    rate: float = Field(default=0.15, gt=0, lt=1)
    weight: float = Field(default=50.0, gt=0)
    generator_layers: float = Field(default=0.5, gt=0, le=1)
    generator_width: float = Field(default=1.0, gt=0, le=1)
    seed: int = Field(default=0, ge=0, description="Of the generator's first weights")


@dataclass(frozen=True)
class ReplacedBatch(Batch):
    """A batch whose chosen tokens are hidden; `weight` [batch] is what the loss of a token's judgement counts."""

    weight: Tensor


class ReplacedTokens(Objective):
    """ELECTRA's objective (Clark et al. 2020, arXiv:2003.10555): the mean loss of a generator on hidden tokens plus
    `config.weight` times the mean loss of the model on all tokens of the text that the generator's samples complete.

    Both share their embeddings. `generator` is its spec (`generator_of`).
    """

    name: ClassVar[str] = "rtd"

    def __init__(
        self,
        mask: int,
        special: tuple[int, ...],
        generator: ModelSpec,
        config: ReplacedTokensConfig | None = None,
    ) -> None:
        self.mask, self.special, self.spec = mask, special, generator
        self.config = config or ReplacedTokensConfig()
        self.generator: Model | None = None

    @classmethod
    def control(cls, config: ReplacedTokensConfig) -> tuple[str, ...]:
        """The mask."""
        return (MASK,)

    @classmethod
    def check(cls, spec: ModelSpec, config: ReplacedTokensConfig) -> None:
        """Raise ConfigError for a model whose head does not judge tokens."""
        if spec.encoder is None or not isinstance(spec.head, Discriminator):
            raise ConfigError(
                f"objective {cls.name}: {spec.name} has no head that says of every token whether it was replaced; "
                "take a discriminator, such as one of family electra"
            )

    @classmethod
    def of(cls, spec: ModelSpec, tokenizer: Tokenizer, config: ReplacedTokensConfig) -> Self:
        """Raises ConfigError for a tokenizer without a mask token."""
        return cls(mask_of(cls.name, tokenizer), vocabulary(tokenizer)[1], generator_of(spec, config), config=config)

    @property
    def settings(self) -> dict[str, Any]:
        """The rates, and what the generator is."""
        plain = {"mask": self.mask, "special": self.special, "generator": self.spec.to_dict()}
        return self.config.model_dump(mode="json", exclude={"kind"}) | plain

    def companions(self, model: Model) -> Mapping[str, Model]:
        """Return the generator, whose embeddings are those of `model`."""
        self.generator = build(self.spec, device=model.device, dtype=model.dtype, seed=self.config.seed)
        for name in ("tokens", "positions", "segments"):
            own, shared = getattr(self.generator.embed, name), getattr(model.embed, name)
            if isinstance(own, torch.nn.Embedding) and own.weight.shape == shared.weight.shape:
                own.weight = shared.weight
        self.generator.tie()
        return {"generator": self.generator}

    def collate(self, batch: Batch, random: np.random.Generator) -> ReplacedBatch:
        """Return the batch with tokens hidden and, as targets, what they were; -100 elsewhere."""
        ids = batch.input_ids.numpy()
        chosen = choose(ids, self.special, self.config.rate, random)
        share = self.config.weight * chosen.sum() / ids.size  # the loop divides all by the number of hidden tokens
        return ReplacedBatch(
            input_ids=torch.from_numpy(np.where(chosen, self.mask, ids)),
            targets=torch.from_numpy(np.where(chosen, ids, IGNORED)),
            position_ids=batch.position_ids,
            documents=batch.documents,
            weight=torch.full((len(ids),), float(share)),
        )

    def loss(self, model: Model, batch: ReplacedBatch) -> Tensor:
        """Return the generator's summed loss on the hidden tokens and the model's weighted one on all tokens."""
        hidden, judged, replaced = self._judged(model, batch)
        weight = batch.weight[0] if len(batch.weight) else 0.0
        assert self.generator is not None
        return self.generator.head.loss(hidden, batch.targets) + weight * model.head.loss(judged, replaced)

    def rights(self, model: Model, batch: ReplacedBatch) -> dict[str, tuple[Tensor, Tensor]]:
        """Return how many tokens the model judges rightly, and how many of the replaced ones it finds."""
        _, judged, replaced = self._judged(model, batch)
        right = (model.head(judged) > 0) == replaced.bool()
        everything = torch.full_like(batch.weight, replaced.shape[1], dtype=torch.int64)
        return {
            "tokens judged rightly": (right.sum(1), everything),
            "replaced tokens found": ((right & replaced.bool()).sum(1), replaced.sum(1)),
        }

    def _judged(self, model: Model, batch: ReplacedBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the generator's states, the model's of the text that samples complete, and which tokens they
        replace."""
        assert self.generator is not None, "companions() makes the generator"
        given = {"position_ids": batch.position_ids, "documents": batch.documents, "logits": False}
        hidden = self.generator(batch.input_ids, **given).last_hidden_state
        chosen = batch.targets != IGNORED
        with torch.no_grad():
            sampled = self.generator.head(hidden[chosen]).float().softmax(-1).multinomial(1)[:, 0]
        completed = batch.input_ids.masked_scatter(chosen, sampled)
        replaced = (chosen & (completed != batch.targets)).long()
        judged = model(completed, **given).last_hidden_state
        return hidden, judged, replaced


def generator_of(spec: ModelSpec, config: ReplacedTokensConfig | None = None) -> ModelSpec:
    """Return a model that predicts hidden tokens, with the embeddings of `spec` and a share of its blocks and width.

    Raises ConfigError for a narrower one of a model whose blocks are not of plain attention and feed-forward layers.
    """
    config = config or ReplacedTokensConfig()
    assert spec.encoder is not None
    own = spec.embed.width(spec.dim)
    blocks = spec.encoder.blocks[: max(1, round(len(spec.encoder.blocks) * config.generator_layers))]
    dim = spec.dim
    if config.generator_width < 1:
        dim, blocks = _narrower(spec, blocks, config.generator_width)
    embed = spec.embed
    if embed.projection is None and dim != own:
        embed = dataclasses.replace(embed, projection=Factorised(width=own))
    return dataclasses.replace(
        spec,
        name=f"{spec.name}-generator",
        dim=dim,
        embed=embed,
        encoder=dataclasses.replace(spec.encoder, blocks=blocks),
        head=LM(tied=True, bias=True, projection=Transform(width=own, activation="gelu", norm=LayerNorm(eps=1e-12))),
    )


def _narrower(spec: ModelSpec, blocks: tuple[Block, ...], part: float) -> tuple[int, tuple[Block, ...]]:
    """Return the width and the blocks with `part` of the heads."""

    def narrow(sub: Sub) -> Sub:
        op = sub.op
        match op:
            case Attention() if op.heads == op.kv_heads and op.query_width == spec.dim:
                heads = max(1, round(op.heads * part))
                return dataclasses.replace(sub, op=dataclasses.replace(op, heads=heads, kv_heads=heads))
            case Dense() | Gated():
                return dataclasses.replace(sub, op=dataclasses.replace(op, hidden=max(1, round(op.hidden * part))))
        raise ConfigError(f"objective rtd: generator_width does not know {op.name} of {spec.name}; leave it out")

    narrowed = tuple(dataclasses.replace(block, subs=tuple(map(narrow, block.subs))) for block in blocks)
    attention = next(sub.op for sub in narrowed[0].subs if isinstance(sub.op, Attention))
    return attention.query_width, narrowed
