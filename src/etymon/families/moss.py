"""MOSS (Sun et al. 2023, github.com/OpenLMLab/MOSS).

CodeGen 16B, trained further on Chinese and English with a vocabulary of 107008, then on conversations that use tools.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from etymon.families import codegen, gptj
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.origin import Origin, Recorded
from etymon.families.reader import ConfigReader
from etymon.spec import ModelSpec


@extends(gptj.build)
def build(*, name: str = "moss", **dimensions: Any) -> ModelSpec:
    """Return the spec of a MOSS: a GPT-J of these dimensions."""
    return dataclasses.replace(gptj.build(name=name, **dimensions), family="moss")


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "moss"."""
    reader.expect("wbits", 32)  # the quantised releases have other tensors
    reader.take("groupsize", int, 128)
    return dataclasses.replace(gptj.read(reader), family="moss")


FAMILY = Family(
    name="moss",
    title="MOSS",
    paper="https://github.com/OpenLMLab/MOSS",
    origin=Origin(
        published="2023-04",
        parents=("codegen",),
        brought="an open assistant for Chinese and English that calls tools",
        reference=Recorded("the published model file"),
        counts={"moss-moon-003": "16.7B"},
    ),
    build=build,
    sizes={"moss-moon-003": {"vocab": 107008, "dim": 6144, "layers": 34, "heads": 24}},
    tiny=gptj.FAMILY.tiny,
    format=Format(
        model_type="moss",
        architecture="MossForCausalLM",
        read=read,
        write=gptj.KEYS.write,
    ),
    tensors=Tensors(
        weights=codegen.weights,
        prefix="transformer.",
        skipped=gptj.FAMILY.tensors.skipped,
    ),
)
