"""A run directory as the stages leave it, made up: `make_run` writes all of it, a test then takes parts away."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from etymon.evaluate.statistics import wilson_interval

KINDS = ("add", "subtract", "multiply", "compare", "reverse", "upper", "weekday", "days_between", "签名")
RECIPE = """name: demo
data:
  sources:
    - kind: builtin
    - kind: files
      path: 文档/笔记
model:
  family: llama
  dim: 256
train:
  budget: {steps: 1000}
  optimizer: {kind: muon, lr: 0.02}
"""


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), encoding="utf-8")


def metrics(directory: Path, steps: int, first: float, last: float, seed: int) -> None:
    rng = random.Random(seed)
    lines = [{"step": 0, "held_out_loss": first}]
    for step in range(10, steps + 1, 10):
        loss = last + (first - last) * math.exp(-5 * step / steps)
        row: dict[str, Any] = {
            "step": step,
            "loss": loss + rng.gauss(0, 0.06),
            "lr": 1e-3 * min(1.0, step / (0.1 * steps), (steps - step) / (0.2 * steps) + 0.02),
            "grad_norm": 0.4 + rng.random() / 3,
            "tokens": step * 8192,
            "tokens_per_second": 14_000 + 900 * rng.random(),
            "mfu": 0.71 + 0.03 * rng.random(),
            "memory_bytes": 1_300_000_000 + step * 1000,
            "seconds": step * 8192 / 14_300,
        }
        if step % 100 == 0:
            row["held_out_loss"] = loss + 0.05
            row["sample"] = "def f(x):\n    return 你好"
        lines.append(row)
    write(directory / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write(directory / "COMPLETE", "")


def score(bits: float, documents: int, length: int) -> dict[str, Any]:
    tokens = length // 3 + documents
    nats = bits * math.log(2) * length
    return {
        "bits_per_byte": bits,
        "standard_error": 0.011,
        "perplexity": math.exp(nats / tokens),
        "documents": documents,
        "tokens": tokens,
        "bytes": length,
        "nats": nats,
    }


def bits(model: str, value: float) -> dict[str, Any]:
    return {
        "model": model,
        **score(value, 412, 523_811),
        "context": 256,
        "stride": 128,
        "first_token": "uniform",
        "end_of_document_counted": True,
        "sources": {"builtin": score(value - 0.1, 300, 403_811), "文档/笔记": score(value + 0.3, 112, 120_000)},
    }


def items(run: Path, model: str, memorised: float, held_out: float) -> None:
    rng = random.Random(1)
    rows, kinds, splits = [], [], []
    for split, chance in (("memorised", memorised), ("held_out", held_out)):
        counts = {}
        for kind in KINDS:
            n = 20
            for i in range(n):
                right = rng.random() < chance * (1.3 if kind in ("upper", "compare") else 0.9)
                counts[kind] = counts.get(kind, 0) + right
                rows.append(
                    {
                        "id": f"{split}/{kind}/{i}",
                        "kind": kind,
                        "split": split,
                        "messages": [{"role": "user", "content": f"What is {i} | {i + 3}? <b>{kind}</b>"}],
                        "prompt_ids": [3, i, 7, len(rows) % 360],
                        "expected": str(2 * i + 3),
                        "output": str(2 * i + 3) if right else f"{i}\n`x` <script>alert(1)</script>",
                        "output_ids": [i],
                        "finish": "stop",
                        "correct": right,
                    }
                )
            entry = {"kind": kind, "split": split, "correct": counts[kind], "count": n}
            kinds.append(entry | {"accuracy": counts[kind] / n, "interval": list(wilson_interval(counts[kind], n))})
        total, n = sum(counts.values()), 20 * len(KINDS)
        interval = list(wilson_interval(total, n))
        splits.append({"split": split, "correct": total, "count": n, "accuracy": total / n, "interval": interval})
    write(run / f"evaluate/items-{model}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    result = {
        "model": model,
        "check": "exact match",
        "sampling": {"temperature": 0.0, "max_tokens": 64},
        "seconds": 9.1,
    }
    result |= {"overlap": 0, "unfinished": 3, "failed": 0, "splits": splits, "kinds": kinds}
    write(run / f"evaluate/tasks-{model}.json", result)


def samples(run: Path, model: str, answer: str) -> None:
    def written(text: str, finish: str = "stop") -> dict[str, Any]:
        return {"text": text, "tokens": 9, "finish": finish}

    prompts: list[Any] = [
        "def read_file(path):",
        [{"role": "user", "content": "What does textwrap.dedent do?"}],
        [{"role": "user", "content": "textwrap.dedent 是做什么的？"}],
    ]
    code = '\n    """Return the text of a file."""\n    with open(path) as f:\n        return f.read()'
    texts = [code, answer, "去掉文本每一行共同的前导空白。" if answer else ""]
    rows = [
        {"prompt": prompt, "greedy": written(text, "length"), "sampled": written(text[::-1] + "</div>")}
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    settings = {"model": model, "temperature": 0.8, "top_p": 0.95, "seed": 0, "max_tokens": 96}
    write(run / f"evaluate/samples-{model}.json", {**settings, "samples": rows})


def make_run(run: Path) -> Path:
    """Write a whole run directory."""
    write(run / "recipe.yaml", RECIPE)
    write(
        run / "environment.json",
        {
            "created": "2026-01-02T03:04:05+00:00",
            "system": "Linux-6.1-x86_64",
            "python": "3.11.9",
            "cpu": "AMD EPYC 7763",
            "cores_physical": 2,
            "cores_usable": 2,
            "threads": 2,
            "memory_bytes": 25_000_000_000,
            "cpu_capability": "AVX2",
            "accelerators": [],
            "cuda": None,
            "packages": {"etymon": "0.1.0", "torch": "2.13.0+cpu"},
            "commit": "0123456789abcdef",
            "matmul_flops": {"fp32": 1.7e11},
        },
    )
    write(
        run / "data/manifest.json",
        {
            "format": "etymon-documents-1",
            "settings": {},
            "splits": {
                "train": {
                    "file": "train.jsonl",
                    "documents": 9_588,
                    "characters": 9,
                    "bytes": 24_300_111,
                    "sha256": "",
                },
                "held_out": {"file": "h", "documents": 412, "characters": 9, "bytes": 523_811, "sha256": ""},
            },
            "sources": {
                "builtin": {"read": 9_200, "too_short": 31, "duplicate": 69, "kept": 9_100},
                "文档/笔记": {"read": 1_000, "undecodable": 4, "duplicate": 96, "kept": 900},
            },
            "examples": {},
        },
    )
    for name, documents, length in (("train", 9_588, 24_300_111), ("held_out", 412, 523_811)):
        tokens = length // 3 + documents
        shards = {"documents": documents, "tokens": tokens, "bytes": length, "vocab_size": 4096}
        write(run / f"data/shards/{name}/manifest.json", shards)
    metrics(run / "pretrain", 1000, 8.3, 2.1, 0)
    metrics(run / "sft", 300, 2.9, 0.7, 1)
    packing = {"samples": 20_000, "dropped": 0, "truncated": 3, "split": 0, "tokens": 9, "efficiency": 0.987}
    write(run / "sft/packing.json", packing)
    models = {"untrained": 4.09, "pretrained": 1.071, "fine-tuned": 1.164, "int8": 1.166}
    write(run / "evaluate/bits_per_byte.json", {"models": [bits(*entry) for entry in models.items()]})
    items(run, "pretrained", 0.02, 0.02)
    items(run, "fine-tuned", 0.83, 0.41)
    items(run, "int8", 0.82, 0.41)
    samples(run, "pretrained", "The text of the module is | a\n\n* list")
    samples(run, "fine-tuned", "Remove any common leading whitespace from every line in text.")
    drift = {"positions": 4096, "max_logit": 0.21, "mean_logit": 0.013, "kl_bits": 0.00021, "agreement": 0.9954}
    write(run / "evaluate/int8.json", {"bytes_before": 25_000_000, "bytes_after": 6_500_000, "drift": drift})
    service = {"ok": True, "model": "demo", "seconds_to_ready": 2.1, "seconds_to_first_token": 0.041, "seconds": 0.5}
    service |= {"messages": [{"role": "user", "content": "What is 3 + 4?"}], "answer": "7", "tokens_per_second": 210.0}
    write(run / "evaluate/service.json", service)
    parameters = {"total": 6_234_112, "non_embedding": 5_185_536, "active": 6_234_112}
    model = {"name": "demo", "family": "llama", "parameters": parameters, "layers": 6, "dim": 256, "vocab": 4096}
    write(run / "evaluate/model.json", model)
    stages = [("data", 14.0), ("tokenizer", 4.2), ("pretrain", 270.0), ("sft", 81.0), ("evaluate", 33.0)]
    stages += [("int8", 3.1), ("service", 5.0)]
    write(run / "evaluate/timings.json", {"stages": [{"name": name, "seconds": s} for name, s in stages]})
    return run
