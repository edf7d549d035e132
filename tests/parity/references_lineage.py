"""Rows of the decoder-only families."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from references import Reference

LLAMA_SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
ALTERNATING = ["sliding_attention", "full_attention"]


def _like_llama(name: str, **changes: Any) -> Callable[[], Any]:
    config, model = getattr(transformers, f"{name}Config"), getattr(transformers, f"{name}ForCausalLM")
    return lambda: model(config(**(LLAMA_SIZES | changes)))


REFERENCES = [
    Reference("mistral", _like_llama("Mistral", sliding_window=None)),
    Reference("mistral-window", _like_llama("Mistral", sliding_window=5, head_dim=16)),
    Reference("mixtral", _like_llama("Mixtral", num_local_experts=4)),
    Reference("mixtral-three-of-five", _like_llama("Mixtral", num_local_experts=5, num_experts_per_tok=3)),
    Reference("qwen2", _like_llama("Qwen2", rope_parameters={"rope_type": "default", "rope_theta": 1e6})),
    Reference("qwen2-windows", _like_llama("Qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=1)),
    Reference("qwen3", _like_llama("Qwen3", head_dim=16)),
    Reference("qwen3-biases-tied", _like_llama("Qwen3", attention_bias=True, tie_word_embeddings=True)),
    Reference("gemma", _like_llama("Gemma", num_key_value_heads=1, head_dim=16)),
    Reference("gemma2", _like_llama("Gemma2", head_dim=16, sliding_window=5, query_pre_attn_scalar=20)),
    Reference(
        "gemma2-caps", _like_llama("Gemma2", attn_logit_softcapping=2.0, final_logit_softcapping=3.0, sliding_window=5)
    ),
    Reference("gemma2-no-caps", _like_llama("Gemma2", attn_logit_softcapping=None, final_logit_softcapping=None)),
    Reference("olmo2", _like_llama("Olmo2")),
    Reference(
        "granite",
        _like_llama(
            "Granite",
            embedding_multiplier=3.0,
            residual_multiplier=0.5,
            attention_multiplier=0.3,
            logits_scaling=4.0,
        ),
    ),
    Reference("stablelm", _like_llama("StableLm", partial_rotary_factor=0.5)),
    Reference("stablelm-parallel", _like_llama("StableLm", use_parallel_residual=True, use_qkv_bias=True)),
    Reference("phi", _like_llama("Phi", num_key_value_heads=4)),
    Reference("phi3", _like_llama("Phi3")),
    Reference("phi3-window", _like_llama("Phi3", sliding_window=5)),
    Reference("starcoder2", _like_llama("Starcoder2", sliding_window=5)),
    Reference("starcoder2-plain", _like_llama("Starcoder2", use_bias=False, tie_word_embeddings=False)),
]
