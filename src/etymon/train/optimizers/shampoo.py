"""Shampoo: momentum times powers of the covariances of its rows and columns."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from etymon.train.optimizers.covariances import follow, new_sides, parts_of, sides_of
from etymon.train.optimizers.groups import Beta, Group, OptimizerSettings
from etymon.train.optimizers.optimizer import Optimizer, State, adam_direction, count, counter

ALONE = 0.5
"""The power where one side is followed: the other one's covariance is as good as the identity."""


class ShampooConfig(OptimizerSettings):
    """Shampoo (Gupta et al. 2018, arXiv:1802.09568) with Adam's step size (Anil et al. 2020, arXiv:2002.09018).

    Weights of linear layers and embeddings have covariances on every side of at most `max_dim` but the vocabulary's,
    whose inverse powers are found anew `every` so many steps. A `power` of 0.25 is the first paper's; 0.5 is nearer to
    the curvature (Morwani et al. 2024, arXiv:2406.17748). `eps` is added to the eigenvalues, as a part of the largest.
    """

    kind: Literal["shampoo"] = "shampoo"
    lr: float = Field(default=3e-3, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: float = Field(default=1e-6, gt=0)
    power: float = Field(default=0.5, gt=0, le=1)
    every: int = Field(default=10, ge=1)
    max_dim: int = Field(default=2048, ge=1)

    def build(self, groups: list[Group], matrix_dtype: torch.dtype) -> list[torch.optim.Optimizer]:
        """Return Shampoo."""
        own = {name: getattr(self, name) for name in ("betas", "eps", "power", "every", "max_dim")}
        return [Shampoo([group.options() for group in groups], own)]


class Shampoo(Optimizer):
    """L^-power M R^-power, where L and R are running means of G G^T and G^T G and M is the momentum, as long as Adam's
    update of the same matrix. The projections that are fused in a matrix (q, k, v) each have their own."""

    def new_state(self, p: Tensor, group: dict[str, Any]) -> State:
        """Return Adam's moments, and of each part and side a covariance and its inverse power [..., side, side]."""
        moments = {"step": counter(), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        return moments | new_sides(p, group, "root")

    def update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], states: list[State]) -> None:
        """Follow the covariances, then move."""
        for p, gradient, state in zip(params, grads, states, strict=True):
            step, parts = count(state), parts_of(p, group)
            mean, square = state["exp_avg"], state["exp_avg_sq"]
            direction = adam_direction(gradient, mean, square, step, group["betas"], group["eps"])
            p.mul_(1 - group["lr"] * group["weight_decay"])
            split = [x.split(parts, -2) for x in (gradient, mean, direction)] if parts else ()
            for part, (slope, momentum, adam) in enumerate(zip(*split, strict=True)):
                sides = sides_of(state, part, "root")
                for side, (covariance, root) in sides.items():
                    follow(covariance, slope, side, group["betas"][1])
                    if (step - 1) % group["every"] == 0:
                        power = group["power"] if len(sides) == 2 else ALONE
                        root.copy_(inverse_power(covariance, power, group["eps"]))
                    momentum = root @ momentum if side == "left" else momentum @ root
                if sides:
                    adam.copy_(momentum * (_length(adam) / _length(momentum).clamp(min=1e-30)))
            p.sub_(direction, alpha=group["lr"])


def inverse_power(covariance: Tensor, power: float, eps: float) -> Tensor:
    """Return (C / c + eps)^-power of symmetric C [..., side, side], where c is its largest eigenvalue."""
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(min=0)
    values = values / values[..., -1:].clamp(min=1e-30) + eps
    return vectors * values.pow(-power)[..., None, :] @ vectors.mT


def _length(matrix: Tensor) -> Tensor:
    return torch.linalg.vector_norm(matrix, dim=(-2, -1), keepdim=True)
