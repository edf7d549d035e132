"""Specs of descendants, made from a parent's spec by saying what changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from etymon.spec import Attention, Block, ModelSpec


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


def with_windows(spec: ModelSpec, family: str, windows: Sequence[int | None]) -> ModelSpec:
    """Return `spec` as one of `family` whose layers have these attention windows."""
    blocks = zip(spec.trunk.blocks, windows, strict=True)
    stack = dataclasses.replace(spec.trunk, blocks=tuple(with_attention(b, window=w) for b, w in blocks))
    return dataclasses.replace(spec, family=family, decoder=stack)


def attention_of(spec: ModelSpec) -> Attention:
    """Return the attention of the first block."""
    return next(sub.op for sub in spec.trunk.blocks[0].subs if isinstance(sub.op, Attention))
