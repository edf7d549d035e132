"""What models that do not write are measured by on held-out data: their objective's loss, what they get right, and how
well vectors of texts order pairs or find one another."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from etymon.data import Examples, Record, RecordBatch
from etymon.engine import Engine
from etymon.errors import DataError
from etymon.evaluate.statistics import bootstrap_interval, spearman, wilson_interval
from etymon.files import write_json
from etymon.nn import Model
from etymon.objectives import Contrastive, CoSENT, CosineRegression, Objective, Ranking
from etymon.objectives.texts import score_of

LOSS = "loss"


@dataclass(frozen=True)
class Measure:
    """`value` in `unit`s, its 95% interval where it has one, and how many rows it is taken over."""

    name: str
    value: float
    unit: str
    interval: tuple[float, float] | None
    count: int

    def __str__(self) -> str:
        return f"{self.name} {written(self.value, self.unit, self.interval)}"


def written(value: float, unit: str, interval: tuple[float, float] | None) -> str:
    """Return a value with its unit and interval: `84.32 (81.90 to 86.51)`, `93.3 % (88.1 to 96.4)`."""
    digits = {"%": 1, "": 2}.get(unit, 4)
    word = f"{value:.{digits}f} {unit}".rstrip()
    return word if interval is None else f"{word} ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"


@dataclass(frozen=True)
class HeldOut:
    """What was found of one model; where nothing could be measured, `note` says why."""

    model: str
    objective: str | None
    measures: tuple[Measure, ...] = ()
    note: str | None = None

    def __str__(self) -> str:
        said = [str(measure) for measure in self.measures] + ([self.note] if self.note else [])
        return (f"{self.objective}: " if self.objective and self.measures else "") + ", ".join(said)

    def save(self, run: Path) -> None:
        """Put this model's entry into `evaluate/held_out.json`."""
        path = run / "evaluate" / "held_out.json"
        others = json.loads(path.read_text(encoding="utf-8"))["models"] if path.exists() else []
        write_json(path, {"models": [entry for entry in others if entry["model"] != self.model] + [asdict(self)]})


@torch.no_grad()
def measure(model: Model, objective: Objective, batches: Iterable[Examples]) -> list[Measure]:
    """Return what `model` gets right of collated batches, beside its loss: what the objective counts, with Wilson's
    interval or, of several tokens a row, a bootstrap's over rows; of vectors, `similarity` or `retrieval`."""
    model.eval()
    if isinstance(objective, Contrastive) and objective.softmax is None:
        return _of_vectors(model, objective, batches)
    found: dict[str, list[tuple[NDArray[np.int64], NDArray[np.int64]]]] = {}
    for batch in batches:
        for name, counted in objective.rights(model, batch.to(model.device)).items():
            right, of = (each.cpu().long().numpy() for each in counted)
            found.setdefault(name, []).append((right[of > 0], of[of > 0]))
    shares = []
    for name, parts in found.items():
        rights, counts = (np.concatenate(each) for each in zip(*parts, strict=True))
        if len(counts):
            shares.append(share(name, rights, counts))
    return shares


def share(name: str, right: NDArray[np.int64], of: NDArray[np.int64]) -> Measure:
    """Return the share of `right` [rows] among `of` [rows], in percent."""
    if (of == 1).all():
        low, high = wilson_interval(int(right.sum()), len(of))
        interval: tuple[float, float] | None = (100 * low, 100 * high)
    else:
        interval = bootstrap_interval(lambda rows: 100 * right[rows].sum() / of[rows].sum(), len(of))
    return Measure(name, 100 * float(right.sum() / of.sum()), "%", interval, len(of))


def similarity(
    cosines: Sequence[float] | NDArray[np.float64],
    scores: Sequence[float] | NDArray[np.float64],
    name: str = "Spearman ×100",
) -> list[Measure]:
    """Return 100 times Spearman's correlation of pairs' cosines with what people said of them, as MTEB and STS report
    it, with a bootstrap interval over pairs. Nothing where either is all the same."""
    first, second = np.asarray(cosines, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    value = spearman(first, second)
    if value is None:
        return []

    def drawn(rows: NDArray[np.int64]) -> float:
        found = spearman(first[rows], second[rows])
        return float("nan") if found is None else 100 * found

    return [Measure(name, 100 * value, "", bootstrap_interval(drawn, len(first)), len(first))]


def similarity_of_pairs(engine: Engine, pairs: Sequence[Record], name: str = "Spearman ×100") -> list[Measure]:
    """Return `similarity` of scored pairs: records of two texts whose label is a number. Raises DataError for others,
    and where their scores are all the same."""
    scores = [scored(pair) for pair in pairs]
    if len(set(scores)) < 2:
        raise DataError(f"{len(pairs)} pairs have one score among them: there is no order to compare with.")
    first, second = (torch.stack(engine.embed([pair.texts[side] for pair in pairs])).float() for side in (0, 1))
    return similarity(F.cosine_similarity(first, second).double().numpy(), scores, name)


def scored(pair: Record) -> float:
    """Return the score of a pair. Raises DataError where there are other than two texts, or no number."""
    if len(pair.texts) != 2:
        raise DataError(f"{pair.id} has {len(pair.texts)} texts; a scored pair has two.")
    return score_of(pair, "a scored pair")


def retrieval(
    queries: torch.Tensor, candidates: torch.Tensor, keys: Sequence[object], *, most: int = 4096
) -> list[Measure]:
    """Return how often a query's own candidate comes first by the cosine, and the mean of 1 / its place (×100).

    `queries` [n, dim], `candidates` [m, dim], of which the first n are the queries' own; those with the same of `keys`
    [m] are the same text, and do not compete. A candidate that is as near as the own one comes before it. At most
    `most` queries are asked.
    """
    asked = min(len(queries), most)
    numbers: dict[object, int] = {}
    same = torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])
    scores = (F.normalize(queries[:asked], dim=-1) @ F.normalize(candidates, dim=-1).T).float().cpu()
    own = scores.diagonal()[:, None]
    others = same[None] != same[:asked, None]
    places = 1 + ((scores >= own) & others).sum(1).numpy()
    inverse = 100 / places
    of = np.ones(asked, dtype=np.int64)
    first = share(f"first among {len(numbers):,}", (places == 1).astype(np.int64), of)
    interval = bootstrap_interval(lambda rows: float(inverse[rows].mean()), asked)
    return [first, Measure("MRR ×100", float(inverse.mean()), "", interval, asked)]


def _of_vectors(model: Model, objective: Contrastive, batches: Iterable[Examples]) -> list[Measure]:
    first, own, negatives, labels = [], [], [], []
    keys: tuple[list[object], list[object]] = ([], [])
    for batch in batches:
        assert isinstance(batch, RecordBatch)
        vectors, there = objective.vectors(model, batch.to(model.device)).cpu(), batch.real.any(2)
        first.append(vectors[:, 0])
        own.append(vectors[:, 1])
        negatives.append(vectors[:, 2:][there[:, 2:]])
        labels.append(batch.targets)
        for row, real in zip(batch.input_ids, batch.real.bool(), strict=True):
            texts: list[Any] = [tuple(ids[where].tolist()) for ids, where in zip(row, real, strict=True)]
            keys[0].append(texts[1])
            keys[1].extend(text for text in texts[2:] if text)
    match objective.config.loss:
        case CoSENT() | CosineRegression():
            return similarity(F.cosine_similarity(torch.cat(first), torch.cat(own)).numpy(), torch.cat(labels).numpy())
        case Ranking():
            return retrieval(torch.cat(first), torch.cat((*own, *negatives)), [*keys[0], *keys[1]])
    return []  # SimCSE: without dropout both readings of a text are one
