"""Five objectives at equal compute: one core, one text, one labelled task.

    python benchmarks/objectives.py                 # 4e13 FLOPs each: about forty minutes on one core
    python benchmarks/objectives.py --flops 1.5e13 --rates 1e-3

Every model is made of the same block (pre-norm RMSNorm, rotary attention, SwiGLU): six of them that see to the left
(causal LM) or both ways (masked LM, replaced tokens), or three in an encoder and three, with cross-attention, in a
decoder (span corruption, UL2). Each is trained by its objective through `fit` until it has used the same floating-point
operations; heads count where they are computed, and ELECTRA's generator counts. Then each is fine-tuned to say from
which package of Python's standard library a snippet is. Files of the test never occur in the pretraining text.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sysconfig
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

import etymon
from etymon.data import Document, PretrainLoader, Record, RecordLoader, TokenShards, encode_records, write_shards
from etymon.families import llama
from etymon.nn import Model, flops_per_token, with_head
from etymon.objectives import (
    ClassificationConfig,
    Collated,
    Objective,
    ReplacedTokens,
    SpanCorruptionConfig,
    UL2Config,
    choose_objective,
)
from etymon.objectives.classification import Classification
from etymon.spec import (
    LM,
    POOLINGS,
    Bidirectional,
    CrossAttention,
    Discriminator,
    Hidden,
    ModelSpec,
    Stack,
    Sub,
)
from etymon.text import DEFAULT_SPECIAL, Tokenizer
from etymon.train import AdamWConfig, Budget, Cosine, MuonConfig, TrainConfig, fit
from publish import Report, Table, arguments, command, parse

NAMES = {
    "clm": "causal LM",
    "mlm": "masked LM",
    "rtd": "replaced tokens",
    "span_corruption": "span corruption",
    "ul2": "UL2",
}
CLASSES, SNIPPET, SEEDS = 12, 400, (0, 1, 2)


def main(argv: Sequence[str] | None = None) -> Report:
    """Run the comparison."""
    parser = arguments("Five objectives at equal compute.")
    parser.add_argument("--flops", type=float, default=4e13, help="floating-point operations of each pretraining")
    parser.add_argument("--dim", type=int, default=192, help="width of the models")
    parser.add_argument("--snippets", type=int, default=30, help="labelled snippets of each class, and test snippets")
    parser.add_argument("--epochs", type=float, default=3, help="of fine-tuning")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[5e-4, 1.5e-3], help="of fine-tuning; the best counts"
    )
    parser.add_argument(
        "--pooling",
        choices=(*POOLINGS, "own"),
        default="mean",
        help="what of a text is read (own: by kind of model)",
    )
    parser.add_argument("--only", nargs="*", choices=NAMES, default=list(NAMES), help="some of the objectives")
    options = parse(parser, argv)
    if options.quick:
        options.flops, options.dim, options.snippets, options.epochs = 2e8, 32, 2, 1
    report = compare(options)
    report.publish(options.results)
    return report


def compare(options: argparse.Namespace) -> Report:
    """Pretrain and fine-tune all."""
    context, rows, seeds = 128, 32, SEEDS
    texts, labelled = _library(options.snippets, np.random.default_rng(0))
    if options.quick:
        context, rows, seeds, texts = 48, 4, SEEDS[:1], texts[:30]
    control = [t for name in NAMES for t in _control(name)]
    tokenizer = Tokenizer.train(
        (document.text for document in texts),
        800 if options.quick else 4096,
        special_tokens=tuple(dict.fromkeys((*DEFAULT_SPECIAL, *control))),
    )
    results, table, untrained = {}, [], {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shards: TokenShards = write_shards(texts, tokenizer, folder / "shards")
        loader = PretrainLoader(shards, rows, context)
        for name in options.only:
            spec = _spec(name, tokenizer, options.dim, context)
            asked = UL2Config(sight="causal") if name == "ul2" else name
            objective = choose_objective(spec, tokenizer, asked)
            each = _flops(spec, objective, loader)
            steps = max(2, round(options.flops / each))
            model = etymon.build(spec, seed=0)
            trunk = spec.encoder, spec.decoder
            if trunk not in untrained:
                untrained[trunk] = _tune(options, model, labelled, tokenizer, folder / f"{name}-new", rows, seeds)
            config = TrainConfig(
                budget=Budget(steps=steps),
                optimizer=MuonConfig(adamw=AdamWConfig(lr=0.01, weight_decay=0.0)),
                precision="fp32",
                checkpoint_every=steps,
            )
            started = time.perf_counter()
            result = fit(model, loader, objective, config, folder / name)
            seconds = time.perf_counter() - started
            tuned = _tune(options, model, labelled, tokenizer, folder / f"{name}-tuned", rows, seeds)
            results[name] = {
                "steps": steps,
                "flops": steps * each,
                "parameters": sum(p.numel() for p in model.parameters()),
                "tokens": result.tokens,
                "seconds": seconds,
                "loss": result.loss,
                "scratch": untrained[trunk],
                "tuned": tuned,
            }
            table.append(_row(name, results[name]))
    lines = [
        f"{len(texts):,} files of Python's standard library ({shards.n_tokens:,} tokens), {CLASSES} packages, "
        f"{options.snippets} labelled snippets of each, as many to test. Accuracies are means of {len(seeds)} seeds at "
        "the best of the rates below; ± is the standard deviation over seeds. Guessing gives "
        f"{1 / CLASSES:.0%}.",
    ]
    settings = {"FLOPs each": f"{options.flops:.2g}", "dim": options.dim, "rows": rows, "context": context}
    settings |= {
        "fine-tuning epochs": options.epochs,
        "rates": options.rates,
        "pooling": options.pooling,
        "threads": options.threads,
    }
    columns = ("", "parameters", "steps", "tokens", "own loss", "from scratch", "fine-tuned")
    tables = [Table("At equal compute, and after fine-tuning: accuracy", columns, table)]
    return Report("objectives", "Five objectives at equal compute", settings, lines, tables, {"results": results})


def _row(name: str, result: dict[str, object]) -> tuple[str, ...]:
    def accuracy(found: dict[float, list[float]]) -> str:
        best = max(found.values(), key=statistics.mean)
        return f"{statistics.mean(best):.1%} ± {statistics.pstdev(best):.1%}"

    return (
        NAMES[name],
        f"{result['parameters']:,}",
        f"{result['steps']:,}",
        f"{result['tokens']:,}",
        f"{result['loss']:.3f}",
        accuracy(result["scratch"]),  # type: ignore[arg-type]
        accuracy(result["tuned"]),  # type: ignore[arg-type]
    )


def _control(name: str) -> tuple[str, ...]:
    from etymon.objectives import OBJECTIVES

    return OBJECTIVES[name].control(UL2Config() if name == "ul2" else SpanCorruptionConfig())


def _spec(name: str, tokenizer: Tokenizer, dim: int, context: int) -> ModelSpec:
    """Return a model of six of the one block."""
    # what is written may be longer than what was hidden by its sentinels
    given = {"heads": max(1, dim // 64), "hidden": dim * 8 // 3 // 16 * 16, "context": 2 * context}
    plain = llama.build(name=name, vocab=tokenizer.vocab_size, dim=dim, layers=6, tied=True, **given)
    assert plain.decoder is not None
    if name == "clm":
        return plain
    blocks, norm = plain.decoder.blocks, plain.decoder.final_norm
    both = Stack(blocks=blocks, final_norm=norm, visibility=Bidirectional())
    if name in ("mlm", "rtd"):
        head = LM(tied=True) if name == "mlm" else Discriminator(activation="gelu")
        return dataclasses.replace(plain, encoder=both, decoder=None, head=head)
    attention, ffn = blocks[0].subs
    op = attention.op
    cross = Sub(pre=attention.pre, op=CrossAttention(heads=op.heads, kv_heads=op.heads, head_dim=op.head_dim))
    crossing = dataclasses.replace(blocks[0], subs=(attention, cross, ffn))
    return dataclasses.replace(
        plain,
        encoder=dataclasses.replace(both, blocks=blocks[:3]),
        decoder=dataclasses.replace(plain.decoder, blocks=(crossing,) * 3),
        encoder_embed=plain.embed,
        start=tokenizer.eos_id,
    )


def _flops(spec: ModelSpec, objective: Objective, loader: PretrainLoader) -> float:
    """Return the operations of a step, forward and backward, in the mean of a few batches."""
    head = 6 * spec.vocab * spec.width
    collated, total, steps = Collated(loader, objective, 0), 0.0, 4
    for step in range(steps):
        batch = collated.batch(step)
        read, trained = batch.input_ids.numel(), batch.trained
        if spec.encoder is not None and spec.decoder is not None:
            written = batch.decoder_input_ids.numel()  # type: ignore[attr-defined]
            alone = dataclasses.replace(spec, decoder=None, encoder_embed=None, start=None, head=Hidden())
            encoder = flops_per_token(alone, batch.input_ids.shape[1]) - head
            decoder = flops_per_token(spec, batch.input_ids.shape[1]) - head - encoder
            total += read * encoder + written * decoder + trained * head
        else:
            total += read * (flops_per_token(spec, loader.context) - head) + trained * head
        if isinstance(objective, ReplacedTokens):
            total += read * (flops_per_token(objective.spec, loader.context) - head)  # its head is counted above
    return total / steps


def _tune(
    options: argparse.Namespace,
    model: Model,
    labelled: tuple[list[Record], list[Record]],
    tokenizer: Tokenizer,
    folder: Path,
    rows: int,
    seeds: Sequence[int],
) -> dict[float, list[float]]:
    """Return the accuracies on the test by learning rate, one of each seed."""
    labels = tuple(sorted({str(record.label) for record in labelled[0]}))
    pooling = None if options.pooling == "own" else options.pooling
    config = ClassificationConfig(labels=labels, pooling=pooling)
    head = Classification.trains(model.spec, config).head
    found: dict[float, list[float]] = {}
    for rate in options.rates:
        for seed in seeds:
            tuned = with_head(model, head, seed)
            objective = Classification.of(tuned.spec, tokenizer, config)
            encode = partial(objective.encode, tokenizer, context=model.spec.context // 2)
            sides = [encode_records(records, encode, "truncate")[0] for records in labelled]
            loader = RecordLoader(sides[0], min(rows, len(sides[0])), model.spec.context, seed)
            train = TrainConfig(
                budget=Budget(epochs=options.epochs),
                optimizer=AdamWConfig(lr=rate, weight_decay=0.01),
                schedule=Cosine(warmup=0.1),
                precision="fp32",
                checkpoint_every=1_000_000,
                seed=seed,
            )
            fit(tuned, loader, objective, train, folder / f"{rate}-{seed}")
            found.setdefault(rate, []).append(_accuracy(tuned, RecordLoader(sides[1], 1, model.spec.context)))
    return found


@torch.no_grad()
def _accuracy(model: Model, loader: RecordLoader) -> float:
    from etymon.nn import whole_texts

    model.eval()
    right = 0
    for start in range(0, len(loader.records), 32):
        batch = loader.rows(start, min(32, len(loader.records) - start))
        real = batch.real[:, 0]
        hidden = whole_texts(model, batch.input_ids[:, 0], real, batch.segments[:, 0])
        right += int((model.head(hidden, real).argmax(-1) == batch.targets).sum())  # type: ignore[call-arg]
    return right / len(loader.records)


def _library(snippets: int, random: np.random.Generator) -> tuple[list[Document], tuple[list[Record], list[Record]]]:
    """Return the texts to pretrain on, and labelled snippets to train on and to test."""
    root = Path(sysconfig.get_paths()["stdlib"])
    packages: dict[str, list[tuple[str, str]]] = defaultdict(list)
    texts = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if {"site-packages", "dist-packages", "test", "tests", "idle_test"} & set(name.parts):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if len(name.parts) > 1 and len(text) > 2 * SNIPPET:
            packages[name.parts[0]].append((name.as_posix(), text))
        elif text.strip():
            texts.append(Document(name.as_posix(), text, "library"))
    chosen = sorted(packages, key=lambda package: -len(packages[package]))[:CLASSES]
    sides: tuple[list[Record], list[Record]] = ([], [])
    for package, files in packages.items():
        tested = {name for i, (name, _) in enumerate(files) if package in chosen and i % 4 == 3}
        texts += [Document(name, text, "library") for name, text in files if name not in tested]
        if package not in chosen:
            continue
        for side, wanted in ((0, False), (1, True)):
            own = [text for name, text in files if (name in tested) == wanted]
            for i in range(snippets):
                text = own[i % len(own)]
                at = int(random.integers(len(text) - SNIPPET))
                split = "held_out" if wanted else "train"
                sides[side].append(Record(f"{package}-{split}-{i}", (text[at : at + SNIPPET],), package, split))
    return sorted(texts, key=lambda document: document.id), sides


if __name__ == "__main__":
    command(main)
