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
        return [t.mT for t in tensors]

    write = read


@dataclass(frozen=True)
class Regroup:
    """The published rows are `groups` equal runs, each holding `sizes` rows of every part in turn; ours hold every part
    whole, in the order that `order` gives as places in the run (NeoX: a run per head; Falcon: per key head; CodeGen:
    per shard, with q, v, k)."""

    groups: int
    sizes: tuple[int, ...]
    order: tuple[int, ...] = (0, 1, 2)

    def _rows(self) -> Tensor:
        parts = torch.arange(self.groups * sum(self.sizes)).view(self.groups, -1).split(self.sizes, 1)
        return torch.cat([parts[i].flatten() for i in self.order])

    def read(self, tensors: list[Tensor]) -> list[Tensor]:
        """Published → ours."""
        return [t[self._rows()] for t in tensors]

    def write(self, tensors: list[Tensor]) -> list[Tensor]:
        """Ours → published."""
        return [t[self._rows().argsort()] for t in tensors]


@dataclass(frozen=True)
class PermuteRotary:
    """The published model rotates neighbouring pairs (2i, 2i + 1) of the first `dim` channels of each head, ours the
    pairs (i, i + dim / 2). The first `heads` heads of the rows are queries and keys; what follows is not rotated."""

    heads: int
    head_dim: int
    dim: int

    def _rows(self, count: int) -> Tensor:
        rows = torch.arange(count)
        turned = rows[: self.heads * self.head_dim].view(self.heads, self.head_dim)[:, : self.dim]
        turned.copy_(turned.view(self.heads, -1, 2).transpose(1, 2).flatten(1).clone())
        return rows

    def read(self, tensors: list[Tensor]) -> list[Tensor]:
        """Published → ours."""
        return [t[self._rows(t.shape[0])] for t in tensors]

    def write(self, tensors: list[Tensor]) -> list[Tensor]:
        """Ours → published."""
        return [t[self._rows(t.shape[0]).argsort()] for t in tensors]


@dataclass(frozen=True)
class TurnedFirst:
    """Of every head the published rows are `plain` ones that do not turn, then `turned` ones that turn in neighbouring
    pairs; ours begin with those that turn, in halves."""

    heads: int
    plain: int
    turned: int

    def _rows(self) -> Tensor:
        rows = torch.arange(self.heads * (self.plain + self.turned)).view(self.heads, -1)
        turned = rows[:, self.plain :].unflatten(1, (-1, 2)).transpose(1, 2).flatten(1)
        return torch.cat((turned, rows[:, : self.plain]), 1).flatten()

    def read(self, tensors: list[Tensor]) -> list[Tensor]:
        """Published → ours."""
        return [t[self._rows()] for t in tensors]

    def write(self, tensors: list[Tensor]) -> list[Tensor]:
        """Ours → published."""
        return [t[self._rows().argsort()] for t in tensors]


@dataclass(frozen=True)
class SwapQuarters:
    """The published heads turn each half by an axis of its own, pairs (i, i + d/4) of it; ours have all first channels
    of pairs, then all second ones. The first `heads` heads of the rows are queries and keys; others stay."""

    heads: int
    head_dim: int

    def read(self, tensors: list[Tensor]) -> list[Tensor]:
        """Published → ours."""
        return [t[self._rows(t.shape[0])] for t in tensors]

    write = read

    def _rows(self, count: int) -> Tensor:
        rows = torch.arange(count)
        turned = rows[: self.heads * self.head_dim].view(self.heads, 4, -1)
        turned.copy_(turned[:, [0, 2, 1, 3]].clone())
        return rows


@dataclass(frozen=True)
class StackExperts:
    """The published tensors are matrices of `experts` experts in turn, ours one tensor [experts, rows, columns]; each
    expert's row blocks of `sizes` are published apart."""

    experts: int
    sizes: tuple[int, ...]

    def read(self, tensors: list[Tensor]) -> list[Tensor]:
        """Published → ours."""
        n = max(1, len(self.sizes))
        return [torch.stack([torch.cat(tensors[i : i + n]) for i in range(0, len(tensors), n)])]

    def write(self, tensors: list[Tensor]) -> list[Tensor]:
        """Ours → published."""
        return [part for expert in tensors[0] for part in (expert.split(self.sizes) if self.sizes else [expert])]


@dataclass(frozen=True)
class Alternate:
    """Of every expert the published rows are those of gate and up in turn; ours are the gate's, then those of up."""

    def read(self, tensors: list[Tensor]) -> list[Tensor]:
        """Published → ours."""
        return [t.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2) for t in tensors]

    def write(self, tensors: list[Tensor]) -> list[Tensor]:
        """Ours → published."""
        return [t.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2) for t in tensors]


@dataclass(frozen=True)
class Row:
    """The published vector is a matrix of one row."""

    def read(self, tensors: list[Tensor]) -> list[Tensor]:
        """Published → ours."""
        return [t.squeeze(0) for t in tensors]

    def write(self, tensors: list[Tensor]) -> list[Tensor]:
        """Ours → published."""
        return [t.unsqueeze(0) for t in tensors]


@dataclass(frozen=True)
class Reshape:
    """The published tensor has the same numbers in another shape."""

    published: tuple[int, ...]
    ours: tuple[int, ...]

    def read(self, tensors: list[Tensor]) -> list[Tensor]:
        """Published → ours."""
        return [t.reshape(self.ours) for t in tensors]

    def write(self, tensors: list[Tensor]) -> list[Tensor]:
        """Ours → published."""
        return [t.reshape(self.published) for t in tensors]


@dataclass(frozen=True)
class Taps:
    """The published weight of a convolution is [out, in, taps]; ours is the matrix [out, taps * in] of its windows. A
    bias is the same."""

    taps: int

    def read(self, tensors: list[Tensor]) -> list[Tensor]:
        """Published → ours."""
        return [t.transpose(1, 2).flatten(1) if t.dim() == 3 else t for t in tensors]

    def write(self, tensors: list[Tensor]) -> list[Tensor]:
        """Ours → published."""
        return [t.unflatten(1, (self.taps, -1)).transpose(1, 2) if t.dim() == 2 else t for t in tensors]


Rows = Regroup | PermuteRotary | TurnedFirst | SwapQuarters | Alternate
Operation = Concat | Transpose | Row | StackExperts | Reshape | Taps | Rows


@dataclass(frozen=True)
class Rule:
    """One tensor of ours and the published tensors that make it, through operations that can be undone."""

    ours: str
    published: tuple[str, ...]
    ops: tuple[Operation, ...] = ()

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
    ops: tuple[Operation, ...] = (),
) -> Iterator[Rule]:
    """Yield the rules for a layer's `.weight` and, with `bias`, its `.bias` (which is never transposed)."""
    names = (published,) if isinstance(published, str) else published
    yield Rule(f"{ours}.weight", tuple(f"{name}.weight" for name in names), ops)
    if bias:
        bias_ops = tuple(op for op in ops if not isinstance(op, Transpose))
        yield Rule(f"{ours}.bias", tuple(f"{name}.bias" for name in names), bias_ops)
