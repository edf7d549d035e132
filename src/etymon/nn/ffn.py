"""Feed-forward layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etymon import kernels, spec
from etymon.nn.linear import Linear


def relu2(x: Tensor) -> Tensor:
    """Squared ReLU (So et al. 2021, arXiv:2109.08668)."""
    return F.relu(x).square()


def quick_gelu(x: Tensor) -> Tensor:
    """An approximation of GELU, x * sigmoid(1.702 x) (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""
    return x * torch.sigmoid(1.702 * x)


Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "relu2": relu2,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class Dense(nn.Module):
    """down(act(up(x)))."""

    dropout = 0.0

    def __init__(self, op: spec.Dense, dim: int) -> None:
        super().__init__()
        self.op = op
        self.up = Linear(dim, (op.hidden,), bias=op.bias)
        self.down = Linear(op.hidden, (dim,), bias=op.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to `x` [..., dim]."""
        h = activated(self.op, self.up(x))
        return self.down(F.dropout(h, self.dropout) if self.dropout and self.training else h)


class Gated(nn.Module):
    """down(act(gate(x)) * (offset + up(x))), with gate and up fused in that order."""

    dropout = 0.0

    def __init__(self, op: spec.Gated, dim: int) -> None:
        super().__init__()
        self.op = op
        self.gate_up = Linear(dim, (op.hidden, op.hidden), bias=op.bias)
        self.down = Linear(op.hidden, (dim,), bias=op.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to `x` [..., dim]."""
        h = activated(self.op, self.gate_up(x))
        return self.down(F.dropout(h, self.dropout) if self.dropout and self.training else h)


def activated(op: spec.Dense | spec.Gated, h: Tensor) -> Tensor:
    """Return what is between the matrices, [..., hidden], from `h` [..., hidden], or where it is gated from gate and up
    side by side, [..., 2 * hidden]."""
    activation, gated = ACTIVATIONS[op.activation], isinstance(op, spec.Gated)
    plain = not isinstance(op, spec.Gated) or (op.limit is None and not op.offset)
    if plain and not torch.compiler.is_compiling() and _in_one_pass(op.activation, h):
        return kernels.activate(op.activation, h, gated=gated)
    if not isinstance(op, spec.Gated):
        return activation(h)
    if plain and h.requires_grad and activation is F.silu and not torch.compiler.is_compiling():
        return _SwiGLU.apply(h)
    gate, up = h.chunk(2, -1)
    if op.limit is not None:
        gate, up = gate.clamp(max=op.limit), up.clamp(-op.limit, op.limit)
    return activation(gate) * (up + op.offset if op.offset else up)


def _in_one_pass(activation: str, h: Tensor) -> bool:
    """Whether the kernel serves: of a training step's activations on the CPU."""
    return h.requires_grad and h.dtype is torch.float32 and h.is_cpu and kernels.activates(activation)


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
