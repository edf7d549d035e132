"""What a run directory says about its run: every file that the report reads, present or not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from etymon.errors import ConfigError, DataError

STAGES = ("pretrain", "sft")
MEMORISED, HELD_OUT = "memorised", "held_out"  # the splits of questions, in results and reports
SPLIT_TITLES = {MEMORISED: "memorised", HELD_OUT: "held out"}
BASE, TUNED, SMALL = "pretrained", "fine-tuned", "int8"  # what stages call the models that they leave
# The order in which a model appears in every table and figure; others follow in the order of their names.
MODELS = ("untrained", BASE, TUNED, SMALL)


@dataclass(frozen=True)
class Stage:
    """One training stage: its name, its logged rows in order of step, and whether it reached its end."""

    name: str
    rows: list[dict[str, Any]]
    complete: bool
    packing: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The stage in a person's words."""
        return {"pretrain": "Pretraining", "sft": "Fine-tuning"}.get(self.name, self.name)

    def total(self, name: str) -> float:
        """Return a running total (`tokens`, `seconds`) at the last logged step; 0 where it was not logged."""
        _, values = self.column(name)
        return values[-1] if values else 0.0

    def column(self, *names: str) -> tuple[list[float], list[float]]:
        """Return (steps, values) of the first of `names` that any row has, skipping rows without a finite value."""
        for name in names:
            pairs = [(row["step"], row[name]) for row in self.rows if _is_number(row.get(name))]
            if pairs:
                return [float(step) for step, _ in pairs], [float(value) for _, value in pairs]
        return [], []


@dataclass(frozen=True)
class Record:
    """Everything read from a run directory; what was absent is None or empty, what was broken is in `broken`."""

    path: Path
    recipe_text: str | None
    recipe: dict[str, Any]
    environment: dict[str, Any]
    data: dict[str, Any]
    shards: dict[str, dict[str, Any]]
    model: dict[str, Any]
    timings: dict[str, Any]
    stages: list[Stage]
    bits: list[dict[str, Any]]
    tasks: list[dict[str, Any]]
    items: dict[str, list[dict[str, Any]]]
    samples: list[dict[str, Any]]
    int8: dict[str, Any]
    service: dict[str, Any]
    broken: list[str] = field(default_factory=list)

    @property
    def int8_change(self) -> float | None:
        """Bits per byte of the int8 model less those of the model that it was made from, if both were scored."""
        scored = {entry["model"]: float(entry["bits_per_byte"]) for entry in self.bits}
        original = self.int8.get("original", TUNED if TUNED in scored else BASE)
        return scored[SMALL] - scored[original] if SMALL in scored and original in scored else None


def split_of(result: Mapping[str, Any], split: str) -> Mapping[str, Any] | None:
    """Return the counts of `split` in a `tasks-<model>.json`."""
    return next((entry for entry in result.get("splits", []) if entry["split"] == split), None)


def kind_of(result: Mapping[str, Any], split: str, kind: str) -> Mapping[str, Any] | None:
    """Return the counts of `kind` and `split` in a `tasks-<model>.json`."""
    return next((e for e in result.get("kinds", []) if e["split"] == split and e["kind"] == kind), None)


def result_file(run: Path, what: str, model: str, suffix: str) -> Path:
    """Return where a result of `model` lies: `run/evaluate/<what>-<model>.<suffix>`.

    Raises ConfigError for a name that is not a plain file name: letters, digits, `_`, `.` and `-`.
    """
    if not re.fullmatch(r"\w[\w.-]*", model):
        raise ConfigError(f"{model!r} cannot name a model in files: use letters, digits, '_', '.' and '-'.")
    return run / "evaluate" / f"{what}-{model}.{suffix}"


def read_record(run: Path) -> Record:
    """Read a run directory.

    Raises DataError where `run` is not a directory or holds nothing that a run would have written. A file that cannot
    be read does not hide the rest: it is named in `Record.broken`.
    """
    if not run.is_dir():
        raise DataError(f"{run}: there is no such run directory. Give the directory that `etymon run` wrote.")
    reader = _Reader(run)
    evaluate = run / "evaluate"
    recipe_text = reader.text(run / "recipe.yaml")
    record = Record(
        path=run,
        recipe_text=recipe_text,
        recipe=reader.parse(run / "recipe.yaml", recipe_text, yaml.safe_load),
        environment=reader.json(run / "environment.json"),
        data=reader.json(run / "data" / "manifest.json"),
        shards=reader.shards(),
        model=reader.json(evaluate / "model.json"),
        timings=reader.json(evaluate / "timings.json"),
        stages=[stage for name in STAGES if (stage := reader.stage(run / name)) is not None],
        bits=_ordered(reader.json(evaluate / "bits_per_byte.json").get("models", [])),
        tasks=_ordered([reader.json(path) for path in sorted(evaluate.glob("tasks-*.json"))]),
        items={path.stem.removeprefix("items-"): reader.lines(path) for path in sorted(evaluate.glob("items-*.jsonl"))},
        samples=_ordered([reader.json(path) for path in sorted(evaluate.glob("samples-*.json"))]),
        int8=reader.json(evaluate / "int8.json"),
        service=reader.json(evaluate / "service.json"),
        broken=reader.broken,
    )
    if not reader.found:
        raise DataError(
            f"{run}: this is not a run directory: it has neither recipe.yaml nor metrics of a stage "
            "(pretrain/metrics.jsonl, sft/metrics.jsonl). Give the directory that `etymon run` wrote."
        )
    return record


class _Reader:
    """Reads what is there and remembers which files were and which could not be read."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.found: list[str] = []
        self.broken: list[str] = []

    def text(self, path: Path) -> str | None:
        if not path.is_file():
            return None
        self.found.append(self._name(path))
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            self._break(path, error)
            return None

    def parse(self, path: Path, text: str | None, parser: Callable[[str], Any]) -> dict[str, Any]:
        """Return the mapping that `text` holds; an empty one where there is no text or no mapping in it."""
        if text is None:
            return {}
        try:
            value = parser(text)
        except (ValueError, yaml.YAMLError) as error:
            self._break(path, error)
            return {}
        if not isinstance(value, dict):
            self._break(path, f"a mapping was expected, not {type(value).__name__}")
            return {}
        return value

    def json(self, path: Path) -> dict[str, Any]:
        return self.parse(path, self.text(path), json.loads)

    def lines(self, path: Path) -> list[dict[str, Any]]:
        """Return the rows of a JSONL file; a torn last line (the writer was killed) is not an error, others are."""
        text = self.text(path)
        rows = list(self._rows(path, (text or "").split("\n")))
        return [row for row in rows if isinstance(row, dict)]

    def stage(self, directory: Path) -> Stage | None:
        path = directory / "metrics.jsonl"
        if not path.is_file():
            return None
        rows = [row for row in self.lines(path) if _is_number(row.get("step"))]
        rows.sort(key=lambda row: row["step"])
        packing = self.json(directory / "packing.json")
        return Stage(directory.name, rows, complete=(directory / "COMPLETE").exists(), packing=packing)

    def shards(self) -> dict[str, dict[str, Any]]:
        """Return the manifests of token shards, which lie in folders somewhere below `data/`, by the folder's path."""
        data = self.run / "data"
        found = {
            path.parent.relative_to(data).as_posix(): self.json(path)
            for path in sorted(data.glob("*/**/manifest.json"))
        }
        return {name: manifest for name, manifest in found.items() if "tokens" in manifest and "documents" in manifest}

    def _rows(self, path: Path, lines: list[str]) -> Iterator[Any]:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except ValueError as error:
                if number < len(lines):
                    self._break(path, f"line {number}: {error}")

    def _name(self, path: Path) -> str:
        return path.relative_to(self.run).as_posix()

    def _break(self, path: Path, why: object) -> None:
        self.broken.append(f"{self._name(path)}: {why}")


def _ordered(results: Any) -> list[dict[str, Any]]:
    """Sort results that carry a model's name: the known models in order of their life, then the others by name."""
    named = [result for result in results if isinstance(result, dict) and isinstance(result.get("model"), str)]
    place = {name: i for i, name in enumerate(MODELS)}
    return sorted(named, key=lambda result: (place.get(result["model"], len(MODELS)), result["model"]))


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value == value and abs(value) != float("inf")
