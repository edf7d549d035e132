"""Records: texts that belong together (one with its class, a pair, a query with passages) and what is said of them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from etymon.config import Config
from etymon.data.batch import Examples
from etymon.data.documents import Split, held_out
from etymon.data.loader import check_shape
from etymon.data.permutation import Permutation
from etymon.data.rows import ROW_SUFFIXES, TABLE_SUFFIXES, BadInput, Counts, find_files, read_each
from etymon.errors import DataError, suggest
from etymon.files import atomic_path
from etymon.text import Framed

RECORD_SUFFIXES = ROW_SUFFIXES + TABLE_SUFFIXES
Overlength = Literal["error", "drop", "truncate"]
Label = str | int | float

# How published sets name their fields; the first whose fields are all there is meant.
TEXTS = (
    ("source", "target"),
    ("src", "tgt"),
    ("text_a", "text_b"),
    ("text_1", "text_2"),
    ("text1", "text2"),
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("premise", "hypothesis"),
    ("query", "positive"),
    ("anchor", "positive"),
    ("question", "answer"),
    ("text",),
    ("sentence",),
)
NEGATIVES = ("negatives", "negative", "hard_negatives", "hard_negative")
LABELS = ("label", "score", "similarity", "class")


@dataclass(frozen=True)
class Record:
    """Texts that belong together: a text, a pair, or a query, its answer and wrong answers. `label` is what is said of
    them, a class or a number; `id` is where they are from."""

    id: str
    texts: tuple[str, ...]
    label: Label | None
    split: Split


class RecordFiles(Config):
    """The user's records: a file, folder or glob of `.jsonl .json .parquet .csv .tsv` (`.gz` too).

    Fields are recognised by the names that published sets use (source and target, sentence1 and sentence2, query and
    positive and negatives, text, …; label, score) unless `texts` and `label` name them.
    """

    path: str = Field(min_length=1, description="A file, a folder or a glob")
    include: tuple[str, ...] = Field(default=(), description="Patterns for files of a folder")
    texts: tuple[str, ...] | None = Field(default=None, min_length=1, description="Names of the fields with texts")
    label: str | None = Field(default=None, description="Name of the field with a class or a score")
    errors: BadInput = Field(default="error", description="Rows that are not records: error, or skip (counted)")
    held_out: float = Field(default=0.02, ge=0, lt=1, description="Share of the rows kept for evaluation")


def record_files(source: RecordFiles) -> list[Path]:
    """Return the files of a source. Raises DataError for a missing one."""
    return find_files(source.path, source.include, RECORD_SUFFIXES)[0]


def read_records(
    sources: Iterable[RecordFiles | str | Path],
    counts: Counts | None = None,
    check: Callable[[Record], None] = lambda record: None,
) -> Iterator[Record]:
    """Yield the records of `sources`; a string is a path. `check` raises DataError for those that will not do.

    Raises DataError with file and line for a row that is no record, unless its source says to skip those; they are
    counted in `counts` then.
    """
    counts = Counts() if counts is None else counts
    for source in sources:
        source = source if isinstance(source, RecordFiles) else RecordFiles(path=str(source))
        yield from _read_source(source, counts, check)


def _read_source(source: RecordFiles, counts: Counts, check: Callable[[Record], None]) -> Iterator[Record]:
    def make(row: Any, place: str) -> Record:
        record = _record(row, place, source)
        check(record)
        return record

    files = record_files(source)
    yield from read_each(files, make, errors=source.errors, counts=counts, source=source.path, noun="record")


def write_records(records: Iterable[Record], path: str | Path) -> int:
    """Write one JSON object per line, which `read_records` reads, atomically; return how many."""
    count = 0
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as f:
        for record in records:
            f.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")
            count += 1
    return count


def _record(row: Any, place: str, source: RecordFiles) -> Record:
    if not isinstance(row, dict):
        raise DataError(f"{place} is a JSON {type(row).__name__}; expected an object with texts.")
    if isinstance(row.get("translation"), dict):  # how translated sentences are published: {"en": …, "zh": …}
        row = row | row["translation"]
    texts = tuple(_texts(row, place, source))
    name = source.label or next((name for name in LABELS if name in row), None)
    if source.label is not None and source.label not in row:
        raise DataError(f"{place} has no field {source.label!r}.{suggest(source.label, row)} Correct `label`.")
    label = row[name] if name is not None else None
    if label is not None and not isinstance(label, str | int | float):
        raise DataError(f"{place}: the field {name!r} is a {type(label).__name__}; expected a class or a number.")
    split: Split = "held_out" if held_out(json.dumps(texts, ensure_ascii=False), source.held_out) else "train"
    if "texts" in row and row.get("split") in ("train", "held_out"):  # a row that `write_records` wrote
        return Record(str(row.get("id") or place), texts, label, row["split"])
    return Record(place, texts, label, split)


def _texts(row: dict[str, Any], place: str, source: RecordFiles) -> Iterator[str]:
    names = source.texts
    if names is None and isinstance(row.get("texts"), list):
        for number, text in enumerate(row["texts"]):
            yield _text(text, f"{place}: texts[{number}]")
        return
    if names is None:
        names = next((known for known in TEXTS if row.keys() >= set(known)), None)
        if names is None:
            listing = "; ".join(" and ".join(known) for known in TEXTS)
            raise DataError(
                f"{place} has the fields {', '.join(map(repr, row)) or 'none'}; recognised are {listing}. Set `texts` "
                "to the names of the fields that hold the texts."
            )
        names += tuple(name for name in NEGATIVES if name in row)
    for name in names:
        if name not in row:
            raise DataError(f"{place} has no field {name!r}.{suggest(name, row)} Correct `texts`.")
        value = row[name]
        for text in value if isinstance(value, list) else [value]:
            yield _text(text, f"{place}: the field {name!r}")


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place} is a {type(value).__name__}; expected a string.")
    if not value.strip():
        raise DataError(f"{place} is an empty text.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{place} spells half of a surrogate pair, which is not a character.") from None
    return value


# -- as ids -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoded:
    """A record as ids: its texts within what stands around them, its label as a number, and whether they were `cut` to
    fit the context."""

    texts: tuple[Framed, ...]
    label: int | float = 0
    cut: bool = False


def encode_records(
    records: Iterable[Record], encode: Callable[[Record], Encoded], overlength: Overlength = "error"
) -> tuple[list[Encoded], Counter[str]]:
    """Return `records` as ids, and how many were "kept", "dropped" or "truncated" because a text is longer than the
    context; with the policy "error" such a text raises DataError."""
    found: list[Encoded] = []
    counts: Counter[str] = Counter()
    for record in records:
        encoded = encode(record)
        if encoded.cut and overlength == "error":
            raise DataError(
                f"{record.id}: its texts are longer than the context. Raise the context, or set `overlength` to drop "
                "or truncate."
            )
        if encoded.cut and overlength == "drop":
            counts["dropped"] += 1
            continue
        counts["kept"] += 1
        counts["truncated"] += encoded.cut
        found.append(encoded)
    return found, counts


@dataclass(frozen=True)
class RecordBatch(Examples):
    """Records of up to so many texts: `input_ids`, their `segments` and where they are `real` (1; 0: padding) are
    [records, texts, time], a text that a record lacks being all padding; `targets` [records] are the labels."""

    real: Tensor
    segments: Tensor


class RecordLoader:
    """Batches of `batch_size` records, in a new order each epoch; `batch(step)` is a pure function of (records,
    settings, step). Raises DataError for an empty text, one of more than `context` ids, or too few records."""

    def __init__(self, records: Sequence[Encoded], batch_size: int, context: int, seed: int = 0) -> None:
        check_shape(batch_size, context)
        if len(records) < batch_size:
            raise DataError(
                f"{len(records)} records do not fill one batch of {batch_size}. Add records, or lower batch_size."
            )
        for number, record in enumerate(records):
            for text in record.texts:
                if not 1 <= len(text.ids) <= context:
                    raise DataError(f"a text of record {number} has {len(text.ids)} ids; expected 1 to {context}.")
        self.records, self.batch_size, self.context, self.seed = records, batch_size, context, seed
        self.n_tokens = sum(len(text.ids) for record in records for text in record.texts)

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every record was seen; the last one may begin the next epoch."""
        return -(-len(self.records) // self.batch_size)

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides the batches."""
        digest = hashlib.sha256(repr(("records-1", self.batch_size, self.context, self.seed)).encode())
        for record in self.records:
            digest.update(repr(record).encode())
        return digest.hexdigest()

    def batch(self, step: int) -> RecordBatch:
        """Return the batch of `step` (from 0)."""
        return self.rows(step * self.batch_size, self.batch_size)

    def rows(self, first: int, count: int) -> RecordBatch:
        """Return records `first` to `first + count` of all epochs one after the other."""
        chosen = []
        for sample in range(first, first + count):
            epoch, place = divmod(sample, len(self.records))
            chosen.append(self.records[int(Permutation(len(self.records), "records", self.seed, epoch)([place])[0])])
        return make_records(chosen)


def make_records(records: Sequence[Encoded]) -> RecordBatch:
    """Make a batch of records, padded at their ends by 0."""
    texts = max(len(record.texts) for record in records)
    time = max(len(text.ids) for record in records for text in record.texts)
    ids, segments, real = (np.zeros((len(records), texts, time), dtype=np.int64) for _ in range(3))
    for row, record in enumerate(records):
        for place, text in enumerate(record.texts):
            ids[row, place, : len(text.ids)] = text.ids
            segments[row, place, : len(text.ids)] = text.segments
            real[row, place, : len(text.ids)] = 1
    return RecordBatch(
        input_ids=torch.from_numpy(ids),
        targets=torch.tensor([record.label for record in records]),
        real=torch.from_numpy(real),
        segments=torch.from_numpy(segments),
    )
