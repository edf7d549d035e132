"""Print, in KiB, the most that was resident beyond a built model after inference, and after MeZO's steps behind it."""

from __future__ import annotations

from pathlib import Path

import torch

from etymon.data import Batch
from etymon.families import llama
from etymon.nn import build
from etymon.objectives import CausalLM
from etymon.train import MeZOConfig
from etymon.train.optimizers import build_optimizers
from etymon.train.step import apply_gradient, estimate_gradient


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


torch.set_num_threads(1)
model = build(llama.build(vocab=8192, dim=512, layers=3, heads=8, hidden=1408, context=128, tied=True))  # 53 MiB
optimizers = build_optimizers(model, MeZOConfig())
ids, positions = torch.randint(8192, (4, 129)), torch.arange(128).expand(4, -1)
batch = Batch(ids[:, :-1], ids[:, 1:], positions, torch.zeros_like(positions))
built = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
with torch.no_grad():
    for _ in range(2):
        CausalLM().loss(model, batch)
print(resident("VmHWM") - built)
for step in range(2):
    given = {"micro_batch": None, "clip": None, "precision": "fp32"}
    estimate_gradient(optimizers[0], model, CausalLM(), batch, seed=0, step=step, **given)
    apply_gradient(optimizers)
print(resident("VmHWM") - built)
