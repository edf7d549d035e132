"""Megatron-Turing NLG 530B (Smith et al. 2022, arXiv:2201.11990).

GPT-2's form in 105 layers. The paper gives no vocabulary beyond naming GPT-2's tokens; Megatron pads their number to a
multiple of 128 times the eight ways in which a layer was split.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from etymon.families import gpt2
from etymon.families.family import Family, extends
from etymon.families.origin import Origin, Paper
from etymon.spec import ModelSpec


@extends(gpt2.build)
def build(*, name: str = "megatron_turing", context: int = 2048, **dimensions: Any) -> ModelSpec:
    """Return the spec of a Megatron-Turing NLG: a GPT-2 of these dimensions."""
    return dataclasses.replace(gpt2.build(name=name, context=context, **dimensions), family="megatron_turing")


FAMILY = Family(
    name="megatron_turing",
    title="Megatron-Turing NLG",
    paper="https://arxiv.org/abs/2201.11990",
    origin=Origin(
        published="2022-01",
        parents=("gpt3",),
        brought="530 billion parameters split over tensors, layers and data at once",
        reference=Paper(),
        counts={"mt-nlg-530b": "530B"},
    ),
    build=build,
    sizes={"mt-nlg-530b": {"vocab": 51200, "dim": 20480, "layers": 105, "heads": 128}},
    tiny=gpt2.FAMILY.tiny,
)
