"""What one training step optimises: collated batch in, summed loss out."""

from etymon.objectives.clm import CausalLM
from etymon.objectives.objective import Objective

__all__ = ["CausalLM", "Objective"]
