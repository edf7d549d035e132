"""Mixtures of experts: a router divides the tokens among many feed-forward layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etymon import spec
from etymon.nn import gemm
from etymon.nn.ffn import Dense, Gated, activated
from etymon.nn.linear import Linear

Chosen = tuple[Tensor, Tensor, Tensor]  # token, expert and weight [pairs] of every pair of them that meets


class ExpertLinear(nn.Module):
    """The linear layers of all experts: `weight` [experts, out, in], `bias` [experts, out]; `parts` as in `Linear`."""

    def __init__(self, experts: int, in_features: int, parts: tuple[int, ...], bias: bool) -> None:
        super().__init__()
        self.parts = parts
        self.weight = nn.Parameter(torch.empty(experts, sum(parts), in_features))
        self.bias = nn.Parameter(torch.zeros(experts, sum(parts))) if bias else None

    def forward(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """Apply to `x` [rows, in], whose rows are ordered by expert, `counts` of them for each."""
        weight, bias = self.weight, self.bias
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)  # type: ignore[assignment]
        return _ExpertLinear.apply(x, weight, bias, counts)


class _ExpertLinear(torch.autograd.Function):
    """Gradients are written straight into one tensor for all experts: that of a single expert, taken out of the stack,
    would be as large as the stack (measured: 0.06 instead of 1 times the reference's speed with 32 experts)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, counts: Sequence[int]) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.counts = counts
        return by_expert(x, counts, lambda rows, e: gemm.linear(rows, weight[e], None if bias is None else bias[e]))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        d_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        d_bias = None if bias is None else torch.zeros_like(bias)
        rows_of = iter(x.split([n for n in ctx.counts if n]))

        def apply(rows: Tensor, expert: int) -> Tensor:
            if d_weight is not None:
                d_weight[expert] = gemm.matmul(rows.T, next(rows_of))
            if d_bias is not None:
                d_bias[expert] = rows.sum(0)
            return gemm.matmul(rows, weight[expert])

        return by_expert(dy, ctx.counts, apply), d_weight, d_bias, None


def by_expert(x: Tensor, counts: Sequence[int], apply: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Apply the layer of every expert that has some to its rows of `x`; nothing is done for the others."""
    chosen = [expert for expert, rows in enumerate(counts) if rows]
    pieces = x.split([counts[expert] for expert in chosen])
    return torch.cat([apply(rows, expert) for rows, expert in zip(pieces, chosen, strict=True)])


class Experts(nn.Module):
    """Equal feed-forward layers; `up` holds the gates above the other factors where they are gated."""

    dropout = 0.0

    def __init__(self, op: spec.Dense | spec.Gated, count: int, dim: int) -> None:
        super().__init__()
        self.op = op
        self.up = ExpertLinear(count, dim, (op.hidden,) * (2 if isinstance(op, spec.Gated) else 1), op.bias)
        self.down = ExpertLinear(count, op.hidden, (dim,), op.bias)

    def forward(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """Apply to `x` [rows, dim], whose rows are ordered by expert, `counts` of them for each."""
        h = activated(self.op, self.up(x, counts))
        return self.down(F.dropout(h, self.dropout) if self.dropout and self.training else h, counts)


class Router(nn.Module):
    """Logits of every expert, in fp32 whatever the model's precision: a rounded one would choose another expert. The
    `correction` is no parameter: whoever trains moves it by the experts' load."""

    correction: Tensor | None

    def __init__(self, op: spec.Router, experts: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, dim))
        self.bias = nn.Parameter(torch.zeros(experts)) if op.bias else None
        self.register_buffer("correction", torch.zeros(experts) if op.correction else None)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [..., experts] for `x` [..., dim]."""
        with torch.autocast(x.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return gemm.linear(x.float(), self.weight.float(), bias)


class MoE(nn.Module):
    """The sum of the chosen experts' outputs by their weights, plus the shared expert's.

    After a call, `load` [experts] holds how many tokens each expert got, and in training `logits` [tokens, experts]
    what the router said, for losses that balance it.
    """

    def __init__(self, op: spec.MoE, dim: int) -> None:
        super().__init__()
        self.op = op
        self.router = Router(op.router, op.experts, dim)
        self.experts = Experts(op.expert, op.experts, dim)
        self.shared: Dense | Gated | None = None
        self.shared_gate: Linear | None = None
        if op.shared is not None:
            shared = op.shared.op
            self.shared = Gated(shared, dim) if isinstance(shared, spec.Gated) else Dense(shared, dim)
            self.shared_gate = Linear(dim, (1,), bias=False) if op.shared.gated else None
        self.load: Tensor | None = None
        self.token: Tensor | None = None  # of the last call: which token each of the experts' rows is
        self.tokens = 0
        self.logits: Tensor | None = None
        self.served: Tensor | None = None  # in training: the load of all calls since `settle`

    @property
    def idle(self) -> int:
        """The number of parameters that one token does not use."""
        experts = sum(weight.numel() for weight in self.experts.parameters())
        return experts // self.op.experts * (self.op.experts - self.op.router.k)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to `x` [batch, time, dim]."""
        rows = x.flatten(0, -2)
        logits = self.router(x)
        self.logits = logits.flatten(0, -2) if self.training else None
        router = self.op.router
        if isinstance(router, spec.TopK):
            token, expert, weight = top_k(router, logits, self.router.correction)
        else:
            token, expert, weight = expert_choice(router, logits)
        order = expert.argsort(stable=True)
        token = self.token = token[order]
        self.tokens = len(rows)
        self.load = torch.bincount(expert, minlength=self.op.experts)
        if self.training and self.router.correction is not None:
            self.served = self.load if self.served is None else self.served + self.load
        results = self.experts(rows.index_select(0, token), self.load.tolist())
        results = results * weight[order, None].to(results.dtype)
        y = torch.zeros_like(rows, dtype=results.dtype).index_add(0, token, results)
        if self.shared is not None:
            extra = self.shared(rows)
            y = y + (extra if self.shared_gate is None else torch.sigmoid(self.shared_gate(rows)) * extra)
        return y.view(x.shape)


def top_k(router: spec.TopK, logits: Tensor, correction: Tensor | None = None) -> Chosen:
    """Let every token choose, by fp32 `logits` [batch, time, experts]."""
    scores = logits.softmax(-1) if router.scores == "softmax" else logits.sigmoid()
    wanted = scores if correction is None else scores + correction
    if router.groups is not None:
        wanted = _within_groups(router.groups, wanted)
    chosen = wanted.topk(router.k, -1).indices
    weights = scores.gather(-1, chosen)
    if router.renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
    if router.scale != 1.0:
        weights = weights * router.scale
    token = torch.arange(chosen[..., 0].numel(), device=chosen.device).repeat_interleave(router.k)
    if router.capacity is None:
        return token, chosen.flatten(), weights.flatten()
    seated = _seated(router, chosen, logits.shape[-1]).flatten()
    return token[seated], chosen.flatten()[seated], weights.flatten()[seated]


def _within_groups(groups: spec.Groups, wanted: Tensor) -> Tensor:
    """Return the scores `wanted` [..., experts], -inf outside the best groups."""
    by_group = wanted.unflatten(-1, (groups.count, -1))
    worth = by_group.topk(groups.best, -1).values.sum(-1)
    kept = torch.zeros_like(worth, dtype=torch.bool).scatter(-1, worth.topk(groups.keep, -1).indices, True)
    return by_group.masked_fill(~kept[..., None], -torch.inf).flatten(-2)


def _seated(router: spec.TopK, chosen: Tensor, experts: int) -> Tensor:
    """Return which of the choices [batch, time, k] their experts have room for."""
    time, k = chosen.shape[1:]
    if isinstance(router.capacity, spec.CapacityFactor):
        seats = math.ceil(router.capacity.factor * k * time / experts)
    else:
        assert router.capacity is not None
        seats = router.capacity.tokens
    queue = chosen.mT.flatten(1)  # all first choices before the second ones
    place = F.one_hot(queue, experts).cumsum(1).gather(2, queue[..., None])
    return (place <= seats).view(-1, k, time).mT


def expert_choice(router: spec.ExpertChoice, logits: Tensor) -> Chosen:
    """Let every expert choose, by fp32 `logits` [batch, time, experts]."""
    batch, time, experts = logits.shape
    seats = min(time, math.ceil(router.k * time / experts))
    weights, chosen = logits.softmax(-1).topk(seats, 1)  # each [batch, seats, experts]
    token = chosen + torch.arange(batch, device=chosen.device)[:, None, None] * time
    expert = torch.arange(experts, device=chosen.device).expand_as(chosen)
    return token.flatten(), expert.flatten(), weights.flatten()


def balance_loss(logits: Sequence[Tensor], router: spec.Router) -> Tensor:
    """Return experts * sum over experts of (share of the choices) * (mean probability), over the `logits`
    [tokens, experts] of all layers together (Fedus et al. 2021, arXiv:2101.03961, eq. 4): k when perfectly balanced."""
    said = torch.cat(list(logits))
    if isinstance(router, spec.TopK) and router.scores == "sigmoid":
        probabilities = F.normalize(said.sigmoid(), p=1, dim=-1)  # DeepSeek-V3's (arXiv:2412.19437, eq. 19)
    else:
        probabilities = said.softmax(-1)
    experts = said.shape[1]
    chosen = F.one_hot(said.topk(router.k, -1).indices, experts).sum(1).float().mean(0)
    return experts * (chosen * probabilities.mean(0)).sum()


def z_loss(logits: Sequence[Tensor]) -> Tensor:
    """Return the mean squared logarithm of the router's partition function, which keeps its `logits` [tokens, experts]
    small (Zoph et al. 2022, arXiv:2202.08906, eq. 5)."""
    return torch.cat(list(logits)).logsumexp(-1).square().mean()


def mixtures(module: nn.Module) -> Iterator[tuple[str, MoE]]:
    """Yield the mixtures of experts in a model, or in what is trained together, with their names; their `load` and
    `logits` tell how the last call went."""
    for name, part in module.named_modules():
        if isinstance(part, MoE):
            yield name, part


def penalties(module: nn.Module) -> dict[str, Tensor]:
    """Return by name what training may add to its loss, of the last call: how unevenly the routers of a module use the
    experts, and how large their logits are. Empty where there is no mixture of experts."""
    found = [(moe.op.router, moe.logits) for _, moe in mixtures(module) if moe.logits is not None]
    if not found:
        return {}
    logits = [said for _, said in found]
    return {"balance": balance_loss(logits, found[0][0]), "router_z": z_loss(logits)}


@torch.no_grad()
def settle(module: nn.Module, rate: float) -> None:
    """After an update: move what no gradient trains, the corrections of routers, by `rate` each, up for experts that
    got fewer tokens than the average since the last time, down for others (Wang et al. 2024, arXiv:2408.15664)."""
    for _, moe in mixtures(module):
        if moe.router.correction is not None and moe.served is not None:
            served = moe.served.float()
            moe.router.correction += rate * (served.mean() - served).sign()
        moe.served = None
