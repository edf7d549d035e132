"""The sections of a report: each turns a record into what the templates show, or None where nothing is known."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etymon.evaluate import formats, plots, wording
from etymon.evaluate.comparison import compare_items
from etymon.evaluate.measures import written
from etymon.evaluate.plots import Bar, Line
from etymon.evaluate.record import (
    BASE,
    HELD_OUT,
    MEMORISED,
    SMALL,
    SPLIT_TITLES,
    TUNED,
    Record,
    Stage,
    kind_of,
    split_of,
)
from etymon.evaluate.statistics import Z95

View = dict[str, Any]

_SERIES = {"untrained": 3, BASE: 3, TUNED: 0, SMALL: 2}  # the colour of each model, in figures and tables
_NOT_REASONS = ("files", "read", "kept")  # the other counts of the data room say why documents were left out


# ---------------------------------------------------------------------------------------------- what it learned


def loss(stage: Stage) -> View:
    """Return the loss curves of one stage."""
    steps, train = stage.column("loss")
    held_steps, held = stage.column("held_out_loss")
    lines = [Line("train", steps, train, 0, noisy=True), Line("held out", held_steps, held, 1)]
    figure = plots.curves(lines, x="step", y="loss, nats per token", size=(5.4, 2.9))
    said = []
    if train:
        said.append(f"train {train[0]:.3f} → {train[-1]:.3f}")
    if held:
        said.append(f"held out {held[0]:.3f} → {held[-1]:.3f}")
    return {
        "title": stage.title,
        "figure": figure,
        "legend": [(line.series, line.label) for line in lines if len(line.xs)],
        "said": ", ".join(said),
        "spark": _spark(train),
    }


def _spark(values: Sequence[float], width: int = 40) -> str:
    """Return a curve as a line of text, for the Markdown report."""
    _, means = plots.thin(values, values, width)
    if not means:
        return ""
    low, high = min(means), max(means)
    blocks = "▁▂▃▄▅▆▇█"
    return "".join(blocks[round((value - low) / ((high - low) or 1.0) * (len(blocks) - 1))] for value in means)


def bits(record: Record) -> View | None:
    """Return bits per byte of every model, whole and by source."""
    if not record.bits:
        return None
    sources = list(dict.fromkeys(source for entry in record.bits for source in entry["sources"]))
    most = max(entry["bits_per_byte"] for entry in record.bits)
    first = record.bits[0]

    def cell(score: formats.Score | None) -> View | None:
        if score is None:
            return None
        error = score["standard_error"]
        return {
            "value": f"{score['bits_per_byte']:.3f}",
            "error": f"± {Z95 * error:.3f}" if error else "",
            "width": 92 * score["bits_per_byte"] / most if most else 0,
        }

    return {
        "models": [_model(entry["model"]) for entry in record.bits],
        "rows": [{"label": "all documents", "cells": [cell(entry) for entry in record.bits], "strong": True}]
        + [
            {"label": source, "cells": [cell(entry["sources"].get(source)) for entry in record.bits]}
            for source in (sources if len(sources) > 1 else [])
        ],
        "perplexities": [f"{entry['model']} {wording.number(entry['perplexity'])}" for entry in record.bits],
        "documents": wording.count(first["documents"]),
        "bytes": wording.size(first["bytes"]),
        "tokens": wording.count(first["tokens"]),
        "context": first["context"],
        "stride": first["stride"],
        "first_token": "follows BOS" if first["first_token"] != "uniform" else "costs a uniform guess",
        "end_counted": first["end_of_document_counted"],
    }


def held_out(record: Record) -> View | None:
    """Return what models that do not write were measured by: their objective, and their vectors."""
    if not record.held_out:
        return None
    names = list(dict.fromkeys(each["name"] for entry in record.held_out for each in entry["measures"]))
    found = [{each["name"]: each for each in entry["measures"]} for entry in record.held_out]

    def cell(each: formats.Measure | None) -> View | None:
        return each and {"value": written(each["value"], each["unit"], each["interval"]), "count": each["count"]}

    return {
        "models": [_model(entry["model"]) for entry in record.held_out],
        "rows": [{"label": name, "cells": [cell(each.get(name)) for each in found]} for name in names],
        "objective": next((entry["objective"] for entry in record.held_out if entry["objective"]), None),
        "notes": [f"{entry['model']}: {entry['note']}." for entry in record.held_out if entry["note"]],
    }


# ---------------------------------------------------------------------------------------------- what it can do


def tasks(record: Record) -> View | None:
    """Return accuracy by kind and split for every model, the changes between models, and some answers."""
    results = record.tasks
    if not results:
        return None
    kinds = list(dict.fromkeys(cell["kind"] for result in results for cell in result["kinds"]))
    splits = [split for split in (MEMORISED, HELD_OUT) if any(split_of(result, split) for result in results)]
    return {
        "models": [_model(result["model"]) for result in results],
        "splits": [SPLIT_TITLES[split] for split in splits],
        "figures": [_accuracy_figure(results, kinds, split) for split in splits],
        "rows": [
            {"label": "all", "cells": [_accuracy(split_of(r, s)) for s in splits for r in results], "strong": True},
            *(
                {
                    "label": kind.replace("_", " "),
                    "cells": [_accuracy(kind_of(r, s, kind)) for s in splits for r in results],
                }
                for kind in kinds
            ),
        ],
        "seen": _seen(record),
        "check": results[-1]["check"],
        "unfinished": [(r["model"], r["unfinished"]) for r in results if r["unfinished"]],
        "comparisons": _comparisons(record),
        "answers": _answers(record),
    }


def _seen(record: Record) -> str:
    """Say how much of the training set was really trained on, where that is not all of it."""
    epochs = next((stage.total("epoch") for stage in record.stages if stage.name == "sft"), 0.0)
    if not 0 < epochs < 1:
        return ""
    return f"Fine-tuning ended after {wording.percent(epochs)} of the training set: of these it never saw the rest."


def _accuracy_figure(results: Sequence[formats.Tasks], kinds: Sequence[str], split: str) -> View:
    shown = [result for result in results if result["model"] != SMALL] or list(results)
    groups = []
    for place, kind in enumerate(kinds, 1):
        cells = [(result["model"], kind_of(result, split, kind)) for result in shown[-2:]]
        entries = [
            Bar(cell["accuracy"], cell["interval"], _series(model), f"{cell['correct']} of {cell['count']}")
            for model, cell in cells
            if cell
        ]
        if entries:
            groups.append((plots.plain(kind.replace("_", " "), place, "kind"), entries))
    return {
        "title": SPLIT_TITLES[split].capitalize(),
        "figure": plots.bars(groups),
        "legend": [(_series(result["model"]), result["model"]) for result in shown[-2:]],
    }


def _comparisons(record: Record) -> list[View]:
    """Compare each model with the one before it in the life of the run."""
    models = [result["model"] for result in record.tasks if record.items.get(result["model"])]
    rows = []
    for before, after in itertools.pairwise(models):
        comparison = compare_items(before, record.items[before], after, record.items[after])
        for change in comparison.changes:
            low, high = change.interval
            rows.append(
                {
                    "models": f"{before} → {after}",
                    "split": SPLIT_TITLES.get(change.split, change.split),
                    "change": wording.points(change.change),
                    "interval": f"{wording.points(low)} to {wording.points(high)}",
                    "gained": change.only_after,
                    "lost": change.only_before,
                    "count": change.count,
                    "p_value": wording.p_value(change.p_value),
                }
            )
    return rows


def _answers(record: Record, each: int = 5) -> View | None:
    """Return some held-out answers, right and wrong, one of each kind before a second of any."""
    model = next((name for name in (TUNED, *reversed(list(record.items))) if record.items.get(name)), None)
    if model is None:
        return None
    held = [row for row in record.items[model] if row["split"] == HELD_OUT]
    if not held:
        return None
    picked = [row for right in (True, False) for row in _spread([r for r in held if bool(r["correct"]) is right], each)]
    rows = [
        {
            "kind": row["kind"].replace("_", " "),
            "question": wording.visible(str(row["messages"][-1].get("content", ""))) if row["messages"] else "",
            "expected": wording.visible(row["expected"]),
            "output": wording.visible(row["output"]),
            "correct": row["correct"],
        }
        for row in picked
    ]
    return {"model": model, "rows": rows}


def _spread(rows: Sequence[formats.Item], count: int) -> list[formats.Item]:
    """Pick `count` rows, going round the kinds."""
    by_kind: dict[str, list[formats.Item]] = {}
    for row in rows:
        by_kind.setdefault(row["kind"], []).append(row)
    depth = max((len(group) for group in by_kind.values()), default=0)
    return [group[i] for i in range(depth) for group in by_kind.values() if i < len(group)][:count]


def samples(record: Record) -> View | None:
    """Return what every model wrote to every prompt, side by side."""
    if not record.samples:
        return None
    prompts: dict[str, View] = {}
    for place, result in enumerate(record.samples):
        for sample in result["samples"]:
            key = json.dumps(sample["prompt"], ensure_ascii=False, sort_keys=True)
            row = prompts.setdefault(key, {"prompt": _turns(sample["prompt"]), "cells": [None] * len(record.samples)})
            row["cells"][place] = {"greedy": _written(sample["greedy"]), "sampled": _written(sample["sampled"])}
    last = record.samples[-1]
    return {
        "models": [_model(result["model"]) for result in record.samples],
        "rows": list(prompts.values()),
        "settings": f"temperature {last['temperature']:g}, top-p {last['top_p']:g}, seed {last['seed']}",
    }


def _turns(prompt: Any) -> list[tuple[str, str]]:
    """Return a prompt as (role, text) pairs; a text to continue has no role."""
    if isinstance(prompt, str):
        return [("", prompt)]
    return [(str(message.get("role", "")), str(message.get("content", ""))) for message in prompt]


def _written(written: formats.Written) -> View:
    return {"text": wording.visible(written["text"]), "cut": written["finish"] == "length"}


# ---------------------------------------------------------------------------------------------- how it was made


def training(record: Record) -> View | None:
    """Return a table of the stages, and the learning rate, speed, utilisation and gradient norm of each."""
    stages = [stage for stage in record.stages if stage.rows]
    if not stages:
        return None
    rows: list[tuple[str, list[str]]] = [
        ("steps", [wording.count(stage.rows[-1]["step"]) for stage in stages]),
        ("tokens", [wording.count(stage.total("tokens")) for stage in stages]),
        ("epochs", [_last(stage, "epoch", 2) for stage in stages]),
        ("time", [wording.duration(stage.total("seconds")) for stage in stages]),
        ("tokens/s, median", [_median(stage, "tokens_per_second", wording.count) for stage in stages]),
        ("model FLOPs utilisation, median", [_median(stage, "mfu", wording.percent) for stage in stages]),
        ("peak memory", [_highest(stage, "memory_bytes", wording.size) for stage in stages]),
        ("final training loss, nats per token", [_last(stage, "loss") for stage in stages]),
        ("final held-out loss, nats per token", [_last(stage, "held_out_loss") for stage in stages]),
        ("packing: places that hold a token", [_packing(stage) for stage in stages]),
        ("samples dropped, truncated, split", [_overlength(stage) for stage in stages]),
        ("reached its end", ["yes" if stage.complete else "no" for stage in stages]),
    ]
    return {
        "stages": [stage.title for stage in stages],
        "rows": [row for row in rows if any(row[1])],
        "figures": [figure for stage in stages for figure in _stage_figures(stage)],
    }


@dataclass(frozen=True)
class Shown:
    """A column of the metrics that has a small figure of its own."""

    label: str
    column: str
    unit: str = ""
    floor: float | None = None


def _stage_figures(stage: Stage) -> list[View]:
    shown = [
        Shown("learning rate", "lr"),
        Shown("tokens per second", "tokens_per_second", floor=0.0),
        Shown("model FLOPs utilisation", "mfu", unit="%", floor=0.0),
        Shown("gradient norm", "grad_norm", floor=0.0),
    ]
    figures = []
    for one in shown:
        steps, values = stage.column(one.column)
        if values:
            line = Line(one.label, steps, values, 0, noisy=one.column != "lr")
            figure = plots.curves([line], x="step", y=one.label, size=(3.5, 1.9), unit=one.unit, floor=one.floor)
            figures.append({"stage": stage.title, "figure": figure})
    return figures


def _median(stage: Stage, name: str, written: Callable[[float], str]) -> str:
    _, values = stage.column(name)
    return written(statistics.median(values)) if values else ""


def _highest(stage: Stage, name: str, written: Callable[[float], str]) -> str:
    _, values = stage.column(name)
    return written(max(values)) if values else ""


def _last(stage: Stage, name: str, digits: int = 3) -> str:
    _, values = stage.column(name)
    return f"{values[-1]:.{digits}f}" if values else ""


def _packing(stage: Stage) -> str:
    efficiency = (stage.packing or {}).get("efficiency")
    return "" if efficiency is None else f"{100 * efficiency:.1f} %"


def _overlength(stage: Stage) -> str:
    found = stage.packing or {}
    if "samples" not in found:
        return ""
    counts = (found.get("dropped", 0), found.get("truncated", 0), found.get("split", 0))
    return f"{', '.join(map(wording.count, counts))} of {wording.count(found['samples'])}"


def tokenizer(record: Record) -> View | None:
    """Return how many bytes of text a token stands for: in the token shards, and in each held-out source."""
    found: list[tuple[str, formats.Score | formats.Shards]] = [
        (f"token shards, {name}", shards) for name, shards in record.shards.items()
    ]
    if record.bits:
        scored = record.bits[0]
        found.append(("held-out documents", scored))
        found += list(scored["sources"].items()) if len(scored["sources"]) > 1 else []
    # The end of a document is a token without bytes; every document has one.
    shares = [(label, entry["bytes"] / max(1, entry["tokens"] - entry["documents"]), entry) for label, entry in found]
    if not shares:
        return None
    best = max(share for _, share, _ in shares)
    rows = [
        {
            "label": label,
            "value": f"{share:.2f}",
            "width": 100 * share / best,
            "bytes": wording.size(entry["bytes"]),
            "tokens": wording.count(entry["tokens"]),
        }
        for label, share, entry in shares
    ]
    vocabularies = [shards["vocab_size"] for shards in record.shards.values()]
    vocab = (record.model or {}).get("vocab", vocabularies[0] if vocabularies else None)
    return {"vocab": wording.count(vocab) if vocab else None, "rows": rows}


def data(record: Record) -> View | None:
    """Return what was read and what became of it, by source and reason."""
    if not record.data or not record.data["sources"]:
        return None
    sources = record.data["sources"]
    reasons = list(
        dict.fromkeys(reason for counts in sources.values() for reason in counts if reason not in _NOT_REASONS)
    )
    files = ["files"] if any("files" in counts for counts in sources.values()) else []
    columns = [*files, "read", *reasons, "kept"]

    def cells(counts: Mapping[str, int]) -> list[str]:
        return [wording.count(counts.get(column, 0)) for column in columns]

    totals = {column: sum(counts.get(column, 0) for counts in sources.values()) for column in columns}
    return {
        "columns": [column.replace("_", " ") for column in columns],
        "rows": [
            {"label": "all sources", "cells": cells(totals), "strong": True},
            *(
                {"label": name, "cells": cells(counts)}
                for name, counts in (sources.items() if len(sources) > 1 else [])
            ),
        ],
        "sizes": _sizes(record),
    }


# ---------------------------------------------------------------------------------------------- what it became


def _sizes(record: Record) -> list[str]:
    """Return how much there is of everything, a phrase each."""
    splits = record.data["splits"] if record.data else {}
    said = [
        f"{name.replace('_', '-')} documents: {wording.count(split['documents'])}, {wording.size(split['bytes'])}"
        for name, split in splits.items()
    ]
    for name, shards in record.shards.items():
        tokens, documents = wording.count(shards["tokens"]), wording.count(shards["documents"])
        said.append(f"token shards, {name}: {tokens} tokens in {documents} documents")
    if record.conversations:
        said.append(f"conversations: {wording.count(record.conversations['conversations'])}")
    return said


def int8(record: Record) -> View | None:
    """Return what quantisation saved and what it cost."""
    measured = record.int8
    if not measured:
        return None
    before, after = measured["bytes_before"], measured["bytes_after"]
    rows = [("size", f"{wording.size(before)} → {wording.size(after)} ({before / max(1, after):.2f}×)")]
    if (change := record.int8_change) is not None:
        rows.append(("change in held-out bits per byte", wording.signed(change, 4)))
    if drift := measured.get("drift"):
        rows += [
            ("largest change of a logit", wording.number(drift["max_logit"])),
            ("mean change of a logit", wording.number(drift["mean_logit"])),
            ("divergence of the predictions, bits per token", wording.number(drift["kl_bits"])),
            ("same likeliest token", f"{100 * drift['agreement']:.2f} %"),
            ("compared at", f"{wording.count(drift['positions'])} tokens"),
        ]
    return {"rows": rows}


def service(record: Record) -> View | None:
    """Return what the check of the running service found."""
    checked = record.service
    if not checked:
        return None
    rows = [("answers", "yes" if checked["ok"] else "no")]
    words = {
        "error": checked.get("error"),
        "model": checked.get("model"),
        "OpenAI's client was told": checked.get("openai_client"),
    }
    rows += [(label, word) for label, word in words.items() if word]
    times = {
        "ready after": checked.get("seconds_to_ready"),
        "first token after": checked.get("seconds_to_first_token"),
        "whole answer after": checked.get("seconds"),
    }
    rows += [(label, wording.duration(seconds)) for label, seconds in times.items() if seconds is not None]
    if (speed := checked.get("tokens_per_second")) is not None:
        rows.append(("tokens per second", wording.number(speed)))
    return {"rows": rows, "turns": _turns(checked.get("messages", [])), "answer": checked.get("answer")}


def machine(record: Record) -> View | None:
    """Return the environment, the model and the time of each stage as rows of (name, value)."""
    timed = record.timings["stages"] if record.timings else []
    model = [
        (label, wording.count(value) if isinstance(value, int) else str(value))
        for label, value in _flat(record.model or {})
    ]
    rows = _installed(record.environment) if record.environment else []
    times = [(stage["name"], wording.duration(stage["seconds"])) for stage in timed]
    return {"rows": rows, "model": model, "times": times} if rows or times or model else None


def _installed(found: formats.Environment) -> list[tuple[str, str]]:
    known: dict[str, object] = {
        "accelerators": ", ".join(found.get("accelerators", [])),
        "processor": found.get("cpu"),
        "cores": f"{found.get('cores_usable', '?')} usable, {found.get('threads', '?')} threads",
        "vector instructions": found.get("cpu_capability"),
        "memory": wording.size(found["memory_bytes"]) if "memory_bytes" in found else None,
        **{
            f"matmul peak, {precision}": f"{flops / 1e9:,.0f} GFLOP/s, measured"
            for precision, flops in (found.get("matmul_flops") or {}).items()
        },
        "system": found.get("system"),
        "Python": found.get("python"),
        **found.get("packages", {}),
        "commit": found.get("commit"),
    }
    return [(label, str(value)) for label, value in known.items() if value]


# ---------------------------------------------------------------------------------------------- small things


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield the leaves of nested mappings with their path in words."""
    for key, inner in value.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{name}, ")
        elif not isinstance(inner, list):
            yield name, inner


def _series(model: str) -> int:
    return _SERIES.get(model, 1)


def _model(name: str) -> View:
    return {"name": name, "series": _series(name)}


def _accuracy(cell: formats.Split | None) -> View | None:
    if cell is None:
        return None
    return {
        "share": wording.percent(cell["accuracy"]),
        "counts": f"{cell['correct']}/{cell['count']}",
        "interval": wording.interval(*cell["interval"]),
    }
