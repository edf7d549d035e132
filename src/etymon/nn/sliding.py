"""Attention within a sliding window, in blocks, with a few global tokens: memory grows linearly with the length."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from etymon import spec
from etymon.errors import ConfigError, DataError
from etymon.nn.layout import Chosen, Layout
from etymon.nn.linear import Linear
from etymon.nn.state import Cell, Mixer

BLOCK = 64  # queries that share a window of keys, unless the reach is longer


class GlobalLocalAttention(Mixer):
    """Tokens see their neighbours and the global tokens; global tokens see all, through projections of their own.

    B batch, T time, H heads, D head width; N blocks of Q queries, each with W keys, of which G are global.
    """

    def __init__(self, op: spec.GlobalLocalAttention, dim: int, visibility: spec.Visibility) -> None:
        super().__init__()
        if isinstance(visibility, spec.Causal):
            raise ConfigError("attention with global tokens sees both ways: it belongs to a Bidirectional stack")
        self.op = op
        width = op.heads * op.head_dim
        self.qkv = Linear(dim, (width,) * 3, bias=True)
        self.q_global = Linear(dim, (width,), bias=True)
        self.kv_global = Linear(dim, (width,) * 2, bias=True)
        self.out = Linear(width, (dim,), bias=True)

    def forward(self, x: Tensor, layout: Layout, cell: Cell | None) -> Tensor:
        """Apply to `x` [batch, time, dim]. Raises DataError for a mask that says who sees whom."""
        if layout.seen is not None:
            raise DataError("a sliding window says who sees whom: attention_mask must be [batch, time]")
        mixed = self._local(x, layout)
        if layout.chosen is not None:
            mixed = mixed.masked_scatter(layout.chosen.mask[..., None], self._global(x, layout, layout.chosen))
        return self.out(mixed)

    def _local(self, x: Tensor, layout: Layout) -> Tensor:
        """Return [B, T, H * D], what all tokens mix as local ones."""
        B, T, _ = x.shape
        Q = max(self.op.reach, BLOCK)
        N = -(-T // Q)
        q_BTHD, *keys_and_values = self.qkv(x).view(B, T, 3, self.op.heads, self.op.head_dim).unbind(2)
        k, v = (self._windows(t, Q).movedim(-1, 2).flatten(0, 1).transpose(1, 2) for t in keys_and_values)
        visible = self._visible(layout, Q)
        if layout.chosen is not None:
            index = layout.chosen.index[:, :, None, None]
            k_BGHD, v_BGHD = (t.take_along_dim(index, 1) for t in keys_and_values)
            k, v = (torch.cat((t, g.transpose(1, 2).repeat_interleave(N, 0)), 2) for t, g in ((k, k_BGHD), (v, v_BGHD)))
        q = F.pad(q_BTHD, (0, 0, 0, 0, 0, N * Q - T)).view(B * N, Q, self.op.heads, -1).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(q, k, v, visible.flatten(0, 1)[:, None])
        return mixed.transpose(1, 2).reshape(B, N * Q, -1)[:, :T]

    def _windows(self, t: Tensor, block: int, fill: int = 0) -> Tensor:
        """Return what lies in reach of every block of `t` [B, T, ...]: [B, N, ..., W]."""
        spare = -t.shape[1] % block
        edges = (0, 0) * (t.dim() - 2) + (self.op.reach, self.op.reach + spare)
        return F.pad(t, edges, value=fill).unfold(1, block + 2 * self.op.reach, block)

    def _visible(self, layout: Layout, block: int) -> Tensor:
        """Return which keys the queries see, [B, N, Q, W + G]; each sees itself, so that no softmax is over nothing."""
        query = torch.arange(block, device=layout.device)[:, None]
        offset = torch.arange(block + 2 * self.op.reach, device=layout.device) - self.op.reach - query
        shape, chosen, documents = (layout.batch, layout.time), layout.chosen, layout.documents
        seen = torch.ones(shape, dtype=torch.bool, device=layout.device)
        if layout.attention_mask is not None:
            seen = seen & layout.attention_mask
        if chosen is not None:
            seen = seen & ~chosen.mask
        visible = self._windows(seen, block)[:, :, None] & (offset.abs() <= self.op.reach)
        own = None
        if documents is not None:
            own = F.pad(documents, (0, -layout.time % block), value=-1).unflatten(1, (-1, block))[..., None]
            visible = visible & (own == self._windows(documents, block, -1)[:, :, None])
        visible = visible | (offset == 0)
        if chosen is not None:
            known = chosen.real[:, None, None, :].expand(-1, *visible.shape[1:3], -1)
            if documents is not None and own is not None:
                known = known & (own == documents.gather(1, chosen.index)[:, None, None, :])
            visible = torch.cat((visible, known), 3)
        return visible

    def _global(self, x: Tensor, layout: Layout, chosen: Chosen) -> Tensor:
        """Return what the global tokens mix, [all of them, H * D], row after row."""
        B, T, _ = x.shape
        heads = (self.op.heads, self.op.head_dim)
        q_BHGD = self.q_global(x.take_along_dim(chosen.index[..., None], 1)).unflatten(2, heads).transpose(1, 2)
        k_BHTD, v_BHTD = self.kv_global(x).view(B, T, 2, *heads).transpose(1, 3).unbind(2)
        visible = torch.ones_like(chosen.real)[:, :, None].expand(-1, -1, T)
        if layout.attention_mask is not None:
            visible = visible & layout.attention_mask[:, None, :]
        if layout.documents is not None:
            visible = visible & (layout.documents.gather(1, chosen.index)[:, :, None] == layout.documents[:, None, :])
        visible = visible | ~chosen.real[:, :, None]  # what only fills up sees all, so that no softmax is over nothing
        mixed = F.scaled_dot_product_attention(q_BHGD, k_BHTD, v_BHTD, visible[:, None])
        return mixed.transpose(1, 2).flatten(2)[chosen.real]
