"""What a training step asks of an objective: how a batch is prepared, and the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Self, cast

import numpy as np
from torch import Tensor

from etymon.config import Config
from etymon.data import IGNORED, Encoded, Examples, Loader, PretrainLoader, Record, TokenShards
from etymon.nn import Model
from etymon.nn.layers import Layers
from etymon.nn.mtp import AnyHeads
from etymon.spec import ModelSpec
from etymon.text import Tokenizer

Reads = Literal["documents", "pairs", "labelled"]
"""What a loader has: text without end, pairs of texts, or texts with a class each."""

Companion = Model | AnyHeads | Layers
"""What an objective may train beside a model, and checkpoints keep with it."""


class ObjectiveConfig(Config):
    """The base of an objective's settings, which a recipe gives as `objective: {kind: …, …}`; `kind` is its name."""

    kind: str


@dataclass(frozen=True)
class Objective:
    """What a training step minimises; the loop divides by the number of trained tokens of the whole batch.

    `name` is what recipes and runs call it, and the `kind` of its `config`, which each objective declares beside it.
    The other fields are what a model and its tokenizer add: ids, sizes. `reads` says what its loader must have.
    """

    name: ClassVar[str]
    reads: ClassVar[Reads] = "documents"

    @classmethod
    def control(cls, config: Any) -> tuple[str, ...]:
        """Return the tokens that it needs of a tokenizer that is trained for it."""
        return ()

    @classmethod
    def check(cls, spec: ModelSpec, config: Any) -> None:
        """Raise ConfigError for a model of another kind."""

    @classmethod
    def of(cls, spec: ModelSpec, tokenizer: Tokenizer, config: Any) -> Self:
        """Return the objective for a model of its kind. Raises ConfigError where the tokenizer lacks a token for it."""
        kind: Any = cls  # every objective has a config
        return cast(Self, kind(config=config))

    @classmethod
    def trains(cls, spec: ModelSpec, config: Any) -> ModelSpec:
        """Return the model that it trains in the place of one of `spec`: with another head, where it takes one, or
        another visibility."""
        return spec

    @classmethod
    def check_record(cls, record: Record, config: Any) -> None:
        """Raise DataError, with the record's place, where it has no label or not as many texts as it should."""

    def encode(self, tokenizer: Tokenizer, record: Record, context: int) -> Encoded:
        """Return a record that was checked as ids, its texts cut to fit `context`: what objectives do that read no
        documents."""
        raise NotImplementedError

    @property
    def settings(self) -> dict[str, Any]:
        """What batches and losses depend on besides the loader (JSON values): a run that is resumed has the same."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return own.pop("config").model_dump(mode="json", exclude={"kind"}) | own

    def companions(self, model: Model) -> Mapping[str, Companion]:
        """Return what is trained beside `model` by the same steps, by name, as it is before the first one. In a
        checkpoint, models have a directory of that name, layers a file, and heads that look ahead lie beside."""
        return {}

    def loader(
        self, shards: TokenShards, batch_size: int, context: int, seed: int = 0, *, database: TokenShards | None = None
    ) -> Loader:
        """Return its batches of documents. `database` are those that it may look things up in: the same by default."""
        return PretrainLoader(shards, batch_size, context, seed)

    def collate(self, batch: Any, random: np.random.Generator) -> Examples:
        """Return what the model is to see of a loader's batch; `random` depends on the run's seed and the step."""
        assert isinstance(batch, Examples)
        return batch

    def loss(self, model: Model, batch: Any) -> Tensor:
        """Return the loss SUMMED over the trained tokens of `batch` (some rows of a global batch), a fp32 scalar."""
        raise NotImplementedError

    def split(self, micro_batch: int | None) -> tuple[Objective, int | None]:
        """Return the objective where `micro_batch` rows are to be held at a time, and how many rows the loop is to give
        it: so many, or None, all of them, where rows are compared with one another."""
        return self, micro_batch

    def losses(self, model: Model, batch: Any) -> Mapping[str, Tensor]:
        """Return the parts of which `loss` is the sum, by the names that metrics give them: "loss" is what the model is
        measured by, on held-out text too."""
        return {"loss": self.loss(model, batch)}

    def rights(self, model: Model, batch: Any) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Return what the evaluation of a model counts beside its loss, by name: how much of each row is right, and of
        how much, both [rows]."""
        return {}


def class_rights(logits: Tensor, targets: Tensor, name: str = "accuracy") -> dict[str, tuple[Tensor, Tensor]]:
    """Return what `Objective.rights` does of classes: by their `logits` [rows, classes]; targets of -100 do not
    count."""
    return {name: (logits.argmax(-1) == targets, targets != IGNORED)}


class Collated:
    """A loader whose batches an objective has prepared; still a pure function of the step."""

    def __init__(self, loader: Loader, objective: Objective, seed: int) -> None:
        self._loader, self._objective, self._seed = loader, objective, seed
        self.batch_size, self.context = loader.batch_size, loader.context
        self.n_tokens, self.steps_per_epoch = loader.n_tokens, loader.steps_per_epoch
        self.fingerprint = loader.fingerprint

    def batch(self, step: int) -> Examples:
        """Return the batch of `step`, collated."""
        return self._objective.collate(self._loader.batch(step), np.random.default_rng((self._seed, step)))
