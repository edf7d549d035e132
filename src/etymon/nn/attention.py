"""Attention over a call's own tokens or over a state."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etymon import kernels, spec
from etymon.errors import DataError
from etymon.nn.layout import Layout
from etymon.nn.linear import Linear
from etymon.nn.norm import build_qk_norm
from etymon.nn.position import alibi_slopes, rotate
from etymon.nn.scores import build_scores
from etymon.nn.state import Columns, Mixer, Pages, SourceColumns

FEW = 64  # new tokens of a row, up to which no shape was measured at which products over gathered keys are faster


class Attention(Mixer):
    """Multi-head, grouped-query or multi-query attention with fused query, key and value projections.

    B batch, T time, S keys, H query heads, G key and value heads, D head width.
    """

    def __init__(self, op: spec.Attention, dim: int, visibility: spec.Visibility) -> None:
        super().__init__()
        self.op = op
        self.visibility = visibility
        self.qkv = Linear(dim, (op.query_width, op.kv_width, op.kv_width), bias="k" in op.bias)
        self.q_bias, self.v_bias = (
            nn.Parameter(torch.empty(width)) if op.bias.startswith("qv") else None
            for width in (op.query_width, op.kv_width)
        )
        self.out = Linear(op.query_width, (dim,), bias="o" in op.bias)
        self.q_norm = build_qk_norm(op.qk_norm, op.heads, op.head_dim)
        self.k_norm = build_qk_norm(op.qk_norm, op.kv_heads, op.head_dim)
        self.scores = build_scores(op, dim, visibility)
        self.sinks = nn.Parameter(torch.zeros(op.heads)) if isinstance(op.scores, spec.Sinks) else None
        self.flat = 2 if op.qk_norm and op.qk_norm.over == "width" else 3  # the first dimension that a norm runs over

    @property
    def reach(self) -> int | None:
        """The window, if it has one."""
        return self.op.window

    def new_state(self, rows: int, capacity: int, dtype: torch.dtype, device: torch.device) -> Columns:
        """Allocate keys and values for `rows` sequences of up to `capacity` tokens."""
        width = self.op.head_dim
        return Columns.new(rows, self.op.kv_heads, capacity, width, width, dtype=dtype, device=device)

    def initialise(self, generator: torch.Generator) -> None:
        """Biases and sinks begin at zero."""
        for bias in (self.q_bias, self.v_bias, self.sinks):
            if bias is not None:
                bias.data.zero_()

    def project(self, x: Tensor) -> Tensor:
        """Return the queries, keys and values of `x` [..., dim]: [..., H + 2 * G, D]."""
        qkv = self.qkv(x)
        if self.q_bias is not None and self.v_bias is not None:
            qkv = qkv + torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        return qkv.view(*x.shape[:-1], self.op.heads + 2 * self.op.kv_heads, self.op.head_dim)

    def forward(self, x: Tensor, layout: Layout, cell: Columns | None) -> Tensor:
        """Attend from `x` [batch, time, dim] to the call's tokens, or to all that `cell` holds after appending them."""
        op = self.op
        qkv_BTHD = self.project(x)
        heads = (op.heads, op.kv_heads, op.kv_heads)
        if op.clip is not None:
            qkv_BTHD = qkv_BTHD.clamp(-op.clip, op.clip)
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHD, k_BTGD, v_BTGD = qkv_BTHD.split(heads, 2)
            q_BTHD = self.q_norm(q_BTHD.flatten(self.flat)).view_as(q_BTHD)
            k_BTGD = self.k_norm(k_BTGD.flatten(self.flat)).view_as(k_BTGD)
            qkv_BTHD = torch.cat((q_BTHD, k_BTGD, v_BTGD), 2)
        if op.rope is not None:
            # queries and keys lie side by side and turn together; the values are carried along
            qkv_BTHD = rotate(qkv_BTHD, *layout.rotary(op.rope, qkv_BTHD.dtype), op.heads + op.kv_heads)
        if isinstance(cell, Pages) and self._compiled(qkv_BTHD, layout, cell):
            return self.out(self._attend_pages(qkv_BTHD, layout, cell))
        if cell is None and self._whole(qkv_BTHD, layout):
            spans = layout.spans(self.visibility, op.window)
            if spans is not None:
                scale = op.head_dim**-0.5 if op.scale is None else op.scale
                mixed = kernels.attend_sequences(qkv_BTHD, *spans, heads[0], heads[1], scale, dropout=self.dropped)
                return self.out(mixed)
        q_BTHD, k_BTGD, v_BTGD = qkv_BTHD.split(heads, 2)
        if layout.order is not None:  # behind the tokens stand queries, whom nobody sees
            k_BTGD, v_BTGD = k_BTGD[:, : layout.time], v_BTGD[:, : layout.time]
        if cell is None:
            k_BGSD, v_BGSD = k_BTGD.transpose(1, 2), v_BTGD.transpose(1, 2)
        else:
            k_BGSD, v_BGSD = cell.append(layout.columns, k_BTGD, v_BTGD)
        if isinstance(op.scores, spec.LogScale):
            q_BTHD = q_BTHD * layout.log_scale(op.scores, q_BTHD.dtype)
        mask: Tensor | None
        if self.scores is not None:
            q_BTHD, bias = self.scores(q_BTHD, k_BGSD, layout, self.project)
            visible = layout.mask(self.visibility, op.window)
            mask, is_causal = bias.masked_fill(~visible, -torch.inf), False
            if layout.order is not None:
                q_BTHD, mask = layout.order.even(q_BTHD, mask, visible)
        elif isinstance(op.scores, spec.ALiBi):
            mask, is_causal = layout.alibi(self.visibility, op.window, op.scores, op.heads, q_BTHD.dtype), False
        elif op.softcap is not None or self.sinks is not None:
            mask, is_causal = layout.mask(self.visibility, op.window), False
        else:
            mask, is_causal = layout.visible(self.visibility, op.window)
        return self.out(attend(op, q_BTHD, k_BGSD, v_BGSD, mask, is_causal, self.sinks, self.dropped))

    def _whole(self, qkv_BTHD: Tensor, layout: Layout) -> bool:
        """Whether the kernel over whole sequences may serve, as in training."""
        op = self.op
        return (
            layout.order is None
            and self.scores is None
            and op.scores is None
            and op.softcap is None
            and self.sinks is None
            and qkv_BTHD.dtype is torch.float32
            and qkv_BTHD.device.type == "cpu"
            and not torch.compiler.is_compiling()
            and kernels.attends_sequences(op.head_dim)
        )

    def _compiled(self, qkv_BTHD: Tensor, layout: Layout, cell: Pages) -> bool:
        """Whether the kernel over pages serves, which copies neither keys nor values, but goes query by query."""
        return (
            layout.time <= FEW
            and layout.plain
            and self.scores is None
            and not isinstance(self.op.scores, spec.LogScale)
            and isinstance(self.visibility, spec.Causal)
            and qkv_BTHD.dtype is torch.float32 is cell.tensors[0].dtype
            and qkv_BTHD.device.type == "cpu"
            and torch.is_inference_mode_enabled()
            and kernels.functions() is not None
        )

    def _attend_pages(self, qkv_BTHD: Tensor, layout: Layout, cell: Pages) -> Tensor:
        op, (keys, values) = self.op, cell.tensors
        assert layout.lengths is not None
        return kernels.attend(
            qkv_BTHD,
            (keys, values),
            layout.lengths,
            cell.slots.table,
            heads=op.heads,
            scale=op.head_dim**-0.5 if op.scale is None else op.scale,
            window=op.window,
            softcap=op.softcap,
            slopes=alibi_slopes(op.scores, op.heads) if isinstance(op.scores, spec.ALiBi) else None,
            sinks=self.sinks,
        )


class CrossAttention(Mixer):
    """Attention from the decoder's tokens to the encoder's. With a state, keys and values are made once per source."""

    def __init__(self, op: spec.CrossAttention, dim: int) -> None:
        super().__init__()
        self.op = op
        self.q = Linear(dim, (op.query_width,), bias="q" in op.bias)
        self.kv = Linear(dim, (op.kv_width, op.kv_width), bias="q" in op.bias)
        self.out = Linear(op.query_width, (dim,) * op.languages, bias="o" in op.bias)

    def new_state(self, rows: int, capacity: int, dtype: torch.dtype, device: torch.device) -> SourceColumns:
        """Allocate keys and values for `rows` sources of up to `capacity` tokens."""
        width = self.op.head_dim
        return SourceColumns.new(rows, self.op.kv_heads, capacity, width, width, dtype=dtype, device=device)

    def forward(self, x: Tensor, layout: Layout, cell: Columns | None) -> Tensor:
        """Attend from `x` [batch, time, dim] to the call's source, or to the one that `cell` holds."""
        op, source = self.op, layout.source
        assert source is not None
        B, T, _ = x.shape
        q_BTHD = self.q(x).view(B, T, op.heads, op.head_dim)
        if source.hidden is not None:
            kv_BSHD = self.kv(source.hidden).view(B, source.keys, 2 * op.kv_heads, op.head_dim)
            k_BSGD, v_BSGD = kv_BSHD.split((op.kv_heads, op.kv_heads), 2)
            k_BGSD, v_BGSD = k_BSGD.transpose(1, 2), v_BSGD.transpose(1, 2)
            if cell is not None:
                cell.append(0, k_BSGD, v_BSGD)
        else:
            assert cell is not None
            k_BGSD, v_BGSD = (held[:, :, : source.keys] for held in cell.tensors)
        y = self.out(attend(op, q_BTHD, k_BGSD, v_BGSD, source.mask, False, dropout=self.dropped))
        if op.languages == 1:
            return y
        if layout.languages is None:
            raise DataError("this model's cross-attention differs by language: pass decoder_langs")
        return y.view(B, T, op.languages, -1).take_along_dim(layout.languages[:, :, None, None], 2).squeeze(2)


def attend(
    op: spec.Attention | spec.CrossAttention,
    q_BTHD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    sinks_H: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Return what the queries mix of the values, [batch, time, H * D]; `mask` broadcasts to [batch, H, time, keys],
    of whose weights some are zero by `dropout`."""
    B, T, H, D = q_BTHD.shape
    G = op.kv_heads
    if T == 1 and H != G:
        # the query heads of a group stand in the time axis: no key or value is ever copied
        q = q_BTHD.view(B, G, H // G, D)
        if mask is not None and mask.shape[1] == H:
            mask = mask.view(-1, G, H // G, mask.shape[3])
        sinks = None if sinks_H is None else sinks_H.view(G, H // G, 1)
        return _mix(op, q, k_BGSD, v_BGSD, mask, False, sinks, dropout).reshape(B, 1, H * D)
    if H != G:
        k_BGSD = k_BGSD.repeat_interleave(H // G, 1)
        v_BGSD = v_BGSD.repeat_interleave(H // G, 1)
    sinks = None if sinks_H is None else sinks_H.view(H, 1, 1)
    mixed_BHTD = _mix(op, q_BTHD.transpose(1, 2), k_BGSD, v_BGSD, mask, is_causal, sinks, dropout)
    return mixed_BHTD.transpose(1, 2).reshape(B, T, H * D)


def _mix(
    op: spec.Attention | spec.CrossAttention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    sinks: Tensor | None,
    dropout: float,
) -> Tensor:
    softcap = None if isinstance(op, spec.CrossAttention) else op.softcap
    if softcap is None and sinks is None:
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal, scale=op.scale)
    assert mask is not None
    scale = op.head_dim**-0.5 if op.scale is None else op.scale
    scores = q @ k.transpose(-2, -1) * (scale / (softcap or 1.0))
    if softcap is not None:
        scores = torch.tanh(scores) * softcap
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    if sinks is not None:
        scores = torch.cat((scores, sinks.to(scores.dtype).expand(*scores.shape[:3], 1)), -1)
    weights = scores.softmax(-1, dtype=torch.float32)[..., : k.shape[2]].to(v.dtype)
    return (F.dropout(weights, dropout) if dropout else weights) @ v
