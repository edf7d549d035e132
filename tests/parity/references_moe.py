"""Rows of the mixtures of experts."""

from __future__ import annotations

from typing import Any

from references import Reference
from references_lineage import _like_llama

QWEN: dict[str, Any] = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SHARED: dict[str, Any] = QWEN | {"shared_expert_intermediate_size": 40}
QWEN_WINDOWS: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 5}

REFERENCES = [
    Reference("qwen2-moe", _like_llama("Qwen2Moe", **SHARED)),
    Reference("qwen2-moe-dense", _like_llama("Qwen2Moe", **SHARED, mlp_only_layers=[0], norm_topk_prob=True)),
    Reference("qwen2-moe-windows", _like_llama("Qwen2Moe", **SHARED, **QWEN_WINDOWS, qkv_bias=False)),
    Reference("qwen3-moe", _like_llama("Qwen3Moe", **QWEN, head_dim=16, norm_topk_prob=True)),
    Reference("qwen3-moe-step", _like_llama("Qwen3Moe", **QWEN, **QWEN_WINDOWS, decoder_sparse_step=2)),
    Reference("olmoe", _like_llama("Olmoe", num_experts=5, num_experts_per_tok=3)),
    Reference("olmoe-renormalised", _like_llama("Olmoe", num_experts=5, num_experts_per_tok=3, norm_topk_prob=True)),
]
