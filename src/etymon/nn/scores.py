"""What is added to the scores of attention and is learned or depends on what is compared."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from etymon import spec
from etymon.nn.layout import Layout
from etymon.nn.linear import Linear
from etymon.nn.norm import build_norm
from etymon.nn.position import sinusoids
from etymon.nn.table import Table

Projection = Callable[[Tensor], Tensor]  # to an attention's queries, keys and values: [..., dim] → [..., H + 2 * G, D]


class Scores(nn.Module):
    """What an attention adds to its scores. B batch, T time, S keys, H query heads, G key heads, D head width."""

    def forward(self, q_BTHD: Tensor, k_BGSD: Tensor, layout: Layout, project: Projection) -> tuple[Tensor, Tensor]:
        """Return the queries that meet the keys, and what is added to the scaled scores: [B or 1, H, T, S]."""
        raise NotImplementedError


class BucketBias(Scores):
    """A learned bias per head and bucket of distances."""

    def __init__(self, bias: spec.BucketBias, visibility: spec.Visibility) -> None:
        super().__init__()
        self.max_distance = bias.max_distance
        self.both_ways = not isinstance(visibility, spec.Causal)
        self.table = Table(bias.buckets, bias.heads)

    def forward(self, q_BTHD: Tensor, k_BGSD: Tensor, layout: Layout, project: Projection) -> tuple[Tensor, Tensor]:
        """Return the queries as they are, and the bias."""
        return q_BTHD, self.bias(layout)

    def bias(self, layout: Layout) -> Tensor:
        """Return the bias [B or 1, H, T, S]."""
        bias: Tensor = self.table(self._bucket(layout.distance()[:, 0]))
        return bias.permute(0, 3, 1, 2)

    def _bucket(self, offset: Tensor) -> Tensor:
        """Return the bucket of every offset (key - query)."""
        buckets = self.table.num_embeddings // 2 if self.both_ways else self.table.num_embeddings
        distance = offset.abs() if self.both_ways else (-offset).clamp(min=0)
        exact = buckets // 2
        growth = (distance.clamp(min=exact).float() / exact).log() / math.log(self.max_distance / exact)
        far = (exact + (growth * (buckets - exact)).long()).clamp(max=buckets - 1)
        bucket = distance.where(distance < exact, far)
        return bucket + buckets * (offset > 0) if self.both_ways else bucket


class RelativeSinusoids(Scores):
    """(q + u) k + (q + v) W r, with the sinusoids r of distances."""

    def __init__(self, scores: spec.RelativeSinusoids, op: spec.Heads, dim: int, causal: bool) -> None:
        super().__init__()
        self.op, self.clamp, self.causal = op, scores.clamp, causal
        self.scale = op.head_dim**-0.5 if op.scale is None else op.scale
        self.distances = Linear(dim, (op.query_width,), bias=False)
        self.u, self.v = Table(op.heads, op.head_dim), Table(op.heads, op.head_dim)
        self.s = Table(op.heads, op.head_dim) if scores.segments else None
        self.segments = Table(2, op.query_width) if scores.segments else None

    def forward(self, q_BTHD: Tensor, k_BGSD: Tensor, layout: Layout, project: Projection) -> tuple[Tensor, Tensor]:
        """Return q + u, and the scores of distances and segments."""
        bias = self.bias(q_BTHD, -layout.distance(), layout.keys - 1)
        if self.s is not None and self.segments is not None and layout.segments is not None:
            e_2HD = self.segments.weight.unflatten(1, (self.op.heads, -1))
            scores_BHT2 = ((q_BTHD + self.s.weight) * self.scale).transpose(1, 2) @ e_2HD.permute(1, 2, 0)
            same, other = scores_BHT2.split(1, 3)
            bias = bias + torch.where(layout.same_segment(layout.segments), same, other)
        return q_BTHD + self.u.weight, bias

    def bias(self, q_BTHD: Tensor, distance: Tensor, farthest: int) -> Tensor:
        """Return the scores [B, H, T, S] of `distance` (query - key) [B or 1, 1, T, S], at most `farthest` both ways.

        Every distance is multiplied once, and its score then fetched for all pairs that are so far apart.
        """
        nearest = 0 if self.causal else -farthest
        steps = torch.arange(nearest, farthest + 1, device=q_BTHD.device)
        if self.clamp is not None:
            steps = steps.clamp(-self.clamp, self.clamp)
        waves = sinusoids(steps[None], self.distances.in_features, q_BTHD.dtype)
        r_PHD = self.distances(waves).view(-1, self.op.heads, self.op.head_dim)
        scores_BHTP = ((q_BTHD + self.v.weight) * self.scale).transpose(1, 2) @ r_PHD.permute(1, 2, 0)
        place = (distance.clamp(min=nearest) - nearest).expand(*scores_BHTP.shape[:3], -1)
        return scores_BHTP.gather(3, place)


class RelativeTable(nn.Module):
    """A learned vector per distance, in a table that all attentions of a stack share."""

    def __init__(self, relative: spec.RelativeTable, dim: int) -> None:
        super().__init__()
        self.span, self.max_distance = relative.span, relative.max_distance
        self.table = Table(2 * relative.span, dim)
        self.norm = build_norm(relative.norm, dim) or nn.Identity()

    def forward(self, layout: Layout) -> tuple[Tensor, Tensor]:
        """Return the vectors [R, dim] of a call's distances, and which one belongs to a pair, [B or 1, 1, T, S]."""
        first = max(0, self.span - layout.keys + 1)
        vectors = self.norm(self.table.weight[first : self.span + layout.keys])
        return vectors, self._row(-layout.distance()) - first

    def _row(self, distance: Tensor) -> Tensor:
        """Return the table's row of every distance (query - key)."""
        if self.max_distance is not None:
            exact = self.span // 2
            growth = (distance.abs().clamp(min=exact) / exact).log()
            growth = growth / torch.tensor((self.max_distance - 1) / exact).log() * (exact - 1)
            far = (exact + growth.ceil().long()) * distance.sign()
            distance = distance.where(distance.abs() <= exact, far)
        return (distance + self.span).clamp(0, 2 * self.span - 1)


class Disentangled(Scores):
    """q k(r) + k q(r), with keys and queries made of the vectors r of distances, R of them."""

    def __init__(self, scores: spec.Disentangled, op: spec.Attention, dim: int) -> None:
        super().__init__()
        self.heads, self.kinds = op.heads, scores
        self.scale = op.head_dim**-0.5 if op.scale is None else op.scale
        self.keys, self.queries = (
            Linear(dim, (op.query_width,), bias=kind.bias) if isinstance(kind, spec.Own) else None
            for kind in (scores.keys, scores.queries)
        )

    def forward(self, q_BTHD: Tensor, k_BGSD: Tensor, layout: Layout, project: Projection) -> tuple[Tensor, Tensor]:
        """Return the queries as they are, and the scores of positions."""
        assert layout.relative is not None
        vectors, places = layout.relative
        shared = project(vectors) if spec.AsContents() in (self.kinds.keys, self.kinds.queries) else None
        scores = []
        if self.kinds.keys is not None:
            k_RHD = self._made(self.keys, vectors, shared, self.heads)
            scores.append(_fetch(q_BTHD.transpose(1, 2), k_RHD, places))
        if self.kinds.queries is not None:
            q_RHD = self._made(self.queries, vectors, shared, 0)
            scores.append(_fetch(k_BGSD, q_RHD, places.transpose(2, 3)).transpose(2, 3))
        return q_BTHD, sum(scores[1:], scores[0]) * self.scale

    def _made(self, own: Linear | None, vectors: Tensor, shared: Tensor | None, first: int) -> Tensor:
        """Return what is made of the vectors, [R, H, D], by a projection of their own or that of the contents."""
        if own is not None:
            return own(vectors).unflatten(1, (self.heads, -1))
        assert shared is not None
        return shared[:, first : first + self.heads]


def _fetch(x_BHTD: Tensor, r_RHD: Tensor, places: Tensor) -> Tensor:
    """Return [B, H, T, S], the product of each x with that one of the r that `places` [B or 1, 1, T, S] say."""
    scores_BHTR = x_BHTD @ r_RHD.permute(1, 2, 0)
    return scores_BHTR.gather(3, places.expand(*scores_BHTR.shape[:3], -1))


def build_scores(op: spec.Attention, dim: int, visibility: spec.Visibility) -> Scores | None:
    """Build what `op` adds to its scores; None where that is nothing, or needs no module of its own."""
    match op.scores:
        case spec.BucketBias():
            return BucketBias(op.scores, visibility)
        case spec.RelativeSinusoids():
            return RelativeSinusoids(op.scores, op, dim, isinstance(visibility, spec.Causal))
        case spec.Disentangled():
            return Disentangled(op.scores, op, dim)
        case None | spec.ALiBi() | spec.LogScale() | spec.Sinks():
            return None


def build_relative(
    relative: spec.BucketBias | spec.RelativeTable | None, dim: int, visibility: spec.Visibility
) -> BucketBias | RelativeTable | None:
    """Build what all self-attentions of a stack know of distances."""
    if isinstance(relative, spec.BucketBias):
        return BucketBias(relative, visibility)
    return None if relative is None else RelativeTable(relative, dim)
