"""Rotary position embedding with its context extensions, and slopes of scores that fall with distance."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from etymon import spec


@lru_cache(maxsize=256)  # a scaling that depends on the length has one entry per length
@torch.inference_mode(False)  # what is kept must serve training too
def frequencies(rope: spec.Rope, device: torch.device | str = "cpu", length: int = 0) -> tuple[Tensor, float]:
    """Return the angle per position of every rotated pair, [dim / 2] in fp32, and the factor on cos and sin.

    `length` is that of the input, on which some scalings depend.
    """
    exponent = torch.arange(0, rope.dim, 2, dtype=torch.int64, device=device).float() / rope.dim
    inv_freq = 1.0 / rope.base**exponent
    match rope.scaling:
        case None:
            return inv_freq, 1.0
        case spec.LinearScaling(factor=factor):
            return inv_freq / factor, 1.0
        case spec.Llama3Scaling() as s:
            wavelength = 2 * math.pi / inv_freq
            smooth = (s.original_context / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
            smooth = smooth.clamp(0, 1)
            return (1 - smooth) * inv_freq / s.factor + smooth * inv_freq, 1.0
        case spec.DynamicScaling() | spec.DoublingScaling() as s:
            ratio = max(length, s.original_context) / s.original_context
            if isinstance(s, spec.DoublingScaling):
                grown = 2.0 * 2 ** math.ceil(math.log2(ratio)) - 1
            else:
                grown = s.factor * ratio - (s.factor - 1)
            return 1.0 / (rope.base * grown ** (rope.dim / (rope.dim - 2))) ** exponent, 1.0
        case spec.LongRopeScaling() as s:
            factors = s.long if length > s.original_context else s.short
            return inv_freq / torch.tensor(factors, device=inv_freq.device), s.attention_factor
        case spec.YarnScaling() as s:
            return _yarn(rope, s, inv_freq)


def _yarn(rope: spec.Rope, s: spec.YarnScaling, inv_freq: Tensor) -> tuple[Tensor, float]:
    def pair_with(rotations: float) -> float:
        """The pair (as a real number) that turns `rotations` times within the original context."""
        return rope.dim * math.log(s.original_context / (rotations * 2 * math.pi)) / (2 * math.log(rope.base))

    low, high = pair_with(s.beta_fast), pair_with(s.beta_slow)
    if s.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    pairs = torch.arange(rope.dim // 2, dtype=torch.float32, device=inv_freq.device)
    ramp = ((pairs - low) / max(high - low, 0.001)).clamp(0, 1)
    factor = s.attention_factor
    if factor is None:
        factor = s.temperature(s.mscale) / s.temperature(s.mscale_all)
    return inv_freq / s.factor * ramp + inv_freq * (1 - ramp), factor


def rotary_table(rope: spec.Rope, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cos and sin [batch, time, 1, dim / 2] at `positions` [batch, time], computed in fp32."""
    by_length = isinstance(rope.scaling, spec.DynamicScaling | spec.DoublingScaling | spec.LongRopeScaling)
    kept = frequencies.__wrapped__ if torch.compiler.is_compiling() else frequencies  # compilers see no caches
    inv_freq, factor = kept(rope, positions.device, int(positions.max()) + 1 if by_length else 0)
    angles = positions[:, :, None, None] * inv_freq
    cos, sin = angles.cos(), angles.sin()
    if factor != 1.0:
        cos, sin = cos * factor, sin * factor
    return cos.to(dtype), sin.to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, heads: int | None = None) -> Tensor:
    """Rotate channel pairs (i, i + n) of the first `heads` heads of `x` [batch, time, all heads, head_dim].

    Channels past 2n and heads past `heads` pass through.
    """
    heads = x.shape[2] if heads is None else heads
    if torch.compiler.is_compiling():  # which fuses plain operators better than it reads writes into views
        n = cos.shape[-1]
        a, b, rest = x[:, :, :heads].split((n, n, x.shape[-1] - 2 * n), -1)
        return torch.cat((torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1), x[:, :, heads:]), 2)
    return (_Rotate.apply if x.requires_grad else _rotate)(x, cos, sin, heads)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, heads: int, sign: int = 1) -> Tensor:
    n = cos.shape[-1]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    turned, into = x[:, :, :heads], y[:, :, :heads]
    a, b = turned[..., :n], turned[..., n : 2 * n]
    torch.mul(a, cos, out=into[..., :n]).addcmul_(b, sin, value=-sign)
    torch.mul(b, cos, out=into[..., n : 2 * n]).addcmul_(a, sin, value=sign)
    if 2 * n < x.shape[-1]:
        into[..., 2 * n :] = turned[..., 2 * n :]
    if heads < x.shape[2]:
        y[:, :, heads:] = x[:, :, heads:]
    return y


class _Rotate(torch.autograd.Function):
    """The gradient of a rotation is the rotation back, so nothing but cos and sin is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.heads = heads
        return _rotate(x, cos, sin, heads)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(dy, cos, sin, ctx.heads, sign=-1), None, None, None


def alibi_slopes(alibi: spec.ALiBi, heads: int) -> Tensor:
    """Return the slope of every head [heads] in fp32.

    For a power of two they are 2 ** (-max_exponent * i / heads), i = 1, 2, …; other numbers of heads take the slopes of
    the power of two below, then every other slope of the power of two above.
    """

    def steps(count: int) -> list[float]:
        return [alibi.scale * 2.0 ** (-alibi.max_exponent * i / count) for i in range(1, count + 1)]

    below = 1 << (heads.bit_length() - 1)
    return torch.tensor(steps(below) + steps(2 * below)[::2][: heads - below])


def sinusoids(positions: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Return the fixed vectors [batch, time, width] of `positions` [batch, time]: sines, then cosines."""
    wave = torch.arange(0, width, 2, dtype=torch.float64, device=positions.device) / width
    angles = positions[:, :, None].double() / 10000.0**wave
    return torch.cat((angles.sin(), angles[..., : width // 2].cos()), -1).to(dtype)
