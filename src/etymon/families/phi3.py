"""Phi-3 (Abdin et al. 2024, arXiv:2404.14219).

LLaMA's form, with q, k, v and gate, up stored as one matrix each; the long-context versions scale every rotary
frequency by a factor of its own (LongRoPE).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from etymon.families import llama, mistral
from etymon.families.descent import attention_of
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.rope import read_rope, write_rope
from etymon.families.table import Names, table
from etymon.families.weights import Rule
from etymon.spec import LongRopeScaling, ModelSpec


@extends(mistral.build)
def build(*, name: str = "phi3", **dimensions: Any) -> ModelSpec:
    """Return the spec of a Phi-3: a Mistral of these dimensions."""
    return dataclasses.replace(mistral.build(name=name, **dimensions), family="phi3")


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "phi3"."""
    sizes = llama.read_sizes(reader, context=4096, eps=1e-5)
    rope = read_rope(reader, dim=sizes["head_dim"], context=sizes["context"])
    reader.take("original_max_position_embeddings", int, None)  # it has a meaning for LongRoPE only
    if rope.dim != sizes["head_dim"]:
        reader.expect("partial_rotary_factor", 1.0)
    window = reader.take("sliding_window", int, None)
    return build(**sizes, rope_base=rope.base, rope_scaling=rope.scaling, window=window)


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    attention = attention_of(spec)
    assert attention.rope is not None
    scaling = attention.rope.scaling
    original = scaling.original_context if isinstance(scaling, LongRopeScaling) else spec.context
    sizes = {key: value for key, value in llama.write_sizes(spec).items() if key != "head_dim"}
    return sizes | {
        "original_max_position_embeddings": original,
        "pad_token_id": None,  # where the config says nothing, the reference takes 32000
        "rope_parameters": write_rope(attention.rope),
        "sliding_window": attention.window,
    }


LAYER: Names = {
    **llama.LAYER,
    "attention.op.qkv": "self_attn.qkv_proj",
    "ffn.op.gate_up": "mlp.gate_up_proj",
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order."""
    return table(spec, LAYER, llama.TOP)


_MINI = {"vocab": 32064, "dim": 3072, "layers": 32, "heads": 32, "hidden": 8192}
FAMILY = Family(
    name="phi3",
    title="Phi-3",
    paper="https://arxiv.org/abs/2404.14219",
    origin=Origin(
        published="2024-04",
        parents=("llama", "phi"),
        brought="a model that fits a phone, on Phi's kind of data",
        reference=Running(),
        counts={"phi-3-mini-4k": "3.821B", "phi-3-medium-4k": "13.960B"},
    ),
    build=build,
    sizes={
        "phi-3-mini-4k": _MINI | {"context": 4096, "window": 2047},
        "phi-3-medium-4k": _MINI
        | {"dim": 5120, "layers": 40, "heads": 40, "kv_heads": 10, "hidden": 17920, "context": 4096, "window": 2047},
    },
    tiny=llama.FAMILY.tiny,
    format=Format(
        model_type="phi3",
        architecture="Phi3ForCausalLM",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
    ),
)
