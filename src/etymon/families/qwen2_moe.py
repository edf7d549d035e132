"""Qwen1.5-MoE (Qwen team 2024, https://qwenlm.github.io/blog/qwen-moe) and the mixture of Qwen2 (arXiv:2407.10671).

What was new over Qwen2: many narrow experts per layer in the place of one wide feed-forward layer, four or eight of
them for each token, beside a shared one for all tokens, whose output a gate scales.
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
from etymon.families.weights import Rule
from etymon.spec import Gated, ModelSpec, MoE, Shared, TopK


@extends(qwen2.build)
def build(
    *,
    name: str = "qwen2_moe",
    layers: int,
    experts: int,
    k: int,
    expert_hidden: int,
    shared_hidden: int,
    renormalise: bool = False,
    dense_layers: tuple[int, ...] = (),
    activation: str = "silu",
    **dimensions: Any,
) -> ModelSpec:
    """Return the spec of a Qwen2 whose feed-forward layers, but those of `dense_layers`, are mixtures."""
    spec = qwen2.build(name=name, layers=layers, activation=activation, **dimensions)
    moe = MoE(
        experts=experts,
        expert=Gated(hidden=expert_hidden, activation=activation),
        router=TopK(k=k, renormalise=renormalise),
        shared=Shared(op=Gated(hidden=shared_hidden, activation=activation), gated=True),
    )
    return with_mixtures(spec, "qwen2_moe", moe, set(range(layers)) - set(dense_layers))


def read_mixtures(reader: ConfigReader, layers: int, experts: int, k: int) -> dict[str, Any]:
    """Read what Qwen's mixtures have in common, as `build` names it."""
    for key in ("output_router_logits", "router_aux_loss_coef"):
        reader.take(key, object, None)  # they matter to training only
    experts = reader.take("num_local_experts", int, experts)  # as newer files call it
    step, dense = reader.take("decoder_sparse_step", int, 1), reader.take("mlp_only_layers", list, [])
    return {
        "experts": reader.take("num_experts", int, experts),
        "k": reader.take("num_experts_per_tok", int, k),
        "expert_hidden": reader.take("moe_intermediate_size", int),
        "renormalise": reader.take("norm_topk_prob", bool, False),
        "dense_layers": tuple(i for i in range(layers) if i in dense or (i + 1) % step),
    }


def write_mixtures(spec: ModelSpec) -> dict[str, Any]:
    """Write what `read_mixtures` reads."""
    moe, dense = feed_forward_of(spec, MoE), feed_forward_of(spec, Gated)
    assert moe is not None and isinstance(moe.router, TopK)
    kinds = [type(sub.op) for block in spec.trunk.blocks for sub in block.subs if sub.op.name == "ffn"]
    return {
        "num_experts": moe.experts,
        "num_experts_per_tok": moe.router.k,
        "moe_intermediate_size": moe.expert.hidden,
        "intermediate_size": (dense or moe.expert).hidden,
        "norm_topk_prob": moe.router.renormalise,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [i for i, kind in enumerate(kinds) if kind is Gated],
    }


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "qwen2_moe"."""
    sizes = llama.read_sizes(reader, context=32768)
    rope = read_rope(reader, dim=sizes["head_dim"], context=sizes["context"])
    spec = build(
        **sizes,
        **read_mixtures(reader, sizes["layers"], experts=60, k=4),
        shared_hidden=reader.take("shared_expert_intermediate_size", int),
        rope_base=rope.base,
        rope_scaling=rope.scaling,
    )
    bias = "qkv" if reader.take("qkv_bias", bool, True) else ""
    spec = with_blocks(spec, "qwen2_moe", lambda block: with_attention(block, bias=bias))
    return windowed(spec, "qwen2_moe", _windows(reader, sizes["layers"]))


def _windows(reader: ConfigReader, layers: int) -> list[int | None]:
    """Read the window of every layer: where nothing names them, every second one of the first `max_window_layers`."""
    used = reader.take("use_sliding_window", bool, False)
    window, first = reader.take("sliding_window", int, None), reader.take("max_window_layers", int, 28)
    alternate = ["sliding_attention" if used and i % 2 == 0 and i < first else "full_attention" for i in range(layers)]
    kinds = reader.take("layer_types", list, alternate)
    return [window if kind == "sliding_attention" else None for kind in kinds]


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    attention, moe = attention_of(spec), feed_forward_of(spec, MoE)
    assert attention.rope is not None and moe is not None and moe.shared is not None
    rest = {
        "rope_parameters": write_rope(attention.rope),
        "qkv_bias": attention.bias == "qkv",
        "shared_expert_intermediate_size": moe.shared.op.hidden,
    }
    return llama.write_sizes(spec) | qwen2.write_windows(spec) | write_mixtures(spec) | rest


LAYER: Names = {
    **llama.LAYER,
    "ffn.op.router": "mlp.gate",
    "ffn.op.experts.up": ("mlp.experts.{expert}.gate_proj", "mlp.experts.{expert}.up_proj"),
    "ffn.op.experts.down": "mlp.experts.{expert}.down_proj",
    "ffn.op.shared.gate_up": ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
    "ffn.op.shared.down": "mlp.shared_expert.down_proj",
    "ffn.op.shared_gate": "mlp.shared_expert_gate",
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order: every matrix of every expert is stored apart."""
    return table(spec, LAYER, llama.TOP)


_A14B = {"dim": 3584, "layers": 28, "heads": 28, "kv_heads": 4, "hidden": 18944, "context": 32768}
FAMILY = Family(
    name="qwen2_moe",
    title="Qwen2-MoE",
    paper="https://qwenlm.github.io/blog/qwen-moe",
    origin=Origin(
        published="2024-03",
        parents=("qwen", "mixtral"),
        brought="many narrow experts beside a gated one that sees every token",
        reference=Running(),
        counts={"qwen1.5-moe-a2.7b": 14_315_784_192, "qwen2-57b-a14b": 57_408_658_944},
    ),
    build=build,
    sizes={
        "qwen1.5-moe-a2.7b": {
            "vocab": 151936,
            "dim": 2048,
            "layers": 24,
            "heads": 16,
            "hidden": 5632,
            "context": 8192,
            "experts": 60,
            "k": 4,
            "expert_hidden": 1408,
            "shared_hidden": 5632,
        },
        "qwen2-57b-a14b": _A14B
        | {"vocab": 151936, "experts": 64, "k": 8, "expert_hidden": 2560, "shared_hidden": 20480},
    },
    tiny=llama.FAMILY.tiny | {"experts": 4, "k": 2, "expert_hidden": 24, "shared_hidden": 40},
    format=Format(
        model_type="qwen2_moe",
        architecture="Qwen2MoeForCausalLM",
        tokenizer="Qwen2Tokenizer",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
    ),
)
