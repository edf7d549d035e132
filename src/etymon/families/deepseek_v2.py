"""DeepSeek-V2 (DeepSeek-AI 2024, arXiv:2405.04434).

What was new over LLaMA and the mixtures before it: keys and values are made of one short vector per token, which is all
that a state keeps; experts are fine-grained and stand in groups, of which a token may use a few, beside shared ones
that see every token (DeepSeekMoE, arXiv:2401.06066). The first layers are dense.

The file is long because its reader of routers, latent attention and rotary scaling serves DeepSeek-V3 as well, and
latent attention's projections turn in an order of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etymon.errors import ConfigError
from etymon.families import llama, qwen2_moe
from etymon.families.descent import feed_forward_of, with_mixtures
from etymon.families.family import Family, Format, Tensors
from etymon.families.origin import Origin, Running
from etymon.families.reader import ConfigReader
from etymon.families.rope import read_rope, write_rope
from etymon.families.table import Names, table
from etymon.families.weights import Operation, Regroup, Rule, TurnedFirst
from etymon.spec import (
    LM,
    Block,
    Embed,
    Gated,
    Groups,
    LatentAttention,
    ModelSpec,
    MoE,
    RMSNorm,
    Rope,
    RopeScaling,
    Shared,
    Stack,
    Sub,
    TopK,
    YarnScaling,
)


def build(
    *,
    name: str = "deepseek_v2",
    vocab: int = 102400,
    dim: int,
    layers: int,
    heads: int,
    hidden: int,
    context: int,
    head_dim: int = 128,
    rope_dim: int = 64,
    value_dim: int = 128,
    rank: int = 512,
    query_rank: int | None = None,
    dense_layers: int = 1,
    experts: int,
    k: int,
    expert_hidden: int,
    shared: int,
    scale: float = 1.0,
    groups: int = 1,
    groups_kept: int = 1,
    eps: float = 1e-6,
    rope_base: float = 10000.0,
    rope_scaling: RopeScaling | None = None,
    activation: str = "silu",
    attention_bias: bool = False,
    tied: bool = False,
) -> ModelSpec:
    """Return the spec of a DeepSeek-V2: `hidden` is the width inside the dense layers, `expert_hidden` that inside an
    expert; `shared` experts see every token; an expert's weight is multiplied by `scale`."""
    norm = RMSNorm(eps=eps)
    attention = LatentAttention(
        heads=heads,
        head_dim=head_dim,
        value_dim=value_dim,
        rank=rank,
        query_rank=query_rank,
        rope=Rope(dim=rope_dim, base=rope_base, scaling=rope_scaling),
        bias=attention_bias,
    )
    dense = Block(subs=(Sub(pre=norm, op=attention), Sub(pre=norm, op=Gated(hidden=hidden, activation=activation))))
    spec = ModelSpec(
        name=name,
        family="deepseek_v2",
        vocab=vocab,
        dim=dim,
        context=context,
        embed=Embed(),
        decoder=Stack(blocks=(dense,) * layers, final_norm=norm),
        head=LM(tied=tied),
    )
    limits = Groups(count=groups, keep=groups_kept) if groups > 1 else None
    moe = MoE(
        experts=experts,
        expert=Gated(hidden=expert_hidden, activation=activation),
        router=TopK(k=k, renormalise=False, scale=scale, groups=limits),
        shared=Shared(op=Gated(hidden=shared * expert_hidden, activation=activation)),
    )
    return with_mixtures(spec, "deepseek_v2", moe, range(dense_layers, layers))


def read_sizes(reader: ConfigReader) -> dict[str, Any]:
    """Read what V2 and V3 have in common, as `build` names it."""
    ranked = "q_lora_rank" in reader
    sizes = llama.read_sizes(reader)
    for key in ("head_dim", "kv_heads"):
        given = sizes.pop(key)
        if key == "kv_heads" and given != sizes["heads"]:
            raise ConfigError(f"{reader.where}: num_key_value_heads = {given} must be num_attention_heads")
    for key in ("output_router_logits", "router_aux_loss_coef", "aux_loss_alpha", "seq_aux", "ep_size", "qk_head_dim"):
        reader.take(key, object, None)  # they matter to training or to how a run is split, or follow from others
    reader.expect("moe_layer_freq", 1)
    reader.expect("pretraining_tp", 1)
    query_rank = reader.take("q_lora_rank", int, None)
    rope = read_rope(reader, dim=reader.take("qk_rope_head_dim", int, 64), context=sizes["context"])
    return sizes | {
        "head_dim": reader.take("qk_nope_head_dim", int, 128),
        "rope_dim": rope.dim,
        "value_dim": reader.take("v_head_dim", int, 128),
        "rank": reader.take("kv_lora_rank", int, 512),
        "query_rank": query_rank if ranked else 1536,
        "dense_layers": reader.take("first_k_dense_replace", int, 0),
        "experts": reader.take("num_local_experts", int, None) or reader.take("n_routed_experts", int),
        "k": reader.take("num_experts_per_tok", int),
        "expert_hidden": reader.take("moe_intermediate_size", int),
        "shared": reader.take("n_shared_experts", int),
        "scale": reader.take("routed_scaling_factor", float, 1.0),
        "rope_base": rope.base,
        "rope_scaling": rope.scaling,
        "attention_bias": reader.take("attention_bias", bool, False),
    }


def read(reader: ConfigReader) -> ModelSpec:
    """Read a `config.json` of model type "deepseek_v2"."""
    sizes = read_sizes(reader)
    groups, kept = reader.take("n_group", int, 1), reader.take("topk_group", int, 1)
    method = reader.take("topk_method", str, "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise ConfigError(f"{reader.where}: topk_method {method!r} is not supported (greedy, group_limited_greedy)")
    reader.expect("scoring_func", "softmax")
    reader.expect("norm_topk_prob", False)
    reader.expect("mlp_bias", False)
    limited = method == "group_limited_greedy"
    return build(**sizes, groups=groups if limited else 1, groups_kept=kept if limited else 1)


def write_sizes(spec: ModelSpec) -> dict[str, Any]:
    """Write what `read_sizes` reads."""
    attention = spec.trunk.blocks[0].subs[0].op
    moe, dense = feed_forward_of(spec, MoE), feed_forward_of(spec, Gated)
    assert isinstance(attention, LatentAttention) and moe is not None and moe.shared is not None
    router, norm = moe.router, spec.trunk.final_norm
    assert isinstance(router, TopK) and norm is not None
    kinds = [type(sub.op) for block in spec.trunk.blocks for sub in block.subs if sub.op.name == "ffn"]
    return {
        "vocab_size": spec.vocab,
        "hidden_size": spec.dim,
        "num_hidden_layers": len(kinds),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.heads,
        "intermediate_size": (dense or moe.expert).hidden,
        "hidden_act": llama.PUBLISHED_ACTIVATIONS.get(moe.expert.activation, moe.expert.activation),
        "max_position_embeddings": spec.context,
        "rms_norm_eps": norm.eps,
        "tie_word_embeddings": spec.tied,
        "q_lora_rank": attention.query_rank,
        "kv_lora_rank": attention.rank,
        "qk_nope_head_dim": attention.head_dim,
        "qk_rope_head_dim": attention.rope.dim,
        "v_head_dim": attention.value_dim,
        "attention_bias": attention.bias,
        "first_k_dense_replace": kinds.count(Gated),
        "n_routed_experts": moe.experts,
        "num_experts_per_tok": router.k,
        "moe_intermediate_size": moe.expert.hidden,
        "n_shared_experts": moe.shared.op.hidden // moe.expert.hidden,
        "routed_scaling_factor": router.scale,
        "n_group": router.groups.count if router.groups else 1,
        "topk_group": router.groups.keep if router.groups else 1,
        "norm_topk_prob": router.renormalise,
        "rope_parameters": write_rope(attention.rope),
    }


def write(spec: ModelSpec) -> dict[str, Any]:
    """Write the `config.json` of a spec that `build` made."""
    sizes = write_sizes(spec)
    return sizes | {"topk_method": "group_limited_greedy" if sizes["n_group"] > 1 else "greedy"}


LAYER: Names = {
    **qwen2_moe.LAYER,
    "attention.op.q_down": "self_attn.q_a_proj",
    "attention.op.q_norm": "self_attn.q_a_layernorm",
    "attention.op.kv_down": "self_attn.kv_a_proj_with_mqa",
    "attention.op.kv_norm": "self_attn.kv_a_layernorm",
    "attention.op.kv": "self_attn.kv_b_proj",
    "ffn.op.router.correction": "mlp.gate.e_score_correction_bias",
    "ffn.op.shared.gate_up": ("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"),
    "ffn.op.shared.down": "mlp.shared_experts.down_proj",
}


def weights(spec: ModelSpec) -> Iterator[Rule]:
    """List the tensors in published order."""
    op = spec.trunk.blocks[0].subs[0].op
    assert isinstance(op, LatentAttention)
    operations: dict[str, tuple[Operation, ...]] = {
        "attention.op.q": (TurnedFirst(op.heads, op.head_dim, op.rope.dim),),
        "attention.op.kv_down": (TurnedFirst(1, op.rank, op.rope.dim),),
        "attention.op.kv": (Regroup(op.heads, (op.head_dim, op.value_dim), (0, 1)),),
    }
    names = {**LAYER, "attention.op.q": "self_attn.q_proj" if op.query_rank is None else "self_attn.q_b_proj"}
    return table(spec, names, llama.TOP, operations)


_YARN = YarnScaling(factor=40.0, original_context=4096, mscale=0.707, mscale_all=0.707)
_SIZE = {"context": 163840, "rope_scaling": _YARN, "k": 6, "shared": 2}
_236B = {"dim": 5120, "layers": 60, "heads": 128, "hidden": 12288, "query_rank": 1536}
_LITE = {"dim": 2048, "layers": 27, "heads": 16, "hidden": 10944, "experts": 64, "expert_hidden": 1408}
FAMILY = Family(
    name="deepseek_v2",
    title="DeepSeek-V2",
    paper="https://arxiv.org/abs/2405.04434",
    origin=Origin(
        published="2024-05",
        parents=("deepseek_moe",),
        brought="a state of one short vector per token, fine-grained experts beside shared ones",
        reference=Running(),
        counts={"deepseek-v2-lite": 15_706_484_224, "deepseek-v2": 235_741_434_880},
    ),
    build=build,
    sizes={
        "deepseek-v2-lite": _SIZE | _LITE,
        "deepseek-v2": _SIZE
        | _236B
        | {"experts": 160, "expert_hidden": 1536, "scale": 16.0, "groups": 8, "groups_kept": 3},
    },
    tiny={
        "vocab": 97,
        "dim": 32,
        "layers": 2,
        "heads": 4,
        "hidden": 48,
        "context": 64,
        "head_dim": 8,
        "rope_dim": 4,
        "value_dim": 12,
        "rank": 16,
        "query_rank": 20,
        "experts": 4,
        "k": 2,
        "expert_hidden": 24,
        "shared": 2,
    },
    format=Format(
        model_type="deepseek_v2",
        architecture="DeepseekV2ForCausalLM",
        read=read,
        write=write,
    ),
    tensors=Tensors(
        weights=weights,
        skipped=llama.FAMILY.tensors.skipped,
    ),
)
