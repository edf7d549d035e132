"""The one linear layer, which remembers the parts that were fused into it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from etymon.nn import gemm


class Linear(nn.Linear):
    """y = x W^T + b, where W stacks `parts` rows of separate projections (q, k, v; gate, up).

    Fusing them means one large matrix product instead of several small ones; whoever needs the parts apart
    (checkpoints, orthogonalising optimizers, adapters) splits the rows by `parts`.
    """

    def __init__(self, in_features: int, parts: tuple[int, ...], bias: bool) -> None:
        super().__init__(in_features, sum(parts), bias=bias)
        self.parts = parts

    @property
    def matrix(self) -> Tensor:
        """The matrix W of the product, made from the weight."""
        return self.weight

    def reset_parameters(self) -> None:
        """Leave the weights alone: `model.initialise` draws them, or a checkpoint brings them."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply to `input` [..., in_features]."""
        return gemm.linear(input, self.weight, self.bias)


class UnitLinear(Linear):
    """y = x W^T + b, where W is the weight with rows brought to length 1."""

    @property
    def matrix(self) -> Tensor:
        """The rows of length 1."""
        return F.normalize(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        """Apply to `input` [..., in_features]."""
        return gemm.linear(input, self.matrix, self.bias)
