"""Normalisation layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etymon import spec


class RMSNorm(nn.Module):
    """x / rms(x) * (offset + weight) over the last dimension, computed in fp32 and rounded before the scale is applied,
    unless there is an offset, which half precision would round away."""

    def __init__(self, width: int, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.eps = eps
        self.offset = offset
        self.weight = nn.Parameter(torch.full((width,), 1.0 - offset))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` [..., width]."""
        if self.offset:
            return F.rms_norm(x.float(), self.weight.shape, self.weight.float() + self.offset, self.eps).to(x.dtype)
        if x.dtype == torch.float32 == self.weight.dtype:
            if torch.is_grad_enabled() and not torch.compiler.is_compiling():
                return _RMSNorm.apply(x, self.weight, self.eps)
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return F.rms_norm(x.float(), self.weight.shape, None, self.eps).to(x.dtype) * self.weight


class _RMSNorm(torch.autograd.Function):
    """In half the memory passes of the composite: with r = 1 / rms(x) and g = w * dy,
    dx = r * g - x * r^3 * mean(g * x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        r = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        return (x * r).mul_(weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, r = ctx.saved_tensors
        product = dy * x
        d_weight = (r.reshape(1, -1) @ product.reshape(-1, x.shape[-1])).view_as(weight)
        mean = (product @ weight).unsqueeze(-1).div_(x.shape[-1])
        dx = (dy * weight).mul_(r).addcmul_(x, r**3 * mean, value=-1)
        return dx, d_weight, None


class CentredRMSNorm(nn.LayerNorm):
    """(x - mean(x)) / rms(x) * weight + bias over the last dimension, computed in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` [..., width]."""
        full = x.float()
        y = (full - full.mean(-1, keepdim=True)) * (full.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return y.to(x.dtype) * self.weight + self.bias


class HeadNorm(nn.LayerNorm):
    """Every head of [..., heads, width] normalised over its channels and scaled by weights of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` [..., heads, width]."""
        return F.layer_norm(x, x.shape[-1:], eps=self.eps) * self.weight


def build_qk_norm(qk_norm: spec.QKNorm | None, heads: int, head_dim: int) -> nn.Module | None:
    """Build the module that normalises queries or keys of so many heads; None stands for the identity."""
    if qk_norm is None:
        return None
    if qk_norm.over == "each head":
        return HeadNorm((heads, head_dim), eps=qk_norm.norm.eps, bias=False)
    return build_norm(qk_norm.norm, heads * head_dim if qk_norm.over == "width" else head_dim)


def build_norm(norm: spec.Norm | None, width: int) -> nn.Module | None:
    """Build the module of `norm` at this width; None stands for the identity."""
    if norm is None:
        return None
    if isinstance(norm, spec.CentredRMSNorm):
        return CentredRMSNorm(width, eps=norm.eps)
    if isinstance(norm, spec.LayerNorm):
        return nn.LayerNorm(width, eps=norm.eps, elementwise_affine=norm.scale, bias=norm.bias)
    return RMSNorm(width, norm.eps, norm.offset)
