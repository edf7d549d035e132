"""Large products of fp32 matrices on the CPU, and what a language model's loss makes of their result."""

from __future__ import annotations

import ctypes
import threading
from functools import cache

import torch
from torch import Tensor

from etymon.kernels.compiled import library

pointer, i64, i32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32

_own = threading.local()  # what a thread that multiplies needs: of one at a time


class _Matrix(ctypes.Structure):
    """Element (i, j) lies at from + i * down + j * across."""

    _fields_ = (("from_", pointer), ("down", i64), ("across", i64))

    @classmethod
    def of(cls, tensor: Tensor) -> _Matrix:
        return cls(tensor.data_ptr(), *tensor.stride())


@cache
def _functions() -> ctypes.CDLL | None:
    found = library()
    if found is not None:
        found.matmul.argtypes = (pointer, i64, _Matrix, _Matrix, pointer, i64, i64, i64, i32, pointer, pointer, i32)
        found.matmul.restype = None
        found.matmul_space.argtypes, found.matmul_space.restype = (i32,), i64
        found.entropy.argtypes = (pointer, i64, pointer, i64, i64, i32, pointer, i32)
        found.entropy.restype = ctypes.c_double
    return found


def workspace(floats: int) -> int:
    """Return the address of so many floats, on lines of 64 bytes, that a call of this thread may use until the next."""
    if getattr(_own, "space", None) is None or _own.space.numel() < floats + 16:
        _own.space = torch.empty(floats + 16)
    return int((_own.space.data_ptr() + 63) // 64 * 64)


def multiplies_large() -> bool:
    """Whether `matmul` is there, and pays: where the processor has vectors of sixteen floats."""
    return _functions() is not None and torch.backends.cpu.get_cpu_capability() == "AVX512"


def matmul(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    *,
    out: Tensor | None = None,
    add: bool = False,
    totals: Tensor | None = None,
) -> Tensor:
    """a [m, k] @ b [k, n] (+ bias [n]), fp32 on the CPU, without gradients; what is in `out` [m, n] is overwritten, or
    with `add` added to; in `totals` [m] are then the sums of `a` over k. Transposed views cost nothing. An element is
    summed in an order that k alone decides."""
    library = _functions()
    assert library is not None
    a, b = (each if 1 in each.stride() else each.contiguous() for each in (a, b))
    result = torch.empty(a.shape[0], b.shape[1]) if out is None else out
    assert totals is None or (totals.is_contiguous() and totals.shape == a.shape[:1] and b.shape[1])
    assert result.stride(1) == 1 and result.shape == (a.shape[0], b.shape[1]) and a.shape[1] == b.shape[0]
    threads = torch.get_num_threads()
    given = None if bias is None else bias.contiguous()
    library.matmul(
        *(result.data_ptr(), result.stride(0), _Matrix.of(a), _Matrix.of(b)),
        *(None if given is None else given.data_ptr(), a.shape[0], b.shape[1], a.shape[1]),
        *(int(add), None if totals is None else totals.data_ptr()),
        *(workspace(library.matmul_space(threads)), threads),
    )
    return result


def entropy(logits: Tensor, targets: Tensor, *, gradient: bool) -> float:
    """Return the sum of -log softmax(logits)[targets], logits [rows, vocab] fp32 and targets [rows] int64 on the CPU;
    with `gradient`, what is left in `logits` is the gradient of that sum."""
    library = _functions()
    assert library is not None
    assert logits.stride(1) == 1
    targets = targets.contiguous()
    losses = torch.empty(len(targets), dtype=torch.float64)
    rows, vocab = logits.shape
    return float(
        library.entropy(
            *(logits.data_ptr(), logits.stride(0), targets.data_ptr(), rows, vocab),
            *(int(gradient), losses.data_ptr(), torch.get_num_threads()),
        )
    )
