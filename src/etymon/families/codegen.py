"""CodeGen (Nijkamp et al. 2022, arXiv:2203.13474).

GPT-J's form, trained on code. Published checkpoints hold q, v and k (in this order) of a quarter of the heads each,
those of CodeGen 2 (`codegen2.py`) of an eighth, and no published key tells the two apart. CodeGen 2 needs code from
beside its weights, so its configs have `auto_map`; a key `mp_num`, which we write, says it outright.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from etymon.errors import ConfigError
from etymon.families import gptj
from etymon.families.descent import attention_of
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.table import Names, table
from etymon.families.weights import Regroup, Rule
from etymon.spec import ModelSpec

SHARDS_OF = {4: "codegen", 8: "codegen2"}
OF_THE_SECOND = ((16, 2048), (16, 4096), (32, 4096))  # layers and width that only CodeGen 2 has


@extends(gptj.build)
def build(*, name: str = "codegen", **dimensions: Any) -> ModelSpec:
    """Return the spec of a CodeGen: a GPT-J of these dimensions."""
    return dataclasses.replace(gptj.build(name=name, **dimensions), family="codegen")


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "codegen", of CodeGen or CodeGen 2. Raises ConfigError where it says both."""
    said, remote = "mp_num" in reader, "auto_map" in reader
    shards = reader.take("mp_num", int, 8 if remote else 4)
    head_dim = reader.take("head_dim", int, None)
    spec = gptj.read(reader)
    if head_dim not in (None, attention_of(spec).head_dim):
        raise ConfigError(f"{reader.where}: head_dim = {head_dim} is not n_embd / n_head")
    shape = (len(spec.trunk.blocks), spec.dim)
    known = {(size["layers"], size["dim"]) for size in FAMILY.sizes.values()} - {(34, 6144)}  # which both have
    if shards not in SHARDS_OF or (not said and shape in (known if remote else OF_THE_SECOND)):
        raise ConfigError(
            f"{reader.where}: {shape[0]} layers of {shape[1]} {'with' if remote else 'without'} auto_map may be "
            "CodeGen or CodeGen 2, which order the rows of attn.qkv_proj differently; "
            "set mp_num to 4 (CodeGen) or 8 (CodeGen 2)"
        )
    return dataclasses.replace(spec, family=SHARDS_OF[shards])


LAYER: Names = {**gptj.LAYER, "attention.op.qkv": "attn.qkv_proj"}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order."""
    shards = {family: shards for shards, family in SHARDS_OF.items()}.get(spec.family, 4)
    regroup = Regroup(shards, (attention_of(spec).query_width // shards,) * 3, order=(0, 2, 1))
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
        counts={"codegen-350m": "356.7M", "codegen-2b": "2.779B", "codegen-6b": "7.064B", "codegen-16b": "16.032B"},
        claims={"codegen-2b": "2.7B, rounded down", "codegen-6b": "6.1B, which its 33 layers exceed"},
    ),
    build=build,
    sizes={
        "codegen-350m": {"vocab": 51200, "dim": 1024, "layers": 20, "heads": 16, "rotary_dim": 32},
        "codegen-2b": {"vocab": 51200, "dim": 2560, "layers": 32, "heads": 32},
        "codegen-6b": {"vocab": 51200, "dim": 4096, "layers": 33, "heads": 16},
        "codegen-16b": {"vocab": 51200, "dim": 6144, "layers": 34, "heads": 24},
    },
    tiny=gptj.FAMILY.tiny,
    format=Format(
        model_type="codegen",
        architecture="CodeGenForCausalLM",
        read=read,
        write=gptj.KEYS.write,
    ),
    tensors=Tensors(
        weights=weights,
        prefix="transformer.",
        skipped=gptj.FAMILY.tensors.skipped,
    ),
)
