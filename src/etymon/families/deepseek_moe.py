"""DeepSeekMoE (Dai et al. 2024, arXiv:2401.06066).

What was new over LLaMA and the mixtures before it: experts are split finely, so that a token may combine six of 64, and
two that every token sees hold what all of them would learn. The first layer is dense.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etymon.families import llama, qwen2_moe
from etymon.families.descent import attention_of, feed_forward_of, with_mixtures
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.rope import read_rope, write_rope
from etymon.families.table import Names, table
from etymon.families.weights import Rule
from etymon.spec import Gated, ModelSpec, MoE, Shared, TopK

LAYER: Names = {
    **qwen2_moe.LAYER,
    "ffn.op.shared.gate_up": ("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"),
    "ffn.op.shared.down": "mlp.shared_experts.down_proj",
}


@extends(llama.build)
def build(
    *,
    name: str = "deepseek_moe",
    layers: int,
    dense_layers: int = 1,
    experts: int = 64,
    k: int = 6,
    expert_hidden: int,
    shared: int = 2,
    renormalise: bool = False,
    activation: str = "silu",
    **dimensions: Any,
) -> ModelSpec:
    """Return the spec of a LLaMA whose layers from number `dense_layers` on are mixtures beside `shared` experts."""
    spec = llama.build(name=name, layers=layers, activation=activation, **dimensions)
    moe = MoE(
        experts=experts,
        expert=Gated(hidden=expert_hidden, activation=activation),
        router=TopK(k=k, renormalise=renormalise),
        shared=Shared(op=Gated(hidden=shared * expert_hidden, activation=activation)),
    )
    return with_mixtures(spec, "deepseek_moe", moe, range(dense_layers, layers))


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "deepseek"."""
    sizes = llama.read_sizes(reader, context=2048)
    rope = read_rope(reader, dim=sizes["head_dim"], context=sizes["context"])
    for key in ("aux_loss_alpha", "seq_aux"):
        reader.take(key, object, None)  # they matter to training only
    reader.expect("moe_layer_freq", 1)
    reader.expect("pretraining_tp", 1)
    reader.expect("scoring_func", "softmax")
    return build(
        **sizes,
        rope_base=rope.base,
        rope_scaling=rope.scaling,
        attention_bias=reader.take("attention_bias", bool, False),
        dense_layers=reader.take("first_k_dense_replace", int, 0),
        experts=reader.take("n_routed_experts", int),
        k=reader.take("num_experts_per_tok", int),
        expert_hidden=reader.take("moe_intermediate_size", int),
        shared=reader.take("n_shared_experts", int),
        renormalise=reader.take("norm_topk_prob", bool, False),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    attention, moe = attention_of(spec), feed_forward_of(spec, MoE)
    assert attention.rope is not None and moe is not None and moe.shared is not None
    mixtures = qwen2_moe.write_mixtures(spec)
    return llama.write_sizes(spec) | {
        "intermediate_size": mixtures["intermediate_size"],
        "rope_parameters": write_rope(attention.rope),
        "attention_bias": attention.bias != "",
        "first_k_dense_replace": len(mixtures["mlp_only_layers"]),
        "n_routed_experts": moe.experts,
        "num_experts_per_tok": moe.router.k,
        "moe_intermediate_size": moe.expert.hidden,
        "n_shared_experts": moe.shared.op.hidden // moe.expert.hidden,
        "norm_topk_prob": mixtures["norm_topk_prob"],
    }


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order: every matrix of every expert is stored apart."""
    return table(spec, LAYER, llama.TOP)


FAMILY = Family(
    name="deepseek_moe",
    title="DeepSeekMoE",
    paper="https://arxiv.org/abs/2401.06066",
    origin=Origin(
        published="2024-01",
        parents=("llama", "gshard"),
        brought="fine-grained experts, and shared ones that see every token",
        reference=Running("transformers' LLaMA with the mixture of its DeepSeek-V2"),
        counts={"deepseek-moe-16b": 16_375_728_128},
    ),
    build=build,
    sizes={
        "deepseek-moe-16b": {
            "vocab": 102400,
            "dim": 2048,
            "layers": 28,
            "heads": 16,
            "hidden": 10944,
            "context": 4096,
            "expert_hidden": 1408,
            "eps": 1e-6,
        },
    },
    tiny=llama.FAMILY.tiny | {"experts": 6, "k": 3, "expert_hidden": 24, "shared": 2},
    format=Format(
        model_type="deepseek",
        architecture="DeepseekForCausalLM",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        skipped=llama.FAMILY.tensors.skipped,
    ),
)
