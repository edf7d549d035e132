"""One file per family of the lineage: what was new in it, its published sizes and its checkpoint format."""

from etymon.families.family import Family, families, family_named, family_of_model_type
from etymon.families.reader import ConfigReader
from etymon.families.weights import Rule

__all__ = ["ConfigReader", "Family", "Rule", "families", "family_named", "family_of_model_type"]
