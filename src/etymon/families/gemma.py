"""Gemma (Gemma team 2024, arXiv:2403.08295).

What was new over LLaMA: embeddings times sqrt(dim), norms scaled by 1 + weight, a GELU gate, heads wider than
dim / heads, a tied head of 256000 tokens.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from etymon.errors import ConfigError
from etymon.families import llama
from etymon.families.descent import attention_of, with_blocks
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.rope import read_rope, write_rope
from etymon.spec import Block, Embed, ModelSpec, RMSNorm, Sub


@extends(llama.build)
def build(
    *,
    name: str = "gemma",
    dim: int,
    head_dim: int = 256,
    eps: float = 1e-6,
    activation: str = "gelu_tanh",
    tied: bool = True,
    **dimensions: Any,
) -> ModelSpec:
    """Return the spec of a Gemma of these dimensions."""
    same = {"dim": dim, "head_dim": head_dim, "eps": eps, "activation": activation, "tied": tied}
    spec = llama.build(name=name, **same, **dimensions)  # type: ignore[arg-type]
    norm = RMSNorm(eps=eps, offset=1.0)
    spec = with_blocks(spec, "gemma", lambda block: Block(subs=tuple(Sub(pre=norm, op=sub.op) for sub in block.subs)))
    stack = dataclasses.replace(spec.trunk, final_norm=norm)
    return dataclasses.replace(spec, embed=Embed(scale=dim**0.5), decoder=stack)


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "gemma"."""
    sizes = llama.read_sizes(reader, context=8192, head_dim=256, tied=True)
    activation = reader.take("hidden_activation", str, None)
    if activation not in (None, "gelu_pytorch_tanh") or sizes["activation"] not in ("gelu", "gelu_tanh"):
        raise ConfigError(f"{reader.where}: Gemma's activation is gelu_pytorch_tanh, whatever else the config says")
    sizes["activation"] = "gelu_tanh"  # early configs say "gelu" and mean this
    rope = read_rope(reader, dim=sizes["head_dim"], context=sizes["context"])
    reader.expect("use_bidirectional_attention", None, False)
    bias = reader.take("attention_bias", bool, False)
    return build(**sizes, rope_base=rope.base, rope_scaling=rope.scaling, attention_bias=bias)


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    attention = attention_of(spec)
    assert attention.rope is not None
    rest = {"rope_parameters": write_rope(attention.rope), "attention_bias": attention.bias != ""}
    return llama.write_sizes(spec) | rest


FAMILY = Family(
    name="gemma",
    title="Gemma",
    paper="https://arxiv.org/abs/2403.08295",
    origin=Origin(
        published="2024-02",
        parents=("llama", "gemini"),
        brought="Gemini's recipe in small open models",
        reference=Running(),
        counts={"gemma-2b": 2_506_172_416, "gemma-7b": 8_537_680_896},
    ),
    build=build,
    sizes={
        "gemma-2b": {"vocab": 256000, "dim": 2048, "layers": 18, "heads": 8, "kv_heads": 1, "hidden": 16384}
        | {"context": 8192},
        "gemma-7b": {"vocab": 256000, "dim": 3072, "layers": 28, "heads": 16, "hidden": 24576, "context": 8192},
    },
    tiny=llama.FAMILY.tiny | {"head_dim": 16},
    format=Format(
        model_type="gemma",
        architecture="GemmaForCausalLM",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=llama.weights,
    ),
)
