"""What one training step optimises: collated batch in, summed loss out."""

from etymon.objectives.choice import (
    OBJECTIVES,
    AnyObjective,
    choose_objective,
    kind_of_objective,
    objective_config,
    trained_spec,
)
from etymon.objectives.classification import Classification, ClassificationConfig
from etymon.objectives.clm import CausalLM, CausalLMConfig
from etymon.objectives.contrastive import (
    Contrastive,
    ContrastiveConfig,
    CoSENT,
    CosineRegression,
    Ranking,
    SimCSE,
    Softmax,
)
from etymon.objectives.denoising import (
    Denoising,
    DenoisingConfig,
    DocumentRotation,
    SentencePermutation,
    TextInfilling,
    TokenDeletion,
    TokenMasking,
)
from etymon.objectives.fim import FillInMiddle, FillInMiddleConfig
from etymon.objectives.infilling import Infilling, InfillingConfig
from etymon.objectives.mass import MaskedFragment, MaskedFragmentConfig
from etymon.objectives.mlm import MaskedLM, MaskedLMConfig
from etymon.objectives.mtp import MultiToken, MultiTokenConfig, Residual, Sequential
from etymon.objectives.nsp import NextSentence, NextSentenceConfig
from etymon.objectives.objective import Collated, Objective, ObjectiveConfig, Reads
from etymon.objectives.pairs import Pairs, PairsConfig
from etymon.objectives.plm import PermutationLM, PermutationLMConfig
from etymon.objectives.prefix_lm import PrefixLM, PrefixLMConfig
from etymon.objectives.retro import Retrieval, RetrievalConfig
from etymon.objectives.rtd import ReplacedTokens, ReplacedTokensConfig
from etymon.objectives.sop import SentenceOrder, SentenceOrderConfig
from etymon.objectives.spans import SpanCorruption, SpanCorruptionConfig
from etymon.objectives.tlm import TranslationLM, TranslationLMConfig
from etymon.objectives.ul2 import UL2, PrefixDenoiser, SpanDenoiser, UL2Config

__all__ = [
    "OBJECTIVES",
    "UL2",
    "AnyObjective",
    "CausalLM",
    "CausalLMConfig",
    "Classification",
    "ClassificationConfig",
    "CoSENT",
    "Collated",
    "Contrastive",
    "ContrastiveConfig",
    "CosineRegression",
    "Denoising",
    "DenoisingConfig",
    "DocumentRotation",
    "FillInMiddle",
    "FillInMiddleConfig",
    "Infilling",
    "InfillingConfig",
    "MaskedFragment",
    "MaskedFragmentConfig",
    "MaskedLM",
    "MaskedLMConfig",
    "MultiToken",
    "MultiTokenConfig",
    "NextSentence",
    "NextSentenceConfig",
    "Objective",
    "ObjectiveConfig",
    "Pairs",
    "PairsConfig",
    "PermutationLM",
    "PermutationLMConfig",
    "PrefixDenoiser",
    "PrefixLM",
    "PrefixLMConfig",
    "Ranking",
    "Reads",
    "ReplacedTokens",
    "ReplacedTokensConfig",
    "Residual",
    "Retrieval",
    "RetrievalConfig",
    "SentenceOrder",
    "SentenceOrderConfig",
    "SentencePermutation",
    "Sequential",
    "SimCSE",
    "Softmax",
    "SpanCorruption",
    "SpanCorruptionConfig",
    "SpanDenoiser",
    "TextInfilling",
    "TokenDeletion",
    "TokenMasking",
    "TranslationLM",
    "TranslationLMConfig",
    "UL2Config",
    "choose_objective",
    "kind_of_objective",
    "objective_config",
    "trained_spec",
]
