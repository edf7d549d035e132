"""What one training step optimises: collated batch in, summed loss out."""

from etymon.objectives.choice import OBJECTIVES, choose_objective, kind_of_objective, objective_name
from etymon.objectives.clm import CausalLM
from etymon.objectives.denoising import Denoising
from etymon.objectives.infilling import Infilling
from etymon.objectives.mass import MaskedFragment
from etymon.objectives.mlm import MaskedLM
from etymon.objectives.objective import Collated, Objective
from etymon.objectives.pairs import Pairs
from etymon.objectives.plm import PermutationLM
from etymon.objectives.rtd import ReplacedTokens
from etymon.objectives.spans import SpanCorruption

__all__ = [
    "OBJECTIVES",
    "CausalLM",
    "Collated",
    "Denoising",
    "Infilling",
    "MaskedFragment",
    "MaskedLM",
    "Objective",
    "Pairs",
    "PermutationLM",
    "ReplacedTokens",
    "SpanCorruption",
    "choose_objective",
    "kind_of_objective",
    "objective_name",
]
