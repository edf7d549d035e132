"""Mixtral (Jiang et al. 2024, arXiv:2401.04088).

What was new over Mistral 7B: eight feed-forward experts per layer, of which a router chooses two for each token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from etymon.families import llama, mistral
from etymon.families.descent import with_blocks
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.rope import read_rope, write_rope
from etymon.families.table import Names, table
from etymon.families.weights import Rule
from etymon.spec import Attention, Block, Gated, ModelSpec, MoE, TopK


@extends(mistral.build)
def build(*, name: str = "mixtral", experts: int = 8, k: int = 2, **dimensions: Any) -> ModelSpec:
    """Return the spec of a Mixtral: a Mistral of these dimensions whose feed-forward layers are mixtures."""

    def block(dense: Block) -> Block:
        attention, ffn = dense.subs
        assert isinstance(ffn.op, Gated)
        moe = MoE(experts=experts, expert=ffn.op, router=TopK(k=k))
        return Block(subs=(attention, dataclasses.replace(ffn, op=moe)))

    return with_blocks(mistral.build(name=name, **dimensions), "mixtral", block)


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "mixtral"."""
    sizes = llama.read_sizes(reader, context=131072, eps=1e-5)
    rope = read_rope(reader, dim=sizes["head_dim"], context=sizes["context"], base=1e6)
    for key in ("output_router_logits", "router_aux_loss_coef", "router_jitter_noise"):
        reader.take(key, object, None)  # they matter to training only
    return build(
        **sizes,
        rope_base=rope.base,
        rope_scaling=rope.scaling,
        window=reader.take("sliding_window", int, None),
        experts=reader.take("num_local_experts", int, 8),
        k=reader.take("num_experts_per_tok", int, 2),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    attention, ffn = (sub.op for sub in spec.trunk.blocks[0].subs)
    assert isinstance(attention, Attention) and attention.rope is not None and isinstance(ffn, MoE)
    return llama.write_sizes(spec) | {
        "rope_parameters": write_rope(attention.rope),
        "sliding_window": attention.window,
        "num_local_experts": ffn.experts,
        "num_experts_per_tok": ffn.router.k,
    }


LAYER: Names = {
    **llama.LAYER,
    "ffn.op.router": "block_sparse_moe.gate",
    "ffn.op.experts.up": ("block_sparse_moe.experts.{expert}.w1", "block_sparse_moe.experts.{expert}.w3"),
    "ffn.op.experts.down": "block_sparse_moe.experts.{expert}.w2",
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order: every matrix of every expert is stored apart."""
    return table(spec, LAYER, llama.TOP)


_SIZE = {"vocab": 32000, "context": 32768, "rope_base": 1e6, "eps": 1e-5, "kv_heads": 8}
FAMILY = Family(
    name="mixtral",
    title="Mixtral",
    paper="https://arxiv.org/abs/2401.04088",
    origin=Origin(
        published="2023-12",
        parents=("mistral",),
        brought="eight experts, two for each token, in open weights",
        reference=Running(),
        counts={"mixtral-8x7b": 46_702_792_704, "mixtral-8x22b": "140.6B"},
    ),
    build=build,
    sizes={
        "mixtral-8x7b": _SIZE | {"dim": 4096, "layers": 32, "heads": 32, "hidden": 14336},
        "mixtral-8x22b": _SIZE | {"dim": 6144, "layers": 56, "heads": 48, "hidden": 16384, "context": 65536},
    },
    tiny=llama.FAMILY.tiny | {"experts": 4},
    format=Format(
        model_type="mixtral",
        architecture="MixtralForCausalLM",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
    ),
)
