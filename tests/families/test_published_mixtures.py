"""`config.json` of published mixtures of experts, with all the keys found in them, give the published sizes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from etymon.families import family_named
from etymon.hub.huggingface import read_spec

COMMON: dict[str, Any] = {
    "attention_dropout": 0.0,
    "auto_map": {"AutoModelForCausalLM": "modeling.Model"},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.1",
    "use_cache": True,
}
YARN = {"beta_fast": 32, "beta_slow": 1, "factor": 40, "original_max_position_embeddings": 4096, "type": "yarn"}
DEEPSEEK: dict[str, Any] = COMMON | {
    "attention_bias": False,
    "aux_loss_alpha": 0.001,
    "moe_layer_freq": 1,
    "pretraining_tp": 1,
    "rope_theta": 10000,
    "seq_aux": True,
}
LATENT: dict[str, Any] = DEEPSEEK | {
    "ep_size": 1,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
QWEN: dict[str, Any] = COMMON | {
    "decoder_sparse_step": 1,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
V3: dict[str, Any] = LATENT | {
    "model_type": "deepseek_v3",
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "vocab_size": 129280,
}
V2: dict[str, Any] = LATENT | {
    "model_type": "deepseek_v2",
    "first_k_dense_replace": 1,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_experts_per_tok": 6,
    "rope_scaling": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
    "scoring_func": "softmax",
    "vocab_size": 102400,
}
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek-v3": ("deepseek_v3", V3),
    "deepseek-v2": (
        "deepseek_v2",
        V2
        | {
            "hidden_size": 5120,
            "intermediate_size": 12288,
            "moe_intermediate_size": 1536,
            "n_group": 8,
            "n_routed_experts": 160,
            "num_attention_heads": 128,
            "num_hidden_layers": 60,
            "num_key_value_heads": 128,
            "q_lora_rank": 1536,
            "routed_scaling_factor": 16.0,
            "topk_group": 3,
            "topk_method": "group_limited_greedy",
        },
    ),
    "deepseek-v2-lite": (
        "deepseek_v2",
        V2
        | {
            "hidden_size": 2048,
            "intermediate_size": 10944,
            "moe_intermediate_size": 1408,
            "n_group": 1,
            "n_routed_experts": 64,
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "num_key_value_heads": 16,
            "q_lora_rank": None,
            "routed_scaling_factor": 1.0,
            "topk_group": 1,
            "topk_method": "greedy",
        },
    ),
    "deepseek-moe-16b": (
        "deepseek_moe",
        DEEPSEEK
        | {
            "model_type": "deepseek",
            "first_k_dense_replace": 1,
            "hidden_size": 2048,
            "intermediate_size": 10944,
            "max_position_embeddings": 4096,
            "moe_intermediate_size": 1408,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "norm_topk_prob": False,
            "num_attention_heads": 16,
            "num_experts_per_tok": 6,
            "num_hidden_layers": 28,
            "num_key_value_heads": 16,
            "rope_scaling": None,
            "scoring_func": "softmax",
            "vocab_size": 102400,
        },
    ),
    "qwen1.5-moe-a2.7b": (
        "qwen2_moe",
        QWEN
        | {
            "model_type": "qwen2_moe",
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "max_position_embeddings": 8192,
            "max_window_layers": 21,
            "moe_intermediate_size": 1408,
            "norm_topk_prob": False,
            "num_attention_heads": 16,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "num_hidden_layers": 24,
            "num_key_value_heads": 16,
            "rope_theta": 1000000.0,
            "shared_expert_intermediate_size": 5632,
            "sliding_window": 32768,
        },
    ),
    "qwen3-30b-a3b": (
        "qwen3_moe",
        QWEN
        | {
            "model_type": "qwen3_moe",
            "attention_bias": False,
            "head_dim": 128,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "max_position_embeddings": 40960,
            "max_window_layers": 48,
            "mlp_only_layers": [],
            "moe_intermediate_size": 768,
            "norm_topk_prob": True,
            "num_attention_heads": 32,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "num_hidden_layers": 48,
            "num_key_value_heads": 4,
            "rope_scaling": None,
            "rope_theta": 1000000.0,
            "sliding_window": None,
        },
    ),
    "olmoe-1b-7b": (
        "olmoe",
        COMMON
        | {
            "model_type": "olmoe",
            "attention_bias": False,
            "clip_qkv": None,
            "hidden_size": 2048,
            "intermediate_size": 1024,
            "max_position_embeddings": 4096,
            "norm_topk_prob": False,
            "num_attention_heads": 16,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "num_hidden_layers": 16,
            "num_key_value_heads": 16,
            "output_router_logits": False,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "router_aux_loss_coef": 0.01,
            "vocab_size": 50304,
        },
    ),
    "gpt-oss-20b": (
        "gpt_oss",
        COMMON
        | {
            "model_type": "gpt_oss",
            "attention_bias": True,
            "experts_per_token": 4,
            "head_dim": 64,
            "hidden_size": 2880,
            "initial_context_length": 4096,
            "intermediate_size": 2880,
            "layer_types": ["sliding_attention", "full_attention"] * 12,
            "max_position_embeddings": 131072,
            "num_attention_heads": 64,
            "num_experts_per_tok": 4,
            "num_hidden_layers": 24,
            "num_key_value_heads": 8,
            "num_local_experts": 32,
            "output_router_logits": False,
            "quantization_config": {
                "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
                "quant_method": "mxfp4",
            },
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "factor": 32.0,
                "original_max_position_embeddings": 4096,
                "rope_type": "yarn",
                "truncate": False,
            },
            "rope_theta": 150000,
            "router_aux_loss_coef": 0.9,
            "sliding_window": 128,
            "swiglu_limit": 7.0,
            "vocab_size": 201088,
        },
    ),
    "switch-base-8": (
        "switch",
        {
            "model_type": "switch_transformers",
            "add_router_probs": False,
            "batch_prioritized_routing": False,
            "d_ff": 3072,
            "d_kv": 64,
            "d_model": 768,
            "decoder_sparse_step": 2,
            "decoder_start_token_id": 0,
            "dense_act_fn": "relu",
            "dropout_rate": 0.1,
            "encoder_sparse_step": 2,
            "eos_token_id": 1,
            "expert_capacity": 64,
            "feed_forward_proj": "relu",
            "initializer_factor": 1.0,
            "is_encoder_decoder": True,
            "is_gated_act": False,
            "layer_norm_epsilon": 1e-06,
            "num_decoder_layers": 12,
            "num_experts": 8,
            "num_heads": 12,
            "num_layers": 12,
            "num_selected_experts": 1,
            "num_sparse_decoder_layers": 6,
            "num_sparse_encoder_layers": 6,
            "output_past": True,
            "pad_token_id": 0,
            "relative_attention_max_distance": 128,
            "relative_attention_num_buckets": 32,
            "router_aux_loss_coef": 0.001,
            "router_bias": False,
            "router_dtype": "float32",
            "router_ignore_padding_tokens": False,
            "router_jitter_noise": 0.01,
            "router_type": "tokens_masked",
            "router_z_loss_coef": 0.001,
            "torch_dtype": "float32",
            "use_cache": True,
            "vocab_size": 32128,
        },
    ),
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_config(size: str, tmp_path: Path) -> None:
    family, values = PUBLISHED[size]
    (tmp_path / "config.json").write_text(json.dumps(values))
    spec, found = read_spec(tmp_path)
    assert found.name == family
    expected = family_named(family).spec(size)
    assert dataclasses.replace(spec, name=size) == expected
