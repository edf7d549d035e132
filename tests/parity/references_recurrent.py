"""State spaces and recurrences with a reference class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from references import Reference


def _mamba(**changes: Any) -> Callable[[], Any]:
    sizes: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "state_size": 8,
    }
    return lambda: transformers.MambaForCausalLM(transformers.MambaConfig(**(sizes | changes)))


def _mamba2(**changes: Any) -> Callable[[], Any]:
    sizes: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_heads": 8,
        "head_dim": 8,
        "n_groups": 2,
        "state_size": 16,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return lambda: transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**(sizes | changes)))


def _rwkv(**changes: Any) -> Callable[[], Any]:
    sizes: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "context_length": 64,
    }
    return lambda: transformers.RwkvForCausalLM(transformers.RwkvConfig(**(sizes | changes)))


def _row(name: str, make: Callable[[], Any], **changes: Any) -> Reference:
    return Reference(name, make, trace_after_blocks=True, **changes)


REFERENCES = [
    _row("mamba", _mamba()),
    # biases of the input projection reach the reference's convolution from left padding
    _row("mamba-biases", _mamba(use_bias=True, layer_norm_epsilon=1e-3), padding_is_skipped=False),
    _row("mamba-untied", _mamba(tie_word_embeddings=False, use_conv_bias=False, expand=3)),
    _row("mamba-shape", _mamba(conv_kernel=3, time_step_rank=5, hidden_act="gelu", num_hidden_layers=3)),
    _row("mamba2", _mamba2()),
    _row("mamba2-one-group", _mamba2(n_groups=1, layer_norm_epsilon=1e-3, tie_word_embeddings=True)),
    _row("mamba2-biases", _mamba2(use_bias=True), padding_is_skipped=False),
    _row("mamba2-shape", _mamba2(conv_kernel=3, use_conv_bias=False, expand=3, num_heads=6, head_dim=16)),
    # the reference forgets the limit when it decodes token by token
    _row(
        "mamba2-limit",
        _mamba2(time_step_limit=[0.4, 0.9], hidden_act="gelu"),
        padding_is_skipped=False,
        decodes_as_it_reads=False,
    ),
    # it pays no attention to masks
    _row("rwkv", _rwkv(), padding_is_skipped=False),
    _row(
        "rwkv-shape",
        _rwkv(
            intermediate_size=80,
            num_hidden_layers=3,
            layer_norm_epsilon=1e-3,
            tie_word_embeddings=True,
        ),
        padding_is_skipped=False,
    ),
]
