"""Pretraining beside nanoGPT and transformers: tokens per second, or with --to-loss the time to the same loss.

    python benchmarks/pretrain.py --nanogpt nanoGPT                    # 12.3M parameters
    python benchmarks/pretrain.py --nanogpt nanoGPT --shape 12m-50257  # with GPT-2's vocabulary; memory too
    python benchmarks/pretrain.py --nanogpt nanoGPT --shape 124m
    python benchmarks/pretrain.py --nanogpt nanoGPT --to-loss --minutes 8

Speed: the same GPT-2 (equal weights, checked to give equal losses) on every side, fp32, one step being a batch,
forward, backward, clipping and AdamW. etymon runs in its own `fit`; in between its steps the peers take theirs.
litgpt takes part where it is installed, with its own blocks of the same shape. Memory: each side in a process of its
own, the most that was resident less what was before the model was built.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

import corpus
import etymon
from etymon.data import Document, PretrainLoader, TokenShards, write_shards
from etymon.families import family_named
from etymon.nn import Model, flops_per_token
from etymon.text import Tokenizer
from etymon.train import AdamWConfig
from etymon.train.hardware import matmul_peak
from measure import Rounds, Span, Stopwatch, alone, most_resident, spread
from peers import LitGPT, NanoGPT, NanoRecipe, Shape, TransformersGPT2, fingerprint, load_nanogpt, share_weights
from publish import Report, Table, arguments, command, parse
from to_loss import add_arguments, held_out_loss, to_loss
from turns import fit_in_turns

OURS, COMPILED, EAGER, TRANSFORMERS = "etymon", "nanoGPT, compiled", "nanoGPT, eager", "transformers GPT-2"
LITGPT = "litgpt, compiled"
PEERS = (EAGER, TRANSFORMERS, COMPILED, LITGPT)
SHAPES = {
    "12m": Shape(),
    "12m-50257": Shape(vocab=50257),
    "124m": Shape(layers=12, dim=768, heads=12, context=512, vocab=50257, batch=4),
}
TARGETS = {"12m-50257": {COMPILED: 1.5, EAGER: 1.5}}
LEAST = 1.05  # times everybody else's tokens per second
SHARES = {"124m": 0.85}  # of the matmul peak
MEMORY = {"12m-50257": 1 / 3}  # of nanoGPT's
TOKENIZER = 4096  # tokens that the text has, whatever the model's vocabulary
RATE = 1e-4
TOLERANCE = 2e-3  # nats; nanoGPT's GELU is exact, GPT-2's is the tanh approximation


def main(argv: Sequence[str] | None = None) -> Report:
    """Run the benchmark that the command line asks for."""
    parser = arguments("Pretraining on the CPU, side by side with nanoGPT and transformers.")
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of nanoGPT")
    parser.add_argument("--text", type=Path, help="a text file in place of Python's standard library")
    parser.add_argument("--shape", choices=SHAPES, default="12m", help="speed: the model, and the rows of a step")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS, help="speed: beside whom")
    parser.add_argument("--batch", type=int, default=32, help="to a loss: rows of 256 tokens in a step, on every side")
    parser.add_argument("--steps", type=int, default=3, help="speed: steps of everybody in a round")
    parser.add_argument("--to-loss", action="store_true", help="measure the time to nanoGPT's best loss instead")
    add_arguments(parser)
    options = parse(parser, argv)
    report = to_loss(options) if options.to_loss else speed(options)
    report.publish(options.results)
    return report


def speed(options: argparse.Namespace) -> Report:
    """Measure tokens per second of a training step."""
    shape = SHAPES[options.shape]
    rounds, steps, limit = options.rounds, options.steps, 4_000_000
    if options.quick:
        shape, rounds, steps, limit = Shape(layers=2, dim=64, heads=2, context=32, vocab=512, batch=4), 2, 2, 200_000
    recipe = NanoRecipe(bias=True, beta2=0.95)
    module = load_nanogpt(options.nanogpt)
    with tempfile.TemporaryDirectory() as temporary:
        text = corpus.prepare(
            Path(temporary),
            text=options.text,
            vocab=min(shape.vocab, TOKENIZER),
            context=shape.context,
            windows=8,
            limit=limit,
        )
        stream = text.stream()
        eager = NanoGPT(module, shape, stream, recipe, compiled=False)
        bare = TransformersGPT2(shape, stream, recipe)
        share_weights(eager.model, bare.model)
        bare.model.save_pretrained(Path(temporary) / "gpt2")
        model, _ = etymon.load(Path(temporary) / "gpt2")
        losses = {
            OURS: held_out_loss(model, text.held_out),
            EAGER: eager.loss(text.held_out),
            TRANSFORMERS: bare.loss(text.held_out),
        }
        if max(losses.values()) - min(losses.values()) > TOLERANCE:
            raise SystemExit(f"the sides do not compute the same function: losses of equal weights are {losses}")
        contestants: dict[str, Callable[[float], float]] = {EAGER: eager.step, TRANSFORMERS: bare.step}
        if not options.quick and COMPILED in options.peers:  # compiling takes the better part of a minute
            contestants[COMPILED] = NanoGPT(module, shape, stream, recipe, compiled=True).step
        if not options.quick and LITGPT in options.peers and importlib.util.find_spec("litgpt") is not None:
            contestants[LITGPT] = LitGPT(shape, stream, recipe, compiled=True).step
        contestants = {name: step for name, step in contestants.items() if name in options.peers}
        result, peaks = _race(model, text, shape, contestants, steps, rounds)
    flops = flops_per_token(model.spec, shape.context)
    memory = peak_memory(options.nanogpt, shape) if options.shape in MEMORY or options.quick else {}
    return _report(options, shape, steps, result, losses, peaks, flops, fingerprint(module), memory)


def peak_memory(nanogpt: Path, shape: Shape) -> dict[str, int]:
    """Return the bytes that two training steps took, each side in a process of its own."""
    threads = torch.get_num_threads()
    return {name: alone(_memory_of, name, nanogpt, shape, threads) for name in (OURS, EAGER, TRANSFORMERS)}


def _memory_of(name: str, nanogpt: Path, shape: Shape, threads: int) -> int:
    torch.set_num_threads(threads)
    stream = np.random.default_rng(0).integers(0, shape.vocab, 50_000, dtype=np.uint16)
    recipe, module = NanoRecipe(bias=True), load_nanogpt(nanogpt)
    before = most_resident()
    if name == OURS:
        given = {"layers": shape.layers, "dim": shape.dim, "heads": shape.heads, "context": shape.context}
        model = etymon.build(family_named("gpt2").spec(**given, vocab=shape.vocab))
        with tempfile.TemporaryDirectory() as folder:
            write_shards([Document("0", "x " * 40_000, "benchmark")], Tokenizer.train(["x y"], 300), Path(folder))
            loader = PretrainLoader(TokenShards(Path(folder)), shape.batch, shape.context)
            optimizer = AdamWConfig(lr=RATE)
            fit_in_turns(model, loader, steps=2, every=2, turn=lambda *_: None, optimizer=optimizer)
    else:
        peer = NanoGPT(module, shape, stream, recipe, compiled=False) if name == EAGER else None
        step = (peer or TransformersGPT2(shape, stream, recipe)).step
        for _ in range(2):
            step(RATE)
    return most_resident() - before


def _race(
    model: Model,
    text: corpus.Corpus,
    shape: Shape,
    contestants: dict[str, Callable[[float], float]],
    steps: int,
    rounds: int,
) -> tuple[Rounds, list[float]]:
    """Run everybody `steps` at a time, in turn, `rounds` times after one that does not count; return the matmul peak of
    each round, too, measured right after etymon's steps: a processor's clock changes over minutes."""
    result, peaks = Rounds("tokens/s"), list[float]()

    def turn(model: Model, step: int, span: Span | None) -> None:
        if step == steps:  # etymon's own round that does not count; the peers had theirs before the first step
            return
        if step:
            assert span is not None
            result.add(OURS, steps * shape.tokens / span.seconds, span)
            peaks.append(matmul_peak.__wrapped__("cpu", "fp32", 1.0))  # its cache left aside
        for name, take_step in contestants.items():
            clock = Stopwatch()
            for _ in range(steps):
                take_step(RATE)
            span = clock.stop()
            if step:
                result.add(name, steps * shape.tokens / span.seconds, span)

    loader = PretrainLoader(text.shards, shape.batch, shape.context)
    optimizer = AdamWConfig(lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    fit_in_turns(model, loader, steps=steps * (rounds + 1), every=steps, turn=turn, optimizer=optimizer)
    return result, peaks


def _report(
    options: argparse.Namespace,
    shape: Shape,
    steps: int,
    result: Rounds,
    losses: dict[str, float],
    peaks: list[float],
    flops: int,
    nanogpt: str,
    memory: dict[str, int],
) -> Report:
    rows, verdicts = [], []
    targets = TARGETS.get(options.shape, {})

    def share_of(name: str) -> float:
        return statistics.median(rate * flops / peak for rate, peak in zip(result.values(name), peaks, strict=True))

    for name in result.samples:
        ratios = result.ratios(OURS, name)
        ratio = "" if name == OURS else spread(ratios)
        rows.append((name, spread(result.values(name), 0), ratio, f"{share_of(name):.0%}"))
        if name != OURS:
            target = targets.get(name, LEAST)
            verdicts.append(f"- {name}: target {target}×, {_verdict(statistics.median(ratios) >= target)}")
    if options.shape in SHARES:
        share, least = share_of(OURS), SHARES[options.shape]
        verdicts.append(f"- {share:.0%} of the matmul peak: target {least:.0%}, {_verdict(share >= least)}")
    if memory and options.shape in MEMORY:
        part, most = memory[OURS] / memory[EAGER], MEMORY[options.shape]
        verdicts.append(f"- {part:.2f} of nanoGPT's memory: target {most:.2f}, {_verdict(part <= most)}")
    table = Table(
        "Training step, tokens per second: median (lowest – highest) of the rounds",
        ("", "tokens/s", "etymon / it, per round", f"of matmul peak ({statistics.median(peaks) / 1e9:.0f} GFLOP/s)"),
        rows,
    )
    tables = [table]
    if memory:
        taken = [(name, f"{size / 1e9:.2f}", f"{size / max(1, memory[OURS]):.1f}") for name, size in memory.items()]
        tables.append(Table("Memory of two steps, GB", ("", "GB", "times etymon's"), taken))
    listed = ", ".join(f"{name} {loss:.5f}" for name, loss in losses.items())
    lines = [
        "\n".join(verdicts),
        f"GPT-2 with all its biases on every side; losses of equal weights on equal text: {listed}. "
        f"Other processes kept {result.foreign:.2f} cores busy.",
    ]
    settings = asdict(shape) | {"steps a round": steps, "rounds": len(result.values(OURS)), "dtype": "fp32"}
    settings |= {"threads": options.threads, "nanoGPT model.py": nanogpt}
    data = {"rounds": result.to_dict(), "losses": losses, "matmul_flops": peaks, "flops_per_token": flops}
    name = "pretrain-speed" if options.shape == "12m" else f"pretrain-speed-{options.shape}"
    name += "" if options.peers else "-alone"
    title = f"Pretraining on the CPU, {options.shape}: tokens per second"
    return Report(name, title, settings, lines, tables, data | {"memory": memory})


def _verdict(reached: bool) -> str:
    return "reached" if reached else "NOT reached"


if __name__ == "__main__":
    command(main)
