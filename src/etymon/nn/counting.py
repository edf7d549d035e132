"""Parameter counts and floating-point operations of a spec, from modules of distinct blocks on the meta device."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from etymon.nn.block import Stack, build_block
from etymon.nn.embed import Embed
from etymon.nn.head import build_head
from etymon.nn.moe import MoE
from etymon.spec import (
    Attention,
    Block,
    Causal,
    CrossAttention,
    GlobalLocalAttention,
    LatentAttention,
    ModelSpec,
    Visibility,
)
from etymon.spec import Stack as StackSpec


@dataclass(frozen=True, kw_only=True)
class Count:
    """Parameter counts: all of them, those outside embeddings and head, and those that one token's pass uses."""

    total: int
    non_embedding: int
    active: int


def count(spec: ModelSpec) -> Count:
    """Return the exact numbers of parameters of `spec`; nothing is allocated, whatever its size."""
    with torch.device("meta"):
        ends = [Embed(spec.embed, spec.vocab, spec.dim), build_head(spec.head, spec.vocab, spec.width)]
        if spec.encoder_embed is not None:
            ends.append(Embed(spec.encoder_embed, spec.encoder_embed.vocab, spec.dim))
    shared = spec.vocab * spec.embed.width(spec.dim) if spec.tied else 0
    stacks = [_stack(stack, spec.dim) for stack in spec.stacks]
    body = sum(total for total, _ in stacks)
    total = sum(map(_numel, ends)) - shared + body
    return Count(total=total, non_embedding=body, active=total - sum(idle for _, idle in stacks))


def flops_per_token(spec: ModelSpec, context: int) -> int:
    """Return forward + backward model FLOPs per token at this context: 6 per weight used in a matmul, plus
    12 * query_width * context per attention layer for scores and mixing, half of that where it is causal (PaLM,
    arXiv:2204.02311, B). With an encoder and a decoder: of one token in each."""
    total = 6 * spec.vocab * spec.width
    for stack in spec.stacks:
        used, idle = _stack(stack, spec.dim)
        total += 6 * stack.repeats * (used - idle)
        causal = isinstance(stack.visibility, Causal)
        for sub in stack.subs():
            if isinstance(sub.op, Attention):
                total += (6 if causal else 12) * sub.op.query_width * min(context, sub.op.window or context)
            elif isinstance(sub.op, GlobalLocalAttention):
                total += 12 * sub.op.heads * sub.op.head_dim * min(context, 2 * sub.op.reach + 1)
            elif isinstance(sub.op, LatentAttention):
                width = sub.op.heads * (sub.op.head_dim + sub.op.rope.dim + sub.op.value_dim)
                total += (3 if causal else 6) * width * context
            elif isinstance(sub.op, CrossAttention):
                total += 12 * sub.op.query_width * context
    return total


def _stack(stack: StackSpec, dim: int) -> tuple[int, int]:
    """Return how many parameters a stack has, and how many of them one token does not use."""
    with torch.device("meta"):  # what a stack has besides its blocks
        total = _numel(Stack(stack, dim, blocks=False))
    idle = 0
    for (block, width), n in Counter(zip(stack.blocks, stack.widths(dim)[:-1], strict=True)).items():
        own, unused = count_block(block, width, stack.visibility)
        total, idle = total + n * own, idle + n * unused
    return total, idle


@lru_cache(maxsize=4096)
def count_block(block: Block, dim: int, visibility: Visibility) -> tuple[int, int]:
    """Return how many parameters a block on a stream of width `dim` has, and how many of them a token does not use."""
    with torch.device("meta"):
        module = build_block(block, dim, visibility)
    return _numel(module), sum(part.idle for part in module.modules() if isinstance(part, MoE))


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
