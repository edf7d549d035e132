"""StableLM 3B-4E1T and StableLM 2 (Stability AI 2023, 2024, arXiv:2402.17834).

What was new over LLaMA: LayerNorm, and rotary positions on the first quarter of each head only. (StableLM alpha is a
GPT-NeoX.)
"""

from __future__ import annotations

import dataclasses
from typing import Any

from etymon.families import llama
from etymon.families.descent import attention_of, side_by_side, with_attention, with_blocks
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.rope import read_rope, write_rope
from etymon.families.table import table
from etymon.families.weights import StackExperts
from etymon.spec import Block, LayerNorm, ModelSpec, Parallel, QKNorm, Rope, Sub


@extends(llama.build)
def build(
    *,
    name: str = "stablelm",
    eps: float = 1e-5,
    rotary_part: float = 0.25,
    qkv_bias: bool = False,
    qk_norm: bool = False,
    parallel: bool = False,
    **dimensions: Any,
) -> ModelSpec:
    """Return the spec of a StableLM; `rotary_part` of each head turns, `qk_norm` gives each head norms of its own."""
    spec = llama.build(name=name, eps=eps, **dimensions)
    attention, norm = attention_of(spec), LayerNorm(eps=eps)
    assert attention.rope is not None
    rope = dataclasses.replace(attention.rope, dim=int(attention.head_dim * rotary_part))
    heads = QKNorm(norm=LayerNorm(eps=eps, bias=False), over="each head") if qk_norm else None
    changes = {"rope": rope, "bias": "qkv" if qkv_bias else "", "qk_norm": heads}

    def block(old: Block) -> Block:
        ops = [sub.op for sub in with_attention(old, **changes).subs]
        if parallel:
            return side_by_side(norm, *ops)
        return Block(subs=tuple(Sub(pre=norm, op=op) for op in ops))

    spec = with_blocks(spec, "stablelm", block)
    return dataclasses.replace(spec, decoder=dataclasses.replace(spec.trunk, final_norm=norm))


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "stablelm"."""
    sizes = llama.read_sizes(reader, context=4096, eps=1e-5, eps_key="layer_norm_eps")
    part = reader.take("rope_pct", float, 0.25)  # its name in the first release
    rope = read_rope(reader, dim=sizes["head_dim"], context=sizes["context"], part=part)
    return build(
        **sizes,
        rope_base=rope.base,
        rope_scaling=rope.scaling,
        rotary_part=rope.dim / sizes["head_dim"],
        qkv_bias=reader.take("use_qkv_bias", bool, False),
        qk_norm=reader.take("qk_layernorm", bool, False),
        parallel=reader.take("use_parallel_residual", bool, False),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    attention, sizes = attention_of(spec), llama.write_sizes(spec)
    assert isinstance(attention.rope, Rope)
    return sizes | {
        "layer_norm_eps": sizes.pop("rms_norm_eps"),
        "rope_parameters": write_rope(attention.rope, attention.head_dim),
        "use_qkv_bias": attention.bias != "",
        "qk_layernorm": attention.qk_norm is not None,
        "use_parallel_residual": isinstance(spec.trunk.blocks[0].wiring, Parallel),
    }


def weights(spec: ModelSpec) -> Any:
    """List the tensors in published order."""
    op, layer, stacked = attention_of(spec), {**llama.LAYER, "pre": "input_layernorm"}, {}
    for x, heads in (("q", op.heads), ("k", op.kv_heads)):
        slot = f"attention.op.{x}_norm"
        layer[slot] = tuple(f"self_attn.{x}_layernorm.norms.{head}" for head in range(heads))
        stacked[slot] = (StackExperts(heads, ()),)
    return table(spec, layer, llama.TOP, stacked)


FAMILY = Family(
    name="stablelm",
    title="StableLM",
    paper="https://arxiv.org/abs/2402.17834",
    origin=Origin(
        published="2023-09",
        parents=("llama", "gpt_neox"),
        brought="a small model for several epochs of one trillion tokens",
        reference=Running(),
        counts={"stablelm-3b-4e1t": "2.795B", "stablelm-2-1.6b": "1.645B", "stablelm-2-12b": "12.143B"},
    ),
    build=build,
    sizes={
        "stablelm-3b-4e1t": {"vocab": 50304, "dim": 2560, "layers": 32, "heads": 32, "hidden": 6912, "context": 4096},
        "stablelm-2-1.6b": {"vocab": 100352, "dim": 2048, "layers": 24, "heads": 32, "hidden": 5632, "context": 4096}
        | {"qkv_bias": True},
        "stablelm-2-12b": {"vocab": 100352, "dim": 5120, "layers": 40, "heads": 32, "kv_heads": 8, "hidden": 13824}
        | {"context": 4096, "qk_norm": True, "parallel": True},
    },
    tiny=llama.FAMILY.tiny | {"rotary_part": 0.5},
    format=Format(
        model_type="stablelm",
        architecture="StableLmForCausalLM",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        skipped=llama.FAMILY.tensors.skipped,
    ),
)
