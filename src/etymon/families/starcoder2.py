"""StarCoder2 (Lozhkov et al. 2024, arXiv:2402.19173).

What was new over StarCoder: rotary positions, grouped queries instead of one key head, attention windows of 4096. The
feed-forward layer stays plain, the norm LayerNorm, everything has biases, and the head is tied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from etymon.families import llama, mistral
from etymon.families.descent import attention_of, with_attention, with_blocks
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.rope import read_rope, write_rope
from etymon.families.table import Names, table
from etymon.families.weights import Rule
from etymon.spec import Block, Dense, LayerNorm, ModelSpec, Sub


@extends(mistral.build)
def build(
    *,
    name: str = "starcoder2",
    hidden: int,
    eps: float = 1e-5,
    activation: str = "gelu_tanh",
    bias: bool = True,
    tied: bool = True,
    **dimensions: Any,
) -> ModelSpec:
    """Return the spec of a StarCoder2 of these dimensions."""
    norm, ffn = LayerNorm(eps=eps), Dense(hidden=hidden, activation=activation, bias=bias)

    def block(old: Block) -> Block:
        attention = with_attention(old, bias="qkvo" if bias else "").subs[0]
        return Block(subs=(Sub(pre=norm, op=attention.op), Sub(pre=norm, op=ffn)))

    spec = with_blocks(mistral.build(name=name, hidden=hidden, tied=tied, **dimensions), "starcoder2", block)
    return dataclasses.replace(spec, decoder=dataclasses.replace(spec.trunk, final_norm=norm))


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "starcoder2"."""
    sizes = llama.read_sizes(reader, context=4096, eps=1e-5, eps_key="norm_epsilon", tied=True)
    for key in ("residual_dropout", "embedding_dropout"):
        reader.take(key, float, None)
    for key, value in (("mlp_type", "default"), ("norm_type", "layer_norm")):
        reader.expect(key, value)
    rope = read_rope(reader, dim=sizes["head_dim"], context=sizes["context"])
    return build(
        **sizes,
        rope_base=rope.base,
        rope_scaling=rope.scaling,
        window=reader.take("sliding_window", int, None),
        bias=reader.take("use_bias", bool, True),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    attention, sizes = attention_of(spec), llama.write_sizes(spec)
    assert attention.rope is not None
    return sizes | {
        "norm_epsilon": sizes.pop("rms_norm_eps"),
        "rope_parameters": write_rope(attention.rope),
        "sliding_window": attention.window,
        "use_bias": attention.bias != "",
    }


LAYER: Names = {**llama.LAYER, "ffn.op.up": "mlp.c_fc", "ffn.op.down": "mlp.c_proj"}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order."""
    return table(spec, LAYER, llama.TOP)


_SIZE = {"vocab": 49152, "context": 16384, "window": 4096}
FAMILY = Family(
    name="starcoder2",
    title="StarCoder2",
    paper="https://arxiv.org/abs/2402.19173",
    origin=Origin(
        published="2024-02",
        parents=("gpt_bigcode",),
        brought="six hundred programming languages, from an archive of software",
        reference=Running(),
        counts={"starcoder2-3b": "3.030B", "starcoder2-7b": "7.174B", "starcoder2-15b": "15.96B"},
    ),
    build=build,
    sizes={
        "starcoder2-3b": _SIZE
        | {"dim": 3072, "layers": 30, "heads": 24, "kv_heads": 2, "hidden": 12288, "rope_base": 999999.4420358813},
        "starcoder2-7b": _SIZE
        | {"dim": 4608, "layers": 32, "heads": 36, "kv_heads": 4, "hidden": 18432, "rope_base": 1e6},
        "starcoder2-15b": _SIZE
        | {"dim": 6144, "layers": 40, "heads": 48, "kv_heads": 4, "hidden": 24576, "rope_base": 1e5, "tied": False},
    },
    tiny=llama.FAMILY.tiny | {"window": 16},
    format=Format(
        model_type="starcoder2",
        architecture="Starcoder2ForCausalLM",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
    ),
)
