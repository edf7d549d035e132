"""Two models on the same questions, item by item: whether the later one is better, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from etymon.evaluate.formats import Item
from etymon.evaluate.statistics import mcnemar_exact, paired_interval


@dataclass(frozen=True)
class Change:
    """How the accuracy on the same `count` items of one split changed from one model to the next.

    `only_before` items were right before and are wrong now, `only_after` items the other way round.
    """

    split: str
    before: float
    after: float
    count: int
    only_before: int
    only_after: int

    @property
    def change(self) -> float:
        """The difference of the two accuracies."""
        return self.after - self.before

    @property
    def p_value(self) -> float:
        """McNemar's exact probability of a change at least this uneven, were items as likely to change either way."""
        return mcnemar_exact(self.only_before, self.only_after)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the change, by paired bootstrap."""
        return paired_interval(self.only_before, self.only_after, self.count)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it."""
        derived = {"change": self.change, "p_value": self.p_value, "interval": list(self.interval)}
        return asdict(self) | derived


@dataclass(frozen=True)
class Comparison:
    """Two models on the same items, split by split; `unpaired` items were asked of one of them only."""

    before: str
    after: str
    changes: list[Change]
    unpaired: int

    def to_dict(self) -> dict[str, Any]:
        """Return all of it."""
        return {
            "before": self.before,
            "after": self.after,
            "unpaired": self.unpaired,
            "splits": [change.to_dict() for change in self.changes],
        }


def compare_items(before: str, first: Sequence[Item], after: str, second: Sequence[Item]) -> Comparison:
    """Compare models `before` and `after` by their rows of `items-<model>.jsonl`, paired by id and prompt ids.

    An item whose prompt ids differ was rendered differently and is not the same question: it counts as unpaired.
    """
    verdicts = {_key(row): bool(row["correct"]) for row in second}
    pairs: dict[str, list[tuple[bool, bool]]] = {}
    for row in first:
        if (key := _key(row)) in verdicts:
            pairs.setdefault(row["split"], []).append((bool(row["correct"]), verdicts[key]))
    changes = [_change(split, found) for split, found in pairs.items()]
    paired = sum(change.count for change in changes)
    return Comparison(before, after, changes, len(first) + len(second) - 2 * paired)


def _key(row: Item) -> tuple[str, tuple[int, ...]]:
    return row["id"], tuple(row["prompt_ids"])


def _change(split: str, pairs: Sequence[tuple[bool, bool]]) -> Change:
    return Change(
        split=split,
        before=sum(was for was, _ in pairs) / len(pairs),
        after=sum(now for _, now in pairs) / len(pairs),
        count=len(pairs),
        only_before=sum(was and not now for was, now in pairs),
        only_after=sum(now and not was for was, now in pairs),
    )
