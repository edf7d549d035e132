"""The one training loop, its optimizers, schedules, checkpoints and metrics."""

from etymon.train.average import EMA, SWA
from etymon.train.config import Budget, TrainConfig
from etymon.train.fork import fork, shared_steps
from etymon.train.held_out import held_out_loss
from etymon.train.loop import FitResult, Hook, TrainingInterrupted, fit
from etymon.train.metrics import read_metrics
from etymon.train.optimizers import (
    AdafactorConfig,
    Adam8bitConfig,
    AdamWConfig,
    GaLoreConfig,
    GroupRule,
    LionConfig,
    MeZOConfig,
    Muon,
    MuonConfig,
    ShampooConfig,
    SOAPConfig,
    scale_output,
)
from etymon.train.schedules import Constant, Cosine, InverseSquareRoot, Linear, OneCycle, Tokens, WarmupStableDecay
from etymon.train.warmup import BatchWarmup, ContextWarmup

__all__ = [
    "EMA",
    "SWA",
    "AdafactorConfig",
    "Adam8bitConfig",
    "AdamWConfig",
    "BatchWarmup",
    "Budget",
    "Constant",
    "ContextWarmup",
    "Cosine",
    "FitResult",
    "GaLoreConfig",
    "GroupRule",
    "Hook",
    "InverseSquareRoot",
    "Linear",
    "LionConfig",
    "MeZOConfig",
    "Muon",
    "MuonConfig",
    "OneCycle",
    "SOAPConfig",
    "ShampooConfig",
    "Tokens",
    "TrainConfig",
    "TrainingInterrupted",
    "WarmupStableDecay",
    "fit",
    "fork",
    "held_out_loss",
    "read_metrics",
    "scale_output",
    "shared_steps",
]
