"""Gemma 2 (Gemma team 2024, arXiv:2408.00118).

What was new over Gemma: a norm before and after every sublayer, bounded scores and logits, windows on every second
layer, a scale of the scores of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from etymon.families import gemma, llama
from etymon.families.descent import attention_of, with_attention, with_blocks, with_windows
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.origin import Origin, Running
from etymon.families.qwen2 import write_windows
from etymon.families.reader import ConfigReader
from etymon.families.rope import read_rope, write_rope
from etymon.families.table import Names, table
from etymon.families.weights import Rule
from etymon.spec import Block, ModelSpec, Sub


@extends(gemma.build)
def build(
    *,
    name: str = "gemma2",
    layers: int,
    window: int | None = 4096,
    scale: float = 256**-0.5,
    softcap: float | None = 50.0,
    logit_softcap: float | None = 30.0,
    **dimensions: Any,
) -> ModelSpec:
    """Return the spec of a Gemma 2; `window` is that of the first, third, … layer, `scale` that of the scores."""
    spec = gemma.build(name=name, layers=layers, **dimensions)

    def block(old: Block) -> Block:
        new = with_attention(old, scale=scale, softcap=softcap)
        return Block(subs=tuple(Sub(pre=sub.pre, op=sub.op, branch=sub.pre) for sub in new.subs))

    head = dataclasses.replace(spec.lm, softcap=logit_softcap)
    windows = [None if i % 2 else window for i in range(layers)]
    return with_windows(with_blocks(dataclasses.replace(spec, head=head), "gemma2", block), "gemma2", windows)


def read_dimensions(reader: ConfigReader, **defaults: Any) -> dict[str, Any]:
    """Read what the configs of Gemma 2 and its descendants have in common, as `build` names it."""
    activation = reader.take("hidden_activation", str, "gelu_pytorch_tanh")
    reader.take("hidden_act", str, None)  # the published configs carry both, and the other one counts
    sizes = llama.read_sizes(reader, head_dim=256, tied=True, **defaults)
    reader.expect("use_bidirectional_attention", None, False)
    reader.take("cache_implementation", str, None)
    return sizes | {
        "activation": llama.ACTIVATIONS.get(activation, activation),
        "attention_bias": reader.take("attention_bias", bool, False),
        "scale": reader.take("query_pre_attn_scalar", float, 256.0) ** -0.5,
        "softcap": reader.take("attn_logit_softcapping", float, None),
        "logit_softcap": reader.take("final_logit_softcapping", float, None),
    }


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "gemma2"."""
    dimensions = read_dimensions(reader, context=8192)
    rope = read_rope(reader, dim=dimensions["head_dim"], context=dimensions["context"])
    window = reader.take("sliding_window", int, 4096)
    kinds = reader.take("layer_types", list, ["sliding_attention", "full_attention"] * dimensions["layers"])
    spec = build(**dimensions, rope_base=rope.base, rope_scaling=rope.scaling)
    windows = [window if kind == "sliding_attention" else None for kind in kinds[: dimensions["layers"]]]
    return with_windows(spec, "gemma2", windows)


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    attention = attention_of(spec)
    assert attention.rope is not None and attention.scale is not None
    sizes, windows = llama.write_sizes(spec), write_windows(spec)
    return sizes | {
        "hidden_activation": sizes["hidden_act"],
        "rope_parameters": write_rope(attention.rope),
        "attention_bias": attention.bias != "",
        "query_pre_attn_scalar": round(attention.scale**-2),
        "attn_logit_softcapping": attention.softcap,
        "final_logit_softcapping": spec.lm.softcap,
        "sliding_window": windows["sliding_window"],
        "layer_types": windows["layer_types"],
    }


LAYER: Names = {
    **llama.LAYER,
    "attention.branch": "post_attention_layernorm",
    "ffn.pre": "pre_feedforward_layernorm",
    "ffn.branch": "post_feedforward_layernorm",
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order."""
    return table(spec, LAYER, llama.TOP)


_SIZE = {"vocab": 256000, "context": 8192}
FAMILY = Family(
    name="gemma2",
    title="Gemma 2",
    paper="https://arxiv.org/abs/2408.00118",
    origin=Origin(
        published="2024-06",
        parents=("gemma",),
        brought="small models taught by a large one's probabilities",
        reference=Running(),
        counts={"gemma2-2b": 2_614_341_888, "gemma2-9b": 9_241_705_984, "gemma2-27b": 27_227_128_320},
    ),
    build=build,
    sizes={
        "gemma2-2b": _SIZE | {"dim": 2304, "layers": 26, "heads": 8, "kv_heads": 4, "hidden": 9216},
        "gemma2-9b": _SIZE | {"dim": 3584, "layers": 42, "heads": 16, "kv_heads": 8, "hidden": 14336},
        "gemma2-27b": _SIZE
        | {"dim": 4608, "layers": 46, "heads": 32, "kv_heads": 16, "hidden": 36864, "head_dim": 128}
        | {"scale": 144**-0.5},
    },
    tiny=gemma.FAMILY.tiny | {"window": 16, "scale": 0.2},
    format=Format(
        model_type="gemma2",
        architecture="Gemma2ForCausalLM",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
    ),
)
