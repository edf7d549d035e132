"""A small real tokenizer and randomised models over it."""

from __future__ import annotations

import torch

from etymon.families import llama
from etymon.nn import Model, build
from etymon.text import Tokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog. It does so every day, whatever the weather.",
    "def add(a, b):\n    return a + b\n\n\ndef subtract(a, b):\n    return a - b\n",
    "语言模型读过许多文档以后，就能够写出通顺的句子。狐狸跳过了懒狗。",
    "What is 3 + 4? It is 7. 三加四等于多少？等于七。",
]


def train_tokenizer(vocab: int = 400) -> Tokenizer:
    return Tokenizer.train(TEXTS * 20, vocab)


def random_model(vocab: int, *, seed: int = 0, context: int = 64, scale: float = 0.08) -> Model:
    """A llama whose every weight is random: a fresh one predicts nearly the same at every position."""
    spec = llama.build(vocab=vocab, dim=32, layers=2, heads=4, kv_heads=2, hidden=48, context=context)
    model = build(spec, seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
        model.head.linear.weight.mul_(8.0)
    return model
