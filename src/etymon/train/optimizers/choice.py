"""The optimizers that a recipe can name, and those of a model."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from etymon.nn import Model
from etymon.train.optimizers.adafactor import AdafactorConfig
from etymon.train.optimizers.adam8bit import Adam8bitConfig
from etymon.train.optimizers.adamw import AdamWConfig
from etymon.train.optimizers.galore import GaLoreConfig
from etymon.train.optimizers.groups import OptimizerSettings, plan_groups
from etymon.train.optimizers.lion import LionConfig
from etymon.train.optimizers.mezo import MeZOConfig
from etymon.train.optimizers.muon import MuonConfig
from etymon.train.optimizers.shampoo import ShampooConfig
from etymon.train.optimizers.soap import SOAPConfig
from etymon.train.together import Together

OptimizerConfig = Annotated[
    AdamWConfig
    | MuonConfig
    | SOAPConfig
    | ShampooConfig
    | LionConfig
    | AdafactorConfig
    | Adam8bitConfig
    | GaLoreConfig
    | MeZOConfig,
    Field(discriminator="kind"),
]
"""The settings of one optimizer, by its `kind`."""


def build_optimizers(
    model: Model | Together, config: OptimizerSettings, *, muon_dtype: torch.dtype = torch.float32
) -> list[torch.optim.Optimizer]:
    """Return the optimizers that together update every parameter of `model` that is trained once.

    Each of their groups has a `name` and knows its `base_lr`. Raises ConfigError for groups that do not fit the model.
    """
    return config.build([group for group in plan_groups(model, config) if not group.frozen], muon_dtype)
