"""`config.json` of published checkpoints, with the keys that are found beside them, give the published sizes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from etymon.errors import ConfigError
from etymon.families import ConfigReader, family_named, family_of_model_type

SUMMARY = {"summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True}
SUMMARY |= {"summary_type": "cls_index", "summary_use_proj": True}
GPTJ = SUMMARY | {
    "activation_function": "gelu_new",
    "attn_pdrop": 0.0,
    "bos_token_id": 1,
    "embd_pdrop": 0.0,
    "eos_token_id": 2,
    "gradient_checkpointing": False,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "n_ctx": 2048,
    "n_inner": None,
    "n_positions": 2048,
    "resid_pdrop": 0.0,
    "rotary_dim": 64,
    "scale_attn_weights": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50, "temperature": 1.0}},
    "tie_word_embeddings": False,
    "tokenizer_class": "GPT2Tokenizer",
    "torch_dtype": "float32",
    "transformers_version": "4.25.1",
    "use_cache": True,
}
BAICHUAN2 = {
    "_from_model_config": True,
    "architectures": ["BaichuanForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM"},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "model_max_length": 4096,
    "model_type": "baichuan",
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.33.2",
    "use_cache": False,
    "vocab_size": 125696,
}
FALCON = {
    "alibi": False,
    "apply_residual_connection_post_layernorm": False,
    "architectures": ["RWForCausalLM"],
    "attention_dropout": 0.0,
    "auto_map": {"AutoModelForCausalLM": "modelling_RW.RWForCausalLM"},
    "bias": False,
    "bos_token_id": 11,
    "eos_token_id": 11,
    "hidden_dropout": 0.0,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "parallel_attn": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.27.4",
    "use_cache": True,
    "vocab_size": 65024,
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "pretraining_tp": 1,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama/deepseek-coder-6.7b": LLAMA
    | {"bos_token_id": 32013, "eos_token_id": 32014, "intermediate_size": 11008, "max_position_embeddings": 16384}
    | {"num_key_value_heads": 32, "rms_norm_eps": 1e-06, "rope_scaling": {"factor": 4.0, "type": "linear"}}
    | {"rope_theta": 100000, "transformers_version": "4.33.1", "vocab_size": 32256},
    "llama/llama3.1-8b": LLAMA
    | {"attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000, "eos_token_id": 128001}
    | {"intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": False, "num_key_value_heads": 8}
    | {"rms_norm_eps": 1e-05, "rope_theta": 500000.0, "vocab_size": 128256}
    | {
        "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3"}
        | {"original_max_position_embeddings": 8192}
    },
    "gemma3/gemma3-1b": {
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "bos_token_id": 2,
        "cache_implementation": "hybrid",
        "eos_token_id": [1, 106],
        "final_logit_softcapping": None,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "initializer_range": 0.02,
        "intermediate_size": 6912,
        "max_position_embeddings": 32768,
        "model_type": "gemma3_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 26,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 262144,
    },
    "chatglm2/chatglm3-6b": {
        "_name_or_path": "THUDM/chatglm3-6b",
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"},
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "attention_dropout": 0.0,
        "attention_softmax_in_fp32": True,
        "bias_dropout_fusion": True,
        "ffn_hidden_size": 13696,
        "fp32_residual_connection": False,
        "hidden_dropout": 0.0,
        "hidden_size": 4096,
        "kv_channels": 128,
        "layernorm_epsilon": 1e-05,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "num_attention_heads": 32,
        "num_layers": 28,
        "original_rope": True,
        "padded_vocab_size": 65024,
        "post_layer_norm": True,
        "rmsnorm": True,
        "seq_length": 8192,
        "use_cache": True,
        "torch_dtype": "float16",
        "transformers_version": "4.30.2",
        "tie_word_embeddings": False,
        "eos_token_id": 2,
        "pad_token_id": 0,
    },
    "glm4_0414/glm-4-9b-0414": {
        "architectures": ["Glm4ForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": [151329, 151336, 151338],
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 13696,
        "max_position_embeddings": 32768,
        "model_type": "glm4",
        "num_attention_heads": 32,
        "num_hidden_layers": 40,
        "num_key_value_heads": 2,
        "pad_token_id": 151329,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": 151552,
    },
    "codegen2/codegen2-1b": GPTJ
    | {"_name_or_path": "checkpoints/codegen2-1B/", "architectures": ["CodeGenForCausalLM"], "model_type": "codegen"}
    | {"auto_map": {"AutoModel": "modeling_codegen.CodeGenModel"}, "head_dim": 128, "vocab_size": 51200}
    | {"n_embd": 2048, "n_head": 16, "n_layer": 16},
    "moss/moss-moon-003": GPTJ
    | {"architectures": ["MossForCausalLM"], "model_type": "moss", "auto_map": {"AutoConfig": "configuration_moss"}}
    | {"bos_token_id": 106028, "eos_token_id": 106068, "n_embd": 6144, "n_head": 24, "n_layer": 34}
    | {"vocab_size": 107008},
    "baichuan/baichuan2-7b": BAICHUAN2
    | {"hidden_size": 4096, "intermediate_size": 11008, "max_position_embeddings": 4096, "num_attention_heads": 32}
    | {"num_hidden_layers": 32, "z_loss_weight": 0},
    "baichuan/baichuan2-13b": BAICHUAN2
    | {"hidden_size": 5120, "intermediate_size": 13696, "num_attention_heads": 40, "num_hidden_layers": 40},
    "falcon/falcon-7b": FALCON
    | {"model_type": "RefinedWebModel", "multi_query": True, "hidden_size": 4544, "n_head": 71, "n_layer": 32},
    "falcon/falcon-40b": FALCON
    | {"model_type": "RefinedWeb", "hidden_size": 8192, "n_head": 128, "n_head_kv": 8, "n_layer": 60},
    "qwen/qwen-7b": {
        "architectures": ["QWenLMHeadModel"],
        "auto_map": {"AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"},
        "attn_dropout_prob": 0.0,
        "bf16": False,
        "emb_dropout_prob": 0.0,
        "fp16": False,
        "fp32": False,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "initializer_range": 0.02,
        "kv_channels": 128,
        "layer_norm_epsilon": 1e-06,
        "max_position_embeddings": 32768,
        "model_type": "qwen",
        "no_bias": True,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "onnx_safe": None,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "scale_attn_weights": True,
        "seq_length": 8192,
        "tie_word_embeddings": False,
        "tokenizer_class": "QWenTokenizer",
        "transformers_version": "4.32.0",
        "use_cache": True,
        "use_dynamic_ntk": True,
        "use_flash_attn": "auto",
        "use_logn_attn": True,
        "vocab_size": 151936,
    },
}


@pytest.mark.parametrize("size", CONFIGS)
def test_a_published_config_is_its_size(size: str) -> None:
    family, _, name = size.partition("/")
    reader = ConfigReader(CONFIGS[size], "config.json")
    read = family_of_model_type(CONFIGS[size]["model_type"], "config.json").format.read
    assert read is not None
    spec = read(reader)
    reader.finish()
    assert dataclasses.replace(spec, name=name) == family_named(family).spec(name)


@pytest.mark.parametrize("size", CONFIGS)
def test_a_key_that_nobody_knows_is_named(size: str) -> None:
    config = CONFIGS[size] | {"use_parallel_universe": True}
    reader = ConfigReader(config, "config.json")
    read = family_of_model_type(config["model_type"], "config.json").format.read
    assert read is not None
    read(reader)
    with pytest.raises(ConfigError, match="'use_parallel_universe'"):
        reader.finish()


def test_glm4_is_the_same_in_both_of_its_formats() -> None:
    first = {"hidden_size": 4096, "ffn_hidden_size": 13696, "num_layers": 40, "padded_vocab_size": 151552}
    first |= {"layernorm_epsilon": 1.5625e-07, "rope_ratio": 500, "seq_length": 131072, "vocab_size": 151552}
    config = CONFIGS["chatglm2/chatglm3-6b"] | first
    read = family_named("chatglm").format.read
    assert read is not None
    spec, published = read(ConfigReader(config, "config.json")), family_named("glm4").spec("glm-4-9b-chat")
    assert dataclasses.replace(spec, name=published.name, family="glm4") == published
    with pytest.raises(ConfigError, match="rope_ratio"):  # which stretches positions in one published model
        read(ConfigReader(config | {"padded_vocab_size": 65024}, "config.json"))
