"""What this machine reaches: its matmul peak per dtype, whether bf16 pays, and the memory in use."""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import psutil
import torch

from etymon import kernels
from etymon.nn.gemm import matmul

Precision = Literal["fp32", "bf16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


@functools.cache
def matmul_peak(device: str, precision: Precision, seconds: float = 0.6) -> float:
    """Return the best FLOP/s of the model's matrix products on `device`, measured within `seconds`, once a process.

    Sizes double from 64 and stop before a product that would not fit the time left: emulated bf16 runs at 0.2 GFLOP/s,
    where one product of size 1024 would take ten seconds.
    """
    if _kind(device) == "cpu":
        kernels.library()  # the first product would wait for its compiler
    deadline = time.perf_counter() + seconds
    best = 0.0
    for size in (64, 128, 256, 512, 1024, 2048) + ((4096, 8192) if _kind(device) == "cuda" else ()):
        flops = 2 * size**3
        if best and time.perf_counter() + flops / best > deadline:
            break
        a = torch.ones(size, size, device=device, dtype=DTYPES[precision])
        for _ in range(6):  # the best of several: first calls start threads, and other processes interfere
            best = max(best, flops / _seconds_of_product(a))
            if time.perf_counter() > deadline:
                return best
    return best


@functools.cache
def bf16_pays(device: str) -> bool:
    """Return whether bf16 matmuls are measured at more than 1.5 times the speed of fp32 (AVX512-BF16, AMX, CUDA).

    Both take turns, on one thread, so that a loaded machine slows both alike. A small product comes first: where bf16
    is emulated a large one would take a second.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _bf16_speedup(device, 128, rounds=3) > 1.0 and _bf16_speedup(device, 512, rounds=7) > 1.5
    finally:
        torch.set_num_threads(threads)


def _bf16_speedup(device: str, size: int, rounds: int) -> float:
    operands = [torch.ones(size, size, device=device, dtype=DTYPES[precision]) for precision in DTYPES]
    for a in operands:
        _seconds_of_product(a)
    times = [[_seconds_of_product(a) for a in operands] for _ in range(rounds)]
    fp32, bf16 = (min(column) for column in zip(*times, strict=True))
    return fp32 / bf16


def _seconds_of_product(a: torch.Tensor) -> float:
    start = time.perf_counter()
    matmul(a, a)
    if a.device.type == "cuda":
        torch.cuda.synchronize(a.device)
    return time.perf_counter() - start


def choose_precision(asked: Literal["auto", "fp32", "bf16"], device: str) -> Precision:
    """Return `asked`, or for "auto" bf16 where it pays."""
    if asked == "auto":
        return "bf16" if bf16_pays(device) else "fp32"
    return asked


@contextmanager
def memory_kept() -> Iterator[None]:
    """Within this, memory that tensors on the CPU give back stays with the process for the next ones (glibc only).

    By default each tensor above 32 MB is asked of the system and given back, and the system clears every page of it:
    of a training step at 124M parameters (2,048 tokens, two cores) that was 0.8 million page faults and 2.4 of 14.7
    seconds of the processors' time.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt, trim = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError):
        yield
        return
    mallopt(_MMAP_THRESHOLD, 1 << 30)
    mallopt(_TRIM_THRESHOLD, -1)  # never; any other number would leave it at 2 GB at most
    try:
        yield
    finally:
        mallopt(_MMAP_THRESHOLD, 32 << 20)
        mallopt(_TRIM_THRESHOLD, 64 << 20)
        trim(0)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h


def memory_in_use(device: str) -> int:
    """Return bytes: on CUDA the peak that tensors took, else this process's resident memory."""
    if _kind(device) == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


def environment(device: str) -> dict[str, str | int]:
    """Return what must be equal for two runs to agree bitwise: torch, the device and its threads."""
    kind = _kind(device)
    name = torch.cuda.get_device_name(device) if kind == "cuda" else kind
    capability = torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "device": name, "cpu": capability, "threads": torch.get_num_threads()}


def _kind(device: str) -> str:
    return torch.device(device).type
