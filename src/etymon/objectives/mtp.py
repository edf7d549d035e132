"""Multi-token prediction: heads beside the model's own predict what stands further ahead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from etymon.config import Config
from etymon.data import Batch
from etymon.errors import ConfigError
from etymon.nn import Model
from etymon.nn.future import FutureHeads
from etymon.nn.head import LMHead
from etymon.nn.mtp import AnyHeads, SequentialHeads, build_sequential_heads, check_sequential
from etymon.objectives.clm import row_hidden
from etymon.objectives.objective import Objective, ObjectiveConfig
from etymon.spec import LM, ModelSpec
from etymon.text import Tokenizer


class Residual(Config):
    """`count` heads beside the model's own, one residual block each, that all read its last hidden state: head i, from
    0, predicts what stands i + 2 places ahead, and its loss counts `weight` times `decay` to the power of i (Gloeckle
    et al. 2024, arXiv:2404.19737, whose four predictions count alike; Cai et al. 2024, arXiv:2401.10774)."""

    kind: Literal["residual"] = "residual"
    count: int = Field(default=3, ge=1, le=64)
    weight: float = Field(default=1.0, gt=0)
    decay: float = Field(default=1.0, gt=0, le=1)

    def build(self, model: Model) -> FutureHeads:
        """Return the heads for `model`, which begin as its own."""
        return FutureHeads(model.spec.width, self.count, model.spec.vocab).to(model.device)

    def factors(self, device: torch.device) -> Tensor:
        """Return what each head's loss counts, [count]."""
        return self.weight * self.decay ** torch.arange(self.count, device=device)


class Sequential(Config):
    """`depth` modules beside the model, a block of its own kind each, of which every one goes on from the one before
    and reads the token in between (DeepSeek-AI 2024, arXiv:2412.19437, section 2.2). The mean of their losses counts
    `weight`: 0.3 in DeepSeek-V3, 0.1 in the last third of its tokens, with a depth of 1. `seed` draws them."""

    kind: Literal["sequential"] = "sequential"
    depth: int = Field(default=1, ge=1, le=64)
    weight: float = Field(default=0.3, gt=0)
    seed: int = Field(default=0, ge=0)

    def build(self, model: Model) -> SequentialHeads:
        """Return fresh modules for `model`."""
        return build_sequential_heads(model, self.depth, self.seed)

    def factors(self, device: torch.device) -> Tensor:
        """Return what each module's loss counts, [depth]."""
        return torch.full((self.depth,), self.weight / self.depth, device=device)


def _named(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


class MultiTokenConfig(ObjectiveConfig):
    """Which `heads` there are beside the model's own, `residual` or `sequential` ones, by name or with their settings.
    The trunk is `trained` with them, or `frozen`: then they alone are."""

    kind: Literal["mtp"] = "mtp"
    heads: Annotated[Residual | Sequential, Field(discriminator="kind"), BeforeValidator(_named)] = Residual()
    trunk: Literal["trained", "frozen"] = "trained"


class MultiToken(Objective):
    """The next token and further ones, by heads that are trained beside the model: from its last hidden state alone, or
    each from what the one before made. Residual heads with a frozen trunk and a decay of 0.8 are Medusa-1.

    In the metrics, `loss` is that of the next token, and `future_loss` what the heads add. `begun` are heads to go on
    with in the place of fresh ones.
    """

    name: ClassVar[str] = "mtp"

    def __init__(self, config: MultiTokenConfig | None = None, begun: AnyHeads | None = None) -> None:
        self.config = config or MultiTokenConfig()
        self.begun = begun
        self.heads: AnyHeads | None = None

    @classmethod
    def check(cls, spec: ModelSpec, config: MultiTokenConfig) -> None:
        """Raise ConfigError for a model that is not a decoder alone, or whose block cannot stand behind it."""
        if spec.encoder is not None or not isinstance(spec.head, LM):
            raise ConfigError(f"objective mtp: {spec.name} does not predict tokens from those before them")
        if isinstance(config.heads, Sequential):
            check_sequential(spec)

    @classmethod
    def of(cls, spec: ModelSpec, tokenizer: Tokenizer, config: MultiTokenConfig) -> Self:
        """Return the objective for any tokenizer."""
        return cls(config)

    @classmethod
    def going_on(cls, heads: AnyHeads, config: MultiTokenConfig) -> Self:
        """Return the objective that trains these heads further, with the trunk, by what `config` says of heads of this
        kind, or else by the defaults."""
        own = config.heads
        if isinstance(heads, FutureHeads):
            residual = own if isinstance(own, Residual) else Residual()
            return cls(MultiTokenConfig(heads=residual.model_copy(update={"count": heads.count})), heads)
        sequential = own if isinstance(own, Sequential) else Sequential()
        return cls(MultiTokenConfig(heads=sequential.model_copy(update={"depth": heads.depth})), heads)

    @property
    def settings(self) -> dict[str, Any]:
        """Which heads there are, and what they count."""
        return self.config.model_dump(mode="json", exclude={"kind"})

    def companions(self, model: Model) -> Mapping[str, AnyHeads]:
        """Return the heads."""
        self.heads = self.config.heads.build(model) if self.begun is None else self.begun.to(model.device)
        return {"future_heads": self.heads}

    def loss(self, model: Model, batch: Batch) -> Tensor:
        """Return the summed negative log-likelihood of all predictions, a fp32 scalar."""
        return torch.stack(tuple(self.losses(model, batch).values())).sum()

    def losses(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """Return the model's own `loss`, and, where companions() made heads, their weighted `future_loss`. `batch`
        fields are [batch, time]; nothing is predicted across the end of a document or of a row."""
        assert isinstance(model.head, LMHead)
        with _still(model) if self.config.trunk == "frozen" else nullcontext():
            ids, targets, positions, documents = batch.input_ids, batch.targets, batch.position_ids, batch.documents
            hidden = row_hidden(model, batch)
            losses = {"loss": model.head.loss(hidden, targets)}
            if self.heads is not None:
                if isinstance(self.heads, FutureHeads):
                    ahead = self.heads.loss(model.head, hidden, targets, documents)
                else:
                    ahead = self.heads.loss(model, hidden, ids, targets, positions, documents)
                losses["future_loss"] = (ahead * self.config.heads.factors(ahead.device)).sum()
        return losses


@contextmanager
def _still(model: Model) -> Iterator[None]:
    """Let what is computed inside neither train the model nor drop anything out."""
    training, trained = model.training, [p for p in model.parameters() if p.requires_grad]
    model.eval()
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        model.train(training)
        for parameter in trained:
            parameter.requires_grad_(True)
