"""OLMo 2 (OLMo team 2024, arXiv:2501.00656).

What was new over LLaMA: norms on what each sublayer adds instead of on what it reads, and queries and keys normalised
over the width of all heads together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etymon.families import llama
from etymon.families.descent import attention_of, with_attention, with_blocks
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.rope import read_rope, write_rope
from etymon.families.table import Names, table
from etymon.families.weights import Rule
from etymon.spec import Block, ModelSpec, QKNorm, RMSNorm, Sub


@extends(llama.build)
def build(*, name: str = "olmo2", eps: float = 1e-6, **dimensions: Any) -> ModelSpec:
    """Return the spec of an OLMo 2 of these dimensions."""
    spec = llama.build(name=name, eps=eps, **dimensions)
    norm = RMSNorm(eps=eps)

    def block(old: Block) -> Block:
        new = with_attention(old, qk_norm=QKNorm(norm=norm, over="width"))
        return Block(subs=tuple(Sub(op=sub.op, branch=norm) for sub in new.subs))

    return with_blocks(spec, "olmo2", block)


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "olmo2"."""
    sizes = llama.read_sizes(reader, eps=1e-5)
    rope = read_rope(reader, dim=sizes["head_dim"], context=sizes["context"])
    bias = reader.take("attention_bias", bool, False)
    return build(**sizes, rope_base=rope.base, rope_scaling=rope.scaling, attention_bias=bias)


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    attention = attention_of(spec)
    assert attention.rope is not None
    rest = {"rope_parameters": write_rope(attention.rope), "attention_bias": attention.bias != ""}
    return llama.write_sizes(spec) | rest


LAYER: Names = {
    **llama.LAYER,
    "attention.branch": "post_attention_layernorm",
    "ffn.branch": "post_feedforward_layernorm",
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order."""
    return table(spec, LAYER, llama.TOP)


_SIZE = {"vocab": 100352, "context": 4096, "rope_base": 500000.0}
FAMILY = Family(
    name="olmo2",
    title="OLMo 2",
    paper="https://arxiv.org/abs/2501.00656",
    origin=Origin(
        published="2024-11",
        parents=("llama",),
        brought="data, code, checkpoints and logs in the open; norms moved for stability",
        reference=Running(),
        counts={
            "olmo2-1b": 1_484_916_736,
            "olmo2-7b": 7_298_617_344,
            "olmo2-13b": 13_716_198_400,
            "olmo2-32b": "32.2B",
        },
    ),
    build=build,
    sizes={
        "olmo2-1b": _SIZE | {"dim": 2048, "layers": 16, "heads": 16, "hidden": 8192},
        "olmo2-7b": _SIZE | {"dim": 4096, "layers": 32, "heads": 32, "hidden": 11008},
        "olmo2-13b": _SIZE | {"dim": 5120, "layers": 40, "heads": 40, "hidden": 13824},
        "olmo2-32b": _SIZE | {"dim": 5120, "layers": 64, "heads": 40, "kv_heads": 8, "hidden": 27648},
    },
    tiny=llama.FAMILY.tiny,
    format=Format(
        model_type="olmo2",
        architecture="Olmo2ForCausalLM",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
    ),
)
