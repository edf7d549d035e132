"""Operators that go through their rows from left to right."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etymon.nn.layout import Layout
from etymon.nn.runs import Runs
from etymon.nn.state import Cell, Mixer, Vectors


class Walker(Mixer):
    """An operator that goes through its rows from left to right, with a memory of fixed size."""

    def forward(self, x: Tensor, layout: Layout, cell: Cell | None) -> Tensor:
        """Walk along `x` [batch, time, dim], from what `cell` holds to what it shall hold; padding is skipped."""
        assert cell is None or isinstance(cell, Vectors)
        runs = layout.runs
        if runs is None or runs.order is None:
            return self.walk(x, runs, cell)
        order = runs.order[..., None]
        y = self.walk(x.gather(1, order.expand(x.shape)), runs, cell)
        return torch.zeros_like(y).scatter(1, order.expand(y.shape), y)

    def walk(self, x: Tensor, runs: Runs | None, cell: Vectors | None) -> Tensor:
        """Walk along `x` [batch, time, dim], whose padding stands at the end of its rows."""
        raise NotImplementedError


def following(past: Tensor, x: Tensor, runs: Runs | None) -> Tensor:
    """Return the last vectors of `past` [batch, n, width] followed by `x` [batch, time, width], without its padding."""
    n = past.shape[1]
    joined = torch.cat((past, x), 1)
    if runs is None or runs.counts is None:
        return joined[:, joined.shape[1] - n :]
    columns = runs.counts[:, None] + torch.arange(n, device=x.device)
    return joined.gather(1, columns[..., None].expand(-1, -1, x.shape[2]))


class Convolution(nn.Module):
    """A causal convolution of every channel by itself: y_t = sum over k of w_k x_(t-k), within a document."""

    def __init__(self, channels: int, kernel: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def initialise(self, generator: torch.Generator) -> None:
        """Draw weights as for a matrix of as many inputs as the kernel is long."""
        kernel = self.weight.shape[-1]
        drawn = torch.empty(self.weight.shape).normal_(0.0, (3 * kernel) ** -0.5, generator=generator)
        self.weight.data.copy_(drawn)
        if self.bias is not None:
            self.bias.data.zero_()

    def forward(self, x: Tensor, runs: Runs | None, past: Tensor) -> Tensor:
        """Convolve `x` [batch, time, channels] that follows `past` [batch, kernel - 1, channels]."""
        ages = runs.ages if runs is not None else None
        joined = torch.cat((past, x), 1)
        if ages is None:
            y = F.conv1d(joined.transpose(1, 2), self.weight, self.bias, groups=x.shape[2])
            return y.transpose(1, 2)
        kernel, time = self.weight.shape[-1], x.shape[1]
        y = x * self.weight[:, 0, -1]
        for k in range(1, kernel):
            earlier = joined[:, kernel - 1 - k : kernel - 1 - k + time] * (ages >= k)[..., None]
            y = y + earlier * self.weight[:, 0, kernel - 1 - k]
        return y if self.bias is None else y + self.bias
