"""CodeGen (Nijkamp et al. 2022, arXiv:2203.13474).

GPT-J's form, trained on code. Published checkpoints hold q, v and k (in this order) of a quarter of the heads each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from etymon.families import gptj
from etymon.families.descent import attention_of
from etymon.families.family import Family, extends
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.table import Names, table
from etymon.families.weights import Regroup, Rule
from etymon.spec import ModelSpec

SHARDS = 4


@extends(gptj.build)
def build(*, name: str = "codegen", **dimensions: Any) -> ModelSpec:
    """Return the spec of a CodeGen: a GPT-J of these dimensions."""
    return dataclasses.replace(gptj.build(name=name, **dimensions), family="codegen")


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "codegen"."""
    return dataclasses.replace(gptj.read(reader), family="codegen")


LAYER: Names = {**gptj.LAYER, "attention.op.qkv": "attn.qkv_proj"}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order."""
    shard = attention_of(spec).query_width // SHARDS
    regroup = Regroup(SHARDS, (shard,) * 3, order=(0, 2, 1))
    return table(spec, LAYER, gptj.TOP, {"attention.op.qkv": (regroup, gptj.halves(spec))})


FAMILY = Family(
    name="codegen",
    title="CodeGen",
    paper="https://arxiv.org/abs/2203.13474",
    origin=Origin(
        published="2022-03",
        parents=("gptj",),
        brought="programs from a conversation of several turns",
        reference=Running(),
    ),
    model_type="codegen",
    architecture="CodeGenForCausalLM",
    build=build,
    sizes={
        "codegen-350m": {"vocab": 51200, "dim": 1024, "layers": 20, "heads": 16, "rotary_dim": 32},
        "codegen-2b": {"vocab": 51200, "dim": 2560, "layers": 32, "heads": 32},
        "codegen-6b": {"vocab": 51200, "dim": 4096, "layers": 33, "heads": 16},
        "codegen-16b": {"vocab": 51200, "dim": 6144, "layers": 34, "heads": 24},
    },
    tiny=gptj.FAMILY.tiny,
    read=read,
    write=gptj.write,
    weights=weights,
    prefix="transformer.",
    skipped=gptj.FAMILY.skipped,
)
