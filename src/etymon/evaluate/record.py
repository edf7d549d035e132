"""What a run directory says about its run: every file that the report reads, present or not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from etymon.errors import ConfigError, DataError
from etymon.evaluate import formats

STAGES = ("pretrain", "sft")
MEMORISED, HELD_OUT = "memorised", "held_out"  # the splits of questions, in results and reports
SPLIT_TITLES = {MEMORISED: "memorised", HELD_OUT: "held out"}
BASE, TUNED, SMALL = "pretrained", "fine-tuned", "int8"  # what stages call the models that they leave
# The order in which a model appears in every table and figure; others follow in the order of their names.
MODELS = ("untrained", BASE, TUNED, SMALL)

_T = TypeVar("_T")
_M = TypeVar("_M", formats.Bits, formats.HeldOut, formats.Tasks, formats.Samples)


@dataclass(frozen=True)
class Stage:
    """One training stage: its name, its logged rows in order of step, and whether it reached its end."""

    name: str
    rows: list[dict[str, Any]]
    complete: bool
    packing: formats.Packing | None

    @property
    def title(self) -> str:
        """The stage in a person's words."""
        return {"pretrain": "Pretraining", "sft": "Fine-tuning"}.get(self.name, self.name)

    def total(self, name: str) -> float:
        """Return a running total (`tokens`, `seconds`) at the last logged step; 0 where it was not logged."""
        _, values = self.column(name)
        return values[-1] if values else 0.0

    def column(self, name: str) -> tuple[list[float], list[float]]:
        """Return the (steps, values) of a column, without the rows that have no finite value in it."""
        pairs = [(row["step"], row[name]) for row in self.rows if _is_number(row.get(name))]
        return [float(step) for step, _ in pairs], [float(value) for _, value in pairs]


@dataclass(frozen=True)
class Record:
    """Everything read from a run directory; what was absent is None or empty, what was broken is in `broken`."""

    path: Path
    recipe: str | None
    environment: formats.Environment | None
    data: formats.Manifest | None
    conversations: formats.ConversationCounts | None
    shards: dict[str, formats.Shards]
    model: formats.ModelSizes | None
    timings: formats.Timings | None
    stages: list[Stage]
    bits: list[formats.Bits]
    held_out: list[formats.HeldOut]
    tasks: list[formats.Tasks]
    items: dict[str, list[formats.Item]]
    samples: list[formats.Samples]
    int8: formats.Int8 | None
    service: formats.Service | None
    broken: list[str] = field(default_factory=list)

    @property
    def int8_change(self) -> float | None:
        """Bits per byte of the int8 model less those of the model that it was made from, if both were scored."""
        scored = {entry["model"]: entry["bits_per_byte"] for entry in self.bits}
        original = self.int8.get("original") if self.int8 else None
        original = original or (TUNED if TUNED in scored else BASE)
        return scored[SMALL] - scored[original] if SMALL in scored and original in scored else None


def read_record(run: Path) -> Record:
    """Read a run directory.

    Raises DataError where `run` is not a directory or holds nothing that a run would have written. A file that cannot
    be read does not hide the rest: it is named in `Record.broken`.
    """
    if not run.is_dir():
        raise DataError(f"{run}: there is no such run directory. Give the directory that `etymon run` wrote.")
    reader = _Reader(run)
    evaluate = run / "evaluate"
    bits = reader.json(evaluate / "bits_per_byte.json", formats.BitsFile)
    held_out = reader.json(evaluate / "held_out.json", formats.HeldOutFile)
    tasks = [reader.json(path, formats.Tasks) for path in sorted(evaluate.glob("tasks-*.json"))]
    samples = [reader.json(path, formats.Samples) for path in sorted(evaluate.glob("samples-*.json"))]
    record = Record(
        path=run,
        recipe=reader.text(run / "recipe.yaml"),
        environment=reader.json(run / "environment.json", formats.Environment),
        data=reader.json(run / "data" / "manifest.json", formats.Manifest),
        conversations=reader.json(run / "data" / "conversations.json", formats.ConversationCounts),
        shards=reader.shards(),
        model=reader.json(evaluate / "model.json", formats.ModelSizes),
        timings=reader.json(evaluate / "timings.json", formats.Timings),
        stages=[stage for name in STAGES if (stage := reader.stage(run / name)) is not None],
        bits=_in_order(bits["models"] if bits else []),
        held_out=_in_order(held_out["models"] if held_out else []),
        tasks=_in_order([result for result in tasks if result]),
        items={
            path.stem.removeprefix("items-"): reader.rows(path, formats.Item)
            for path in sorted(evaluate.glob("items-*.jsonl"))
        },
        samples=_in_order([result for result in samples if result]),
        int8=reader.json(evaluate / "int8.json", formats.Int8),
        service=reader.json(evaluate / "service.json", formats.Service),
        broken=reader.broken,
    )
    if not reader.found:
        raise DataError(
            f"{run}: this is not a run directory: it has neither recipe.yaml nor metrics of a stage "
            "(pretrain/metrics.jsonl, sft/metrics.jsonl). Give the directory that `etymon run` wrote."
        )
    return record


def split_of(result: formats.Tasks, split: str) -> formats.Split | None:
    """Return the counts of `split`, if such questions were asked."""
    return next((entry for entry in result["splits"] if entry["split"] == split), None)


def kind_of(result: formats.Tasks, split: str, kind: str) -> formats.Kind | None:
    """Return the counts of `kind` and `split`, if such questions were asked."""
    return next((entry for entry in result["kinds"] if (entry["split"], entry["kind"]) == (split, kind)), None)


def result_file(run: Path, what: str, model: str, suffix: str) -> Path:
    """Return where a result of `model` lies: `run/evaluate/<what>-<model>.<suffix>`.

    Raises ConfigError for a name that is not a plain file name: letters, digits, `_`, `.` and `-`.
    """
    if not re.fullmatch(r"\w[\w.-]*", model):
        raise ConfigError(f"{model!r} cannot name a model in files: use letters, digits, '_', '.' and '-'.")
    return run / "evaluate" / f"{what}-{model}.{suffix}"


class _Reader:
    """Reads what is there, and remembers which files were there and which could not be used."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.found: list[Path] = []
        self.broken: list[str] = []

    def text(self, path: Path) -> str | None:
        if not path.is_file():
            return None
        self.found.append(path)
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            self._break(path, str(error))
            return None

    def json(self, path: Path, kind: type[_T]) -> _T | None:
        """Return the file's content as a `kind`; None where it is absent or something else."""
        text = self.text(path)
        if text is None:
            return None
        try:
            return TypeAdapter(kind).validate_python(json.loads(text))
        except (ValueError, RecursionError) as error:
            self._break(path, _why(error))
            return None

    def rows(self, path: Path, kind: type[_T]) -> list[_T]:
        """Return the rows of a JSONL file; a torn last line (the writer was killed) is no fault, another one is."""
        adapter = TypeAdapter(kind)
        lines = (self.text(path) or "").split("\n")
        rows = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                rows.append(adapter.validate_python(json.loads(line)))
            except (ValueError, RecursionError) as error:
                if number < len(lines):
                    self._break(path, f"line {number}: {_why(error)}")
        return rows

    def stage(self, directory: Path) -> Stage | None:
        path = directory / "metrics.jsonl"
        if not path.is_file():
            return None
        rows = [row for row in self.rows(path, dict[str, Any]) if _is_number(row.get("step"))]
        rows.sort(key=lambda row: float(row["step"]))
        packing = self.json(directory / "packing.json", formats.Packing)
        return Stage(directory.name, rows, (directory / "COMPLETE").exists(), packing)

    def shards(self) -> dict[str, formats.Shards]:
        """Return the manifests of token shards, which lie in folders somewhere below `data/`, by the folder's path."""
        return {path.parent.relative_to(self.run / "data").as_posix(): shards for path, shards in self._shards()}

    def _shards(self) -> Iterator[tuple[Path, formats.Shards]]:
        for path in sorted((self.run / "data").glob("*/**/manifest.json")):
            if shards := self.json(path, formats.Shards):
                yield path, shards

    def _break(self, path: Path, why: str) -> None:
        self.broken.append(f"{path.relative_to(self.run).as_posix()}: {why}")


def _why(error: Exception) -> str:
    """Return the fault in a line; of several, the first."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return ": ".join(part for part in (".".join(map(str, first["loc"])), first["msg"]) if part)
    return str(error)


def _in_order(results: Sequence[_M]) -> list[_M]:
    """Sort results: those of the known models in order of their life, then the others by name."""
    place = {name: i for i, name in enumerate(MODELS)}
    return sorted(results, key=lambda result: (place.get(result["model"], len(MODELS)), result["model"]))


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value == value and abs(value) != float("inf")
