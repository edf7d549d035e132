"""Families beside transformers: forward and backward of the same weights, eager and compiled, in fp32 on the CPU.

    python benchmarks/families.py
    python benchmarks/families.py --families bert t5 --modes eager --parts loss

A random model is built by etymon, saved in Hugging Face's format and loaded by transformers with the same attention
backend (sdpa). Two parts are measured: `loss`, what a training step does before its update (the loss of a batch and all
gradients), and `trunk`, embeddings and blocks alone, from ids to the gradients of the last hidden states. Both sides
must give the same loss. Besides, the time to build a 70B model on the meta device.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import etymon
from decode import randomised
from etymon.families import family_named
from etymon.nn import IGNORE, Model, build
from etymon.spec import ModelSpec
from measure import Rounds, interleave, spread
from publish import Report, Table, arguments, command, parse

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"dim": 768, "layers": 6, "heads": 12, "context": 256},
    "llama": {"dim": 768, "layers": 6, "heads": 12, "hidden": 2048, "vocab": 32000, "context": 256},
    "bert": {"dim": 768, "layers": 6, "heads": 12, "vocab": 30522, "context": 256},
    "t5": {"dim": 512, "layers": 6, "heads": 8, "hidden": 2048, "context": 256},
}
CLASSES = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Model"),
    "llama": ("LlamaForCausalLM", "LlamaModel"),
    "bert": ("BertForMaskedLM", "BertModel"),
    "t5": ("T5ForConditionalGeneration", "T5Model"),
}
OURS, THEIRS = "etymon", "transformers"
PARTS, MODES = ("loss", "trunk"), ("eager", "compiled")
TARGET, META_TARGET = 1.0, 1.0
TOLERANCE = 1e-4


def main(argv: Sequence[str] | None = None) -> Report:
    """Measure the families."""
    parser = arguments("Forward and backward on the CPU, side by side with transformers.")
    parser.add_argument("--families", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rows", type=int, default=4, help="rows of a batch")
    options = parse(parser, argv)
    report = families(options)
    report.publish(options.results)
    return report


@dataclass(frozen=True)
class Case:
    """What one family reached in one mode and part."""

    family: str
    mode: str
    part: str
    rounds: Rounds

    @property
    def ratios(self) -> list[float]:
        """Ours / theirs, by round."""
        return self.rounds.ratios(OURS, THEIRS)


def families(options: argparse.Namespace) -> Report:
    """Measure every family in every mode and part."""
    transformers.logging.set_verbosity_error()
    rounds = 1 if options.quick else options.rounds
    cases = []
    for name in options.families:
        family = family_named(name)
        spec = family.spec(**(family.tiny if options.quick else SHAPES[name]))
        cases += _cases(name, spec, options, rounds)
    seconds = meta_seconds(3 if options.quick else 15)
    return _report(options, cases, seconds, rounds)


def _cases(name: str, spec: ModelSpec, options: argparse.Namespace, rounds: int) -> list[Case]:
    model = randomised(build(spec)).eval()  # without dropout on either side
    batch = inputs(spec, options.rows)
    with tempfile.TemporaryDirectory() as directory:
        etymon.save(model, None, Path(directory) / "hf", format="hf")
        peers = {
            part: getattr(transformers, kind).from_pretrained(
                Path(directory) / "hf", dtype=torch.float32, attn_implementation="sdpa"
            )
            for part, kind in zip(PARTS, CLASSES[name], strict=True)
            if part in options.parts
        }
    cases = []
    for mode in options.modes:
        for part, peer in peers.items():
            contestants = {
                OURS: ours(model, batch, part, compiled=mode == "compiled"),
                THEIRS: theirs(peer.eval(), batch, part, compiled=mode == "compiled"),
            }
            values = {side: float(work()) for side, work in contestants.items()}  # compiles, too
            if abs(values[OURS] - values[THEIRS]) > TOLERANCE * abs(values[THEIRS]):
                raise SystemExit(f"{name}, {part}: the sides do not compute the same function: {values}")
            tokens = batch_tokens(batch)
            timed = {side: _timed(work, tokens) for side, work in contestants.items()}
            cases.append(Case(name, mode, part, interleave("tokens/s", timed, rounds, realtime=options.realtime)))
            torch.compiler.reset()
    return cases


def _timed(work: Callable[[], Tensor], tokens: int) -> Callable[[], float]:
    def timed() -> float:
        work()
        return tokens

    return timed


def inputs(spec: ModelSpec, rows: int) -> dict[str, Tensor]:
    """Return a batch in the reference's names: a stream for decoders; for encoders, rows of which the last is padded
    by a quarter, of whose tokens 15% are predicted; for both, a fourth as many targets as source tokens."""
    generator = torch.Generator().manual_seed(0)
    time = spec.context
    ids = torch.randint(3, spec.vocab, (rows, time), generator=generator)
    if spec.encoder is None:
        return {"input_ids": ids, "labels": ids}
    mask = torch.ones_like(ids)
    mask[-1, -time // 4 :] = 0
    if spec.decoder is not None:
        labels = torch.randint(3, spec.vocab, (rows, time // 4), generator=generator)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}
    predicted = (torch.rand(ids.shape, generator=generator) < 0.15) & mask.bool()
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(~predicted, IGNORE)}


def batch_tokens(batch: dict[str, Tensor]) -> int:
    """Return the tokens of a batch: where there are targets of another length, those too."""
    ids, labels = batch["input_ids"], batch["labels"]
    return ids.numel() + (labels.numel() if labels.shape != ids.shape else 0)


def ours(model: Model, batch: dict[str, Tensor], part: str, *, compiled: bool) -> Callable[[], Tensor]:
    """Return what takes one forward and backward pass. As in training, the loss is taken from the hidden states."""
    callee: Any = torch.compile(model) if compiled else model
    given, labels = _given(model.spec, batch)
    causal = model.spec.encoder is None
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE) if causal else labels
    trained = int((targets != IGNORE).sum())

    def work() -> Tensor:
        model.zero_grad()
        hidden = callee(**given, logits=False).last_hidden_state
        value = model.head.loss(hidden, targets) / trained if part == "loss" else hidden.square().mean()
        value.backward()
        return value.detach()

    return work


def theirs(peer: Any, batch: dict[str, Tensor], part: str, *, compiled: bool) -> Callable[[], Tensor]:
    """Return what takes one forward and backward pass of the reference."""
    callee = torch.compile(peer) if compiled else peer
    if part == "loss":
        given = batch
    else:
        given = {name: x for name, x in batch.items() if name != "labels"}
        if peer.config.is_encoder_decoder:
            given["decoder_input_ids"] = peer._shift_right(batch["labels"])
    if peer.config.model_type != "bert":
        given = given | {"use_cache": False}

    def work() -> Tensor:
        peer.zero_grad()
        output = callee(**given)
        value = output.loss if part == "loss" else output.last_hidden_state.square().mean()
        value.backward()
        return value.detach()

    return work


def _given(spec: ModelSpec, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    given = {name: x for name, x in batch.items() if name != "labels"}
    labels = batch["labels"]
    if spec.encoder is not None and spec.decoder is not None:
        assert spec.start is not None
        given["decoder_input_ids"] = torch.nn.functional.pad(labels[:, :-1], (1, 0), value=spec.start)
    return given, labels


def meta_seconds(rounds: int) -> list[float]:
    """Return the seconds that it takes to build LLaMA 2 70B on the meta device."""
    spec = family_named("llama").spec("llama2-70b")
    samples = []
    for _ in range(rounds):
        start = time.perf_counter()
        build(spec, device="meta")
        samples.append(time.perf_counter() - start)
    return samples


def _report(options: argparse.Namespace, cases: Sequence[Case], meta: list[float], rounds: int) -> Report:
    rows, verdicts = [], []
    for case in cases:
        title = f"{case.family}, {case.mode}, {case.part}"
        values = [spread(case.rounds.values(side), 0) for side in (OURS, THEIRS)]
        rows.append((title, *values, spread(case.ratios)))
        times = statistics.median(case.ratios)
        verdicts.append(f"- {title}: {times:.2f}× ({'reached' if times >= TARGET else 'NOT reached'})")
    columns = ("", "etymon, tokens/s", "transformers, tokens/s", "etymon / transformers, per round")
    table = Table("Forward and backward, tokens per second: median (lowest – highest) of the rounds", columns, rows)
    built = "reached" if statistics.median(meta) < META_TARGET else "NOT reached"
    foreign = statistics.mean(case.rounds.foreign for case in cases)
    lines = [
        f"Target {TARGET:g}×:\n" + "\n".join(verdicts),
        f"Building LLaMA 2 70B on the meta device: {spread(meta)} s (target {META_TARGET:g} s, {built}).",
        f"Other processes kept {foreign:.2f} cores busy.",
    ]
    data = {
        "cases": [{"family": c.family, "mode": c.mode, "part": c.part, "rounds": c.rounds.to_dict()} for c in cases],
        "meta_seconds": meta,
    }
    settings = {"rows": options.rows, "threads": options.threads, "rounds": rounds, "realtime": options.realtime}
    return Report("families", "Families beside transformers, on the CPU", settings, lines, [table], data)


if __name__ == "__main__":
    command(main)
