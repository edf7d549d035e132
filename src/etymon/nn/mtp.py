"""Sequential multi-token prediction (DeepSeek-AI 2024, arXiv:2412.19437, section 2.2): modules beside a model, each of
which reads what the one before made of a place and the token that follows, and predicts the one behind that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from etymon import spec
from etymon.errors import ConfigError
from etymon.nn.block import Stack
from etymon.nn.future import FutureHeads
from etymon.nn.head import IGNORE
from etymon.nn.layout import Layout
from etymon.nn.linear import Linear
from etymon.nn.model import Model, initialise
from etymon.nn.moe import ExpertLinear
from etymon.nn.norm import RMSNorm, build_norm
from etymon.nn.state import Mixer, State
from etymon.spec import ModelSpec

# Operators that see more than the stream of their own stack: passages, or a memory that other layers fill.
FOREIGN = (spec.SourceAttention, spec.ChunkedCrossAttention, spec.Neighbours, spec.MemoryAttention)


class SequentialHead(nn.Module):
    """h' = M [norm(Emb(t)); norm(h)], then one block of the model's own kind and a norm like the one that ends its
    trunk. The columns of M stand in the order of the published weights, those of the embedding first."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        trunk = model.trunk
        width = trunk.widths(model.dim)[-2]
        norm = trunk.final_norm if isinstance(trunk.final_norm, spec.RMSNorm) else spec.RMSNorm()
        self.embedding_norm = build_norm(norm, model.dim)
        self.hidden_norm = build_norm(norm, model.width)
        self.projection = Linear(model.dim + model.width, (width,), bias=False)
        self.stack = Stack(replace(trunk, blocks=trunk.blocks[-1:], repeats=1), width)

    def forward(self, hidden: Tensor, vectors: Tensor, layout: Layout, state: State | None = None) -> Tensor:
        """Return what the output head reads, [batch, time, width], from what it read one token before, `hidden` of the
        same shape, and the embeddings `vectors` [batch, time, dim] of the tokens that follow."""
        assert isinstance(self.embedding_norm, RMSNorm) and isinstance(self.hidden_norm, RMSNorm)
        x = self.projection(torch.cat((self.embedding_norm(vectors), self.hidden_norm(hidden)), -1))
        made: Tensor = self.stack(x, layout, None if state is None else iter(state.cells), None)
        return made


class SequentialHeads(nn.Module):
    """`depth` modules for a model of `spec`, whose embedding and output head they share. Module k, from 0, makes of its
    place i, by t_{i+k+1}, what predicts t_{i+k+2}; it sees the earlier places of its row through its own attention.

    The first reads what the model's head reads, behind the final norm; each further one what the head reads of the one
    before. A module's place has the position of its hidden state. Raises ConfigError for a depth below 1 or above 64,
    and for models whose last block cannot stand alone.
    """

    def __init__(self, spec: ModelSpec, depth: int) -> None:
        check_sequential(spec)
        if not 1 <= depth <= 64:
            raise ConfigError(f"sequential heads: depth {depth}: expected 1 to 64")
        super().__init__()
        self.spec, self.depth = spec, depth
        self.dim, self.vocab = spec.width, spec.vocab
        self.heads = nn.ModuleList([SequentialHead(spec) for _ in range(depth)])

    def matrices(self) -> Iterator[tuple[str, Linear | ExpertLinear]]:
        """Yield the linear layers with their names, as a model does."""
        for name, module in self.named_modules():
            if isinstance(module, Linear | ExpertLinear):
                yield name, module

    def mixers(self) -> Iterator[Mixer]:
        """Yield the operators that keep state, module by module."""
        for head in self.heads:
            assert isinstance(head, SequentialHead)
            yield from head.stack.mixers()

    def forward(
        self, hidden: Tensor, vectors: Tensor, layout: Layout, index: int, state: State | None = None
    ) -> Tensor:
        """Return what module `index` makes of `hidden` and `vectors`, as `SequentialHead` does."""
        made: Tensor = self.heads[index](hidden, vectors, layout, state)
        return made

    def loss(
        self,
        model: Model,
        hidden: Tensor,
        input_ids: Tensor,
        targets: Tensor,
        position_ids: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """Return, for each module, the summed negative log-likelihood of its tokens: [depth], fp32.

        `hidden` [batch, time, width] are the model's last for `input_ids` [batch, time], `targets` [batch, time] what
        it predicts there; -100 counts nothing, and neither does what stands in another of `documents` [batch, time].
        """
        batch, time = input_ids.shape
        if position_ids is None:
            position_ids = torch.arange(time, device=hidden.device).expand(batch, time)
        vectors = model.embed(input_ids, None, _layout(position_ids, documents), {})
        losses = []
        for ahead in range(1, self.depth + 1):
            seen = time - ahead
            if seen < 1:
                losses.append(torch.zeros((), device=hidden.device))
                continue
            here = None if documents is None else documents[:, :seen]
            layout = _layout(position_ids[:, :seen], here)
            hidden = self(hidden[:, :seen], vectors[:, ahead:], layout, ahead - 1)
            wanted = targets[:, ahead:]
            if documents is not None and here is not None:
                wanted = wanted.masked_fill(documents[:, ahead:] != here, IGNORE)
            losses.append(model.head.loss(hidden, wanted))
        return torch.stack(losses)


AnyHeads = FutureHeads | SequentialHeads
"""Heads that look further ahead than a model's own."""


def _layout(position_ids: Tensor, documents: Tensor | None) -> Layout:
    batch, time = position_ids.shape
    return Layout((batch, time), position_ids.device, position_ids=position_ids, documents=documents)


def check_sequential(model: ModelSpec) -> None:
    """Raise ConfigError where no block of the model's kind can stand behind it: for encoders, for heads without logits,
    for stacks that read in windows or fill in blanks, and for blocks that see passages or a memory."""
    trunk, reason = model.trunk, ""
    if model.encoder is not None or not isinstance(model.head, spec.LM):
        reason = "does not predict tokens from those before them"
    elif type(trunk.visibility) is not spec.Causal:
        reason = f"sees by the rule {type(trunk.visibility).__name__}, which a block behind it cannot follow"
    elif foreign := [sub.op for block in set(trunk.blocks) for sub in block.subs if isinstance(sub.op, FOREIGN)]:
        reason = f"has {type(foreign[0]).__name__}, which sees more than its own tokens"
    if reason:
        raise ConfigError(f"sequential heads: {model.name} {reason}. Residual heads need its last hidden state alone.")


def build_sequential_heads(model: Model, depth: int, seed: int = 0) -> SequentialHeads:
    """Return fresh modules for `model`, on its device. Raises ConfigError as `SequentialHeads` does."""
    with torch.device("meta"):
        heads = SequentialHeads(model.spec, depth)
    heads = heads.to_empty(device=model.device)
    initialise(heads, seed)
    return heads
