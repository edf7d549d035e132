"""Baichuan (Baichuan Inc. 2023) and Baichuan 2 (Yang et al. 2023, arXiv:2309.10305).

LLaMA's form with one matrix for queries, keys and values. The 7B models turn their heads (rotary positions), the 13B
models lower their scores with distance (ALiBi); from Baichuan 2 on, the rows of the head have length 1.

A published config says neither. Those of the 7B models alone have `max_position_embeddings`, and the vocabulary of
64000 or 125696 tells the generations apart. For other vocabularies the key `norm_head` must say it, which is not a
published key but one that we write.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from etymon.errors import ConfigError
from etymon.families import llama
from etymon.families.descent import attention_of, with_attention, with_blocks
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.origin import Origin, Recorded
from etymon.families.reader import ConfigReader
from etymon.families.table import Names, table
from etymon.families.weights import Rule
from etymon.spec import ALiBi, ModelSpec, UnitRows

NORM_HEAD = {64000: False, 125696: True}


@extends(llama.build)
def build(
    *, name: str = "baichuan", alibi: bool = False, unit_rows: bool = True, eps: float = 1e-6, **dimensions: Any
) -> ModelSpec:
    """Return the spec of a Baichuan: with `alibi` instead of rotary positions, with or without rows of length 1."""
    spec = llama.build(name=name, eps=eps, **dimensions)
    changes = {"rope": None, "scores": ALiBi()} if alibi else {}
    spec = with_blocks(spec, "baichuan", lambda block: with_attention(block, **changes))
    return dataclasses.replace(spec, head=dataclasses.replace(spec.lm, rows=UnitRows() if unit_rows else None))


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "baichuan". Raises ConfigError where it fits both generations."""
    alibi = "max_position_embeddings" not in reader
    length = reader.take("model_max_length", int, None)
    if alibi and length is None:
        raise ConfigError(
            f"{reader.where}: either max_position_embeddings (rotary positions, 7B) or model_max_length alone "
            "(ALiBi, 13B) must be there; without them the positions of this Baichuan are not known"
        )
    sizes = llama.read_sizes(reader, context=length)
    reader.expect("num_key_value_heads", None)
    reader.skip("z_loss_weight", "_from_model_config", "gradient_checkpointing_steps")
    unit_rows = reader.take("norm_head", bool, NORM_HEAD.get(sizes["vocab"]))
    if unit_rows is None and reader.take("architectures", list, []) == ["BaiChuanForCausalLM"]:
        unit_rows = False  # the spelling of the first 7B model
    if unit_rows is None:
        raise ConfigError(
            f"{reader.where}: a vocabulary of {sizes['vocab']} is neither Baichuan's (64000) nor Baichuan 2's "
            "(125696); add norm_head = true if the rows of the head are normalised (Baichuan 2), false if not"
        )
    return build(**sizes, alibi=alibi, unit_rows=unit_rows)


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    sizes = llama.write_sizes(spec)
    for key in ("num_key_value_heads", "head_dim"):
        del sizes[key]
    if attention_of(spec).rope is None:
        sizes["model_max_length"] = sizes.pop("max_position_embeddings")
    return sizes | {"norm_head": spec.lm.rows is not None}


LAYER: Names = {**llama.LAYER, "attention.op.qkv": "self_attn.W_pack"}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order."""
    return table(spec, LAYER, llama.TOP)


_7B = {"dim": 4096, "layers": 32, "heads": 32, "hidden": 11008, "context": 4096}
_13B = {"dim": 5120, "layers": 40, "heads": 40, "hidden": 13696, "context": 4096, "alibi": True}
_FIRST = {"vocab": 64000, "unit_rows": False}
FAMILY = Family(
    name="baichuan",
    title="Baichuan",
    paper="https://arxiv.org/abs/2309.10305",
    origin=Origin(
        published="2023-06",
        parents=("llama",),
        brought="one tokenizer for Chinese and English; from the second generation on, a head of unit rows",
        reference=Recorded("the published model files"),
        counts={
            "baichuan-7b": "7.001B",
            "baichuan-13b": "13.265B",
            "baichuan2-7b": "7.506B",
            "baichuan2-13b": "13.897B",
        },
    ),
    build=build,
    sizes={
        "baichuan-7b": _FIRST | _7B,
        "baichuan-13b": _FIRST | _13B,
        "baichuan2-7b": {"vocab": 125696} | _7B,
        "baichuan2-13b": {"vocab": 125696} | _13B,
    },
    tiny={key: value for key, value in llama.FAMILY.tiny.items() if key != "kv_heads"} | {"alibi": True},
    format=Format(
        model_type="baichuan",
        architecture="BaichuanForCausalLM",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        skipped=llama.FAMILY.tensors.skipped,
    ),
)
