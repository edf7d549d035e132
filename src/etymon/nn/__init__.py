"""How a spec becomes a torch module."""

from etymon.nn.counting import Count, count, flops_per_token
from etymon.nn.dropout import Dropout, set_dropout
from etymon.nn.head import IGNORE
from etymon.nn.linear import Linear
from etymon.nn.model import Model, Output, build, with_head, with_visibility
from etymon.nn.moe import ExpertLinear
from etymon.nn.pooling import pool, whole_texts
from etymon.nn.state import State

__all__ = [
    "IGNORE",
    "Count",
    "Dropout",
    "ExpertLinear",
    "Linear",
    "Model",
    "Output",
    "State",
    "build",
    "count",
    "flops_per_token",
    "pool",
    "set_dropout",
    "whole_texts",
    "with_head",
    "with_visibility",
]
