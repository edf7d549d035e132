from __future__ import annotations

import torch

from etymon.families import family_named
from etymon.nn import Model, build


def random_model(family: str = "llama", seed: int = 0, **dimensions: int) -> Model:
    """A tiny model all of whose parameters are random, so that its choices are decided by wide margins."""
    named = family_named(family)
    model = build(named.spec(**(named.tiny | dimensions)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3 if parameter.dim() > 1 else 1.0, generator=generator)
    return model.eval()
