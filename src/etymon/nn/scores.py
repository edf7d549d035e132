"""What is added to the scores of attention and is learned or depends on what is compared."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from etymon import spec
from etymon.nn.layout import Layout
from etymon.nn.linear import Linear
from etymon.nn.position import sinusoids
from etymon.nn.table import Table


class Scores(nn.Module):
    """What an attention adds to its scores. B batch, T time, S keys, H query heads, G key heads, D head width."""

    def forward(self, q_BTHD: Tensor, k_BGSD: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Return the queries that meet the keys, and what is added to the scaled scores: [B or 1, H, T, S]."""
        raise NotImplementedError


class BucketBias(Scores):
    """A learned bias per head and bucket of distances."""

    def __init__(self, bias: spec.BucketBias, visibility: spec.Visibility) -> None:
        super().__init__()
        self.max_distance = bias.max_distance
        self.both_ways = not isinstance(visibility, spec.Causal)
        self.table = Table(bias.buckets, bias.heads)

    def forward(self, q_BTHD: Tensor, k_BGSD: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
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

    def __init__(self, scores: spec.RelativeSinusoids, op: spec.Attention, dim: int, causal: bool) -> None:
        super().__init__()
        self.op, self.clamp, self.causal = op, scores.clamp, causal
        self.scale = op.head_dim**-0.5 if op.scale is None else op.scale
        self.distances = Linear(dim, (op.query_width,), bias=False)
        self.u, self.v = Table(op.heads, op.head_dim), Table(op.heads, op.head_dim)
        self.s = Table(op.heads, op.head_dim) if scores.segments else None
        self.segments = Table(2, op.query_width) if scores.segments else None

    def forward(self, q_BTHD: Tensor, k_BGSD: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
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


def build_scores(op: spec.Attention, dim: int, visibility: spec.Visibility) -> Scores | None:
    """Build what `op` adds to its scores; None where that is nothing, or needs no module of its own."""
    match op.scores:
        case spec.BucketBias():
            return BucketBias(op.scores, visibility)
        case spec.RelativeSinusoids():
            return RelativeSinusoids(op.scores, op, dim, isinstance(visibility, spec.Causal))
        case None | spec.ALiBi():
            return None
