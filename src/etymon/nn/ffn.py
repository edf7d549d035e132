"""Feed-forward layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from etymon import spec
from etymon.nn.linear import Linear


def relu2(x: Tensor) -> Tensor:
    """Squared ReLU (So et al. 2021, arXiv:2109.08668)."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": relu2,
    "silu": F.silu,
}


class Dense(nn.Module):
    """down(act(up(x)))."""

    def __init__(self, op: spec.Dense, dim: int) -> None:
        super().__init__()
        self.up = Linear(dim, (op.hidden,), bias=op.bias)
        self.down = Linear(op.hidden, (dim,), bias=op.bias)
        self.activation = ACTIVATIONS[op.activation]

    def forward(self, x: Tensor) -> Tensor:
        """Apply to `x` [..., dim]."""
        return self.down(self.activation(self.up(x)))


class Gated(nn.Module):
    """down(act(gate(x)) * up(x)), with gate and up fused in that order."""

    def __init__(self, op: spec.Gated, dim: int) -> None:
        super().__init__()
        self.gate_up = Linear(dim, (op.hidden, op.hidden), bias=op.bias)
        self.down = Linear(op.hidden, (dim,), bias=op.bias)
        self.activation = ACTIVATIONS[op.activation]

    def forward(self, x: Tensor) -> Tensor:
        """Apply to `x` [..., dim]."""
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(self.activation(gate) * up)
