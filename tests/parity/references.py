"""Tiny random reference models with randomised norms and biases, one row per family and variation."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")


@dataclass(frozen=True)
class Reference:
    name: str
    make: Callable[[], Any]
    learned_positions: bool = False
    trace_after_blocks: bool = False  # its hidden states are those after each block, without the embeddings
    padding_is_skipped: bool = True  # it computes the same with and without padding
    decodes_as_it_reads: bool = True  # its own generation agrees with its full pass

    def __str__(self) -> str:
        return self.name


def _llama(**changes: Any) -> Callable[[], Any]:
    sizes: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    return lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**(sizes | changes)))


def _gpt2(**changes: Any) -> Callable[[], Any]:
    sizes: dict[str, Any] = {
        "vocab_size": 97,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**(sizes | changes)))


def _rope(kind: str, **parameters: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **parameters}}


LLAMA3 = _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
YARN = _rope("yarn", factor=4.0, original_max_position_embeddings=16)
REFERENCES = [
    Reference("llama", _llama()),
    Reference("llama-mha-tied", _llama(num_key_value_heads=4, tie_word_embeddings=True)),
    Reference("llama-mqa-wide-heads", _llama(num_key_value_heads=1, head_dim=16)),
    Reference("llama-biases", _llama(attention_bias=True, mlp_bias=True, rms_norm_eps=1e-3)),
    Reference("llama-base", _llama(rope_parameters={"rope_type": "default", "rope_theta": 500.0})),
    Reference("llama-linear", _llama(**_rope("linear", factor=2.0))),
    Reference("llama-llama3", _llama(**LLAMA3)),
    Reference("llama-yarn", _llama(**YARN)),
    Reference("llama-gelu", _llama(hidden_act="gelu")),
    Reference("gpt2", _gpt2(), learned_positions=True),
    Reference("gpt2-untied", _gpt2(tie_word_embeddings=False, n_inner=40), learned_positions=True),
    Reference("gpt2-relu-eps", _gpt2(activation_function="relu", layer_norm_epsilon=1e-3), learned_positions=True),
    Reference("gpt2-by-depth", _gpt2(scale_attn_by_inverse_layer_idx=True), learned_positions=True),
]

for _file in sorted(Path(__file__).parent.glob("references_*.py")):
    REFERENCES += importlib.import_module(_file.stem).REFERENCES


def randomised(reference: Reference, seed: int = 0) -> Any:
    """The reference model with every parameter random: fresh norms (ones) and biases (zeros) would hide faults."""
    torch.manual_seed(seed)
    model = reference.make().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None  # which would only take away the gradient of one row
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = parameter.dim() == 1 and ("norm" in name or "ln_" in name) and name.endswith("weight")
            parameter.copy_(torch.randn(parameter.shape) * 0.2 + (1.0 if is_norm else 0.0))
    return model
