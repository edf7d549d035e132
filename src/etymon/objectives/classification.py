"""Classification: which of some classes a text, or a pair of texts, belongs to."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
from torch import Tensor

from etymon.data import Encoded, Record, RecordBatch
from etymon.errors import DataError
from etymon.nn import Model, whole_texts
from etymon.objectives.objective import Objective, ObjectiveConfig, Reads, class_rights
from etymon.objectives.texts import Labels, PoolingName, class_of, framed, pooling_named, require_head
from etymon.spec import Classify, ModelSpec, Pooling
from etymon.text import Tokenizer


class ClassificationConfig(ObjectiveConfig):
    """`labels` are the classes, as the rows call them, in the order of the logits. `pooling` says which state stands
    for a text: by default the first of an encoder, the last of a decoder, the mean of an encoder that has a decoder
    behind it."""

    kind: Literal["classification"] = "classification"
    labels: Labels
    pooling: PoolingName | None = None


@dataclass(frozen=True)
class Classification(Objective):
    """Negative log-likelihood of a text's class, from a head that is new (Radford et al. 2018; Devlin et al. 2018,
    arXiv:1810.04805)."""

    name: ClassVar[str] = "classification"
    reads: ClassVar[Reads] = "labelled"
    spec: ModelSpec
    config: ClassificationConfig

    @classmethod
    def trains(cls, spec: ModelSpec, config: ClassificationConfig) -> ModelSpec:
        """Return the model with a head for the classes, unless it has one like it."""
        pooling = _pooling(spec, config)
        if isinstance(spec.head, Classify) and (spec.head.classes, spec.head.pooling) == (len(config.labels), pooling):
            return spec
        return dataclasses.replace(spec, head=Classify(classes=len(config.labels), pooling=pooling))

    @classmethod
    def check(cls, spec: ModelSpec, config: ClassificationConfig) -> None:
        """Raise ConfigError for a model whose head has not these classes."""
        require_head(cls.name, spec, cls.trains(spec, config))

    @classmethod
    def of(cls, spec: ModelSpec, tokenizer: Tokenizer, config: ClassificationConfig) -> Self:
        """Return the objective; any tokenizer will do."""
        return cls(spec, config)

    @property
    def settings(self) -> dict[str, object]:
        """The labels; the head is the model's."""
        return self.config.model_dump(mode="json", exclude={"kind", "pooling"})

    @classmethod
    def check_record(cls, record: Record, config: ClassificationConfig) -> None:
        """Raise DataError for more than two texts, and for a label that is not among the classes."""
        if len(record.texts) > 2:
            raise DataError(f"{record.id} has {len(record.texts)} texts; a class is that of one text, or of two.")
        class_of(record, config.labels)

    def encode(self, tokenizer: Tokenizer, record: Record, context: int) -> Encoded:
        """Return one text, or two side by side, with the number of their class."""
        self.check_record(record, self.config)
        first, *rest = (tokenizer.encode(text) for text in record.texts)
        text, cut = framed(tokenizer, self.spec, first, rest[0] if rest else None, context)
        return Encoded((text,), class_of(record, self.config.labels), cut)

    def collate(self, batch: RecordBatch, random: np.random.Generator) -> RecordBatch:
        """Return the batch as it is. Raises DataError where it has no labelled texts."""
        if not isinstance(batch, RecordBatch):
            raise DataError(f"objective {self.name}: it trains on labelled texts: use a RecordLoader")
        return batch

    def loss(self, model: Model, batch: RecordBatch) -> Tensor:
        """Return the summed negative log-likelihood of the classes."""
        return model.head.loss(_states(model, batch), batch.targets, batch.real[:, 0])  # type: ignore[call-arg]

    def rights(self, model: Model, batch: RecordBatch) -> dict[str, tuple[Tensor, Tensor]]:
        """Return which texts the model tells the class of."""
        return class_rights(model.head(_states(model, batch), batch.real[:, 0]), batch.targets)


def _states(model: Model, batch: RecordBatch) -> Tensor:
    return whole_texts(model, batch.input_ids[:, 0], batch.real[:, 0], batch.segments[:, 0])


def _pooling(spec: ModelSpec, config: ClassificationConfig) -> Pooling:
    if config.pooling is not None:
        return pooling_named(config.pooling)
    return pooling_named("last" if spec.encoder is None else "mean" if spec.decoder is not None else "first")
