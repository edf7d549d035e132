"""What this machine reaches: its matmul peak per dtype, whether bf16 pays, and the memory in use."""

from __future__ import annotations

import functools
import time
from typing import Literal

import psutil
import torch

Precision = Literal["fp32", "bf16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


@functools.cache
def matmul_peak(device: str, precision: Precision, seconds: float = 0.3) -> float:
    """Return the best FLOP/s of square matrix products on `device`, measured within about `seconds`, once a process.

    Sizes double from 64 and stop before a product that would not fit the time left: emulated bf16 runs at 0.2 GFLOP/s,
    where one product of size 1024 would take ten seconds.
    """
    deadline = time.perf_counter() + seconds
    best = 0.0
    for size in (64, 128, 256, 512, 1024, 2048, 4096, 8192):
        if size > 2048 and torch.device(device).type == "cpu":
            break
        flops = 2 * size**3
        if best and time.perf_counter() + 2 * flops / best > deadline:
            break
        a = torch.ones(size, size, device=device, dtype=DTYPES[precision])
        repeats = 3 if best else 1  # the first call of all also pays for starting threads
        for _ in range(repeats):
            start = time.perf_counter()
            torch.mm(a, a)
            _synchronize(device)
            best = max(best, flops / (time.perf_counter() - start))
            if time.perf_counter() > deadline:
                return best
    return best


def bf16_pays(device: str) -> bool:
    """Return whether bf16 matmuls were measured at more than 1.5 times the speed of fp32 (AVX512-BF16, AMX, CUDA)."""
    return matmul_peak(device, "bf16") > 1.5 * matmul_peak(device, "fp32")


def choose_precision(asked: Literal["auto", "fp32", "bf16"], device: str) -> Precision:
    """Return `asked`, or for "auto" bf16 where it pays."""
    if asked == "auto":
        return "bf16" if bf16_pays(device) else "fp32"
    return asked


def memory_in_use(device: str) -> int:
    """Return bytes: on CUDA the peak that tensors took, else this process's resident memory."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


def environment(device: str) -> dict[str, str | int]:
    """Return what must be equal for two runs to agree bitwise: torch, the device and its threads."""
    kind = torch.device(device).type
    name = torch.cuda.get_device_name(device) if kind == "cuda" else kind
    capability = torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "device": name, "cpu": capability, "threads": torch.get_num_threads()}


def _synchronize(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
