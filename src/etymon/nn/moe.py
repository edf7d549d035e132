"""Mixtures of experts: a router sends each token to a few of many feed-forward layers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etymon import spec
from etymon.nn import gemm
from etymon.nn.ffn import ACTIVATIONS, Dense, Gated, gated
from etymon.nn.linear import Linear


class Experts(nn.Module):
    """Equal feed-forward layers, whose matrices are stacked: `up` [experts, hidden or 2 * hidden, dim] (gate above up
    where the expert is gated) and `down` [experts, dim, hidden]."""

    def __init__(self, expert: spec.Dense | spec.Gated, count: int, dim: int) -> None:
        super().__init__()
        self.gated = isinstance(expert, spec.Gated)
        self.activation = ACTIVATIONS[expert.activation]
        self.up = nn.Parameter(torch.empty(count, expert.hidden * (2 if self.gated else 1), dim))
        self.down = nn.Parameter(torch.empty(count, dim, expert.hidden))

    def forward(self, x: Tensor, counts: list[int]) -> Tensor:
        """Apply to `x` [rows, dim], whose rows are ordered by expert, `counts` of them for each."""
        results = []
        for expert, rows in enumerate(x.split(counts)):
            if len(rows):
                h = gemm.linear(rows, self.up[expert])
                h = gated(h, self.activation) if self.gated else self.activation(h)
                results.append(gemm.linear(h, self.down[expert]))
        return torch.cat(results)


class MoE(nn.Module):
    """The sum of the chosen experts' outputs by their weights, plus the shared expert's.

    After a call, `load` [experts] holds how many tokens each expert got, and in training `logits` [tokens, experts]
    what the router said, for losses that balance it.
    """

    def __init__(self, op: spec.MoE, dim: int) -> None:
        super().__init__()
        self.op = op
        self.router = Linear(dim, (op.experts,), bias=False)
        self.experts = Experts(op.expert, op.experts, dim)
        self.shared: Dense | Gated | None = None
        self.shared_gate: Linear | None = None
        if op.shared is not None:
            shared = op.shared.op
            self.shared = Gated(shared, dim) if isinstance(shared, spec.Gated) else Dense(shared, dim)
            self.shared_gate = Linear(dim, (1,), bias=False) if op.shared.gated else None
        self.load: Tensor | None = None
        self.logits: Tensor | None = None

    @property
    def idle(self) -> int:
        """The number of parameters that one token does not use."""
        experts = sum(weight.numel() for weight in self.experts.parameters())
        return experts // self.op.experts * (self.op.experts - self.op.router.k)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to `x` [..., dim]."""
        rows = x.reshape(-1, x.shape[-1])
        logits = self.router(rows).float()
        self.logits = logits if self.training else None
        weights, chosen = route(self.op.router, logits)
        k = chosen.shape[1]
        order = chosen.flatten().argsort(stable=True)  # pairs of token and expert, by expert
        self.load = torch.bincount(chosen.flatten(), minlength=self.op.experts)
        results = self.experts(rows[order // k], self.load.tolist())
        results = results * weights.flatten()[order, None].to(results.dtype)
        y = torch.zeros_like(rows, dtype=results.dtype).index_add(0, order // k, results)
        if self.shared is not None:
            extra = self.shared(rows)
            y = y + (extra if self.shared_gate is None else torch.sigmoid(self.shared_gate(rows)) * extra)
        return y.view(x.shape)


def route(router: spec.TopK, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights and indices of the chosen experts, each [tokens, k], for fp32 `logits` [tokens, experts]."""
    weights, chosen = logits.softmax(-1).topk(router.k, -1)
    if router.renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, chosen


def balance_loss(logits: Iterable[Tensor], k: int) -> Tensor:
    """Return experts * sum over experts of (share of the choices) * (mean probability), over the `logits`
    [tokens, experts] of all layers together (Fedus et al. 2021, arXiv:2101.03961, eq. 4): k when perfectly balanced."""
    probabilities = torch.cat(list(logits)).softmax(-1)
    experts = probabilities.shape[1]
    chosen = F.one_hot(probabilities.topk(k, -1).indices, experts).sum(1).float().mean(0)
    return experts * (chosen * probabilities.mean(0)).sum()
