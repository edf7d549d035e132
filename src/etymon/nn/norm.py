"""Normalisation layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etymon import spec


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, computed in fp32 and rounded before the scale is applied."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` [..., width]."""
        if x.dtype == torch.float32:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return F.rms_norm(x.float(), self.weight.shape, None, self.eps).to(x.dtype) * self.weight


def build_norm(norm: spec.Norm | None, width: int) -> nn.Module | None:
    """Build the module of `norm` at this width; None stands for the identity."""
    if norm is None:
        return None
    if isinstance(norm, spec.LayerNorm):
        return nn.LayerNorm(width, eps=norm.eps, bias=norm.bias)
    return RMSNorm(width, norm.eps)
