"""Every optimizer on one small model and text: held-out loss at equal steps, milliseconds, bytes remembered.

    python benchmarks/optimizers.py
    python benchmarks/optimizers.py --kinds adamw soap --steps 400

Each is trained by etymon's own `fit` at a few learning rates; the best one counts. The time is that of the optimizer's
step alone, taken in turns on the gradients of one batch, at the small model and at a larger one that is not trained.
MeZO has no gradients: its step is timed with its two forward passes. Memory: a process for each, in which a model of
34M parameters is built and takes two steps; the most that was resident less what was before the model was built.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import corpus
import etymon
from etymon.data import Batch, PretrainLoader
from etymon.families import llama
from etymon.nn import Model, count
from etymon.objectives import CausalLM
from etymon.spec import ModelSpec
from etymon.train import Budget, Cosine, TrainConfig, fit
from etymon.train.optimizers import (
    AdafactorConfig,
    Adam8bitConfig,
    AdamWConfig,
    GaLoreConfig,
    LionConfig,
    MeZO,
    MeZOConfig,
    MuonConfig,
    OptimizerSettings,
    ShampooConfig,
    SOAPConfig,
    build_optimizers,
    optimizer_tensors,
)
from etymon.train.step import apply_gradient, compute_gradient, estimate_gradient
from measure import Timed, alone, interleave, most_resident
from publish import Report, Table, arguments, command, parse

TRAINED = llama.build(vocab=2048, dim=160, layers=4, heads=4, hidden=448, context=64, tied=True)
LARGER = llama.build(vocab=4096, dim=384, layers=6, heads=6, hidden=1024, context=256, tied=True)
QUICK = llama.build(vocab=300, dim=32, layers=1, heads=2, hidden=64, context=32, tied=True)
HELD = llama.build(vocab=16384, dim=512, layers=8, heads=8, hidden=1408, context=256, tied=True)
ROWS = 4
STEPS = 10  # between which SOAP and Shampoo find a basis or a root once

INFERENCE = "inference"
IN_MEMORY = ("mezo", "galore", "adam8bit", "adamw")

TRIED: dict[str, list[OptimizerSettings]] = {
    "adamw": [AdamWConfig(lr=lr) for lr in (4e-3, 8e-3)],
    "adam8bit": [Adam8bitConfig(lr=lr) for lr in (4e-3, 8e-3)],
    "muon": [MuonConfig(lr=lr, adamw=AdamWConfig(lr=6e-3, weight_decay=0.0)) for lr in (0.02, 0.04)],
    "soap": [SOAPConfig(lr=lr, weight_decay=0.1) for lr in (4e-3, 8e-3)],
    "shampoo": [ShampooConfig(lr=lr) for lr in (4e-3, 8e-3)],
    "lion": [LionConfig(lr=lr, weight_decay=0.1 / lr * 2e-3) for lr in (6e-4, 1.2e-3)],
    "adafactor": [AdafactorConfig(lr=lr, relative_step=False) for lr in (0.05, 0.1)],
    "galore": [GaLoreConfig(lr=lr, rank=40, every=50, scale=0.5, betas=(0.9, 0.95)) for lr in (8e-3, 1.6e-2)],
    "mezo": [MeZOConfig(lr=lr) for lr in (1e-4,)],
}


def main(argv: Sequence[str] | None = None) -> Report:
    """Compare the optimizers."""
    parser = arguments("Loss at equal steps, milliseconds per step and bytes per parameter of every optimizer.")
    parser.add_argument("--kinds", nargs="+", choices=TRIED, default=list(TRIED))
    parser.add_argument("--steps", type=int, default=100)
    parser.set_defaults(rounds=3)
    options = parse(parser, argv)
    report = compare(options)
    report.publish(options.results)
    return report


def compare(options: argparse.Namespace) -> Report:
    """Train with everything, then time everything."""
    spec, larger, most, steps, rounds, windows = TRAINED, LARGER, HELD, options.steps, options.rounds, 96
    tried, in_memory = {kind: TRIED[kind] for kind in options.kinds}, IN_MEMORY
    if options.quick:
        spec, larger, most, steps, rounds, windows = QUICK, QUICK, QUICK, 3, 1, 2
        tried, in_memory = {kind: settings[:1] for kind, settings in tried.items()}, IN_MEMORY[:1]
    rows: list[tuple[str, ...]] = []
    data: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        limit = 150_000 if options.quick else 6_000_000
        made = corpus.prepare(
            Path(directory), text=None, vocab=spec.vocab, context=spec.context, windows=windows, limit=limit
        )
        losses = {kind: [train(spec, made, each, steps) for each in settings] for kind, settings in tried.items()}
    held = {kind: alone(memory_of, kind, most, options.threads) for kind in (INFERENCE, *in_memory)}
    times = {place: timed(place, list(tried), rounds, options.realtime) for place in (spec, larger)}
    for kind, found in losses.items():
        best = min(range(len(found)), key=found.__getitem__)
        remembered = bytes_per_parameter(spec, tried[kind][best])
        small, large = (statistics.median(times[place][kind]) * 1e3 for place in (spec, larger))
        data[kind] = {
            "tried": {f"{each.lr:g}": loss for each, loss in zip(tried[kind], found, strict=True)},
            "loss": found[best],
            "bytes_per_parameter": remembered,
            "step_ms": small,
            "larger_step_ms": large,
        }
        rows.append(
            (
                kind,
                f"{tried[kind][best].lr:g}",
                f"{found[best]:.3f}",
                f"{remembered:.2f}",
                f"{small:.1f}",
                f"{large:.1f}",
            )
        )
    rows.sort(key=lambda row: float(row[2]))
    small, large = (count(place).total / 1e6 for place in (spec, larger))
    columns = ("optimizer", "lr", f"held-out loss, {steps} steps", "state, bytes/parameter")
    table = Table(
        f"{small:.1f}M llama, {ROWS} rows of {spec.context} tokens",
        (*columns, f"step, ms ({small:.1f}M)", f"step, ms ({large:.1f}M)"),
        rows,
    )
    weights = count(most).total * 4
    taken = [(kind, f"{took / 2**20:.0f}", f"{took / held[INFERENCE]:.2f}") for kind, took in held.items()]
    title = (
        f"Memory of two steps, {weights / 4e6:.0f}M parameters ({weights / 2**20:.0f} MiB), 2 rows of {most.context}"
    )
    memory = Table(title, ("", "MiB", "times inference's"), taken)
    lines = [
        "The best of a few learning rates (all are in the data). Steps are the optimizer's alone; mezo's has its two "
        "forward passes in it.",
        "GaLore has rank 40 of 160; the bytes are those of the trained model, whose embeddings are "
        f"{spec.vocab * spec.dim / 1e6:.2f}M of its parameters.",
    ]
    settings = {"steps": steps, "rows": ROWS, "context": spec.context, "threads": options.threads}
    return Report(
        "optimizers",
        "Optimizers at equal steps",
        settings,
        lines,
        [table, memory],
        {"optimizers": data, "memory": held},
    )


def train(spec: ModelSpec, made: corpus.Corpus, settings: OptimizerSettings, steps: int) -> float:
    """Return the held-out loss after `steps` updates, in nats per token."""
    model = etymon.build(spec, seed=0)
    config = TrainConfig.model_validate(
        {
            "budget": Budget(steps=steps),
            "optimizer": settings,
            "schedule": Cosine(warmup=0.1, final=0.05),
            "precision": "fp32",
            "compile": "off",
            "checkpoint_every": steps,
        }
    )
    with tempfile.TemporaryDirectory() as run:
        fit(model, PretrainLoader(made.shards, ROWS, spec.context), CausalLM(), config, run)
    with torch.no_grad():
        hidden = model(made.held_out[:, :-1], logits=False).last_hidden_state
        return float(model.head.loss(hidden, made.held_out[:, 1:])) / made.held_out[:, 1:].numel()


def timed(spec: ModelSpec, kinds: list[str], rounds: int, realtime: bool) -> dict[str, list[float]]:
    """Return the seconds of each optimizer's step, in turns."""
    contestants = {kind: step_of(etymon.build(spec, seed=0), TRIED[kind][0]) for kind in kinds}
    result = interleave("seconds", contestants, rounds, realtime=realtime)
    return {kind: result.values(kind) for kind in kinds}


def step_of(model: Model, settings: OptimizerSettings) -> Callable[[], Timed]:
    """Return what takes some steps on the gradient of a random batch, and the seconds of one."""
    optimizers, batch = build_optimizers(model, settings), random_batch(model.spec)
    given: dict[str, Any] = {"micro_batch": None, "clip": None, "precision": "fp32"}
    compute_gradient(model, CausalLM(), batch, **given)
    gradients = {p: p.grad for p in model.parameters()}

    def steps() -> Timed:
        start = time.perf_counter()
        for _ in range(STEPS):
            match optimizers:
                case [MeZO() as mezo]:
                    estimate_gradient(mezo, model, CausalLM(), batch, seed=0, step=0, **given)
            for p, gradient in gradients.items():
                p.grad = gradient
            apply_gradient(optimizers)
        return Timed(0.0, (time.perf_counter() - start) / STEPS)

    return steps


def random_batch(spec: ModelSpec, rows: int = ROWS) -> Batch:
    """Return rows of random tokens."""
    ids = torch.randint(spec.vocab, (rows, spec.context + 1), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(spec.context).expand(rows, -1)
    return Batch(ids[:, :-1], ids[:, 1:], positions, torch.zeros_like(positions))


def memory_of(kind: str, spec: ModelSpec, threads: int) -> int:
    """Return the bytes that a model and two steps took, or two forward passes without gradients."""
    torch.set_num_threads(threads)
    build_optimizers(etymon.build(QUICK), AdamWConfig())  # torch's optimizers load 40 MiB of code
    batch, before = random_batch(spec, rows=2), most_resident()
    model = etymon.build(spec, seed=0)
    optimizers = [] if kind == INFERENCE else build_optimizers(model, TRIED[kind][0])
    given: dict[str, Any] = {"micro_batch": None, "clip": None, "precision": "fp32"}
    for step in range(2):
        match optimizers:
            case []:
                with torch.no_grad():
                    CausalLM().loss(model, batch)
            case [MeZO() as mezo]:
                estimate_gradient(mezo, model, CausalLM(), batch, seed=0, step=step, **given)
            case _:
                compute_gradient(model, CausalLM(), batch, **given)
        apply_gradient(optimizers)
    return most_resident() - before


def bytes_per_parameter(spec: ModelSpec, settings: OptimizerSettings) -> float:
    """Return the bytes that are there after a step, for each parameter."""
    model = etymon.build(spec, seed=0)
    optimizers = build_optimizers(model, settings)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    apply_gradient(optimizers)
    held = sum(tensor.nbytes for tensor in optimizer_tensors(model, optimizers).values())
    return held / sum(p.numel() for p in model.parameters())


if __name__ == "__main__":
    command(main)
