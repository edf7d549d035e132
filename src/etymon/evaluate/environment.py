"""The machine and the software that a run was made on, so that its numbers can be placed."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

_PACKAGES = ("etymon", "torch", "numpy", "tokenizers", "safetensors", "pydantic", "fastapi")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What ran: processor, memory in bytes, accelerators, versions, and the peak that MFU is measured against."""

    created: str
    system: str
    python: str
    cpu: str
    cores_physical: int | None
    cores_usable: int
    threads: int
    memory_bytes: int
    cpu_capability: str
    accelerators: list[str]
    cuda: str | None
    packages: dict[str, str]
    commit: str | None
    matmul_flops: dict[str, float] | None

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `environment.json`."""
        return asdict(self)


def environment(matmul_flops: Mapping[str, float] | None = None) -> Environment:
    """Describe this machine; `matmul_flops` is the measured peak in FLOP/s by precision (`{"fp32": 1.7e11}`)."""
    return Environment(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        system=platform.platform(),
        python=platform.python_version(),
        cpu=_cpu_model(),
        cores_physical=psutil.cpu_count(logical=False),
        cores_usable=_usable_cores(),
        threads=torch.get_num_threads(),
        memory_bytes=psutil.virtual_memory().total,
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        accelerators=[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        cuda=torch.version.cuda,
        packages=_versions(_PACKAGES),
        commit=_commit(),
        matmul_flops=dict(matmul_flops) if matmul_flops else None,
    )


def _cpu_model() -> str:
    """Return the processor's marketing name, which `platform.processor` does not know on Linux."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _usable_cores() -> int:
    """Return the cores that this process may run on, which in a container are fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """Return the commit of the source checkout that this package runs from (`+changes` if edited), if it is one."""
    here = Path(__file__).resolve().parent
    if "site-packages" in here.parts:  # installed: a repository around it is somebody else's
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None
