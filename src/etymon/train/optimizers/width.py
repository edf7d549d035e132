"""Rates that were found at one width and hold at others: the maximal update parametrisation, µP (Yang et al. 2022,
arXiv:2203.03466).

With the width, as their Table 8 has it: entries of hidden matrices have a variance of 1 / fan-in (which is how models
are always initialised here) and, under Adam, a rate of 1 / width; logits have a factor of 1 / width; embeddings, biases
and norms stay as they are. Weight decay grows as rates fall, so that a step takes the same part of a weight at every
width (as in their code; Wang & Aitchison 2024, arXiv:2405.13698). Models remain what they are, without a factor that
others would have to know of: the one on the logits is in the weight of the norm before the head, with a rate to match,
which Adam cannot tell apart (their Lemma J.1). Muon's updates of hidden matrices have the right size by themselves
(Yang et al. 2023, arXiv:2310.17813).

Heads must keep their width, and be more in wider models; hidden layers must grow with the stream. A good base is the
model that is to be trained, whose rate narrower ones then find: at the base, a model is as it always was. The logits'
factor there is 1, which is a choice of its own (their alpha_output): where that is narrow, wide models learn slowly.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from etymon import spec
from etymon.errors import ConfigError
from etymon.nn import ExpertLinear, Model
from etymon.nn.linear import Linear
from etymon.nn.moe import Router
from etymon.nn.norm import RMSNorm
from etymon.train.together import Together


def width_factors(model: Model | Together, base_width: int, *, spectral: bool) -> dict[Tensor, float]:
    """Return by what to multiply the rates of parameters, found at `base_width`; other parameters keep theirs.

    With `spectral`, the matrices of the stacks keep theirs too. Raises ConfigError for models without a norm before a
    head of logits, and for those with factors of their own that follow their width.
    """
    if isinstance(model, Together):
        raise ConfigError("optimizer.base_width: this objective trains a companion of another width beside the model.")
    ratio = base_width / model.spec.dim
    factors: dict[Tensor, float] = dict.fromkeys(_norm_before_the_head(model).parameters(), ratio)
    for name, module in model.named_modules():
        hidden = module is not model.head.linear and not name.startswith(("embed.", "encoder_embed."))
        if hidden and isinstance(module, Linear | ExpertLinear | Router):
            factors[module.weight] = ratio
    for _, linear in model.matrices() if spectral else ():
        factors.pop(linear.weight, None)
    return factors


@torch.no_grad()
def scale_output(model: Model, base_width: int) -> None:
    """Give the logits of a new model the factor base_width / width, in place. Raises what `width_factors` raises."""
    norm, ratio = _norm_before_the_head(model), base_width / model.spec.dim
    for name, parameter in norm.named_parameters():
        kept = norm.offset if isinstance(norm, RMSNorm) and name == "weight" else 0.0  # the gain is offset + weight
        parameter.copy_((parameter + kept) * ratio - kept)


def _norm_before_the_head(model: Model) -> nn.Module:
    head, embeds = model.spec.head, (model.spec.embed, model.spec.encoder_embed)
    if not isinstance(head, spec.LM):
        raise ConfigError(
            f"optimizer.base_width: {model.spec.name} has no head over the vocabulary, whose width it is."
        )
    if head.scale != 1.0 or any(embed is not None and embed.scale != 1.0 for embed in embeds):
        raise ConfigError(
            f"optimizer.base_width: {model.spec.name} has factors of its own on embeddings or logits, which follow its "
            "width by another rule."
        )
    norm = model.trunk.final_norm
    if isinstance(head.projection, spec.Transform):
        norm = getattr(model.head.projection, "norm", None)
    if head.rows is not None or getattr(norm, "weight", None) is None:
        raise ConfigError(f"optimizer.base_width: {model.spec.name} has no norm with a weight before its head.")
    assert norm is not None
    return norm
