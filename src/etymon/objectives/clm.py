"""Causal language modelling: every trained position predicts its target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from etymon.data import IGNORED, Batch
from etymon.errors import ConfigError
from etymon.nn import Model
from etymon.objectives.objective import Objective, ObjectiveConfig
from etymon.spec import LM, ModelSpec


class CausalLMConfig(ObjectiveConfig):
    """Nothing to choose."""

    kind: Literal["clm"] = "clm"


@dataclass(frozen=True)
class CausalLM(Objective):
    """Negative log-likelihood of `batch.targets` (Bengio et al. 2003 in its decoder-only form, Radford et al. 2018).

    Pretraining and supervised fine-tuning are the same objective: they differ in which targets are -100. A model whose
    prefixes see themselves reads as one what comes before the first trained token of a document: the first prompt of a
    conversation, nothing where all is trained.
    """

    name: ClassVar[str] = "clm"
    config: CausalLMConfig = CausalLMConfig()

    @classmethod
    def check(cls, spec: ModelSpec, config: CausalLMConfig) -> None:
        """Raise ConfigError for a model that is not a decoder alone."""
        if spec.encoder is not None or not isinstance(spec.head, LM):
            raise ConfigError(f"objective clm: {spec.name} does not predict each token from those before it")

    def loss(self, model: Model, batch: Batch) -> Tensor:
        """Return the summed negative log-likelihood in nats, a fp32 scalar. `batch` fields are [batch, time]."""
        return row_loss(model, batch)


def row_loss(model: Model, batch: Batch) -> Tensor:
    """Return the summed negative log-likelihood of the targets of a decoder's rows, each predicted from its place."""
    return model.head.loss(row_hidden(model, batch), batch.targets)


def row_hidden(model: Model, batch: Batch) -> Tensor:
    """Return the last hidden states [batch, time, dim] of a decoder's rows."""
    told = {"prefix": prefixes(batch)} if model.prefixed else {}
    places = {"position_ids": batch.position_ids, "documents": batch.documents}
    hidden: Tensor = model(batch.input_ids, **places, **told, logits=False).last_hidden_state
    return hidden


def prefixes(batch: Batch) -> Tensor:
    """Return which tokens [batch, time] lie before the first trained one of their document."""
    trained = (batch.targets != IGNORED).long()
    before = trained.cumsum(1) - trained
    begins = F.pad(batch.documents[:, 1:] != batch.documents[:, :-1], (1, 0), value=True)
    return before == torch.where(begins, before, 0).cummax(1).values
