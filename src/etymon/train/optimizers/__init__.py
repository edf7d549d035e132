"""The optimizers, one file each; which parameters go to which, at what rate; what they remember."""

from etymon.train.optimizers.adafactor import Adafactor, AdafactorConfig
from etymon.train.optimizers.adam8bit import Adam8bit, Adam8bitConfig
from etymon.train.optimizers.adamw import AdamWConfig
from etymon.train.optimizers.choice import OptimizerConfig, build_optimizers
from etymon.train.optimizers.galore import GaLore, GaLoreConfig
from etymon.train.optimizers.groups import Group, GroupRule, OptimizerSettings, frozen, plan_groups
from etymon.train.optimizers.lion import Lion, LionConfig
from etymon.train.optimizers.mezo import MeZO, MeZOConfig
from etymon.train.optimizers.muon import KELLER_JORDAN, POLAR_EXPRESS, Muon, MuonConfig, orthogonalize
from etymon.train.optimizers.shampoo import Shampoo, ShampooConfig
from etymon.train.optimizers.soap import SOAP, SOAPConfig
from etymon.train.optimizers.state import (
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
    set_momentum,
    state_bytes,
)
from etymon.train.optimizers.width import scale_output, width_factors

__all__ = [
    "KELLER_JORDAN",
    "POLAR_EXPRESS",
    "SOAP",
    "Adafactor",
    "AdafactorConfig",
    "Adam8bit",
    "Adam8bitConfig",
    "AdamWConfig",
    "GaLore",
    "GaLoreConfig",
    "Group",
    "GroupRule",
    "Lion",
    "LionConfig",
    "MeZO",
    "MeZOConfig",
    "Muon",
    "MuonConfig",
    "OptimizerConfig",
    "OptimizerSettings",
    "SOAPConfig",
    "Shampoo",
    "ShampooConfig",
    "build_optimizers",
    "frozen",
    "load_optimizer_tensors",
    "optimizer_tensors",
    "orthogonalize",
    "plan_groups",
    "scale_output",
    "set_learning_rate",
    "set_momentum",
    "state_bytes",
    "width_factors",
]
