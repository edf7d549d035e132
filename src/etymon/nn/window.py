"""The layer of the first neural language model: one matrix over the last few positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from etymon import spec
from etymon.nn.linear import Linear
from etymon.nn.runs import Runs
from etymon.nn.state import Vectors
from etymon.nn.walk import Walker, following

ACTIVATIONS = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "relu": torch.relu}


class Window(Walker):
    """act(W [x, x', x'', …] + b), where the learned vector `start` stands before a document's beginning."""

    def __init__(self, op: spec.Window, dim: int) -> None:
        super().__init__()
        self.op = op
        self.start = nn.Parameter(torch.empty(dim))
        self.mix = Linear(op.size * dim, (op.width,), bias=True)
        self.activation = ACTIVATIONS[op.activation]

    def initialise(self, generator: torch.Generator) -> None:
        """Draw `start` as the embedding is drawn."""
        self.start.data.copy_(torch.empty(self.start.shape).normal_(0.0, 0.02, generator=generator))

    def new_state(self, rows: int, capacity: int, dtype: torch.dtype, device: torch.device) -> Vectors:
        """Allocate the last vectors of `rows` sequences, and how many of them were read."""
        vectors = torch.empty((rows, self.op.size - 1, self.start.shape[0]), dtype=dtype, device=device)
        return Vectors(vectors, torch.empty(rows, dtype=torch.int64, device=device))

    def walk(self, x: Tensor, runs: Runs | None, cell: Vectors | None) -> Tensor:
        """Return [batch, time, width] from `x` [batch, time, dim]."""
        B, T, D = x.shape
        n = self.op.size - 1
        past, read = cell.read() if cell is not None else (x.new_zeros(B, n, D), None)
        ages = runs.ages if runs is not None else None
        if ages is None:
            ages = torch.arange(T, device=x.device).expand(B, T)
        if read is not None:
            ages = ages + read[:, None]
        joined = torch.cat((past, x), 1)
        window = [x]
        for k in range(1, n + 1):
            window.append(torch.where((ages >= k)[..., None], joined[:, n - k : n - k + T], self.start))
        if cell is not None and read is not None:
            counts = T if runs is None or runs.counts is None else runs.counts
            cell.write(following(past, x, runs), read + counts)
        return self.activation(self.mix(torch.cat(window, -1)))
