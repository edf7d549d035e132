"""Where a family stands in the lineage: when it came, from whom, what it brought, and what it is checked against."""

from __future__ import annotations

from dataclasses import dataclass


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

    `published` is the month ("2023-02") in which it became public, by a paper, weights or words, whichever came first.
    `parents` are names of nodes of the lineage, families or others; the computed difference is that from the first.
    `brought` is what was new in it, in one short line for people: no sizes, and nothing that the difference shows.
    """

    published: str
    parents: tuple[str, ...]
    brought: str
    reference: Reference


UNTOLD = Origin(published="", parents=(), brought="", reference=Paper())
