"""A tiny model, a loader that is a pure function of its step, and settings for a few steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from etymon.data import Batch
from etymon.nn import Model, build
from etymon.spec import LM, Attention, Block, Embed, Gated, ModelSpec, RMSNorm, Rope, Stack, Sub
from etymon.train import (
    AdafactorConfig,
    Adam8bitConfig,
    AdamWConfig,
    Budget,
    Constant,
    GaLoreConfig,
    LionConfig,
    MeZOConfig,
    MuonConfig,
    ShampooConfig,
    SOAPConfig,
    TrainConfig,
)
from etymon.train.optimizers import OptimizerSettings

OPTIMIZERS: dict[str, OptimizerSettings] = {
    each.kind: each
    for each in (
        AdamWConfig(lr=1e-2),
        MuonConfig(),
        SOAPConfig(lr=1e-2, every=3),
        ShampooConfig(lr=1e-2, every=3),
        LionConfig(lr=1e-3, weight_decay=0.1),
        AdafactorConfig(lr=3e-2, momentum=0.9),
        Adam8bitConfig(lr=1e-2, block=80, min_size=500),
        GaLoreConfig(lr=1e-2, rank=8, every=5, scale=1.0),
        MeZOConfig(lr=1e-3, weight_decay=0.01),
    )
}
"""Every optimizer, at a rate that suits the tiny model."""


def tiny_spec(vocab: int = 61, dim: int = 32, layers: int = 2, tied: bool = True) -> ModelSpec:
    attention = Attention(heads=2, head_dim=dim // 2, kv_heads=1, rope=Rope(dim=dim // 2))
    ffn = Gated(hidden=48, activation="silu")
    block = Block(subs=(Sub(op=attention, pre=RMSNorm()), Sub(op=ffn, pre=RMSNorm())))
    stack = Stack(blocks=(block,) * layers, final_norm=RMSNorm())
    return ModelSpec(
        name="tiny", family="llama", vocab=vocab, dim=dim, context=64, embed=Embed(), decoder=stack, head=LM(tied=tied)
    )


def tiny_model(seed: int = 0, **spec: Any) -> Model:
    """Randomised everywhere: outputs that start at zero would hide gradients."""
    model = build(tiny_spec(**spec), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator)
    return model


@dataclass
class Counting:
    """Rows that count up from a random start, two documents a row: learnable, and random by step."""

    batch_size: int = 6
    context: int = 16
    vocab: int = 61
    seed: int = 0
    masked: float = 0.0

    n_tokens = 10_000

    @property
    def steps_per_epoch(self) -> int:
        return self.n_tokens // (self.batch_size * self.context)

    @property
    def fingerprint(self) -> str:
        return repr(self)

    def batch(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + step)
        start = torch.randint(self.vocab, (self.batch_size, 1), generator=generator)
        ids = (start + torch.arange(self.context + 1)) % self.vocab
        targets = ids[:, 1:].clone()
        targets[torch.rand(targets.shape, generator=generator) < self.masked] = -100
        half = self.context // 2
        documents = (torch.arange(self.context) >= half).long().expand(self.batch_size, -1)
        positions = (torch.arange(self.context) % half).expand(self.batch_size, -1)
        return Batch(ids[:, :-1].contiguous(), targets, positions.contiguous(), documents.contiguous())


def config(steps: int = 8, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "budget": Budget(steps=steps),
        "optimizer": AdamWConfig(lr=1e-2),
        "schedule": Constant(warmup=2),
        "precision": "fp32",
        "compile": "off",
        "log_every": 1,
        "checkpoint_every": 3,
    }
    return TrainConfig(**{**settings, **changes})
