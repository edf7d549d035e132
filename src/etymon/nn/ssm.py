"""Selective state spaces: a linear recurrence whose coefficients depend on the token.

    h_t = exp(dt_t A) h_(t-1) + dt_t B_t x_t        y_t = C_t h_t + D x_t

B batch, T time, C channels, H heads, P channels of a head, G groups, N numbers of memory per channel, L a chunk's time.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etymon import spec
from etymon.nn.ffn import ACTIVATIONS
from etymon.nn.linear import Linear
from etymon.nn.runs import Runs
from etymon.nn.state import Vectors
from etymon.nn.walk import Convolution, Walker, following

CHUNK = 64  # tokens whose memories are held at once


class SelectiveSSM(Walker):
    """Channels that each have a memory of their own; what is written into it and read from it is the same for all."""

    def __init__(self, op: spec.SelectiveSSM, dim: int) -> None:
        super().__init__()
        self.op = op
        self.into = Linear(dim, (op.inner, op.inner), bias=op.bias)
        self.conv = Convolution(op.inner, op.kernel, op.conv_bias)
        self.select = Linear(op.inner, (op.rank, op.state, op.state), bias=False)
        self.step = Linear(op.rank, (op.inner,), bias=True)
        self.log_decay = nn.Parameter(torch.empty(op.inner, op.state))
        self.skip = nn.Parameter(torch.empty(op.inner))
        self.out = Linear(op.inner, (dim,), bias=op.bias)
        self.activation = ACTIVATIONS[op.activation]

    def initialise(self, generator: torch.Generator) -> None:
        """Decays of 1, 2, … per token of time, and steps between 0.001 and 0.1 (the paper's section 3.6)."""
        self.conv.initialise(generator)
        self.log_decay.data.copy_(torch.arange(1, self.op.state + 1).log().expand(self.log_decay.shape))
        self.skip.data.fill_(1.0)
        self.step.bias.data.copy_(_fresh_steps(self.op.inner, generator))

    def new_state(self, rows: int, capacity: int, dtype: torch.dtype, device: torch.device) -> Vectors:
        """Allocate the convolution's last inputs and, in fp32, the memory of `rows` sequences."""
        op = self.op
        return Vectors(
            torch.empty((rows, op.kernel - 1, op.inner), dtype=dtype, device=device),
            torch.empty((rows, op.inner, op.state), dtype=torch.float32, device=device),
        )

    def walk(self, x: Tensor, runs: Runs | None, cell: Vectors | None) -> Tensor:
        """Return [batch, time, dim] from `x` of the same shape."""
        op = self.op
        B = x.shape[0]
        x_BTC, gate_BTC = self.into(x).chunk(2, -1)
        if cell is None:
            past, memory = x.new_zeros(B, op.kernel - 1, op.inner), None
        else:
            past, memory = cell.read()
        u_BTC = self.activation(self.conv(x_BTC, runs, past))
        rank_BTR, b_BTN, c_BTN = self.select(u_BTC).split((op.rank, op.state, op.state), -1)
        dt_BTC = _steps(self.step(rank_BTR), runs)
        decay_CN = -self.log_decay.float().exp()
        starts = runs.starts if runs is not None else None
        y_BTC, memory = selective_scan(u_BTC, dt_BTC, decay_CN, b_BTN, c_BTN, starts, memory)
        if cell is not None:
            cell.write(following(past, x_BTC, runs), memory)
        y_BTC = (y_BTC + u_BTC * self.skip) * F.silu(gate_BTC)
        return self.out(y_BTC.to(x.dtype))


def _fresh_steps(n: int, generator: torch.Generator) -> Tensor:
    """Draw the values whose softplus is log-uniform between 0.001 and 0.1."""
    low, high = torch.tensor(0.001).log(), torch.tensor(0.1).log()
    steps = (torch.rand(n, generator=generator) * (high - low) + low).exp()
    return steps + (-torch.expm1(-steps)).log()


def _steps(dt: Tensor, runs: Runs | None, limit: tuple[float, float] | None = None) -> Tensor:
    """Return how much time each token takes, in fp32: none for padding, so that it leaves the memory as it is."""
    dt = F.softplus(dt.float())
    if limit is not None:
        dt = dt.clamp(*limit)
    real = runs.real(dt.shape[1]) if runs is not None else None
    return dt if real is None else dt * real[..., None]


def selective_scan(
    x: Tensor, dt: Tensor, decay: Tensor, b: Tensor, c: Tensor, starts: Tensor | None, memory: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return y [B, T, C] and the memory [B, C, N] at the end, in fp32.

    x, dt [B, T, C]; decay [C, N]; b, c [B, T, N]. The memory is forgotten where `starts` [B, T] says.
    """
    B, _, C = x.shape
    if memory is None:
        memory = dt.new_zeros(B, C, decay.shape[1])
    # time first, so that a step's memories lie together
    sequences = (t.float().transpose(0, 1) for t in (x, dt, b, c))
    y_TBC, memory = _SelectiveScan.apply(*sequences, decay, None if starts is None else starts.T, memory)
    return y_TBC.transpose(0, 1), memory


class _SelectiveScan(torch.autograd.Function):
    """Step by step, but a step is one operation on memories whose coefficients a chunk has computed at once. Only the
    memories between chunks are kept; the backward pass computes the others again."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, b: Tensor, c: Tensor, decay: Tensor, starts: Tensor | None, memory: Tensor
    ) -> tuple[Tensor, Tensor]:
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        memories = []
        for at in _chunks(len(x)):
            memories.append(memory)
            _, h_LBCN = _remember(x[at], dt[at], b[at], decay, None if starts is None else starts[at], memory)
            torch.matmul(h_LBCN[1:], c[at][..., None], out=y[at][..., None])
            memory = h_LBCN[-1].clone()
        ctx.save_for_backward(x, dt, b, c, decay, *memories)
        ctx.starts = starts
        ctx.mark_non_differentiable(memory)
        return y, memory

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, b, c, decay, *memories = ctx.saved_tensors
        dx, d_dt, db, dc = (torch.empty_like(t) for t in (x, dt, b, c))
        d_decay = torch.zeros_like(decay)
        carry = torch.zeros_like(memories[0])
        for at, memory in reversed(list(zip(_chunks(len(x)), memories, strict=True))):
            starts = None if ctx.starts is None else ctx.starts[at]
            kept, h = _remember(x[at], dt[at], b[at], decay, starts, memory)
            dc[at] = torch.matmul(dy[at][:, :, None], h[1:])[:, :, 0]
            g = dy[at][..., None] * c[at][:, :, None]  # the gradient of each memory, first of its own output only
            g[-1] += carry
            for t in range(len(g) - 2, -1, -1):
                g[t].addcmul_(kept[t + 1], g[t + 1])
            carry = kept[0] * g[0]
            gb = torch.matmul(g, b[at][..., None])[..., 0]
            db[at] = torch.matmul((x[at] * dt[at])[:, :, None], g)[:, :, 0]
            dx[at] = gb * dt[at]
            q = g.mul_(h[:-1]).mul_(kept)  # of the exponents dt * decay
            d_dt[at] = (q * decay).sum(-1).addcmul_(gb, x[at])
            d_decay += torch.einsum("lbcn,lbc->cn", q, dt[at])
        return dx, d_dt, db, dc, d_decay, None, None


def _chunks(time: int) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, time, CHUNK)]


def _remember(
    x: Tensor, dt: Tensor, b: Tensor, decay: Tensor, starts: Tensor | None, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what a chunk's steps keep of the memory, [L, B, C, N], and the memories [1 + L, B, C, N] around them."""
    kept = (dt[..., None] * decay).exp_()
    if starts is not None:
        kept.mul_(~starts[..., None, None])
    h = torch.empty((len(x) + 1, *memory.shape), dtype=memory.dtype, device=memory.device)
    h[0] = memory
    torch.mul((x * dt)[..., None], b[:, :, None], out=h[1:])
    for t in range(len(x)):
        h[t + 1].addcmul_(kept[t], h[t])
    return kept, h


class DualSSM(Walker):
    """Heads whose memory decays as a whole, so that a chunk of time is a masked product of matrices."""

    def __init__(self, op: spec.DualSSM, dim: int) -> None:
        super().__init__()
        self.op = op
        self.into = Linear(dim, (op.inner, op.conv_width, op.heads), bias=op.bias)
        self.conv = Convolution(op.conv_width, op.kernel, op.conv_bias)
        self.step_bias = nn.Parameter(torch.empty(op.heads))
        self.log_decay = nn.Parameter(torch.empty(op.heads))
        self.skip = nn.Parameter(torch.empty(op.heads))
        self.norm = nn.Parameter(torch.empty(op.inner))
        self.out = Linear(op.inner, (dim,), bias=op.bias)
        self.activation = ACTIVATIONS[op.activation]

    def initialise(self, generator: torch.Generator) -> None:
        """Decays between 1 and 16 per token of time, and steps between 0.001 and 0.1, as the paper's code."""
        self.conv.initialise(generator)
        self.log_decay.data.copy_((1 + 15 * torch.rand(self.op.heads, generator=generator)).log())
        self.step_bias.data.copy_(_fresh_steps(self.op.heads, generator))
        for scale in (self.skip, self.norm):
            scale.data.fill_(1.0)

    def new_state(self, rows: int, capacity: int, dtype: torch.dtype, device: torch.device) -> Vectors:
        """Allocate the convolution's last inputs and, in fp32, the memory of `rows` sequences."""
        op = self.op
        return Vectors(
            torch.empty((rows, op.kernel - 1, op.conv_width), dtype=dtype, device=device),
            torch.empty((rows, op.heads, op.head_dim, op.state), dtype=torch.float32, device=device),
        )

    def walk(self, x: Tensor, runs: Runs | None, cell: Vectors | None) -> Tensor:
        """Return [batch, time, dim] from `x` of the same shape."""
        op = self.op
        B, T, _ = x.shape
        gate, mixed, dt = self.into(x).split((op.inner, op.conv_width, op.heads), -1)
        past, memory = x.new_zeros(B, op.kernel - 1, op.conv_width), None
        if cell is not None:
            past, memory = cell.read()
        u = self.activation(self.conv(mixed, runs, past))
        shared = op.groups * op.state
        x_BTC, b_BTE, c_BTE = u.split((op.inner, shared, shared), -1)
        dt_BTH = _steps(dt.float() + self.step_bias.float(), runs, op.step_limit)
        x_BTHP = x_BTC.reshape(B, T, op.heads, op.head_dim).float()
        y_BTHP, memory = dual_scan(
            x_BTHP,
            dt_BTH,
            -self.log_decay.float().exp(),
            b_BTE.reshape(B, T, op.groups, op.state).float(),
            c_BTE.reshape(B, T, op.groups, op.state).float(),
            runs.starts if runs is not None else None,
            memory,
        )
        if cell is not None:
            cell.write(following(past, mixed, runs), memory)
        y_BTC = (y_BTHP + self.skip[:, None] * x_BTHP).flatten(2) * F.silu(gate.float())
        per_group = y_BTC.view(B, T, op.groups, -1)
        normed = F.rms_norm(per_group, per_group.shape[-1:], None, op.eps).flatten(2)
        return self.out(self.norm * normed.to(x.dtype))


def dual_scan(
    x: Tensor, dt: Tensor, decay: Tensor, b: Tensor, c: Tensor, starts: Tensor | None, memory: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return y [B, T, H, P] and the memory [B, H, P, N] at the end, all in fp32.

    x [B, T, H, P]; dt [B, T, H]; decay [H]; b, c [B, T, G, N]. The memory is forgotten where `starts` [B, T] says.
    Within a chunk, y is (C B^T * decays) x, as attention without a softmax; the memory passes from chunk to chunk.
    """
    B, T, H, P = x.shape
    G, N = b.shape[2:]
    L = min(CHUNK, T)
    chunks = -(-T // L)
    if chunks * L > T:  # time that does not pass leaves the memory as it is
        x, dt, b, c = (F.pad(t, (0, 0) * (t.dim() - 2) + (0, chunks * L - T)) for t in (x, dt, b, c))
    x_BKLGJP = (x * dt[..., None]).view(B, chunks, L, G, H // G, P)
    b_BKLGN, c_BKLGN = b.view(B, chunks, L, G, N), c.view(B, chunks, L, G, N)
    passed_BKGJL = (dt * decay).view(B, chunks, L, G, H // G).permute(0, 1, 3, 4, 2).cumsum(-1)
    between = passed_BKGJL[..., :, None] - passed_BKGJL[..., None, :]
    visible = torch.ones(L, L, dtype=torch.bool, device=x.device).tril()
    first = last = None
    if starts is not None:
        starts = F.pad(starts, (0, chunks * L - T)).view(B, chunks, L)
        document = starts.cumsum(-1)
        visible = visible & (document[..., :, None] == document[..., None, :])[:, :, None, None]
        first, last = document == 0, document == document[..., -1:]
    weights = between.masked_fill(~visible, -torch.inf).exp_()
    scores = torch.einsum("bklgn,bksgn->bkgls", c_BKLGN, b_BKLGN)
    y = torch.einsum("bkgjls,bksgjp->bklgjp", scores[:, :, :, None] * weights, x_BKLGJP)
    # what each chunk adds to the memory, and how much of the memory before it remains
    left_BKGJL = (passed_BKGJL[..., -1:] - passed_BKGJL).exp()
    remains_BKGJL = passed_BKGJL.exp()
    if first is not None and last is not None:
        left_BKGJL = left_BKGJL * last[:, :, None, None]
        remains_BKGJL = remains_BKGJL * first[:, :, None, None]
    written = torch.einsum("bklgn,bkgjl,bklgjp->bkgjpn", b_BKLGN, left_BKGJL, x_BKLGJP)
    h = x.new_zeros(B, G, H // G, P, N) if memory is None else memory.view(B, G, H // G, P, N)
    before = []
    for k in range(chunks):
        before.append(h)
        h = h * remains_BKGJL[:, k, :, :, -1, None, None] + written[:, k]
    read = torch.einsum("bklgn,bkgjpn->bklgjp", c_BKLGN, torch.stack(before, 1))
    y = y + read * remains_BKGJL.permute(0, 1, 4, 2, 3)[..., None]
    return y.reshape(B, chunks * L, H, P)[:, :T], h.view(B, H, P, N)
