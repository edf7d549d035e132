"""Decoding beside transformers: tokens per second of greedy generation from the same weights, in fp32, on the CPU.

    python benchmarks/decode.py
    python benchmarks/decode.py --shapes 10M --rows 1

A random model is built by etymon, saved in Hugging Face's format and loaded by transformers. Both continue the same
prompts by the same number of tokens, in turn; the time is that of the whole call, prompt included. What is read of the
weights per token, over the machine's measured read bandwidth, says how far from the limit a batch of one is.
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
from torch import Tensor
from transformers import LlamaForCausalLM

import etymon
from etymon.engine import Engine, EngineConfig, Request, Sampling
from etymon.families.llama import FAMILY as LLAMA
from etymon.nn import Model
from etymon.quant import quantize_int8
from measure import Rounds, interleave, spread
from publish import Report, Table, arguments, command, parse

SHAPES = {
    "10M": LLAMA.spec(dim=384, layers=6, heads=6, hidden=1024, vocab=4096, context=512, tied=True),
    "134M": LLAMA.spec(dim=768, layers=12, heads=12, hidden=2048, vocab=32000, context=512),
}
TINY = {"tiny": LLAMA.spec(**LLAMA.tiny)}
OURS, INT8, TRANSFORMERS = "etymon", "etymon int8", "transformers generate"
TARGET = 2.0


def main(argv: Sequence[str] | None = None) -> Report:
    """Measure decoding."""
    parser = arguments("Greedy decoding on the CPU, side by side with transformers.")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8], help="batch sizes")
    parser.add_argument("--prompt", type=int, default=16, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens to generate for each prompt")
    options = parse(parser, argv)
    report = decode(options)
    report.publish(options.results)
    return report


@dataclass(frozen=True)
class Case:
    """One shape at one batch size: what was measured, the bytes read per token, how many tokens both sides agree on."""

    shape: str
    rows: int
    rounds: Rounds
    bytes: dict[str, int]
    agreed: float


def decode(options: argparse.Namespace) -> Report:
    """Measure every shape at every batch size."""
    shapes = {name: SHAPES[name] for name in options.shapes}
    rounds, prompt, new = options.rounds, options.prompt, options.new
    if options.quick:
        shapes, rounds, prompt, new = TINY, 1, 4, 8
    bandwidth = read_bandwidth(1 << 22 if options.quick else 1 << 29)
    cases = []
    for name, spec in shapes.items():
        model = randomised(etymon.build(spec))
        with tempfile.TemporaryDirectory() as temporary:
            etymon.save(model, None, Path(temporary) / "hf", format="hf")
            peer = LlamaForCausalLM.from_pretrained(Path(temporary) / "hf", dtype=torch.float32).eval()
            small, _ = etymon.load(Path(temporary) / "hf")
        quantize_int8(small)
        cases += [_case(name, model, small, peer, rows, prompt, new, rounds) for rows in options.rows]
    return _report(options, cases, bandwidth, {"prompt": prompt, "new": new, "rounds": rounds})


def _case(name: str, model: Model, small: Model, peer: Any, rows: int, prompt: int, new: int, rounds: int) -> Case:
    ids = torch.randint(model.spec.vocab, (rows, prompt), generator=torch.Generator().manual_seed(0))
    answers: dict[str, list[list[int]]] = {}

    def ours(key: str, model: Model) -> Callable[[], float]:
        engine = Engine(model, None, EngineConfig(slots=rows, context=prompt + new))
        requests = [Request(row, Sampling(temperature=0, max_tokens=new, ignore_eos=True)) for row in ids.tolist()]

        def work() -> float:
            answers[key] = [list(completion.ids) for completion in engine.generate(requests)]
            return rows * new

        return work

    def theirs() -> float:
        output = peer.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=new,
            min_new_tokens=new,
            pad_token_id=0,
        )
        answers[TRANSFORMERS] = output[:, prompt:].tolist()
        return rows * new

    contestants = {OURS: ours(OURS, model), TRANSFORMERS: theirs, INT8: ours(INT8, small)}
    result = interleave("tokens/s", contestants, rounds)
    for key, rows_of_ids in answers.items():
        assert all(len(row) == new for row in rows_of_ids), f"{key} did not generate {new} tokens"
    pairs = [
        (a, b) for x, y in zip(answers[OURS], answers[TRANSFORMERS], strict=True) for a, b in zip(x, y, strict=True)
    ]
    agreed = sum(a == b for a, b in pairs) / len(pairs)
    return Case(name, rows, result, {OURS: read_per_token(model), INT8: read_per_token(small)}, agreed)


@torch.no_grad()
def randomised(model: Model, seed: int = 0) -> Model:
    """Give every matrix random weights, those that begin at zero too, so that the text depends on all of them."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
    return model


def read_per_token(model: Model) -> int:
    """Return the bytes of weights that one token at batch 1 needs: all but the embedding, unless it is the head too."""
    tensors: dict[int, Tensor] = {}
    for module in (model.decoder, model.head):
        tensors |= {t.data_ptr(): t for t in (*module.parameters(), *module.buffers())}
    return sum(t.nbytes for t in tensors.values())


def read_bandwidth(nbytes: int, repeats: int = 5) -> float:
    """Return the best bytes per second at which torch reads memory: `nbytes` summed, or multiplied by a vector."""
    matrix = torch.ones(nbytes // (4 * 4096), 4096)
    vector = torch.ones(4096)
    best = 0.0
    for _ in range(repeats):
        for read in (matrix.sum, lambda: matrix @ vector):
            start = time.perf_counter()
            read()
            best = max(best, matrix.nbytes / (time.perf_counter() - start))
    return best


def _report(options: argparse.Namespace, cases: Sequence[Case], bandwidth: float, settings: dict[str, int]) -> Report:
    rows, verdicts = [], []
    for case in cases:
        for name in case.rounds.samples:
            speeds = case.rounds.values(name)
            ratio = "" if name == TRANSFORMERS else spread(case.rounds.ratios(name, TRANSFORMERS))
            share = ""
            if case.rows == 1 and name in case.bytes:
                share = f"{statistics.median(speeds) * case.bytes[name] / bandwidth:.0%}"
            rows.append((f"{case.shape}, batch {case.rows}: {name}", spread(speeds, 1), ratio, share))
        if case.rows == 1:
            times = statistics.median(case.rounds.ratios(OURS, TRANSFORMERS))
            reached = "reached" if times >= TARGET else "NOT reached"
            verdicts.append(f"- {case.shape}, batch 1: {times:.2f}× transformers (target {TARGET:g}×, {reached})")
    columns = ("", "tokens/s", "it / transformers, per round", f"of read bandwidth ({bandwidth / 1e9:.1f} GB/s)")
    table = Table("Greedy decoding, tokens per second: median (lowest – highest) of the rounds", columns, rows)
    foreign = statistics.mean(case.rounds.foreign for case in cases)
    lines = [
        "\n".join(verdicts),
        "Tokens on which both sides agree in fp32: "
        + ", ".join(f"{case.shape}/{case.rows} {case.agreed:.1%}" for case in cases)
        + f". Other processes kept {foreign:.2f} cores busy.",
    ]
    data = {
        "read_bandwidth": bandwidth,
        "cases": [
            {"shape": c.shape, "rows": c.rows, "rounds": c.rounds.to_dict(), "bytes": c.bytes, "agreed": c.agreed}
            for c in cases
        ],
    }
    title = "Greedy decoding on the CPU"
    return Report("decode", title, settings | {"threads": options.threads}, lines, [table], data)


if __name__ == "__main__":
    command(main)
