"""Which objective a model is trained by: the one that is asked for, or its family's own."""

from __future__ import annotations

from etymon.errors import ConfigError, suggest
from etymon.families import family_named
from etymon.objectives.clm import CausalLM
from etymon.objectives.denoising import Denoising
from etymon.objectives.infilling import Infilling
from etymon.objectives.mass import MaskedFragment
from etymon.objectives.mlm import MaskedLM
from etymon.objectives.objective import Objective
from etymon.objectives.pairs import Pairs
from etymon.objectives.plm import PermutationLM
from etymon.objectives.rtd import ReplacedTokens
from etymon.objectives.spans import SpanCorruption
from etymon.spec import Discriminator, Infill, ModelSpec
from etymon.text import Tokenizer

OBJECTIVES: dict[str, type[Objective]] = {
    kind.name: kind
    for kind in (
        *(CausalLM, MaskedLM, PermutationLM, ReplacedTokens, Infilling),
        *(SpanCorruption, Denoising, MaskedFragment, Pairs),
    )
}


def objective_name(spec: ModelSpec, name: str | None = None) -> str:
    """Return `name`, or the pretraining objective of the spec's family: what it says, else what follows from its
    stacks and its head. Raises ConfigError for an unknown name, with the nearest known one."""
    if name is None:
        name = family_named(spec.family).objective
    if name is None:
        if spec.encoder is None:
            name = "infilling" if isinstance(spec.trunk.visibility, Infill) else "clm"
        elif spec.decoder is not None:
            name = "denoising"
        else:
            name = "rtd" if isinstance(spec.head, Discriminator) else "mlm"
    if name not in OBJECTIVES:
        raise ConfigError(f"unknown objective {name!r}; known: {', '.join(OBJECTIVES)}.{suggest(name, OBJECTIVES)}")
    return name


def choose_objective(spec: ModelSpec, tokenizer: Tokenizer, name: str | None = None) -> Objective:
    """Return the objective called `name` (default: the family's own) for a model and its tokenizer.

    Raises ConfigError where it does not fit one of them, before anything is computed.
    """
    return kind_of_objective(spec, name).of(spec, tokenizer)


def kind_of_objective(spec: ModelSpec, name: str | None = None) -> type[Objective]:
    """Return the objective called `name` (default: the family's own), whose `control` a tokenizer must have.

    Raises ConfigError where it does not fit the model.
    """
    kind = OBJECTIVES[objective_name(spec, name)]
    kind.check(spec)
    return kind
