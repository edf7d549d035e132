"""Layers that training alone needs: an objective trains them beside its model, which goes on without them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from etymon.nn.linear import Linear


class Layers(nn.Module):
    """What a checkpoint keeps in a file of its own, named as the objective calls it, so that training can go on."""

    def matrices(self) -> Iterator[tuple[str, Linear]]:
        """Yield the linear layers between hidden states with their names, as a model does; one that ends in logits is
        a head, and none of them."""
        yield from ()


def normal(*weights: Tensor, seed: int, std: float = 0.02) -> None:
    """Draw `weights` from N(0, std²), one after the other, in place: a function of the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in weights:
            weight.copy_(torch.empty(weight.shape).normal_(0.0, std, generator=generator))
