"""Which objective a model is trained by: the one that is asked for, or its family's own."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, TypeAdapter

from etymon.errors import ConfigError, suggest
from etymon.families import family_named
from etymon.objectives.classification import Classification, ClassificationConfig
from etymon.objectives.clm import CausalLM, CausalLMConfig
from etymon.objectives.contrastive import Contrastive, ContrastiveConfig
from etymon.objectives.denoising import Denoising, DenoisingConfig
from etymon.objectives.fim import FillInMiddle, FillInMiddleConfig
from etymon.objectives.infilling import Infilling, InfillingConfig
from etymon.objectives.mass import MaskedFragment, MaskedFragmentConfig
from etymon.objectives.mlm import MaskedLM, MaskedLMConfig
from etymon.objectives.mtp import MultiToken, MultiTokenConfig
from etymon.objectives.nsp import NextSentence, NextSentenceConfig
from etymon.objectives.objective import Objective, ObjectiveConfig
from etymon.objectives.pairs import Pairs, PairsConfig
from etymon.objectives.plm import PermutationLM, PermutationLMConfig
from etymon.objectives.prefix_lm import PrefixLM, PrefixLMConfig
from etymon.objectives.retro import Retrieval, RetrievalConfig
from etymon.objectives.rtd import ReplacedTokens, ReplacedTokensConfig
from etymon.objectives.sop import SentenceOrder, SentenceOrderConfig
from etymon.objectives.spans import SpanCorruption, SpanCorruptionConfig
from etymon.objectives.tlm import TranslationLM, TranslationLMConfig
from etymon.objectives.ul2 import UL2, UL2Config
from etymon.spec import Discriminator, Infill, ModelSpec, Prefix
from etymon.text import Tokenizer

OBJECTIVES: dict[str, type[Objective]] = {
    kind.name: kind
    for kind in (
        *(CausalLM, MultiToken, Retrieval, MaskedLM, PermutationLM, ReplacedTokens, Infilling),
        *(PrefixLM, UL2, FillInMiddle),
        *(SpanCorruption, Denoising, MaskedFragment, Pairs, Classification, TranslationLM, Contrastive),
        *(NextSentence, SentenceOrder),
    )
}


def _known(value: Any) -> Any:
    """Let a bare name stand for its defaults; an unknown one is refused with the nearest."""
    value = {"kind": value} if isinstance(value, str) else value
    kind = value.get("kind") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind not in OBJECTIVES:
        raise ConfigError(f"unknown objective {kind!r}; known: {', '.join(OBJECTIVES)}.{suggest(kind, OBJECTIVES)}")
    return value


AnyObjective = Annotated[
    CausalLMConfig
    | MultiTokenConfig
    | RetrievalConfig
    | MaskedLMConfig
    | NextSentenceConfig
    | SentenceOrderConfig
    | PermutationLMConfig
    | ReplacedTokensConfig
    | InfillingConfig
    | SpanCorruptionConfig
    | DenoisingConfig
    | MaskedFragmentConfig
    | PairsConfig
    | PrefixLMConfig
    | UL2Config
    | FillInMiddleConfig
    | ClassificationConfig
    | TranslationLMConfig
    | ContrastiveConfig,
    Field(discriminator="kind"),
    BeforeValidator(_known),
]
"""The settings of one objective, by its `kind`; a bare name has the defaults."""

_SETTINGS: TypeAdapter[ObjectiveConfig] = TypeAdapter(AnyObjective)


def objective_config(spec: ModelSpec, asked: ObjectiveConfig | str | None = None) -> ObjectiveConfig:
    """Return the settings of what is `asked` for, or of the pretraining objective of the spec's family: what it says,
    else what follows from its stacks and its head. Raises ConfigError for an unknown name, with the nearest known one.
    """
    if isinstance(asked, ObjectiveConfig):
        return asked
    if asked is None:
        asked = family_named(spec.family).objective
    if asked is None:
        if spec.encoder is None:
            asked = {Infill: "infilling", Prefix: "prefix_lm"}.get(type(spec.trunk.visibility), "clm")
        elif spec.decoder is not None:
            asked = "denoising"
        else:
            asked = "rtd" if isinstance(spec.head, Discriminator) else "mlm"
    return _SETTINGS.validate_python(_known(asked))


def choose_objective(spec: ModelSpec, tokenizer: Tokenizer, asked: ObjectiveConfig | str | None = None) -> Objective:
    """Return the objective that is `asked` for (default: the family's own) for a model and its tokenizer.

    Raises ConfigError where it does not fit one of them, before anything is computed.
    """
    config = objective_config(spec, asked)
    return kind_of_objective(spec, config).of(spec, tokenizer, config)


def trained_spec(spec: ModelSpec, asked: ObjectiveConfig | str | None = None) -> ModelSpec:
    """Return the model that the objective trains in the place of one of `spec`: with another head, where it takes one,
    or another visibility. `etymon.nn.with_head` and `with_visibility` make the model."""
    config = objective_config(spec, asked)
    return OBJECTIVES[config.kind].trains(spec, config)


def kind_of_objective(spec: ModelSpec, config: ObjectiveConfig) -> type[Objective]:
    """Return the objective of these settings. Raises ConfigError where it does not fit the model."""
    kind = OBJECTIVES[config.kind]
    kind.check(spec, config)
    return kind
