"""Feed-forward layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etymon import spec
from etymon.nn.linear import Linear


def relu2(x: Tensor) -> Tensor:
    """Squared ReLU (So et al. 2021, arXiv:2109.08668)."""
    return F.relu(x).square()


Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": relu2,
    "silu": F.silu,
    "tanh": torch.tanh,
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
        return self.down(gated(self.gate_up(x), self.activation))


def gated(gate_up: Tensor, activation: Activation) -> Tensor:
    """act(gate) * up of the two halves of `gate_up` [..., 2 * hidden]."""
    if gate_up.requires_grad and activation is F.silu and not torch.compiler.is_compiling():
        return _SwiGLU.apply(gate_up)
    gate, up = gate_up.chunk(2, -1)
    return activation(gate) * up


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up, whose gradients are written straight into the halves of one tensor."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        d_gate_up = torch.empty_like(gate_up)
        d_gate, d_up = d_gate_up.chunk(2, -1)
        torch.mul(F.silu(gate), dy, out=d_up)
        torch.ops.aten.silu_backward.grad_input(dy * up, gate, grad_input=d_gate)
        return d_gate_up
