"""From the start of a process to its first token: etymon beside transformers, on the same saved model.

    python benchmarks/startup.py

Each sample is a fresh interpreter that imports, loads a 10M checkpoint with its tokenizer, encodes a prompt, generates
one token and prints it. The clock runs from before the process is made to the arrival of that line. The first round,
which warms the file cache, does not count. transformers is kept offline, and appears as a program that uses the model
class directly and as one that uses `pipeline`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import corpus
import etymon
from decode import SHAPES, randomised
from measure import interleave, spread
from publish import Report, Table, arguments, command, parse

PROMPT = "def main"
ETYMON = """
import sys, etymon, torch
from etymon.engine import Engine, EngineConfig, Request, Sampling
torch.set_num_threads({threads})
model, tokenizer = etymon.load({path!r})
engine = Engine(model, tokenizer, EngineConfig(slots=1))
answer = engine.generate([Request({prompt!r}, Sampling(temperature=0, max_tokens=1, ignore_eos=True))])[0]
print(answer.ids[0], flush=True)
"""
DIRECT = """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads({threads})
tokenizer, model = AutoTokenizer.from_pretrained({path!r}), AutoModelForCausalLM.from_pretrained({path!r})
inputs = tokenizer({prompt!r}, return_tensors="pt")
print(model.generate(**inputs, do_sample=False, max_new_tokens=1, min_new_tokens=1)[0, -1].item(), flush=True)
"""
PIPELINE = """
import torch
from transformers import pipeline
torch.set_num_threads({threads})
generate = pipeline("text-generation", model={path!r})
output = generate({prompt!r}, do_sample=False, max_new_tokens=1, min_new_tokens=1, return_tensors=True)
print(output[0]["generated_token_ids"][-1], flush=True)
"""
IMPORT_TORCH = "import torch; print(0, flush=True)"
OURS, TRANSFORMERS = "etymon", "transformers"


def main(argv: Sequence[str] | None = None) -> Report:
    """Measure the time to the first token."""
    options = parse(arguments("Seconds from process start to the first token."), argv)
    report = startup(options)
    report.publish(options.results)
    return report


def startup(options: argparse.Namespace) -> Report:
    """Measure every program in turn."""
    spec = SHAPES["10M"]
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        text = corpus.prepare(
            root / "corpus",
            text=None,
            vocab=spec.vocab,
            context=64,
            windows=1,
            limit=500_000 if options.quick else 4_000_000,
        )
        etymon.save(randomised(etymon.build(spec)), text.tokenizer, root / "model", format="hf")
        words = {"threads": options.threads, "path": str(root / "model"), "prompt": PROMPT}
        programs = {OURS: ETYMON, TRANSFORMERS: DIRECT, f"{TRANSFORMERS} pipeline": PIPELINE}
        tokens: dict[str, str] = {}

        def contestant(name: str, program: str) -> Callable[[], float]:
            def work() -> float:
                tokens[name] = first_line(program)
                return 0.0  # the seconds are the value

            return work

        contestants = {name: contestant(name, program.format(**words)) for name, program in programs.items()}
        contestants["(import torch alone)"] = contestant("", IMPORT_TORCH)
        result = interleave("s", contestants, 1 if options.quick else options.rounds)
    assert len({tokens[name] for name in programs}) == 1, f"the sides do not say the same token: {tokens}"
    peers = programs.keys() - {OURS}
    rows = [
        (name, spread(result.values(name)), spread(result.ratios(name, OURS)) if name in peers else "")
        for name in contestants
    ]
    columns = ("", "seconds", "it / etymon, per round")
    table = Table("Process start to first token: median (lowest – highest) of the rounds", columns, rows)
    lines = [f"All sides say the same token. Other processes kept {result.foreign:.2f} cores busy."]
    settings = {"model": "10M", "threads": options.threads, "rounds": len(result.values(OURS))}
    return Report(
        "startup", "From process start to the first token", settings, lines, [table], {"rounds": result.to_dict()}
    )


def first_line(program: str) -> str:
    """Run a Python program in a fresh interpreter up to its first line, and return that line."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        process.kill()  # what comes after the first token is not measured
        if not line:
            raise SystemExit(f"a program of this benchmark failed:\n{process.stderr.read()}")
    return line.strip()


if __name__ == "__main__":
    command(main)
