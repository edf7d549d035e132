"""A convolution over the positions around each, on both sides."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from etymon import spec
from etymon.errors import ConfigError, DataError
from etymon.nn.ffn import ACTIVATIONS
from etymon.nn.layout import Layout
from etymon.nn.linear import Linear
from etymon.nn.state import Cell, Mixer


class Convolution(Mixer):
    """act(W [..., x before, x, x behind, ...] + b), as one matrix over windows."""

    def __init__(self, op: spec.Convolution, dim: int, visibility: spec.Visibility) -> None:
        super().__init__()
        if isinstance(visibility, spec.Causal):
            raise ConfigError("a convolution sees both sides: it belongs to a Bidirectional stack")
        self.kernel = op.kernel
        self.out = Linear(op.kernel * dim, (dim,), bias=True)
        self.activation = ACTIVATIONS[op.activation]

    def forward(self, x: Tensor, layout: Layout, cell: Cell | None) -> Tensor:
        """Apply to `x` [batch, time, dim]. Raises DataError for a mask that says who sees whom."""
        if layout.seen is not None:
            raise DataError("a convolution sees its neighbours: attention_mask must be [batch, time]")
        if layout.attention_mask is not None:
            x = x * layout.attention_mask[..., None]
        sides = (self.kernel // 2, self.kernel // 2)
        windows = F.pad(x, (0, 0, *sides)).unfold(1, self.kernel, 1).transpose(2, 3)  # [batch, time, kernel, dim]
        if layout.documents is not None:
            around = F.pad(layout.documents, sides, value=-1).unfold(1, self.kernel, 1)
            windows = windows * (around == layout.documents[..., None])[..., None]
        return self.activation(self.out(windows.flatten(2)))
