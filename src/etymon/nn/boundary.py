"""The span boundary objective's layers (SpanBERT, Joshi et al. 2019, arXiv:1907.10529, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etymon.nn.head import IGNORE, LMHead, linear_cross_entropy
from etymon.nn.layers import Layers, normal
from etymon.nn.linear import Linear


class SpanBoundary(Layers):
    """y_i = f(x_left, x_right, p_i): what a token of a hidden span is, told from the states on both sides of the span
    and the token's place in it. f is two layers, each LayerNorm(GeLU(W x + b)); the model's output matrix reads y.

    `dim` is the width of the model's states, `width` of what its output matrix reads; there are vectors of
    `place_width` for the first `places` places.
    """

    def __init__(self, dim: int, width: int, places: int, place_width: int) -> None:
        super().__init__()
        self.places = nn.Embedding(places, place_width)
        self.first, self.second = Linear(2 * dim + place_width, (dim,), bias=True), Linear(dim, (width,), bias=True)
        self.first_norm, self.second_norm = nn.LayerNorm(dim, eps=1e-12), nn.LayerNorm(width, eps=1e-12)
        self.begin()

    def begin(self) -> None:
        """Draw the weights anew."""
        normal(self.places.weight, self.first.weight, self.second.weight, seed=0)
        for layer in (self.first, self.second):
            nn.init.zeros_(layer.bias)
        for norm in (self.first_norm, self.second_norm):
            norm.reset_parameters()

    def matrices(self) -> Iterator[tuple[str, Linear]]:
        """Yield both layers."""
        yield "first", self.first
        yield "second", self.second

    def forward(self, left: Tensor, right: Tensor, place: Tensor) -> Tensor:
        """Return y [n, width] from the states `left` and `right` [n, dim] and the places [n], from 0."""
        inner = self.first_norm(F.gelu(self.first(torch.cat((left, right, self.places(place)), dim=-1))))
        outer: Tensor = self.second_norm(F.gelu(self.second(inner)))
        return outer

    def loss(self, head: LMHead, hidden: Tensor, targets: Tensor, documents: Tensor) -> Tensor:
        """Return the summed negative log-likelihood of the hidden tokens whose span has a token of their document on
        both sides, as far as there are vectors for their places. `hidden` [batch, time, dim], `targets` and `documents`
        [batch, time]; the rows' runs of targets are the spans."""
        rows, at, left, right = boundaries(targets, documents, self.places.num_embeddings)
        told = self(hidden[rows, left], hidden[rows, right], at - left - 1)
        linear = head.linear
        return linear_cross_entropy(told, linear.matrix, linear.bias, targets[rows, at], head.spec.softcap)


def boundaries(targets: Tensor, documents: Tensor, places: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return, for each of `targets` [batch, time] that is told from the tokens beside its span, its row and place, and
    the places of the tokens to the left and to the right: four tensors [n].

    A span is a run of targets; left out are those without such a token of the same document (so at the ends of rows),
    and tokens behind the first `places` of a span.
    """
    time = targets.shape[1]
    chosen = targets != IGNORE
    at = torch.arange(time, device=targets.device).expand_as(targets)
    left = torch.where(chosen, -1, at).cummax(1).values  # the last token before that is not chosen
    right = torch.where(chosen, time, at).flip(1).cummin(1).values.flip(1)
    told = chosen & (left >= 0) & (right < time) & (at - left <= places)
    for side in (left, right):
        told &= documents.gather(1, side.clamp(0, time - 1)) == documents
    rows, where = told.nonzero(as_tuple=True)
    return rows, where, left[rows, where], right[rows, where]
