"""GLM-4 (GLM team 2024, arXiv:2406.12793).

LLaMA's form with biases on queries, keys and values, two heads of keys and values, and rotary positions on the first
half of each head. Published checkpoints rotate neighbouring pairs and hold gate and up in one matrix. (The first GLM,
ChatGLM-6B and GLM-130B are other architectures.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from etymon.families import llama
from etymon.families.descent import attention_of, with_attention, with_blocks
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.rope import read_rope, write_rope
from etymon.families.table import Names, table
from etymon.families.weights import PermuteRotary, Rule
from etymon.spec import ModelSpec, Rope

EPS = 1.5625e-07


@extends(llama.build)
def build(
    *, name: str = "glm4", rotary_part: float = 0.5, qkv_bias: bool = True, eps: float = EPS, **dimensions: Any
) -> ModelSpec:
    """Return the spec of a GLM-4; `rotary_part` of each head turns."""
    spec = llama.build(name=name, eps=eps, **dimensions)
    attention = attention_of(spec)
    assert isinstance(attention.rope, Rope)
    rope = dataclasses.replace(attention.rope, dim=int(attention.head_dim * rotary_part))
    return with_blocks(spec, "glm4", lambda block: with_attention(block, rope=rope, bias="qkv" if qkv_bias else ""))


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "glm"."""
    sizes = llama.read_sizes(reader, context=131072, eps=EPS, head_dim=128)
    rope = read_rope(reader, dim=sizes["head_dim"], context=sizes["context"], part=0.5)
    return build(
        **sizes,
        rotary_part=rope.dim / sizes["head_dim"],
        rope_base=rope.base,
        rope_scaling=rope.scaling,
        qkv_bias=reader.take("attention_bias", bool, True),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    attention = attention_of(spec)
    assert attention.rope is not None
    rope = write_rope(attention.rope, attention.head_dim)
    return llama.write_sizes(spec) | {
        "rope_parameters": rope,
        "attention_bias": attention.bias != "",
        "pad_token_id": None,  # where the config says nothing, the reference takes 151329
    }


LAYER: Names = {
    **llama.LAYER,
    "attention.branch": "post_self_attn_layernorm",
    "ffn.op.gate_up": "mlp.gate_up_proj",
    "ffn.branch": "post_mlp_layernorm",
}


def halves(spec: ModelSpec) -> PermuteRotary:
    """Return the operation that turns neighbouring rotary pairs of queries and keys into halves."""
    attention = attention_of(spec)
    assert attention.rope is not None
    return PermuteRotary(attention.heads + attention.kv_heads, attention.head_dim, attention.rope.dim)


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order."""
    return table(spec, LAYER, llama.TOP, {"attention.op.qkv": (halves(spec),)})


_9B = {"vocab": 151552, "dim": 4096, "layers": 40, "heads": 32, "kv_heads": 2, "hidden": 13696}
FAMILY = Family(
    name="glm4",
    title="GLM-4",
    paper="https://arxiv.org/abs/2406.12793",
    origin=Origin(
        published="2024-06",
        parents=("chatglm2",),
        brought="an assistant for 26 languages that browses and calls tools",
        reference=Running(),
        counts={"glm-4-9b": 9_399_951_360, "glm-4-9b-chat": 9_399_951_360},
    ),
    build=build,
    sizes={
        "glm-4-9b": _9B | {"context": 8192},
        "glm-4-9b-chat": _9B | {"context": 131072, "rope_base": 5e6},
    },
    tiny=llama.FAMILY.tiny,
    format=Format(
        model_type="glm",
        architecture="GlmForCausalLM",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
    ),
)
