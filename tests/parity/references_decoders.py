"""Rows of Gemma 3, GLM-4 and StableLM 2 12B."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from references import Reference
from references_lineage import LLAMA_SIZES, _like_llama

SIZES: dict[str, Any] = {"head_dim": 16, "num_hidden_layers": 3, "sliding_window": 5, "sliding_window_pattern": 3}
SCALED = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4}
ROPES: dict[str, Any] = {"full_attention": SCALED, "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}


def _gemma3(**changes: Any) -> Callable[[], Any]:
    config = transformers.Gemma3TextConfig
    return lambda: transformers.Gemma3ForCausalLM(config(**(LLAMA_SIZES | SIZES | changes)))


REFERENCES = [
    Reference("gemma3", _gemma3(query_pre_attn_scalar=40)),
    Reference("gemma3-scaled", _gemma3(rope_parameters=ROPES)),
    Reference("gemma3-kinds", _gemma3(layer_types=["full_attention"] * 2 + ["sliding_attention"])),
    Reference("glm4", _like_llama("Glm", head_dim=16)),
    Reference(
        "glm4-whole-heads-tied", _like_llama("Glm", head_dim=8, tie_word_embeddings=True, partial_rotary_factor=1.0)
    ),
    Reference("glm4-0414", _like_llama("Glm4", head_dim=16)),
    Reference("glm4-0414-no-biases", _like_llama("Glm4", head_dim=16, attention_bias=False)),
    Reference(
        "stablelm-2-12b",
        _like_llama("StableLm", qk_layernorm=True, use_parallel_residual=True, partial_rotary_factor=0.5),
    ),
    Reference("stablelm-each-head", _like_llama("StableLm", qk_layernorm=True, layer_norm_eps=1e-3)),
]
