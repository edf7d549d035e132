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


GPT: dict[str, Any] = {
    "vocab_size": 97,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
NEOX: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
OPT: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def _of(name: str, sizes: dict[str, Any], **changes: Any) -> Callable[[], Any]:
    config = getattr(transformers, f"{name}Config")
    model = getattr(transformers, {"OpenAIGPT": "OpenAIGPTLMHeadModel"}.get(name, f"{name}ForCausalLM"))
    return lambda: model(config(**(sizes | changes)))


def _neo(**changes: Any) -> Callable[[], Any]:
    sizes = {k: v for k, v in NEOX.items() if k not in ("num_hidden_layers", "num_attention_heads")}
    kinds = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 5}
    return _of("GPTNeo", sizes | kinds, **changes)


def _falcon(**changes: Any) -> Callable[[], Any]:
    return _of("Falcon", {k: v for k, v in NEOX.items() if k != "intermediate_size"}, **changes)


def _bloom(**changes: Any) -> Callable[[], Any]:
    return _of("Bloom", {"vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 4}, **changes)


def _mpt(**changes: Any) -> Callable[[], Any]:
    sizes = {"vocab_size": 97, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}
    attention = changes.pop("attn_config", {})
    return lambda: transformers.MptForCausalLM(
        transformers.MptConfig(**sizes, **changes, attn_config={"alibi": True} | attention)
    )


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
    Reference("gpt-neox", _of("GPTNeoX", NEOX | {"num_attention_heads": 2})),  # whose rotated parts have two pairs
    Reference("gpt-neox-sequential", _of("GPTNeoX", NEOX, use_parallel_residual=False, attention_bias=False)),
    Reference("gpt-neox-whole-heads", _of("GPTNeoX", NEOX, rotary_pct=1.0, tie_word_embeddings=True)),
    Reference("gptj", _of("GPTJ", GPT, rotary_dim=4)),
    Reference("codegen", _of("CodeGen", GPT, rotary_dim=4)),
    Reference("gpt-neo", _neo(), learned_positions=True),
    Reference("opt", _of("OPT", OPT), learned_positions=True),
    Reference("opt-350m", _of("OPT", OPT, word_embed_proj_dim=16, do_layer_norm_before=False), learned_positions=True),
    Reference(
        "galactica",
        _of("OPT", OPT, enable_bias=False, layer_norm_elementwise_affine=False, activation_function="gelu"),
        learned_positions=True,
    ),
    Reference("bloom", _bloom()),
    Reference("bloom-six-heads", _bloom(hidden_size=48, n_head=6)),
    Reference("falcon-7b", _falcon()),
    Reference("falcon-40b", _falcon(new_decoder_architecture=True, num_kv_heads=2)),
    Reference("falcon-11b", _falcon(new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1)),
    Reference("falcon-rw", _falcon(alibi=True, multi_query=False, parallel_attn=False, bias=True)),
    Reference("mpt", _mpt()),
    Reference("mpt-clip", _mpt(attn_config={"clip_qkv": 0.5, "softmax_scale": 0.3})),
    Reference("starcoder", _of("GPTBigCode", GPT, n_inner=48), learned_positions=True),
    Reference("bigcode-heads", _of("GPTBigCode", GPT, n_inner=48, multi_query=False), learned_positions=True),
    Reference("gpt1", _of("OpenAIGPT", {k: v for k, v in GPT.items() if "token" not in k}), learned_positions=True),
]
