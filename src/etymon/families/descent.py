"""Specs of decoders, and of descendants made from a parent's spec by saying what changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

from etymon.spec import LM, Attention, Block, Embed, ModelSpec, MoE, Norm, Op, Parallel, Stack, Sub

F = TypeVar("F")


def decoder(
    blocks: Sequence[Block], final_norm: Norm | None, head: LM, *, embed: Embed | None = None, **named: Any
) -> ModelSpec:
    """Return a decoder of these blocks; `named` are its name, family, vocab, dim and context."""
    stack = Stack(blocks=tuple(blocks), final_norm=final_norm)
    return ModelSpec(embed=embed or Embed(), decoder=stack, head=head, **named)


def side_by_side(norm: Norm, *ops: Op) -> Block:
    """Return the block in which all of `ops` read the same stream after one norm (GPT-J's)."""
    return Block(subs=tuple(Sub(op=op) for op in ops), wiring=Parallel(pre=norm))


def with_blocks(spec: ModelSpec, family: str, change: Callable[[Block], Block]) -> ModelSpec:
    """Return `spec` as one of `family`, with every block changed."""
    changed = {block: change(block) for block in set(spec.trunk.blocks)}
    stack = dataclasses.replace(spec.trunk, blocks=tuple(changed[block] for block in spec.trunk.blocks))
    return dataclasses.replace(spec, family=family, decoder=stack)


def with_attention(block: Block, **changes: Any) -> Block:
    """Return `block` with fields of its attention changed."""
    return dataclasses.replace(
        block,
        subs=tuple(
            dataclasses.replace(sub, op=dataclasses.replace(sub.op, **changes))
            if isinstance(sub.op, Attention)
            else sub
            for sub in block.subs
        ),
    )


def with_mixtures(spec: ModelSpec, family: str, moe: MoE, layers: Collection[int] | None = None) -> ModelSpec:
    """Return `spec` as one of `family` whose feed-forward layers are mixtures, in these `layers` (default: in all)."""
    layers = range(len(spec.trunk.blocks)) if layers is None else layers
    return dataclasses.replace(spec, family=family, decoder=mixed_stack(spec.trunk, moe, layers))


def mixed_stack(stack: Stack, moe: MoE, layers: Collection[int]) -> Stack:
    """Return `stack` with mixtures in the place of feed-forward layers, in these `layers`."""

    def mixed(block: Block) -> Block:
        subs = (dataclasses.replace(sub, op=moe) if sub.op.name == "ffn" else sub for sub in block.subs)
        return dataclasses.replace(block, subs=tuple(subs))

    changed = {block: mixed(block) for block in set(stack.blocks)}
    blocks = (changed[block] if i in layers else block for i, block in enumerate(stack.blocks))
    return dataclasses.replace(stack, blocks=tuple(blocks))


def feed_forward_of(spec: ModelSpec, kind: type[F]) -> F | None:
    """Return the first feed-forward layer of this kind."""
    ops = (sub.op for block in spec.trunk.blocks for sub in block.subs)
    return next((op for op in ops if isinstance(op, kind)), None)


def with_windows(spec: ModelSpec, family: str, windows: Sequence[int | None]) -> ModelSpec:
    """Return `spec` as one of `family` whose layers have these attention windows."""
    blocks = zip(spec.trunk.blocks, windows, strict=True)
    stack = dataclasses.replace(spec.trunk, blocks=tuple(with_attention(b, window=w) for b, w in blocks))
    return dataclasses.replace(spec, family=family, decoder=stack)


def attention_of(spec: ModelSpec) -> Attention:
    """Return the attention of the first block."""
    return next(sub.op for sub in spec.trunk.blocks[0].subs if isinstance(sub.op, Attention))
