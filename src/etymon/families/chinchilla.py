"""Chinchilla (Hoffmann et al. 2022, arXiv:2203.15556).

Gopher's form at a quarter of its size, on four times its tokens: what was new is how much to train, not what.
"""

from __future__ import annotations

from typing import Any

from etymon.families import gopher
from etymon.families.family import Family, extends
from etymon.families.origin import Origin, Paper
from etymon.spec import ModelSpec


@extends(gopher.build)
def build(*, name: str = "chinchilla", **dimensions: Any) -> ModelSpec:
    """Return the spec of a Chinchilla of these dimensions."""
    return gopher.build(name=name, family="chinchilla", **dimensions)


FAMILY = Family(
    name="chinchilla",
    title="Chinchilla",
    paper="https://arxiv.org/abs/2203.15556",
    origin=Origin(
        published="2022-03",
        parents=("gopher",),
        brought="as many tokens as a given amount of computing is best spent on",
        reference=Paper(),
        counts={"chinchilla-70b": "70B"},
    ),
    build=build,
    sizes={"chinchilla-70b": {"dim": 8192, "layers": 80, "heads": 64}},
    tiny=gopher.FAMILY.tiny,
)
