"""Rows of the mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from references import Reference
from references_lineage import _like_llama

QWEN: dict[str, Any] = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SHARED: dict[str, Any] = QWEN | {"shared_expert_intermediate_size": 40}
QWEN_WINDOWS: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 5}

LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 20,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 6,
    "v_head_dim": 12,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "num_hidden_layers": 3,
    "routed_scaling_factor": 2.5,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
}


def _v2(**changes: Any) -> Callable[[], Any]:
    return _like_llama("DeepseekV2", **(LATENT | changes))


def _v3(**changes: Any) -> Callable[[], Any]:
    """With random corrections, which are no parameters."""

    def make() -> Any:
        model = _like_llama("DeepseekV3", **(LATENT | {"n_group": 4, "topk_group": 2} | changes))()
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(torch.randn(buffer.shape) * 0.2)
        return model

    return make


OSS: dict[str, Any] = {
    "num_local_experts": 5,
    "num_experts_per_tok": 3,
    "head_dim": 16,
    "sliding_window": 5,
    "num_hidden_layers": 3,
}


def _oss(**changes: Any) -> Callable[[], Any]:
    def make() -> Any:
        model = _like_llama("GptOss", **(OSS | changes))()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        return model

    return make


REFERENCES = [
    Reference("gpt-oss", _oss()),
    Reference("gpt-oss-limit", _oss(swiglu_limit=0.3)),
    Reference("gpt-oss-no-bias", _oss(attention_bias=False, layer_types=["full_attention"] * 3, num_key_value_heads=4)),
    Reference("gpt-oss-ramp", _oss(rope_parameters=YARN | {"truncate": False})),
    Reference("deepseek-v2", _v2()),
    Reference("deepseek-v2-lite", _v2(q_lora_rank=None, first_k_dense_replace=0, n_shared_experts=1)),
    Reference("deepseek-v2-groups", _v2(topk_method="group_limited_greedy", n_group=4, topk_group=2)),
    Reference("deepseek-v2-yarn", _v2(rope_parameters=YARN | {"mscale": 0.707, "mscale_all_dim": 0.5})),
    Reference("deepseek-v2-biases-tied", _v2(attention_bias=True, tie_word_embeddings=True, rms_norm_eps=1e-3)),
    Reference("deepseek-v3", _v3()),
    Reference("deepseek-v3-yarn", _v3(rope_parameters=YARN | {"mscale": 1.0, "mscale_all_dim": 1.0})),
    Reference("deepseek-v3-plain", _v3(norm_topk_prob=False, n_group=1, topk_group=1)),
    Reference("qwen2-moe", _like_llama("Qwen2Moe", **SHARED)),
    Reference("qwen2-moe-dense", _like_llama("Qwen2Moe", **SHARED, mlp_only_layers=[0], norm_topk_prob=True)),
    Reference("qwen2-moe-windows", _like_llama("Qwen2Moe", **SHARED, **QWEN_WINDOWS, qkv_bias=False)),
    Reference("qwen3-moe", _like_llama("Qwen3Moe", **QWEN, head_dim=16, norm_topk_prob=True)),
    Reference("qwen3-moe-step", _like_llama("Qwen3Moe", **QWEN, **QWEN_WINDOWS, decoder_sparse_step=2)),
    Reference("olmoe", _like_llama("Olmoe", num_experts=5, num_experts_per_tok=3)),
    Reference("olmoe-renormalised", _like_llama("Olmoe", num_experts=5, num_experts_per_tok=3, norm_topk_prob=True)),
]
