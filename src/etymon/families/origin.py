"""Where a family stands in the lineage: when it came, from whom, what it brought, and what it is checked against."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Running:
    """A reference implementation that the tests run beside ours, with the same weights."""

    name: str = "transformers"


@dataclass(frozen=True)
class Recorded:
    """Outputs recorded from another implementation; the tests carry weights, inputs and outputs."""

    name: str


@dataclass(frozen=True)
class Paper:
    """No implementation to run: the paper's parameter counts and equations are tested."""


Reference = Running | Recorded | Paper


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A family's place in the lineage.

    `published` is the month ("2023-02") of its paper or its weights, whichever came first; of its announcement where
    there is neither, or where a child came before both.
    `parents` are names of nodes of the lineage, families or others; the computed difference is that from the first.
    `brought` is what was new in it, in one short line for people: no sizes, and nothing that the difference shows.
    `counts` are the numbers of parameters of its published sizes, exact ones of checkpoints or rounded ones of papers
    and reference classes ("6.7B"); `claims` are numbers that a paper gives and that are others, with the reason.
    """

    published: str
    parents: tuple[str, ...]
    brought: str
    reference: Reference
    counts: Mapping[str, int | str] = field(default_factory=dict)
    claims: Mapping[str, str] = field(default_factory=dict)


def parsed_count(count: int | str) -> float:
    """Return a published number of parameters as a number: 6.7e9 of "6.7B", or of "6.7B, which …"."""
    if isinstance(count, int):
        return count
    number = re.match(r"([\d.]+)([MBT])", count)
    assert number is not None, count
    return float(number[1]) * {"M": 1e6, "B": 1e9, "T": 1e12}[number[2]]
