"""Time mixing and channel mixing: attention whose weights decay with distance, as a recurrence (Peng et al. 2023,
arXiv:2305.13048).

    wkv_t = (sum over s < t of exp(k_s + (t - 1 - s) w) v_s + exp(u + k_t) v_t) / (the same with v = 1)

Both layers see each position mixed with the one before it.

B batch, L and S positions of a chunk, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etymon import spec
from etymon.nn.linear import Linear
from etymon.nn.runs import Runs
from etymon.nn.state import Vectors
from etymon.nn.walk import Walker, following

CHUNK = 16  # positions whose weights are held at once, CHUNK of them for each
NEVER = -1e38  # the exponent of a memory that holds nothing
Memory = tuple[Tensor, Tensor, Tensor]


def before(x: Tensor, past: Tensor, runs: Runs | None) -> Tensor:
    """Return the vector before each of `x` [batch, time, dim], which follows `past` [batch, 1, dim]; zeros before a
    document's beginning."""
    shifted = torch.cat((past, x[:, :-1]), 1)
    if runs is None or runs.starts is None:
        return shifted
    return shifted * ~runs.starts[..., None]


class TimeMix(Walker):
    """out(sigmoid(r) * wkv) of keys, values and receptances."""

    def __init__(self, op: spec.TimeMix, dim: int) -> None:
        super().__init__()
        self.op = op
        self.mix_key, self.mix_value, self.mix_gate = (nn.Parameter(torch.empty(1, 1, dim)) for _ in range(3))
        self.decay, self.bonus = (nn.Parameter(torch.empty(op.hidden)) for _ in range(2))
        self.key, self.value, self.gate = (Linear(dim, (op.hidden,), bias=False) for _ in range(3))
        self.out = Linear(op.hidden, (dim,), bias=False)

    def initialise(self, generator: torch.Generator) -> None:
        """Decays from slow to fast over the channels, and mixtures from none to all of the present one."""
        channels = torch.linspace(0, 1, self.op.hidden)
        self.decay.data.copy_(-5 + 8 * channels)
        self.bonus.data.fill_(0.5)
        for mix in (self.mix_key, self.mix_value, self.mix_gate):
            mix.data.copy_(torch.linspace(0, 1, mix.shape[-1])[None, None])

    def new_state(self, rows: int, capacity: int, dtype: torch.dtype, device: torch.device) -> Vectors:
        """Allocate the last vector and, in fp32, numerator, denominator and their exponent, of `rows` sequences."""
        last = torch.empty((rows, 1, self.mix_key.shape[-1]), dtype=dtype, device=device)
        sums = (torch.empty((rows, self.op.hidden), dtype=torch.float32, device=device) for _ in range(3))
        return Vectors(last, *sums, initial=(0.0, 0.0, 0.0, NEVER))

    def walk(self, x: Tensor, runs: Runs | None, cell: Vectors | None) -> Tensor:
        """Return [batch, time, dim] from `x` of the same shape."""
        B = x.shape[0]
        if cell is not None:
            past, *held = cell.read()
            memory = (held[0], held[1], held[2])
        else:
            past, zero = torch.zeros_like(x[:, :1]), x.new_zeros(B, self.op.hidden, dtype=torch.float32)
            memory = (zero, zero, zero + NEVER)
        earlier = before(x, past, runs)
        k, v, r = (
            linear(torch.lerp(earlier, x, mix))
            for linear, mix in ((self.key, self.mix_key), (self.value, self.mix_value), (self.gate, self.mix_gate))
        )
        wkv, memory = wkv_scan(k.float(), v.float(), -self.decay.float().exp(), self.bonus.float(), runs, memory)
        if cell is not None:
            cell.write(following(past, x, runs), *memory)
        return self.out(r.sigmoid() * wkv.to(x.dtype))


def wkv_scan(
    k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, runs: Runs | None, memory: Memory
) -> tuple[Tensor, Memory]:
    """Return wkv [B, T, C] and the memory at the end: numerator, denominator and their common exponent, each [B, C]."""
    T = k.shape[1]
    starts = runs.starts if runs is not None else None
    real = runs.real(T) if runs is not None else None
    outputs = []
    for begin in range(0, T, CHUNK):
        at = slice(begin, begin + CHUNK)
        new, pads = (None if t is None else t[:, at] for t in (starts, real))
        y, memory = _chunk(k[:, at], v[:, at], decay, bonus, new, pads, memory)
        outputs.append(y)
    return torch.cat(outputs, 1), memory


def _chunk(
    k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, starts: Tensor | None, real: Tensor | None, memory: Memory
) -> tuple[Tensor, Memory]:
    numerator, denominator, exponent = memory
    B, L, _ = k.shape
    time = torch.arange(L, device=k.device)
    distance = (time[:, None] - 1 - time[None, :])[..., None]  # [L, S, 1]
    present = (distance == -1).to(k.dtype)
    e_BLSC = k[:, None] + distance.clamp(min=0) * decay + present * bonus
    e_BLSC = e_BLSC.masked_fill(distance < -1, -torch.inf)
    carried_BLC = exponent[:, None] + time[:, None] * decay
    # what the chunk leaves: after its last real token
    count = torch.full((B,), L, device=k.device) if real is None else real.sum(1)
    left = (count[:, None] - 1 - time)[..., None]  # [B, S, 1]
    f_BSC = (k + left.clamp(min=0) * decay).masked_fill(left < 0, -torch.inf)
    kept_BC = exponent + count[:, None] * decay
    if starts is not None:
        document = starts.cumsum(1)
        e_BLSC = e_BLSC.masked_fill((document[:, :, None] != document[:, None, :])[..., None], -torch.inf)
        carried_BLC = torch.where((document > 0)[..., None], NEVER, carried_BLC)
        f_BSC = f_BSC.masked_fill((document != document[:, -1:])[..., None], -torch.inf)
        kept_BC = torch.where(document[:, -1:] > 0, NEVER, kept_BC)
    # exponentials relative to the largest, whatever it is: the quotient does not depend on it
    top_BLC = torch.maximum(e_BLSC.amax(2), carried_BLC).detach()
    weights, carried = (e_BLSC - top_BLC[:, :, None]).exp(), (carried_BLC - top_BLC).exp()
    above = torch.einsum("blsc,bsc->blc", weights, v) + carried * numerator[:, None]
    below = weights.sum(2) + carried * denominator[:, None]
    top_BC = torch.maximum(f_BSC.amax(1), kept_BC).clamp(min=NEVER).detach()
    weights, kept = (f_BSC - top_BC[:, None]).exp(), (kept_BC - top_BC).exp()
    memory = ((weights * v).sum(1) + kept * numerator, weights.sum(1) + kept * denominator, top_BC)
    return above / below, memory


class ChannelMix(Walker):
    """sigmoid(r) * out(relu(key)^2), a feed-forward layer that sees the position before."""

    def __init__(self, op: spec.ChannelMix, dim: int) -> None:
        super().__init__()
        self.mix_key, self.mix_gate = (nn.Parameter(torch.empty(1, 1, dim)) for _ in range(2))
        self.key = Linear(dim, (op.hidden,), bias=False)
        self.gate = Linear(dim, (dim,), bias=False)
        self.out = Linear(op.hidden, (dim,), bias=False)

    def initialise(self, generator: torch.Generator) -> None:
        """Mixtures from none to all of the present position."""
        for mix in (self.mix_key, self.mix_gate):
            mix.data.copy_(torch.linspace(0, 1, mix.shape[-1])[None, None])

    def new_state(self, rows: int, capacity: int, dtype: torch.dtype, device: torch.device) -> Vectors:
        """Allocate the last vector of `rows` sequences."""
        return Vectors(torch.empty((rows, 1, self.mix_key.shape[-1]), dtype=dtype, device=device))

    def walk(self, x: Tensor, runs: Runs | None, cell: Vectors | None) -> Tensor:
        """Return [batch, time, dim] from `x` of the same shape."""
        past = cell.read()[0] if cell is not None else torch.zeros_like(x[:, :1])
        earlier = before(x, past, runs)
        if cell is not None:
            cell.write(following(past, x, runs))
        hidden = F.relu(self.key(torch.lerp(earlier, x, self.mix_key))).square()
        return self.gate(torch.lerp(earlier, x, self.mix_gate)).sigmoid() * self.out(hidden)
