"""One update of the weights from one global batch."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from etymon.data import Examples
from etymon.errors import TrainingError
from etymon.nn import Model, moe
from etymon.objectives import Objective
from etymon.train.hardware import Precision
from etymon.train.optimizers import MeZO


@dataclass(frozen=True)
class Gradient:
    """What one batch gave: the mean loss per trained token in nats, by the parts of the objective, and the gradient's
    norm before and after clipping."""

    losses: Mapping[str, float]
    norm: float
    clipped_norm: float

    @property
    def loss(self) -> float:
        """What the model is measured by."""
        return self.losses["loss"]

    @property
    def finite(self) -> bool:
        """Whether an update can be taken."""
        return all(map(math.isfinite, (*self.losses.values(), self.norm)))


def compute_gradient(
    model: Model,
    objective: Objective,
    batch: Examples,
    *,
    micro_batch: int | None,
    clip: float | None,
    precision: Precision,
    penalties: Mapping[str, float] = MappingProxyType({}),
    trained: nn.Module | None = None,
) -> Gradient:
    """Leave the clipped gradient of the mean loss over ALL trained tokens of `batch` in the parameters' `.grad`, with
    the penalties of what is trained by these weights (the loss that is returned is without them). `trained` has the
    parameters that are, where these are more than the model's.

    Each micro-batch contributes its summed loss over the trained tokens of the whole batch, so that their number and
    the distribution of trained tokens over them change nothing. Raises TrainingError where no token is trained.
    """
    totals: dict[str, Tensor] = {}
    for losses, penalized in _losses(model, objective, batch, micro_batch, precision, penalties, trained):
        _add(totals, losses)
        penalized.backward()
    parameters = [p for p in (trained or model).parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    # where looking at the norm costs nothing, what needs no clipping is not multiplied by one
    if clip is not None and not (norm.is_cpu and norm + 1e-6 <= clip):
        torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    found = torch.stack((*totals.values(), norm.to(model.device))).tolist()  # the one wait for the device in a step
    clipped = min(found[-1], clip) if clip is not None else found[-1]
    return Gradient(dict(zip(totals, found[:-1], strict=True)), found[-1], clipped)


@torch.no_grad()
def estimate_gradient(
    mezo: MeZO,
    model: Model,
    objective: Objective,
    batch: Examples,
    *,
    seed: int,
    step: int,
    micro_batch: int | None,
    clip: float | None,
    precision: Precision,
    penalties: Mapping[str, float] = MappingProxyType({}),
) -> Gradient:
    """Leave in `mezo` a random direction, which depends on (seed, step), and the slope of the mean loss along it, from
    two forward passes that draw the same random numbers; the weights are where they were, to rounding.

    The norm is the slope's size, which `clip` bounds: its expectation is near that of the gradient's norm. Raises
    TrainingError where no token is trained.
    """
    mezo.seed = int(np.random.SeedSequence((seed, step, 1)).generate_state(1)[0])
    totals: dict[str, Tensor] = {}
    ends = []
    for distance in (mezo.eps, -mezo.eps):
        seed_step(seed, step)
        mezo.move(distance)
        end = torch.zeros((), device=model.device)
        for losses, penalized in _losses(model, objective, batch, micro_batch, precision, penalties):
            _add(totals, losses)
            end += penalized
        ends.append(end)
        mezo.move(-distance)
    *found, above, below = torch.stack((*totals.values(), *ends)).tolist()
    slope = (above - below) / (2 * mezo.eps)
    mezo.slope = slope if clip is None else max(-clip, min(slope, clip))
    means = {name: total / 2 for name, total in zip(totals, found, strict=True)}
    return Gradient(means, abs(slope), abs(mezo.slope))


def _losses(
    model: Model,
    objective: Objective,
    batch: Examples,
    micro_batch: int | None,
    precision: Precision,
    penalties: Mapping[str, float],
    trained: nn.Module | None = None,
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Yield each micro-batch's share of the mean loss: its parts, and their sum with the penalties of what is trained,
    the model alone by default."""
    if batch.trained == 0:
        raise TrainingError("a batch trains no token: every target is -100. Look at the data and its masks")
    weights = {name: weight for name, weight in penalties.items() if weight}
    rows = batch.input_ids.shape[0]
    objective, micro_batch = objective.split(micro_batch)
    for start in range(0, rows, micro_batch or rows):
        part = batch.rows(start, start + micro_batch) if micro_batch else batch
        if part.trained == 0:
            continue
        with autocast(model.device, precision):
            found = objective.losses(model, part.to(model.device))
        losses = {name: each / batch.trained for name, each in found.items()}
        loss = torch.stack(tuple(losses.values())).sum()
        for name, penalty in moe.penalties(trained or model).items() if weights else ():
            loss = loss + weights.get(name, 0.0) * penalty * (part.trained / batch.trained)
        yield losses, loss


def _add(totals: dict[str, Tensor], losses: Mapping[str, Tensor]) -> None:
    for name, each in losses.items():
        totals[name] = totals.get(name, 0.0) + each.detach()


def apply_gradient(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Take the step and forget the gradient."""
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Return the context in which a forward pass runs at `precision`; weights stay fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def seed_step(seed: int, step: int) -> None:
    """Seed Python, numpy and torch for one step, so that its random numbers depend on (seed, step) alone.

    Neither a resumption nor what hooks draw in between can then change them.
    """
    python, numpy, torch_ = np.random.SeedSequence((seed, step)).generate_state(3).tolist()
    random.seed(python)
    np.random.seed(numpy)
    torch.manual_seed(torch_)


def bad_parameters(model: nn.Module) -> list[str]:
    """Return the names of the parameters whose gradient is not finite."""

    def bad(gradient: Tensor | None) -> bool:
        return gradient is not None and not bool(gradient.isfinite().all())

    return [name for name, p in model.named_parameters() if bad(p.grad)]
