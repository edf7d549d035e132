"""SOAP: Adam in the basis in which Shampoo's preconditioners are diagonal."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from etymon.train.optimizers.covariances import Sides, follow, new_sides, parts_of, sides_of
from etymon.train.optimizers.groups import Beta, Group, OptimizerSettings
from etymon.train.optimizers.optimizer import Optimizer, State, adam_direction, count, counter


class SOAPConfig(OptimizerSettings):
    """SOAP (Vyas et al. 2024, arXiv:2409.11321).

    Weights of linear layers and embeddings are turned on every side of at most `max_dim`, with a new basis `every` so
    many steps; the rest is AdamW. A larger side stays as it is, and so does that of the vocabulary.
    """

    kind: Literal["soap"] = "soap"
    lr: float = Field(default=3e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[Beta, Beta] = (0.95, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    every: int = Field(default=10, ge=1)
    max_dim: int = Field(default=2048, ge=1)

    def build(self, groups: list[Group], matrix_dtype: torch.dtype) -> list[torch.optim.Optimizer]:
        """Return SOAP."""
        own = {name: getattr(self, name) for name in ("betas", "eps", "every", "max_dim")}
        return [SOAP([group.options() for group in groups], own)]


class SOAP(Optimizer):
    """Adam on Q_L^T G Q_R, where Q_L and Q_R are the eigenvectors of running means of G G^T and G^T G.

    The projections that are fused in a matrix (q, k, v) are turned apart, as are the matrices of a stack (experts).
    The moments are remembered in the turned basis: the first one is turned along when that changes, which is the
    paper's Algorithm 3; one step of orthogonal iteration keeps the basis near. The first gradient only finds the basis.
    """

    def new_state(self, p: Tensor, group: dict[str, Any]) -> State:
        """Return both moments, and of each part and side that is turned a covariance and a basis [..., side, side]."""
        moments = {"step": counter(), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        return moments | new_sides(p, group, "basis")

    def update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], states: list[State]) -> None:
        """Move by Adam's direction in the turned basis, then follow the covariances."""
        for p, gradient, state in zip(params, grads, states, strict=True):
            step, parts = count(state), parts_of(p, group)
            if not parts:
                self._adam(p, gradient, state, group, step)
                continue
            split = [x.split(parts, -2) for x in (p, gradient, state["exp_avg"], state["exp_avg_sq"])]
            for part, (weight, slope, mean, square) in enumerate(zip(*split, strict=True)):
                sides = sides_of(state, part, "basis")
                if step > 1:
                    turned = _turn(slope, sides)
                    direction = adam_direction(turned, mean, square, step - 1, group["betas"], group["eps"])
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.sub_(_turn(direction, sides, back=True), alpha=group["lr"])
                _follow_all(slope, mean, sides, group["betas"][1], step, group["every"])

    @staticmethod
    def _adam(p: Tensor, gradient: Tensor, state: State, group: dict[str, Any], step: int) -> None:
        moments = state["exp_avg"], state["exp_avg_sq"]
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.sub_(adam_direction(gradient, *moments, step, group["betas"], group["eps"]), alpha=group["lr"])


def _turn(x: Tensor, sides: Sides, *, back: bool = False) -> Tensor:
    if "left" in sides:
        basis = sides["left"][1]
        x = (basis if back else basis.mT) @ x
    if "right" in sides:
        basis = sides["right"][1]
        x = x @ (basis.mT if back else basis)
    return x


def _follow_all(gradient: Tensor, mean: Tensor, sides: Sides, beta: float, step: int, every: int) -> None:
    """Take the gradient into the covariances; now and then find their bases and turn the mean into these."""
    for side, (covariance, basis) in sides.items():
        left = side == "left"
        follow(covariance, gradient, side, beta)
        if step == 1:
            basis.copy_(torch.linalg.eigh(covariance).eigenvectors.flip(-1))  # the largest first, as iterations sort
        elif (step - 1) % every == 0:
            new = torch.linalg.qr(covariance @ basis).Q
            mean.copy_(new.mT @ basis @ mean if left else mean @ (basis.mT @ new))
            basis.copy_(new)
