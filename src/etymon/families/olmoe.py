"""OLMoE (Muennighoff et al. 2024, arXiv:2409.02060).

What was new over Mixtral: many small experts, of which eight serve a token by weights that do not sum to one, and
queries and keys normalised over the width of all heads together; data, code and every checkpoint are open.
"""

from __future__ import annotations

from typing import Any

from etymon.families import llama, qwen2_moe
from etymon.families.descent import attention_of, feed_forward_of, with_attention, with_blocks, with_mixtures
from etymon.families.family import Family, Format, Tensors, extends
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.rope import read_rope, write_rope
from etymon.spec import Gated, ModelSpec, MoE, QKNorm, RMSNorm, TopK


@extends(llama.build)
def build(
    *,
    name: str = "olmoe",
    hidden: int,
    experts: int = 64,
    k: int = 8,
    renormalise: bool = False,
    eps: float = 1e-5,
    activation: str = "silu",
    **dimensions: Any,
) -> ModelSpec:
    """Return the spec of an OLMoE; `hidden` is the width inside an expert."""
    spec = llama.build(name=name, hidden=hidden, eps=eps, activation=activation, **dimensions)
    norm = QKNorm(norm=RMSNorm(eps=eps), over="width")
    spec = with_blocks(spec, "olmoe", lambda block: with_attention(block, qk_norm=norm))
    expert, router = Gated(hidden=hidden, activation=activation), TopK(k=k, renormalise=renormalise)
    return with_mixtures(spec, "olmoe", MoE(experts=experts, expert=expert, router=router))


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "olmoe"."""
    sizes = llama.read_sizes(reader, context=4096, eps=1e-5)
    rope = read_rope(reader, dim=sizes["head_dim"], context=sizes["context"])
    reader.expect("clip_qkv", None)
    for key in ("output_router_logits", "router_aux_loss_coef"):
        reader.take(key, object, None)  # they matter to training only
    return build(
        **sizes,
        rope_base=rope.base,
        rope_scaling=rope.scaling,
        attention_bias=reader.take("attention_bias", bool, False),
        experts=reader.take("num_experts", int, 64),
        k=reader.take("num_experts_per_tok", int, 8),
        renormalise=reader.take("norm_topk_prob", bool, False),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    attention, moe = attention_of(spec), feed_forward_of(spec, MoE)
    assert attention.rope is not None and moe is not None and isinstance(moe.router, TopK)
    return llama.write_sizes(spec) | {
        "rope_parameters": write_rope(attention.rope),
        "attention_bias": attention.bias != "",
        "num_experts": moe.experts,
        "num_experts_per_tok": moe.router.k,
        "norm_topk_prob": moe.router.renormalise,
    }


FAMILY = Family(
    name="olmoe",
    title="OLMoE",
    paper="https://arxiv.org/abs/2409.02060",
    origin=Origin(
        published="2024-09",
        parents=("mixtral", "llama"),
        brought="an open mixture: data, code and every checkpoint",
        reference=Running(),
        counts={"olmoe-1b-7b": 6_919_161_856},
    ),
    build=build,
    sizes={
        "olmoe-1b-7b": {"vocab": 50304, "dim": 2048, "layers": 16, "heads": 16, "hidden": 1024, "context": 4096},
    },
    tiny=llama.FAMILY.tiny | {"experts": 4, "k": 2},
    format=Format(
        model_type="olmoe",
        architecture="OlmoeForCausalLM",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=qwen2_moe.weights,
    ),
)
