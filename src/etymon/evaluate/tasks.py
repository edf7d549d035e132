"""Questions with one right answer, asked through the engine and checked exactly.

An accuracy is only worth something beside another: that on questions that were trained on (`memorised`) and that on
questions that were not (`held_out`). They are counted apart and never mixed.
"""

from __future__ import annotations

import json
import time
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from etymon.data import Conversation
from etymon.engine import Completion, Engine, Request, Sampling
from etymon.errors import DataError
from etymon.evaluate.comparison import Comparison, compare_items
from etymon.evaluate.formats import Item
from etymon.evaluate.record import HELD_OUT, MEMORISED, result_file
from etymon.evaluate.statistics import wilson_interval
from etymon.files import atomic_path, write_json
from etymon.text import Renderer

NORMALISATION = (
    "exact match after Unicode NFKC, collapsing white space, and removing quotes or backticks around the answer and a "
    "full stop at its end; upper and lower case differ"
)
SPLITS = {"train": MEMORISED, "held_out": HELD_OUT}  # a sample of what was trained on measures what was memorised

_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "「": "」", "『": "』", "«": "»"}
_T = TypeVar("_T")


@dataclass(frozen=True)
class Verdict:
    """What one item was asked, by the ids that the model saw, and what it said."""

    id: str
    kind: str
    split: str
    messages: list[dict[str, Any]]
    prompt_ids: list[int]
    expected: str
    output: str
    output_ids: list[int]
    finish: str
    correct: bool

    def to_dict(self) -> Item:
        """Return a line of `items-<model>.jsonl`."""
        return cast(Item, asdict(self))


@dataclass(frozen=True)
class Accuracy:
    """How many of how many answers were right."""

    correct: int
    count: int

    @property
    def accuracy(self) -> float:
        """The share; 0 where nothing was asked."""
        return self.correct / self.count if self.count else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval."""
        return wilson_interval(self.correct, self.count)

    def to_dict(self) -> dict[str, Any]:
        """Return counts, share and interval."""
        return asdict(self) | {"accuracy": self.accuracy, "interval": list(self.interval)}


@dataclass(frozen=True)
class TaskResult:
    """One model's answers to all items; `seconds` is what they took."""

    model: str
    verdicts: list[Verdict]
    max_tokens: int | None
    seconds: float

    def accuracy(self, split: str | None = None, kind: str | None = None) -> Accuracy:
        """Count the items of `split` (`memorised` or `held_out`) and `kind`, each optional."""
        counted = [v for v in self.verdicts if split in (None, v.split) and kind in (None, v.kind)]
        return Accuracy(sum(v.correct for v in counted), len(counted))

    @property
    def overlap(self) -> int:
        """How many held-out items have the very prompt of a memorised one; anything but 0 is contamination."""
        seen = {tuple(v.prompt_ids) for v in self.verdicts if v.split == MEMORISED}
        return sum(tuple(v.prompt_ids) in seen for v in self.verdicts if v.split == HELD_OUT)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `tasks-<model>.json`."""
        cells = _distinct((v.kind, v.split) for v in self.verdicts)
        return {
            "model": self.model,
            "check": NORMALISATION,
            "sampling": {"temperature": 0.0, "max_tokens": self.max_tokens or "2 x expected reply + 16"},
            "seconds": self.seconds,
            "overlap": self.overlap,
            "unfinished": sum(v.finish == "length" for v in self.verdicts),
            "failed": sum(v.finish == "error" for v in self.verdicts),
            "splits": [
                {"split": split, **self.accuracy(split).to_dict()}
                for split in _distinct(v.split for v in self.verdicts)
            ],
            "kinds": [{"kind": kind, "split": split, **self.accuracy(split, kind).to_dict()} for kind, split in cells],
        }

    def save(self, run: Path) -> None:
        """Write `evaluate/tasks-<model>.json` and, with every item, `evaluate/items-<model>.jsonl`."""
        path = result_file(run, "items", self.model, "jsonl")
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            for verdict in self.verdicts:
                file.write(json.dumps(verdict.to_dict(), ensure_ascii=False) + "\n")
        write_json(result_file(run, "tasks", self.model, "json"), self.to_dict())


@dataclass(frozen=True)
class Task:
    """Conversations to ask: all but the last reply is the prompt.

    `max_tokens` bounds an answer; None gives each twice the tokens of its expected reply plus 16, because a longer
    answer is wrong anyway and a model that never stops would take most of the time.
    """

    items: Sequence[Conversation]
    max_tokens: int | None = None

    def run(self, engine: Engine, renderer: Renderer, *, name: str = "model") -> TaskResult:
        """Ask every item greedily and check its answer; `name` is what reports call the model.

        Raises DataError where there is no item or one without an answer or a question, RenderError where one cannot
        be rendered, RequestError where a prompt does not fit the engine's context.
        """
        _check(self.items)
        started = time.perf_counter()
        rendered = [renderer.render(item.prompt, add_generation_prompt=True) for item in self.items]
        requests = [
            Request(prompt.ids, Sampling(temperature=0.0, max_tokens=self._limit(engine, item)), prefix=prompt.prefix)
            for prompt, item in zip(rendered, self.items, strict=True)
        ]
        prompts = [prompt.ids for prompt in rendered]
        completions = engine.generate(requests)
        verdicts = [_verdict(*each) for each in zip(self.items, prompts, completions, strict=True)]
        return TaskResult(name, verdicts, self.max_tokens, time.perf_counter() - started)

    def _limit(self, engine: Engine, item: Conversation) -> int:
        if self.max_tokens is not None:
            return self.max_tokens
        if engine.tokenizer is None:
            raise DataError("this engine has no tokenizer, so its answers are not text and cannot be checked.")
        return 2 * len(engine.tokenizer.encode(str(item.messages[-1]["content"]))) + 16


def is_exact(output: str, expected: str) -> bool:
    """Whether `output` is `expected` after the normalisation that `NORMALISATION` states."""
    return normalise(output) == normalise(expected)


def normalise(text: str) -> str:
    """Return the form in which answers are compared (see `NORMALISATION`)."""
    text = " ".join(unicodedata.normalize("NFKC", text).split())
    while True:
        shorter = text
        if len(shorter) > 1 and shorter[-1] in ".。":
            shorter = shorter[:-1].rstrip()
        if len(shorter) > 1 and _QUOTES.get(shorter[0]) == shorter[-1]:
            shorter = shorter[1:-1].strip()
        if shorter == text:
            return text
        text = shorter


def compare(before: TaskResult, after: TaskResult) -> Comparison:
    """Compare two models item by item, the splits apart."""
    first, second = ([verdict.to_dict() for verdict in result.verdicts] for result in (before, after))
    return compare_items(before.model, first, after.model, second)


def _check(items: Sequence[Conversation]) -> None:
    if not items:
        raise DataError("there is nothing to ask. Give conversations that have an answer.")
    for item in items:
        if item.answer is None:
            raise DataError(f"{item.id} has no answer to check. Ask only conversations that have one.")
        if not item.prompt:
            raise DataError(f"{item.id} asks nothing: it has no message before the reply.")


def _verdict(item: Conversation, prompt_ids: list[int], completion: Completion) -> Verdict:
    assert item.answer is not None
    return Verdict(
        id=item.id,
        kind=item.kind,
        split=SPLITS[item.split],
        messages=item.prompt,
        prompt_ids=prompt_ids,
        expected=item.answer,
        output=completion.text,
        output_ids=list(completion.ids),
        finish=completion.finish,
        correct=completion.finish != "error" and is_exact(completion.text, item.answer),
    )


def _distinct(values: Iterable[_T]) -> list[_T]:
    """Return the distinct values in the order in which they first appear."""
    return list(dict.fromkeys(values))
