"""The correspondence between published tensors and ours, usable in both directions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Concat:
    """Several published tensors are the row blocks of one of ours."""

    sizes: tuple[int, ...]

    def read(self, tensors: list[Tensor]) -> list[Tensor]:
        """Published → ours."""
        return [torch.cat(tensors)]

    def write(self, tensors: list[Tensor]) -> list[Tensor]:
        """Ours → published."""
        return list(tensors[0].split(self.sizes))


@dataclass(frozen=True)
class Transpose:
    """The published matrix is [in, out] (GPT-2's Conv1D); ours is [out, in]."""

    def read(self, tensors: list[Tensor]) -> list[Tensor]:
        """Published → ours."""
        return [t.T for t in tensors]

    write = read


@dataclass(frozen=True)
class Rule:
    """One tensor of ours and the published tensors that make it, through operations that can be undone."""

    ours: str
    published: tuple[str, ...]
    ops: tuple[Concat | Transpose, ...] = ()

    def read(self, tensors: list[Tensor]) -> Tensor:
        """Make our tensor from the published ones."""
        for op in self.ops:
            tensors = op.read(tensors)
        (tensor,) = tensors
        return tensor.contiguous()

    def write(self, tensor: Tensor) -> dict[str, Tensor]:
        """Make the published tensors from ours."""
        tensors = [tensor]
        for op in reversed(self.ops):
            tensors = op.write(tensors)
        return {name: t.contiguous() for name, t in zip(self.published, tensors, strict=True)}


def affine(
    ours: str,
    published: str | tuple[str, ...],
    *,
    bias: bool,
    ops: tuple[Concat | Transpose, ...] = (),
) -> Iterator[Rule]:
    """Yield the rules for a layer's `.weight` and, with `bias`, its `.bias` (which is never transposed)."""
    names = (published,) if isinstance(published, str) else published
    yield Rule(f"{ours}.weight", tuple(f"{name}.weight" for name in names), ops)
    if bias:
        bias_ops = tuple(op for op in ops if not isinstance(op, Transpose))
        yield Rule(f"{ours}.bias", tuple(f"{name}.bias" for name in names), bias_ops)
