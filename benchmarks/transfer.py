"""Does the best learning rate of a narrow model hold for wider ones? Loss after the same steps by width and rate, with
AdamW as it is and with the widest as `base_width` (µP); the wider models have more heads, of one width.
"""

from __future__ import annotations

import io
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import corpus
import etymon
from etymon.data import PretrainLoader
from etymon.families import llama
from etymon.objectives import CausalLM
from etymon.train import AdamWConfig, Budget, Linear, TrainConfig, fit, scale_output
from publish import Report, Table, arguments, command, parse

Losses = dict[int, dict[float, float]]
"""The loss in nats per token by width and rate."""

CONTEXT, ROWS, VOCAB, HEAD = 64, 8, 512, 16


def main(argv: Sequence[str] | None = None) -> Report:
    parser = arguments(__doc__ or "")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128, 256])
    options = parse(parser, argv)
    steps, widths = (4, [32, 64]) if options.quick else (options.steps, options.widths)
    ways = {"as it is": None, "µP": max(widths)}
    rates = [2.0**-k for k in ((5, 7) if options.quick else range(5, 12))]
    with tempfile.TemporaryDirectory() as directory:
        limit = 300_000 if options.quick else 3_000_000
        text = corpus.prepare(Path(directory), text=None, vocab=VOCAB, context=CONTEXT, windows=1, limit=limit)
        loader = PretrainLoader(text.shards, ROWS, CONTEXT)
        found: dict[str, Losses] = {
            way: {dim: {lr: _loss(loader, dim, lr, base, steps) for lr in rates} for dim in widths}
            for way, base in ways.items()
        }
    settings = {"steps": steps, "rows": ROWS, "context": CONTEXT, "vocab": VOCAB, "layers": 2, "head_dim": HEAD}
    settings |= {"schedule": "linear, 10% warm-up", "base_width": ways["µP"]}
    report = Report("transfer", "Learning rates across widths", settings, data={"losses": found})
    for way, losses in found.items():
        best = {dim: min(each, key=each.__getitem__) for dim, each in losses.items()}
        columns = ["width", *(f"2^{math.log2(lr):.0f}" for lr in rates), "best"]
        rows = [
            [str(dim), *(f"{each[lr]:.3f}" for lr in rates), f"2^{math.log2(best[dim]):.0f}"]
            for dim, each in losses.items()
        ]
        report.tables.append(Table(f"AdamW {way}: loss, nats per token, by learning rate", columns, rows))
        wide, narrow = max(losses), min(losses)
        lost = losses[wide][best[narrow]] - losses[wide][best[wide]]
        report.lines.append(
            f"AdamW {way}: the best rate of width {narrow} costs width {wide} {lost:.3f} nats over its own best."
        )
    report.picture = _picture(found)
    report.publish(options.results)
    return report


def _loss(loader: PretrainLoader, dim: int, lr: float, base: int | None, steps: int) -> float:
    """Return the mean loss over the last fifth of a run."""
    sizes = {"dim": dim, "layers": 2, "heads": dim // HEAD, "hidden": 2 * dim, "context": CONTEXT}
    model = etymon.build(llama.build(vocab=VOCAB, tied=True, **sizes), seed=0)
    if base is not None:
        scale_output(model, base)
    optimizer = AdamWConfig(lr=lr, weight_decay=0.0, base_width=base)
    every = {"log_every": max(1, steps // 5), "checkpoint_every": steps}
    settings = TrainConfig(
        budget=Budget(steps=steps), optimizer=optimizer, schedule=Linear(warmup=0.1), precision="fp32", **every
    )
    with tempfile.TemporaryDirectory() as run:
        result = fit(model, loader, CausalLM(), settings, run)
    assert result.loss is not None
    return result.loss


def _picture(found: dict[str, Losses]) -> str:
    """Draw loss over rate, a line for each width, as an SVG document."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    sides = figure.subplots(1, len(found), sharey=True)
    lowest = min(loss for losses in found.values() for each in losses.values() for loss in each.values())
    for axes, (way, losses) in zip(sides, found.items(), strict=True):
        for i, (dim, each) in enumerate(losses.items()):
            shade = str(0.75 - 0.75 * i / max(1, len(losses) - 1))
            best = min(each, key=each.__getitem__)
            axes.plot(list(each), list(each.values()), color=shade, label=f"width {dim}")
            axes.plot(best, each[best], "o", color=shade)
        axes.set(title=f"AdamW {way}", xlabel="learning rate", ylim=(lowest - 0.1, lowest + 2))
        axes.set_xscale("log", base=2)
    sides[0].set_ylabel("loss, nats per token")
    sides[0].legend()
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


if __name__ == "__main__":
    command(main)
