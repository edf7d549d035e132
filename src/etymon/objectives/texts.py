"""Whole texts as models read them: what objectives share that read records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from etymon.data import Record, RecordBatch
from etymon.errors import ConfigError, DataError
from etymon.spec import POOLINGS, ModelSpec, Pooling
from etymon.text import Framed, Tokenizer

PoolingName = Literal["first", "last", "mean", "weighted_mean"]


def _different(labels: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(labels)) < len(labels):
        raise ValueError("two labels are the same")
    return labels


Labels = Annotated[
    tuple[str, ...], Field(min_length=2, description="The classes, as the rows call them"), AfterValidator(_different)
]
"""Classes as rows call them, in the order of the logits."""


def pooling_named(name: PoolingName) -> Pooling:
    """Return the pooling that a recipe calls so."""
    return POOLINGS[name]


def require_head(objective: str, spec: ModelSpec, wanted: ModelSpec) -> None:
    """Raise ConfigError for a model of `spec` that does not end as the `wanted` one does."""
    if wanted != spec:
        raise ConfigError(
            f"objective {objective}: {spec.name} does not end in {wanted.head}. Give it that head: "
            "etymon.nn.with_head(model, objective.trains(model.spec, config).head)"
        )


def framed(
    tokenizer: Tokenizer, spec: ModelSpec, text: Sequence[int], second: Sequence[int] | None, context: int
) -> tuple[Framed, bool]:
    """Return the ids of a text, and of a `second` one beside it, as the engine lets a model read them: within control
    tokens, where it has an encoder or there are two. Otherwise as `fitted`."""
    if spec.encoder is None and second is None:
        cut = list(text[:context])
        return Framed(cut, [0] * len(cut)), len(cut) < len(text)
    return fitted(tokenizer, text, second, context)


def fitted(
    tokenizer: Tokenizer, text: Sequence[int], second: Sequence[int] | None, context: int
) -> tuple[Framed, bool]:
    """Return the ids of a text, and of a `second` one beside it, within control tokens, and whether they were cut to
    fit `context`: the longer one, at its end. Raises DataError where there is no room for a token of each, and
    TokenizerError where two have no form."""
    around = len(tokenizer.frame([], None if second is None else []).ids)
    texts = [list(text)] if second is None else [list(text), list(second)]
    room = context - around
    if room < len(texts):
        raise DataError(f"a context of {context} tokens has no room for {len(texts)} texts and {around} around them")
    whole = sum(map(len, texts)) <= room
    while sum(map(len, texts)) > room:
        max(texts, key=len).pop()
    return tokenizer.frame(texts[0], texts[1] if second is not None else None), not whole


def columns(objective: str, batch: Any, count: int) -> list[list[list[int]]]:
    """Return the first `count` texts of every record of a batch, as lists of ids, by their place in the record. Raises
    DataError for what is no batch of such records."""
    if not isinstance(batch, RecordBatch) or batch.input_ids.shape[1] < count:
        what = "pairs of texts" if count == 2 else "texts with labels"
        raise DataError(f"objective {objective}: it trains on {what}, and these are not: use a RecordLoader of such")
    lengths = batch.real.sum(2)
    return [
        [ids[:length].tolist() for ids, length in zip(batch.input_ids[:, i], lengths[:, i].tolist(), strict=True)]
        for i in range(count)
    ]


def require_two(objective: str, record: Record) -> None:
    """Raise DataError for a record of other than two texts."""
    if len(record.texts) != 2:
        raise DataError(f"{record.id} has {len(record.texts)} texts; objective {objective} reads pairs of two")


def class_of(record: Record, labels: Sequence[str]) -> int:
    """Return which of the classes `labels` a record has. Raises DataError where it has none, or another one."""
    if record.label is None:
        raise DataError(f"{record.id} has no label. Set `label` to the name of the field that holds the class.")
    name = f"{record.label:g}" if isinstance(record.label, float) else str(record.label)
    if name not in labels:
        raise DataError(f"{record.id} has the label {name!r}; the objective's are {', '.join(labels)}.")
    return labels.index(name)


def score_of(record: Record, what: str) -> float:
    """Return the number that is a record's label. Raises DataError where it is none, and says that `what` needs it."""
    try:
        score = float(record.label)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise DataError(f"{record.id} has no number as its label, which {what} needs")
    return score
