"""The classifier of a pair of texts whose vectors come from one encoder (Reimers & Gurevych 2019, arXiv:1908.10084)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etymon.nn.layers import Layers, normal
from etymon.nn.linear import Linear


class PairSoftmax(Layers):
    """Vectors u, v [batch, dim] → logits W (u, v, |u - v|) + b [batch, classes]: section 3 of the paper, and the bias
    that its authors' code adds."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.linear = Linear(3 * dim, (classes,), bias=True)
        self.begin()

    def begin(self) -> None:
        """Draw the weights anew."""
        normal(self.linear.weight, seed=0)
        nn.init.zeros_(self.linear.bias)

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the logits."""
        return self.linear(torch.cat((u, v, (u - v).abs()), dim=-1))

    def loss(self, u: Tensor, v: Tensor, targets: Tensor) -> Tensor:
        """Return the summed negative log-likelihood of the classes `targets` [batch]."""
        return F.cross_entropy(self(u, v).float(), targets, reduction="sum")
