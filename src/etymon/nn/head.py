"""The language-model head: logits, and a loss that never holds all of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etymon import spec
from etymon.nn import gemm
from etymon.nn.linear import Linear

IGNORE = -100  # the target of a position at which nothing is trained
CHUNK_ELEMENTS = 1 << 22  # logits held at once: 16 MB in fp32 stays near the caches and is still a large matmul


class LMHead(nn.Module):
    """hidden [..., dim] → logits [..., vocab]. A tied head's `linear.weight` is the token embedding itself."""

    def __init__(self, head: spec.LM, vocab: int, dim: int) -> None:
        super().__init__()
        self.spec = head
        narrow = head.projection
        self.projection = None if narrow is None else Linear(dim, (narrow.width,), bias=narrow.bias)
        self.linear = Linear(dim if narrow is None else narrow.width, (vocab,), bias=head.bias)
        self.tied = head.tied

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., vocab]."""
        hidden = self._prepared(hidden)
        logits = gemm.linear(hidden, self._rows(), self.linear.bias) if self.spec.normalised else self.linear(hidden)
        cap = self.spec.softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _prepared(self, hidden: Tensor) -> Tensor:
        if self.projection is not None:
            hidden = self.projection(hidden)
        return hidden if self.spec.scale == 1.0 else hidden * self.spec.scale

    def _rows(self) -> Tensor:
        return F.normalize(self.linear.weight) if self.spec.normalised else self.linear.weight

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the summed negative log-likelihood of `targets` [...], an fp32 scalar; targets of -100 count nothing.

        Logits exist a few hundred rows at a time, and only for trained positions; their gradients are taken on the
        spot, so that neither pass holds [tokens, vocab].
        """
        hidden = hidden.reshape(-1, hidden.shape[-1])
        targets = targets.reshape(-1)
        trained = (targets != IGNORE).nonzero().squeeze(1)
        if len(trained) < len(targets):
            hidden, targets = hidden.index_select(0, trained), targets.index_select(0, trained)
        if not isinstance(self.linear, nn.Linear):  # a quantised head has no weight to train
            loss = torch.zeros((), device=hidden.device)
            for start in range(0, len(targets), 1024):
                logits = self(hidden[start : start + 1024]).float()
                loss += F.cross_entropy(logits, targets[start : start + 1024], reduction="sum")
            return loss
        hidden = self._prepared(hidden)
        return linear_cross_entropy(hidden, self._rows(), self.linear.bias, targets, self.spec.softcap)


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, softcap: float | None = None
) -> Tensor:
    """Return sum(-log softmax(z)[targets]) over rows, z = hidden @ weight.T + bias (hidden [n, dim], weight
    [vocab, dim]), or softcap * tanh(z / softcap)."""
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    return _LinearCrossEntropy.apply(hidden, weight, bias, targets, softcap)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        softcap: float | None,
    ) -> Tensor:
        needs = ctx.needs_input_grad  # type: ignore[attr-defined]
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        d_hidden = torch.empty_like(hidden) if needs[0] else None
        d_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if needs[1] else None
        d_bias = torch.zeros(bias.shape, dtype=torch.float32, device=bias.device) if bias is not None else None
        rows = max(128, CHUNK_ELEMENTS // weight.shape[0])
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], rows):
                h = hidden[start : start + rows]
                t = targets[start : start + rows, None]
                logits = gemm.linear(h, weight, None if bias is None else bias.to(h.dtype)).float()
                slope = None
                if softcap is not None:
                    capped = torch.tanh(logits / softcap)
                    logits, slope = capped * softcap, 1 - capped * capped
                log_z = logits.logsumexp(1, keepdim=True)
                loss += (log_z - logits.gather(1, t)).sum()
                if not (needs[0] or needs[1]):
                    continue
                d_logits = logits.sub_(log_z).exp_()
                d_logits.scatter_add_(1, t, torch.full_like(log_z, -1.0))
                if slope is not None:
                    d_logits *= slope
                if d_bias is not None:
                    d_bias += d_logits.sum(0)
                d_logits = d_logits.to(h.dtype)
                if d_hidden is not None:
                    d_hidden[start : start + rows] = gemm.matmul(d_logits, weight)
                if d_weight is not None:
                    d_weight += gemm.matmul(d_logits.T, h)
        ctx.grads = (d_hidden, d_weight, d_bias)  # type: ignore[attr-defined]
        ctx.weight_dtype = weight.dtype  # type: ignore[attr-defined]
        return loss

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight, d_bias = ctx.grads  # type: ignore[attr-defined]
        ctx.grads = ()  # type: ignore[attr-defined]
        return (
            None if d_hidden is None else d_hidden * grad.to(d_hidden.dtype),
            None if d_weight is None else (d_weight * grad).to(ctx.weight_dtype),  # type: ignore[attr-defined]
            None if d_bias is None else d_bias * grad,
            None,
            None,
        )
