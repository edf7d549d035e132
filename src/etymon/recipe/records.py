"""Pairs and labelled texts in a recipe, from their files to the loaders of training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from etymon.data import (
    Counts,
    Examples,
    Record,
    RecordFiles,
    RecordLoader,
    encode_records,
    make_records,
    read_records,
    record_files,
    write_records,
)
from etymon.data.documents import Split
from etymon.engine import Engine, EngineConfig
from etymon.errors import ConfigError
from etymon.evaluate import Measure, similarity_of_pairs, wording
from etymon.evaluate.measures import scored
from etymon.files import write_json
from etymon.nn import Dropout, Model
from etymon.objectives import (
    OBJECTIVES,
    ContrastiveConfig,
    Objective,
    ObjectiveConfig,
    Reads,
    SimCSE,
    objective_config,
)
from etymon.recipe.run import Run
from etymon.recipe.schema import PretrainSection, Recipe
from etymon.spec import Embedding, ModelSpec
from etymon.text import Tokenizer

_WORDS: dict[Reads, str] = {"documents": "documents", "pairs": "pairs of texts", "labelled": "texts with a class each"}


def sources(recipe: Recipe) -> tuple[RecordFiles, ...]:
    """Return the sources of pairs or labelled texts."""
    found = recipe.pretrain.records.values() if recipe.pretrain is not None else ()
    return tuple(source for each in found for source in each)


def files(recipe: Recipe) -> list[Path]:
    """Return the files that they read. Raises DataError for a missing one."""
    with recipe.at("pretrain", *(recipe.pretrain.records if recipe.pretrain is not None else ())):
        return [file for source in sources(recipe) for file in record_files(source)]


def check(section: PretrainSection, kind: type[Objective], config: ObjectiveConfig) -> None:
    """Raise ConfigError where the section does not give what the objective reads, and DataError, with file and line,
    where the first record of a source is none of that kind."""
    for name in section.records:
        if name != kind.reads:
            raise ConfigError(
                f"pretrain.{name}: objective {kind.name} trains on {_WORDS[kind.reads]}, not on {_WORDS[name]}. Remove "
                "them, or choose another objective."
            )
    if kind.reads != "documents" and not section.records:
        raise ConfigError(
            f"pretrain.objective: {kind.name} trains on {_WORDS[kind.reads]}, and there are none. Give their files, "
            f"such as `{kind.reads}: [train.jsonl]`."
        )
    if isinstance(config, ContrastiveConfig) and isinstance(config.loss, SimCSE) and section.dropout == Dropout():
        raise ConfigError("pretrain.objective: the two readings of SimCSE differ by dropout. Set pretrain.dropout: 0.1")
    for source in section.records.get(kind.reads, ()):
        next(read_records([source], check=lambda record: kind.check_record(record, config)))


def prepare(run: Run, spec: ModelSpec) -> int:
    """Read all of them into the run's `data/records.jsonl`, held-out ones marked; return how many. Raises DataError,
    with file and line, for a row that is none, unless its source says to skip those."""
    section = run.recipe.pretrain
    assert section is not None
    config = objective_config(spec, section.objective)
    kind, counts = OBJECTIVES[config.kind], Counts()
    found = read_records(sources(run.recipe), counts, check=lambda record: kind.check_record(record, config))
    number = write_records(found, run.path / "data" / "records.jsonl")
    write_json(run.path / "data" / "records.json", {"records": number, **counts.to_dict()})
    return number


def plan(recipe: Recipe) -> str:
    """Return the sources in words, with the first record of each."""
    said = []
    for source in sources(recipe):
        found = record_files(source)
        size = wording.size(sum(file.stat().st_size for file in found))
        first = next(read_records([source]))
        label = "" if first.label is None else f" = {first.label}"
        said.append(f"{source.path}: {len(found):,} files, {size}; {' ↔ '.join(map(repr, first.texts))}{label}")
    return "\n".join(said)


def of(run: Run, split: Split) -> list[Record]:
    """Return the records of a run that was prepared."""
    return [record for record in read_records([run.path / "data" / "records.jsonl"]) if record.split == split]


def loader(
    run: Run, split: Split, objective: Objective, tokenizer: Tokenizer, context: int
) -> tuple[RecordLoader | None, str]:
    """Return a loader of a split, None where it is empty, and what became of its records in words. Raises DataError for
    too few, or (policy "error") one that is longer than the context."""
    section = run.recipe.pretrain
    assert section is not None
    found = of(run, split)
    encoded, counts = encode_records(found, lambda r: objective.encode(tokenizer, r, context), section.overlength)
    said = [f"{counts[what]:,} {what}" for what in ("dropped", "truncated") if counts[what]]
    words = f"{len(encoded):,} records" + (f"; over-long: {', '.join(said)}" if said else "")
    if split == "held_out" and not encoded:
        return None, words
    batch_size = min(section.batch_size, len(encoded)) if split == "held_out" else section.batch_size
    return RecordLoader(encoded, batch_size, context, section.seed), words


def held_out_batches(found: RecordLoader, objective: Objective) -> Iterator[Examples]:
    """Yield every record of a loader once, collated."""
    for start in range(0, len(found.records), found.batch_size):
        batch = make_records(found.records[start : start + found.batch_size])
        yield objective.collate(batch, np.random.default_rng(0))


def check_pairs(recipe: Recipe, spec: ModelSpec) -> None:
    """Raise ConfigError for scored pairs where `spec` gives no vectors to compare, and DataError, with file and line,
    for missing files or where the first record of one is no scored pair."""
    if recipe.evaluate.pairs and not isinstance(spec.head, Embedding):
        raise ConfigError(
            f"evaluate.pairs: {spec.name} gives no vectors whose cosine could be compared with a score. Train it "
            "by the objective contrastive, or remove them."
        )
    for source in recipe.evaluate.pairs:
        next(read_records([source], check=_check_scored))


def similarities(recipe: Recipe, model: Model, tokenizer: Tokenizer) -> list[Measure]:
    """Return how well the vectors of `model` order each of the recipe's files of scored pairs, all rows of it."""
    engine = Engine(model, tokenizer, EngineConfig(slots=1))
    found: list[Measure] = []
    for source in recipe.evaluate.pairs:
        pairs = list(read_records([source], check=_check_scored))
        found += similarity_of_pairs(engine, pairs, f"Spearman ×100, {Path(source.path).name}")
    return found


def _check_scored(record: Record) -> None:
    scored(record)
