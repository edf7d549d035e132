"""gpt-oss (OpenAI 2025, arXiv:2508.10925).

What was new over GPT-3 and its open descendants: a learned score per head lets it attend to nothing, in layers that see
128 positions and all of them by turns; experts have biases, and a gate that is bounded and offset.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etymon.families import llama, qwen2
from etymon.families.descent import attention_of, feed_forward_of, with_attention, with_blocks, with_mixtures
from etymon.families.descent import with_windows as windowed
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.rope import read_rope, write_rope
from etymon.families.table import Names, table
from etymon.families.weights import Alternate, Operation, Rule, Transpose
from etymon.spec import Gated, ModelSpec, MoE, RopeScaling, Sinks, TopK, YarnScaling

_YARN = YarnScaling(factor=32.0, original_context=4096, truncate=False)


@extends(llama.build)
def build(
    *,
    name: str = "gpt_oss",
    layers: int,
    hidden: int,
    head_dim: int = 64,
    window: int | None = 128,
    experts: int,
    k: int = 4,
    limit: float = 7.0,
    rope_base: float = 150000.0,
    rope_scaling: RopeScaling | None = _YARN,
    **dimensions: Any,
) -> ModelSpec:
    """Return the spec of a gpt-oss; `hidden` is the width inside an expert. Every second layer sees all positions."""
    spec = llama.build(
        name=name,
        layers=layers,
        hidden=hidden,
        head_dim=head_dim,
        rope_base=rope_base,
        rope_scaling=rope_scaling,
        **({"attention_bias": True} | dimensions),
    )
    spec = with_blocks(spec, "gpt_oss", lambda block: with_attention(block, scores=Sinks()))
    expert = Gated(hidden=hidden, activation="quick_gelu", bias=True, limit=limit, offset=1.0)
    spec = with_mixtures(spec, "gpt_oss", MoE(experts=experts, expert=expert, router=TopK(k=k, bias=True)))
    return windowed(spec, "gpt_oss", [window if i % 2 == 0 else None for i in range(layers)])


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "gpt_oss"."""
    sizes = llama.read_sizes(reader, context=131072, eps=1e-5, head_dim=64)
    reader.expect("hidden_act", "silu")
    del sizes["activation"]
    rope = read_rope(reader, dim=sizes["head_dim"], context=sizes["context"], base=150000.0)
    for key in ("output_router_logits", "router_aux_loss_coef", "experts_per_token", "initial_context_length"):
        reader.take(key, object, None)  # they matter to training, or repeat others
    reader.expect("swiglu_alpha", 1.702)
    window = reader.take("sliding_window", int, None)
    layers = sizes["layers"]
    alternate = ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(layers)]
    kinds = reader.take("layer_types", list, alternate)
    spec = build(
        **sizes,
        rope_base=rope.base,
        rope_scaling=rope.scaling,
        attention_bias=reader.take("attention_bias", bool, True),
        experts=reader.take("num_local_experts", int, 128),
        k=reader.take("num_experts_per_tok", int, 4),
        limit=reader.take("swiglu_limit", float, 7.0),
    )
    return windowed(spec, "gpt_oss", [window if kind == "sliding_attention" else None for kind in kinds])


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    attention, moe = attention_of(spec), feed_forward_of(spec, MoE)
    assert attention.rope is not None and moe is not None and isinstance(moe.expert, Gated)
    windows = qwen2.write_windows(spec)
    return llama.write_sizes(spec) | {
        "hidden_act": "silu",
        "rope_parameters": write_rope(attention.rope),
        "attention_bias": attention.bias != "",
        "num_local_experts": moe.experts,
        "num_experts_per_tok": moe.router.k,
        "swiglu_limit": moe.expert.limit,
        "sliding_window": windows["sliding_window"] or 128,  # the reference wants one even where no layer slides
        "layer_types": windows["layer_types"],
    }


LAYER: Names = {
    **llama.LAYER,
    "attention.op.sinks": "self_attn.sinks",
    "ffn.op.router": "mlp.router",
    "ffn.op.experts.up.weight": "mlp.experts.gate_up_proj",
    "ffn.op.experts.up.bias": "mlp.experts.gate_up_proj_bias",
    "ffn.op.experts.down.weight": "mlp.experts.down_proj",
    "ffn.op.experts.down.bias": "mlp.experts.down_proj_bias",
}
OPERATIONS: dict[str, tuple[Operation, ...]] = {
    "ffn.op.experts.up.weight": (Transpose(), Alternate()),
    "ffn.op.experts.up.bias": (Alternate(),),
    "ffn.op.experts.down.weight": (Transpose(),),
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order; the matrices of all experts are one tensor, [experts, in, out]."""
    return table(spec, LAYER, llama.TOP, OPERATIONS)


_SIZE = {"vocab": 201088, "dim": 2880, "heads": 64, "kv_heads": 8, "hidden": 2880, "context": 131072}
FAMILY = Family(
    name="gpt_oss",
    title="gpt-oss",
    paper="https://arxiv.org/abs/2508.10925",
    origin=Origin(
        published="2025-08",
        parents=("gpt3", "mixtral"),
        brought="OpenAI's first open weights since GPT-2, with experts in four bits",
        reference=Running(),
        counts={"gpt-oss-20b": "20.91B", "gpt-oss-120b": "116.83B"},
    ),
    build=build,
    sizes={
        "gpt-oss-20b": _SIZE | {"layers": 24, "experts": 32},
        "gpt-oss-120b": _SIZE | {"layers": 36, "experts": 128},
    },
    tiny=llama.FAMILY.tiny | {"head_dim": 16, "window": 16, "experts": 4, "k": 2},
    format=Format(
        model_type="gpt_oss",
        architecture="GptOssForCausalLM",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
    ),
)
