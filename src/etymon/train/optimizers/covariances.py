"""Covariances of the rows and columns of gradients, which Shampoo and SOAP follow: of which matrices, which sides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from torch import Tensor

from etymon.train.optimizers.groups import Kind
from etymon.train.optimizers.optimizer import State

Side = Literal["left", "right"]
Sides = dict[Side, tuple[Tensor, Tensor]]
"""The covariance of a side and what was made of it, both [..., side, side]."""

FOLLOWED: frozenset[Kind] = frozenset({"matrices", "head", "embeddings"})


def parts_of(p: Tensor, group: dict[str, Any]) -> tuple[int, ...]:
    """Return the rows of the parts that are matrices of their own (q, k, v); none where nothing is followed."""
    if group["kind"] not in FOLLOWED:
        return ()
    return tuple(group["parts"].get(p, p.shape[-2:-1]))


def new_sides(p: Tensor, group: dict[str, Any], made: str) -> State:
    """Return, for every part of `p` and side of at most `max_dim` but the vocabulary's, a covariance and what will be
    `made` of it. The matrices of a stack (experts) each have their own."""
    state: State = {}
    for part, rows in enumerate(parts_of(p, group)):
        for side, size in (("left", rows), ("right", p.shape[-1])):
            vocabulary = side == "left" and group["kind"] != "matrices"
            if size <= group["max_dim"] and not vocabulary:
                for what in ("covariance", made):
                    state[f"{side}_{what}.{part}"] = p.new_zeros((*p.shape[:-2], size, size))
    return state


def sides_of(state: State, part: int, made: str) -> Sides:
    """Return the sides of a part that are followed."""
    return dict(_sides(state, part, made))


def _sides(state: State, part: int, made: str) -> Iterator[tuple[Side, tuple[Tensor, Tensor]]]:
    sides: tuple[Side, ...] = ("left", "right")
    for side in sides:
        if f"{side}_{made}.{part}" in state:
            yield side, (state[f"{side}_covariance.{part}"], state[f"{side}_{made}.{part}"])


def follow(covariance: Tensor, gradient: Tensor, side: Side, beta: float) -> None:
    """Take G G^T or G^T G into a running mean, in place."""
    covariance.lerp_(gradient @ gradient.mT if side == "left" else gradient.mT @ gradient, 1 - beta)
