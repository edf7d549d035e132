"""Attention of whole sequences to themselves on the CPU, differentiable; see `sequences.h`."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from etymon.kernels.compiled import library
from etymon.kernels.matmul import workspace

pointer, i64, i32, f64 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_double
u64 = ctypes.c_uint64


class _Sequences(ctypes.Structure):
    _fields_ = (
        *((name, i64) for name in ("batch", "time", "heads", "kv_heads", "width")),
        *((name, pointer) for name in ("qkv", "first", "last")),
        ("spans", i64),
        ("scale", f64),
        ("drop", f64),
        ("seed", u64),
    )


@cache
def _functions() -> ctypes.CDLL | None:
    found = library()
    if found is not None:
        found.attend_sequences.argtypes = (pointer, pointer, pointer, pointer, i32)
        found.attend_sequences.restype = None
        found.attend_sequences_gradient.argtypes = (pointer, pointer, pointer, pointer, pointer, pointer, i32)
        found.attend_sequences_gradient.restype = None
        found.sequences_space.argtypes, found.sequences_space.restype = (i64, i64, i32), i64
    return found


def attends_sequences(width: int) -> bool:
    """Whether `attend_sequences` is there, takes heads of this width, and pays: where vectors have sixteen floats."""
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide and width % 16 == 0 and width <= 256 and _functions() is not None


def attend_sequences(
    qkv: Tensor, first: Tensor, last: Tensor, heads: int, kv_heads: int, scale: float, *, dropout: float = 0.0
) -> Tensor:
    """Return what the queries of `qkv` [batch, time, heads + 2 * kv_heads, width] mix of the values: [batch, time,
    heads * width]. A token sees the columns from `first` to `last` ([batch or 1, time] int32), at least one. All is
    fp32 on the CPU, and differentiable.

    With `dropout`, so many of the weights are 0 and the rest is multiplied by 1 / (1 - dropout); one of torch's global
    random numbers, drawn here, says which.
    """
    seed = int(torch.randint(1 << 62, ())) if dropout else 0
    mixed: Tensor = _Attention.apply(qkv, first, last, _Given(heads, kv_heads, scale, dropout, seed))
    return mixed


class _Given(NamedTuple):
    heads: int
    kv_heads: int
    scale: float
    drop: float
    seed: int


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, first: Tensor, last: Tensor, given: _Given) -> Tensor:
        library = _functions()
        assert library is not None
        qkv = qkv.contiguous()
        B, T, _, D = qkv.shape
        mixed, logs = qkv.new_empty(B, T, given.heads * D), qkv.new_empty(B, given.heads, T)
        threads = torch.get_num_threads()
        space = workspace(library.sequences_space(T, D, threads))
        sequences = _sequences(qkv, first, last, given)
        library.attend_sequences(ctypes.byref(sequences), mixed.data_ptr(), logs.data_ptr(), space, threads)
        ctx.save_for_backward(qkv, first, last, mixed, logs)
        ctx.given = given
        return mixed

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        library = _functions()
        assert library is not None
        qkv, first, last, mixed, logs = ctx.saved_tensors
        d_qkv, slope = torch.empty_like(qkv), slope.contiguous()
        sequences = _sequences(qkv, first, last, ctx.given)
        threads = torch.get_num_threads()
        space = workspace(library.sequences_space(qkv.shape[1], qkv.shape[3], threads))
        library.attend_sequences_gradient(
            *(ctypes.byref(sequences), mixed.data_ptr(), logs.data_ptr(), slope.data_ptr(), d_qkv.data_ptr()),
            *(space, threads),
        )
        return d_qkv, None, None, None


def _sequences(qkv: Tensor, first: Tensor, last: Tensor, given: _Given) -> _Sequences:
    B, T, count, D = qkv.shape
    assert count == given.heads + 2 * given.kv_heads and first.shape == last.shape and first.shape[0] in (1, B)
    assert first.dtype is last.dtype is torch.int32 and first.is_contiguous() and last.is_contiguous()
    apart, pointers = 0 if first.shape[0] == 1 else T, (qkv.data_ptr(), first.data_ptr(), last.data_ptr())
    return _Sequences(B, T, given.heads, given.kv_heads, D, *pointers, apart, given.scale, given.drop, given.seed)
