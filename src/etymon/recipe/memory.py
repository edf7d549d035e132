"""How much memory a training stage will need, before it is started, and how much there is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from etymon.errors import ConfigError
from etymon.evaluate import wording
from etymon.recipe.schema import Recipe, TrainSection
from etymon.spec import Attention, CrossAttention, Dense, Gated, ModelSpec, MoE
from etymon.train import MuonConfig

FP32 = 4
PROCESS = 400 << 20  # bytes: Python, torch and the data that is held beside the model
LOGITS_AT_ONCE = 4096  # positions whose logits the loss holds at once


@dataclass(frozen=True)
class Memory:
    """Bytes that training takes, by what takes them. An estimate: allocators and kernels add a little."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    process: int = PROCESS

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.process


def training_memory(spec: ModelSpec, section: TrainSection, context: int) -> Memory:
    """Estimate the memory of training `spec` with rows of `context` tokens, in fp32."""
    count = spec.count()
    rows = section.micro_batch or section.batch_size
    if isinstance(section.optimizer, MuonConfig):  # one buffer for matrices, AdamW's two for the rest
        optimizer = FP32 * (count.non_embedding + 2 * (count.total - count.non_embedding))
    else:
        optimizer = 2 * FP32 * count.total
    return Memory(
        weights=FP32 * count.total,
        gradients=FP32 * count.total,
        optimizer=optimizer,
        activations=FP32 * rows * context * activations_per_token(spec)
        + 3 * FP32 * min(rows * context, LOGITS_AT_ONCE) * spec.vocab,
    )


def activations_per_token(spec: ModelSpec) -> int:
    """Return the numbers that the backward pass keeps of each token: inputs of norms, matrices and activations."""
    total = 2 * spec.dim
    for stack in spec.stacks:
        for sub in stack.subs():
            op = sub.op
            if isinstance(op, Attention | CrossAttention):
                # stream, normed, fused projection, rotated queries and keys with values, output of attention
                total += 2 * spec.dim + 2 * (op.query_width + 2 * op.kv_width) + op.query_width
            elif isinstance(op, MoE):
                shared = _inside(op.shared.op) if op.shared else 0
                total += 2 * spec.dim + op.router.k * (2 * spec.dim + _inside(op.expert)) + shared
            else:
                total += 2 * spec.dim + _inside(op)
    return total


def _inside(op: Dense | Gated) -> int:
    return (5 if isinstance(op, Gated) else 3) * op.hidden


def available_memory(device: str) -> int:
    """Return the bytes that a new process can still take on `device`, within its control group's limit."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available = int(psutil.virtual_memory().available)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            available = min(available, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return max(0, available)


def check_memory(recipe: Recipe, spec: ModelSpec, device: str) -> None:
    """Raise ConfigError where a training stage cannot fit."""
    available = available_memory(device)
    for name, section in recipe.stages.items():
        need = training_memory(spec, section, section.context or spec.context)
        if need.total > available:
            raise ConfigError(
                f"{name} needs about {wording.size(need.total)} of memory (weights, gradients and optimizer "
                f"{wording.size(need.weights + need.gradients + need.optimizer)}, activations "
                f"{wording.size(need.activations)}), but {wording.size(available)} are free on {device}. "
                f"Lower {name}.micro_batch (the result stays the same), the context, or the model."
            )
