"""Heads: the language model's, whose loss never holds all logits, and those that judge tokens or whole texts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etymon import kernels, spec
from etymon.errors import DataError
from etymon.nn import gemm
from etymon.nn.ffn import ACTIVATIONS
from etymon.nn.linear import Linear, UnitLinear
from etymon.nn.norm import build_norm
from etymon.nn.pooling import pool

IGNORE = -100  # the target of a position at which nothing is trained
CHUNK_ELEMENTS = 1 << 22  # logits held at once: 16 MB in fp32 stays near the caches and is still a large matmul
# but of a large vocabulary more, up to 128 MB and the weight's own size: each chunk reads all of the weight and adds to
# all of its gradient
CHUNK_ROWS, CHUNK_LIMIT = 1024, 128 << 18


class LMHead(nn.Module):
    """hidden [..., dim] → logits [..., vocab]. A tied head's `linear.weight` is the token embedding itself."""

    def __init__(self, head: spec.LM, vocab: int, dim: int) -> None:
        super().__init__()
        self.spec = head
        narrow = head.projection
        if isinstance(narrow, spec.Transform):
            self.projection: nn.Module | None = Transform(narrow, dim)
        else:
            self.projection = None if narrow is None else Linear(dim, (narrow.width,), bias=narrow.bias)
        linear = Linear if head.rows is None else UnitLinear
        self.linear = linear(dim if narrow is None else narrow.width, (vocab,), bias=head.bias)
        self.tied = head.tied

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., vocab]."""
        logits = self.linear(self._prepared(hidden))
        cap = self.spec.softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _prepared(self, hidden: Tensor) -> Tensor:
        if self.projection is not None:
            hidden = self.projection(hidden)
        return hidden if self.spec.scale == 1.0 else hidden * self.spec.scale

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
        return linear_cross_entropy(hidden, self.linear.matrix, self.linear.bias, targets, self.spec.softcap)


class Transform(nn.Module):
    """norm(act(x W + b))."""

    def __init__(self, transform: spec.Transform, dim: int) -> None:
        super().__init__()
        self.dense = Linear(dim, (transform.width,), bias=transform.bias)
        self.activation = ACTIVATIONS[transform.activation]
        self.norm = build_norm(transform.norm, transform.width) or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Apply to `x` [..., dim]."""
        return self.norm(self.activation(self.dense(x)))


class Discriminator(nn.Module):
    """hidden [batch, time, dim] → one logit per token [batch, time]: was it replaced?"""

    tied = False

    def __init__(self, head: spec.Discriminator, dim: int) -> None:
        super().__init__()
        self.context = build_norm(head.context, dim)
        self.dense = Linear(dim, (dim,), bias=True)
        self.activation = ACTIVATIONS[head.activation]
        self.linear = Linear(dim, (1,), bias=True)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the logits [batch, time]."""
        if self.context is not None:
            hidden = self.context(hidden + hidden[:, :1])
        return self.linear(self.activation(self.dense(hidden))).squeeze(-1)

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the summed binary cross-entropy of `targets` [batch, time]: 1 replaced, 0 not, -100 ignored."""
        trained = targets != IGNORE
        logits, wanted = self(hidden)[trained].float(), targets[trained].float()
        return F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")


class Classify(nn.Module):
    """hidden [batch, time, dim] → logits [batch, classes] of whole texts. `real` [batch, time] is 1 where a text is, 0
    at its padding (None: there is none)."""

    tied = False

    def __init__(self, head: spec.Classify, dim: int) -> None:
        super().__init__()
        self.pooling = head.pooling
        self.dense = Linear(dim, (dim,), bias=True)
        self.activation = ACTIVATIONS[head.activation]
        self.linear = Linear(dim, (head.classes,), bias=True)

    def forward(self, hidden: Tensor, real: Tensor | None = None) -> Tensor:
        """Return the logits [batch, classes]."""
        return self.linear(self.activation(self.dense(pool(self.pooling, hidden, real))))

    def loss(self, hidden: Tensor, targets: Tensor, real: Tensor | None = None) -> Tensor:
        """Return the summed negative log-likelihood of the classes `targets` [batch]; -100 counts nothing."""
        return F.cross_entropy(self(hidden, real).float(), targets, ignore_index=IGNORE, reduction="sum")


class PretrainingHead(LMHead):
    """A language model's head, and beside it `pair`, which judges a row's two segments."""

    def __init__(self, head: spec.Pretraining, vocab: int, dim: int) -> None:
        super().__init__(head, vocab, dim)
        self.pair = Classify(head.pair, dim)


class Embedding(nn.Module):
    """hidden [batch, time, dim] → one vector for each text [batch, dim]; `real` as of `Classify`."""

    tied = False
    linear = None

    def __init__(self, head: spec.Embedding) -> None:
        super().__init__()
        self.pooling, self.normalise = head.pooling, head.normalise

    def forward(self, hidden: Tensor, real: Tensor | None = None) -> Tensor:
        """Return the vectors."""
        vectors = pool(self.pooling, hidden, real)
        return F.normalize(vectors, dim=-1) if self.normalise else vectors

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Refuse: vectors are trained by comparison."""
        raise DataError("this model gives a vector for each text, and no loss: train it by the objective contrastive")


class PerToken(nn.Module):
    """hidden [batch, time, dim] → logits [batch, time, classes], or [batch, time, 2] of a span's first and last."""

    tied = False

    def __init__(self, head: spec.Tag | spec.Span, dim: int) -> None:
        super().__init__()
        self.classes = head.classes if isinstance(head, spec.Tag) else None
        self.linear = Linear(dim, (self.classes or 2,), bias=True)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the logits."""
        return self.linear(hidden)

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the summed negative log-likelihood of the classes `targets` [batch, time], or of the places [batch, 2]
        of the span's ends; -100 counts nothing."""
        logits = self(hidden).float()  # of a span, the alternatives are the places
        alternatives = logits if self.classes is None else logits.transpose(1, 2)
        return F.cross_entropy(alternatives, targets, ignore_index=IGNORE, reduction="sum")


class Pooler(nn.Module):
    """No logits: hidden [batch, time, dim] → act(dense(first token)) [batch, dim], or None without a pooler."""

    tied = False
    linear = None

    def __init__(self, head: spec.Hidden, dim: int) -> None:
        super().__init__()
        self.dense = Linear(dim, (dim,), bias=True) if head.pooler else None
        self.activation = ACTIVATIONS[head.pooler] if head.pooler else None

    def forward(self, hidden: Tensor) -> Tensor | None:
        """Return the pooled first token [batch, dim]."""
        if self.dense is None or self.activation is None:
            return None
        return self.activation(self.dense(hidden[:, 0]))

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Refuse: there is nothing to train."""
        raise DataError("this model has no head: it gives hidden states, and no loss")


Head = LMHead | Discriminator | Classify | PerToken | Pooler | Embedding


def build_head(head: spec.Head, vocab: int, dim: int) -> Head:
    """Build the module of a head."""
    match head:
        case spec.Embedding():
            return Embedding(head)
        case spec.Pretraining():
            return PretrainingHead(head, vocab, dim)
        case spec.LM():
            return LMHead(head, vocab, dim)
        case spec.Discriminator():
            return Discriminator(head, dim)
        case spec.Classify():
            return Classify(head, dim)
        case spec.Tag() | spec.Span():
            return PerToken(head, dim)
        case spec.Hidden():
            return Pooler(head, dim)


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, softcap: float | None = None
) -> Tensor:
    """Return sum(-log softmax(z)[targets]) over rows, z = hidden @ weight.T + bias (hidden [n, dim], weight
    [vocab, dim]), or softcap * tanh(z / softcap)."""
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    if not torch.is_grad_enabled():  # or the gradients would be taken on the spot for nobody
        hidden, weight = hidden.detach(), weight.detach()
    return _LinearCrossEntropy.apply(hidden, weight, bias, targets, softcap)


def _entropy(logits: Tensor, targets: Tensor, *, gradient: bool) -> Tensor:
    """Return the summed -log softmax(logits)[targets] of fp32 rows, whose `gradient` takes the place of the logits."""
    if logits.is_cpu and not torch.compiler.is_compiling() and kernels.library() is not None:
        return torch.tensor(kernels.entropy(logits, targets, gradient=gradient))
    targets = targets[:, None]
    log_z = logits.logsumexp(1, keepdim=True)
    loss = (log_z - logits.gather(1, targets)).sum()
    if gradient:
        logits.sub_(log_z).exp_().scatter_add_(1, targets, torch.full_like(log_z, -1.0))
    return loss


def _chunk_rows(count: int, vocab: int, dim: int) -> int:
    """Return of how many rows logits are held at once, so that the last chunk of `count` is no smaller than others."""
    most = max(128, CHUNK_ELEMENTS // vocab, min(CHUNK_ROWS, dim, CHUNK_LIMIT // vocab))
    return max(1, -(-count // max(1, -(-count // most))))


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
        fresh = torch.empty if len(hidden) else torch.zeros  # the first chunk overwrites what is there
        d_weight = fresh(weight.shape, dtype=torch.float32, device=weight.device) if needs[1] else None
        d_bias = torch.zeros(bias.shape, dtype=torch.float32, device=bias.device) if bias is not None else None
        rows = _chunk_rows(hidden.shape[0], *weight.shape)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], rows):
                h = hidden[start : start + rows]
                t = targets[start : start + rows]
                logits = gemm.linear(h, weight, None if bias is None else bias.to(h.dtype)).float()
                slope = None
                if softcap is not None:
                    capped = torch.tanh(logits / softcap)
                    logits, slope = capped * softcap, 1 - capped * capped
                d_logits = logits
                loss += _entropy(logits, t, gradient=needs[0] or needs[1])
                if not (needs[0] or needs[1]):
                    continue
                if slope is not None:
                    d_logits *= slope
                if d_bias is not None:
                    d_bias += d_logits.sum(0)
                d_logits = d_logits.to(h.dtype)
                if d_hidden is not None:
                    d_hidden[start : start + rows] = gemm.matmul(d_logits, weight)
                if d_weight is not None:
                    if d_weight.dtype == h.dtype:
                        gemm.matmul(d_logits.T, h, out=d_weight, add=start > 0)
                    elif start:
                        d_weight += gemm.matmul(d_logits.T, h)
                    else:
                        d_weight.copy_(gemm.matmul(d_logits.T, h))
                del logits, d_logits  # before the next ones are there
        ctx.grads = (d_hidden, d_weight, d_bias)  # type: ignore[attr-defined]
        ctx.weight_dtype = weight.dtype  # type: ignore[attr-defined]
        return loss

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight, d_bias = ctx.grads  # type: ignore[attr-defined]
        ctx.grads = ()  # type: ignore[attr-defined]
        return (
            None if d_hidden is None else d_hidden.mul_(grad.to(d_hidden.dtype)),
            None if d_weight is None else d_weight.mul_(grad).to(ctx.weight_dtype),  # type: ignore[attr-defined]
            None if d_bias is None else d_bias * grad,
            None,
            None,
        )
