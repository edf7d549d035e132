"""fp32 matrix products on the CPU through whichever library uses its vector units fully.

torch sends fp32 products to MKL, which leaves the AVX-512 units of AMD processors idle; oneDNN, which torch carries
too, uses them (measured on Zen 5, two threads: 1.8 to 2.8 times
the GFLOP/s at training shapes, 42 instead of 16 GB/s of weights at one row). The choice follows from the
processor alone, never from a timing: a resumed run must take the products of the run that it resumes.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from etymon import kernels


def _onednn_preferred() -> bool:
    """Return whether fp32 products on this CPU go to oneDNN."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    cpuinfo = Path("/proc/cpuinfo")
    vendor = cpuinfo.read_text()[:4096] if cpuinfo.exists() else platform.processor()
    return "AuthenticAMD" in vendor


ONEDNN = _onednn_preferred()  # asked once, and where no compiler looks on


def _applies(x: Tensor) -> bool:
    return x.dtype is torch.float32 and x.is_cpu and ONEDNN and not torch.is_autocast_enabled("cpu")


# Rows up to which the kernel of `etymon.kernels` is used where nothing is trained. Measured beside oneDNN on two Zen 5
# cores, weights from memory, microseconds:
#                1 row        4 rows       8 rows       16 rows      32 rows
# 384x384       17 / 28      18 / 33      19 / 37      26 / 42      39 / 51
# 3072x768     213 / 240    214 / 314    275 / 362    367 / 439    536 / 611
# 5632x2048   1028 / 1227  1182 / 1573  1406 / 1813  2025 / 2015  3193 / 2956
FEW = 16

_invariant: ContextVar[bool] = ContextVar("batch invariant products", default=False)


@contextmanager
def batch_invariant() -> Iterator[None]:
    """Within this, what a row of a product without gradients becomes does not depend, to the last bit, on which other
    rows are in it: in fp32 on the CPU. Slower for many rows."""
    token = _invariant.set(True)
    try:
        yield
    finally:
        _invariant.reset(token)


def is_batch_invariant() -> bool:
    """Whether this runs within `batch_invariant`."""
    return _invariant.get()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] @ weight [out, in]^T + bias, differentiable."""
    if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
        invariant = is_batch_invariant()
        few = _applies(x) and x.numel() <= FEW * x.shape[-1]
        if (few or invariant) and kernels.multiplies(x, weight, bias):
            return kernels.product(x, weight, bias)
        if invariant and x.is_cpu:
            rows = [F.linear(row, weight, bias) for row in x.reshape(-1, 1, x.shape[-1])]
            return torch.cat(rows).view(*x.shape[:-1], -1)
    if weight.dtype == x.dtype and _applies(x):
        return _Linear.apply(x, weight, bias) if torch.is_grad_enabled() else _product(x, weight, bias)
    return F.linear(x, weight, bias)


def matmul(a: Tensor, b: Tensor, *, out: Tensor | None = None, add: bool = False) -> Tensor:
    """a [m, k] @ b [k, n] without gradients, put into `out` [m, n] or with `add` added to it; transposed views will do.

    In fp32 the gradient of a weight takes this way, because to it one of the operands always lies across."""
    if _large(a, b) and not torch.compiler.is_compiling():
        return kernels.matmul(a, b, out=out, add=add)
    found = _product(a, b.T) if _applies(a) else a @ b
    if out is None:
        return found
    return out.add_(found) if add else out.copy_(found)


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """a [stack, m, k] @ b [stack, k, n] without gradients; transposed views will do."""
    if not len(a) or not _large(a[0], b[0]):
        return torch.bmm(a, b)
    out = a.new_empty(a.shape[0], a.shape[1], b.shape[2])
    for left, right, to in zip(a, b, out, strict=True):
        kernels.matmul(left, right, out=to)
    return out


# Multiplications from which the kernel of `etymon.kernels` is used for many rows. Measured beside oneDNN on two Zen 5
# cores, GFLOP/s (its registers allow 478), 2048 rows:
#               forward      gradient of x    gradient of W
# 768 -> 2304   455 / 399    447 / 348        435 / 334
# 768 -> 768    442 / 443    449 / 484        430 / 328
# 3072 -> 768   452 / 446    456 / 414        438 / 330
MANY = 1 << 22


def _large(a: Tensor, b: Tensor) -> bool:
    """Whether a [m, k] @ b [k, n] goes to the kernel for large products."""
    return _applies(a) and b.dtype is torch.float32 and a.shape[0] * a.shape[1] * b.shape[1] >= MANY and _large_there()


@cache
def _large_there() -> bool:
    return kernels.multiplies_large()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] @ weight [out, in]^T + bias."""
    if torch.compiler.is_compiling():
        return _compiled(x, weight, bias)
    if x.shape[-1] and _large(rows := x.reshape(-1, x.shape[-1]), weight.T):
        return kernels.matmul(rows, weight.T, bias).view(*x.shape[:-1], -1)
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")


@torch.library.custom_op("etymon::product", mutates_args=())  # the compiler would put MKL's in its place
def _compiled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _product(x, weight, bias)


@_compiled.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """a [rows, m], b [rows, n] → a^T b [m, n]."""
    if torch.compiler.is_compiling() or _large(a.T, b):
        return _product(a.T, b.T)
    # oneDNN copies its first operand when that is a transposed view, so the narrower one goes first
    return _product(a.T, b.T) if a.shape[1] <= b.shape[1] else _product(b.T, a.T).T


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        dy_rows, x_rows = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
        dx = _product(dy, weight.T) if ctx.needs_input_grad[0] else None
        compiling = torch.compiler.is_compiling()
        if all(ctx.needs_input_grad[1:]) and not compiling and _large(dy_rows.T, x_rows):
            db: Tensor | None = dy.new_empty(dy.shape[-1])
            return dx, kernels.matmul(dy_rows.T, x_rows, totals=db), db
        dw = _outer(dy_rows, x_rows) if ctx.needs_input_grad[1] else None
        db = dy_rows.sum(0) if ctx.needs_input_grad[2] else None
        return dx, dw, db
