"""What is added to the scores of attention and is learned or depends on what is compared."""

from __future__ import annotations

import math

from torch import Tensor, nn

from etymon import spec
from etymon.nn.layout import Layout
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


def build_scores(op: spec.Attention, visibility: spec.Visibility) -> Scores | None:
    """Build what `op` adds to its scores; None where that is nothing, or needs no module of its own."""
    match op.scores:
        case spec.BucketBias():
            return BucketBias(op.scores, visibility)
        case None | spec.ALiBi():
            return None
