"""How far a changed model (quantised, converted) has moved from the one that it was made from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from etymon.errors import DataError
from etymon.nn import Model


@dataclass(frozen=True)
class Drift:
    """The difference of two models' predictions over `positions` positions.

    `max_logit` and `mean_logit` are absolute differences of logits, `kl_bits` is the mean divergence of the changed
    distribution from the original one, `agreement` the share of positions whose likeliest token is the same.
    """

    positions: int
    max_logit: float
    mean_logit: float
    kl_bits: float
    agreement: float

    def to_dict(self) -> dict[str, Any]:
        """Return all of it."""
        return asdict(self)


@torch.inference_mode()
def drift(original: Model, changed: Model, sequences: Iterable[list[int]], *, rows: int = 512) -> Drift:
    """Run both models over token `sequences` and compare what they predict at every position.

    Logits exist `rows` positions at a time. Raises DataError where there is no position to compare.
    """
    positions = agreed = 0
    largest = logit = divergence = 0.0
    for sequence in sequences:
        if not sequence:
            continue
        ids = torch.tensor([sequence])
        first = original(ids.to(original.device), logits=False).last_hidden_state[0]
        second = changed(ids.to(changed.device), logits=False).last_hidden_state[0]
        for a, b in zip(first.split(rows), second.split(rows), strict=True):
            before, after = original.head(a).float().cpu(), changed.head(b).float().cpu()
            distance = (before - after).abs()
            largest = max(largest, float(distance.max()))
            logit += float(distance.mean(-1).double().sum())
            p, q = before.log_softmax(-1), after.log_softmax(-1)
            divergence += float((p.exp() * (p - q)).sum(-1).double().sum())
            agreed += int((before.argmax(-1) == after.argmax(-1)).sum())
            positions += len(a)
    if not positions:
        raise DataError("there is no token to compare the two models on. Give at least one sequence that is not empty.")
    return Drift(positions, largest, logit / positions, divergence / positions / math.log(2), agreed / positions)
